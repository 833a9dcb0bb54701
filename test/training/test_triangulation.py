"""Triangulated depths against the true ones of a synthetic room, and the geometry against points that are known."""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.triangulation import (
    PARTNERS,
    FramePoints,
    choose_partners,
    keypoints_of,
    meet,
    triangulate_frames,
    triangulated_targets,
)


@lru_cache(maxsize=1)
def walk() -> tuple[Frame, ...]:
    """24 views 0.25 s apart, a step of 8 cm and a few degrees each."""
    return tuple(SyntheticSource(1, 1, 24, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


def triangulated(frames: list[Frame], use_depth: bool, budget: Budget | None = None, **more: Any) -> dict[int, FramePoints]:
    return triangulate_frames(frames, keypoints_of(frames, True), use_depth, budget or Budget(500), True, **more)


def test_depths_are_those_of_the_room() -> None:
    """Parallax of 1.5 degrees and 1 px of f = 400: 10 % of the depth at the worst, 2 % in the median; wrong matches are few."""
    frames = list(walk())
    found = triangulated(frames, False)
    assert len(found) > 15 and sum(len(p.pixels_M2) for p in found.values()) > 500
    relative = []
    for index, points in found.items():
        camera = frames[index].camera
        x, y = np.clip(np.rint(points.pixels_M2).astype(int), 0, [camera.width - 1, camera.height - 1]).T
        relative.append(points.depths_M / frames[index].depth[y, x] - 1)
        # the points themselves: depth along the pixel's own ray, up to the pixel of disagreement that is allowed
        seen = np.linalg.inv(frames[index].map_from_camera) @ np.column_stack([points.points_M3, np.ones(len(x))]).T
        np.testing.assert_allclose(seen[2], points.depths_M, rtol=1e-9)
        pixel = (seen[:2] / seen[2]).T * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        assert np.linalg.norm(pixel - points.pixels_M2, axis=1).max() < 6
    relative = np.abs(np.concatenate(relative))
    assert np.median(relative) < 0.02 and (relative < 0.1).mean() > 0.85, np.quantile(relative, [0.5, 0.8, 0.9])


def test_depth_beside_the_rays_makes_them_better() -> None:
    frames = list(walk())[:12]
    found = triangulated(frames, True)
    relative = []
    for index, points in found.items():
        x, y = np.clip(np.rint(points.pixels_M2).astype(int), 0, [479, 359]).T
        relative.append(points.depths_M / frames[index].depth[y, x] - 1)
    relative = np.abs(np.concatenate(relative))
    assert len(relative) > 300 and np.median(relative) < 0.01 and (relative < 0.05).mean() > 0.95


def test_targets_lie_on_the_ray_of_their_cell_near_the_surface() -> None:
    frames = list(walk())
    found = triangulated(frames, False)
    targets = triangulated_targets(found)
    index = max(found, key=lambda i: len(found[i].pixels_M2))
    frame = frames[index]
    pixels = np.stack(np.meshgrid(np.arange(0, 480, 12.0), np.arange(0, 360, 12.0)), -1).reshape(-1, 2)
    points = targets(index, frame, pixels)
    known = np.isfinite(points).all(1)
    assert 20 < known.sum() < len(pixels)
    seen = (np.linalg.inv(frame.map_from_camera) @ np.column_stack([points[known], np.ones(known.sum())]).T)[:3]
    ours = (seen[:2] / seen[2]).T * [frame.camera.fx, frame.camera.fy] + [frame.camera.cx, frame.camera.cy]
    np.testing.assert_allclose(ours, pixels[known], atol=1e-6)
    nearest = np.linalg.norm(pixels[:, None] - found[index].pixels_M2[None], axis=2).min(1)
    assert ((nearest < 10.0) == known).all()
    assert np.isnan(triangulated_targets({})(0, frame, pixels)).all()
    # a distorted camera and no keypoint near any of the pixels asked for
    distorted = replace(frame, camera=replace(frame.camera, distortion_model='plumb_bob', distortion=(0.1, 0.0, 0.0, 0.0)))
    assert np.isnan(targets(index, distorted, np.array([[-500.0, -500.0]]))).all()


def test_within_a_stretch_only_its_own_views_count() -> None:
    """Three stretches: wrong poses of the others move points, but not those that a stretch triangulates by itself."""
    frames, stretches = list(walk()), np.repeat([0, 1, 2], 8)
    whole = triangulated(frames, False)
    both = triangulated(frames, False, stretches_F=stretches)
    assert both.keys() == whole.keys() and all(points.within is None for points in whole.values())
    for index, points in both.items():
        np.testing.assert_array_equal(points.points_M3, whole[index].points_M3)
    moved = [f if s == 1 else replace(f, map_from_camera=f.map_from_camera + np.eye(4, k=3) * 0.02) for f, s in zip(frames, stretches)]
    again = triangulated(moved, False, stretches_F=stretches)
    mine = [index for index in both if stretches[index] == 1 and index in again]
    assert len(mine) > 4

    def same(first: FramePoints, second: FramePoints) -> np.ndarray:
        """Of the keypoints of a frame that both have, whether they are at the same place."""
        _, one, two = np.intersect1d(first.pixels_M2 @ [1, 1j], second.pixels_M2 @ [1, 1j], return_indices=True)
        return np.linalg.norm(first.points_M3[one] - second.points_M3[two], axis=1) < 1e-9

    # Partners that the wrong poses hide or show change which of the keypoints match.
    assert np.concatenate([same(both[i].within, again[i].within) for i in mine]).mean() > 0.8
    assert np.concatenate([same(both[i], again[i]) for i in mine]).mean() < 0.3


def test_no_time_and_blank_images_give_nothing() -> None:
    frames = list(walk())[:4]
    assert triangulated(frames, False, Budget(0)) == {}
    blank = [replace(f, image=np.zeros_like(f.image)) for f in frames]
    assert triangulated(blank, False) == {}


@pytest.mark.parametrize('with_prior', [False, True])
def test_meet_finds_the_points_of_exact_rays(with_prior: bool) -> None:
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(30, 3)) + [0, 0, 4], rng.normal(size=(5, 3)) * 0.5
    directions = points[None] - centres[:, None]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    used = rng.random((5, 30)) < 0.8
    used[:2] = True
    directions[~used] = rng.normal(size=(int((~used).sum()), 3))  # unused rays may be anything
    prior = points if with_prior else np.full_like(points, np.nan)
    np.testing.assert_allclose(meet(directions, centres, used, prior, 400.0), points, atol=1e-5)


def test_partners_look_the_same_way_from_other_places() -> None:
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, 0, 3] = np.arange(40) * 0.1
    poses[20:, :3, :3] = Rotation.from_euler('y', 90, degrees=True).as_matrix()
    poses[5, 0, 3] = poses[0, 0, 3]
    partners = choose_partners(0, poses)
    assert 0 not in partners and 5 not in partners and partners.max() < 20
    assert 3 <= len(partners) <= PARTNERS and len(set(partners)) == len(partners)
    assert len(choose_partners(0, poses[:1])) == 0
