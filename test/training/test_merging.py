"""Sightings of known points come together again, in better places than each by itself; what is apart or looks different stays apart."""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.landmarks.keypoints import DIMENSIONS
from dsac_ros.records import Camera, Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.merging import meeting_points, merge, same_look, same_point, sightings, sums
from dsac_ros.training.triangulation import FramePoints, keypoints_of, triangulate_frames

CAMERA = Camera(640, 480, 500.0, 510.0, 320.0, 240.0)
TRUTH_K3 = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-0.8, 0.8, 4), [2.5, 3.0]), -1).reshape(-1, 3)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def words(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, DIMENSIONS))).astype(np.float32)


def views(count: int = 12, pixel: float = 0.5, along: float = 0.004, step: float = 0.08) -> tuple[dict[int, FramePoints], list[Frame]]:
    """Every frame sees all of TRUTH_K3: pixels off by `pixel`, its own idea of the depth off by `along` of it."""
    rng = np.random.default_rng(0)
    descriptors = words(len(TRUTH_K3))
    found, frames = {}, []
    for index in range(count):
        pose = np.eye(4)
        pose[:3, 3] = [step * (index - count / 2), 0.05 * rng.normal(), 0]
        frames.append(Frame(np.zeros((480, 640, 3), np.uint8), CAMERA, index + 1, None, pose))
        offset = TRUTH_K3 - pose[:3, 3]
        pixels = offset[:, :2] / offset[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy] + pixel * rng.normal(size=(len(offset), 2))
        depths = offset[:, 2] * (1 + along * rng.normal(size=len(offset)))
        rays = np.column_stack([(pixels - [CAMERA.cx, CAMERA.cy]) / [CAMERA.fx, CAMERA.fy], np.ones(len(pixels))])
        noisy = unit(descriptors + 0.02 * rng.normal(size=descriptors.shape)).astype(np.float32)
        found[index] = FramePoints(pixels, depths, pose[:3, 3] + rays * depths[:, None], noisy)
    return found, frames


def test_sightings_of_one_point_become_one_landmark_in_a_better_place() -> None:
    """A dozen sightings off by 0.4 % along and half a pixel across meet within 0.6 of the error that each has."""
    found, frames = views()
    moved, landmarks = merge(found, frames, 1000, np.random.default_rng(0))
    assert len(landmarks.points_L3) == len(TRUTH_K3)
    distance = np.linalg.norm(landmarks.points_L3.numpy()[:, None] - TRUTH_K3[None], axis=2)
    assert sorted(distance.argmin(1)) == list(range(len(TRUTH_K3)))
    before = np.median([np.linalg.norm(points.points_M3 - TRUTH_K3, axis=1) for points in found.values()])
    after = np.median([np.linalg.norm(points.points_M3 - TRUTH_K3, axis=1) for points in moved.values()])
    assert np.median(distance.min(1)) < 0.6 * before and after < 0.6 * before
    for index, points in moved.items():
        np.testing.assert_allclose(points.depths_M, points.points_M3[:, 2] - frames[index].map_from_camera[2, 3])
        np.testing.assert_array_equal(points.pixels_M2, found[index].pixels_M2)


def test_what_looks_different_in_one_place_stays_two_points() -> None:
    found, frames = views()
    other = words(len(TRUTH_K3), seed=1)
    mixed = {i: FramePoints(p.pixels_M2, p.depths_M, p.points_M3, other if i % 2 else p.descriptors_MD) for i, p in found.items()}
    labels = same_point(sightings(mixed, frames)).reshape(len(frames), -1)
    assert not np.intersect1d(labels[0::2], labels[1::2]).size
    _, landmarks = merge(mixed, frames, 1000, np.random.default_rng(0))
    assert len(landmarks.points_L3) == 2 * len(TRUTH_K3)


def test_what_is_apart_stays_apart_though_it_looks_the_same() -> None:
    found, frames = views(along=0.001)
    same = np.repeat(words(1), len(TRUTH_K3), 0)
    alike = {i: FramePoints(p.pixels_M2, p.depths_M, p.points_M3, same) for i, p in found.items()}
    labels = same_point(sightings(alike, frames)).reshape(len(frames), -1)
    assert (labels == labels[:1]).all() and len(np.unique(labels)) == len(TRUTH_K3)


def test_a_wrong_sighting_hardly_moves_a_point() -> None:
    found, frames = views(pixel=0.1, along=0.001)
    right, labels = sightings(found, frames), np.tile(np.arange(len(TRUTH_K3)), len(frames))
    wrong = sightings({**found, 5: replace(found[5], pixels_M2=found[5].pixels_M2 + 12)}, frames)
    before, after = (np.linalg.norm(meeting_points(s, labels) - TRUTH_K3, axis=1) for s in (right, wrong))
    assert np.median(before) < 2e-3 and np.median(after) < 3e-3 and after.max() < 1.5e-2


def test_meeting_points_are_where_least_squares_puts_them() -> None:
    """Against scipy, on exact rays: the same residuals written out, with weights of one because nothing is an outlier."""
    from scipy.optimize import least_squares

    found, frames = views(pixel=1e-3, along=1e-4)
    seen = sightings(found, frames)
    labels = np.tile(np.arange(len(TRUTH_K3)), len(frames))
    ours = meeting_points(seen, labels)
    for point in (0, 17):
        mine = labels == point
        distance = np.linalg.norm(seen.points_S3[mine] - seen.centres_S3[mine], axis=1)

        def residuals(x: np.ndarray, mine: np.ndarray = mine, distance: np.ndarray = distance) -> np.ndarray:
            offset, rays = x - seen.points_S3[mine], seen.rays_S3[mine]
            along = (offset * rays).sum(1)
            across = (offset - along[:, None] * rays) * (500.0 / distance)[:, None]
            return np.concatenate([across.ravel(), along / (0.03 * distance)])

        np.testing.assert_allclose(ours[point], least_squares(residuals, TRUTH_K3[point]).x, atol=1e-6)


def test_one_point_seen_from_two_sides_keeps_two_looks() -> None:
    """One label in: views 60 degrees apart, and from four times the distance, are looks of their own even with equal descriptors."""
    descriptors = np.repeat(words(1), 6, 0)
    ahead = np.array([[0, 0, 1.0], [0.05, 0, 1.0]])
    views_S3 = np.concatenate([ahead, ahead @ np.array([[0.5, 0, -0.87], [0, 1, 0], [0.87, 0, 0.5]]), 4 * ahead])
    looks = same_look(descriptors, views_S3, np.zeros(6, int))
    assert looks.tolist() == [0, 0, 1, 1, 2, 2]
    assert same_look(words(6), np.repeat(ahead[:1], 6, 0), np.zeros(6, int)).tolist() == list(range(6))


def test_rare_points_are_left_out_where_most_are_seen_often() -> None:
    found, frames = views(count=40, step=0.01)
    once = FramePoints(np.array([[320.0, 240.0]]), np.array([1.5]), np.array([[-1.6, 0.0, 1.5]]), words(1, seed=9))
    first = found[0]
    found[0] = FramePoints(*(np.concatenate([getattr(first, n), getattr(once, n)])
                             for n in ('pixels_M2', 'depths_M', 'points_M3', 'descriptors_MD')))
    _, landmarks = merge(found, frames, 1000, np.random.default_rng(0))
    assert len(landmarks.points_L3) == len(TRUTH_K3)
    few, frames = views(count=3)
    few[0] = FramePoints(*(np.concatenate([getattr(few[0], n), getattr(once, n)])
                           for n in ('pixels_M2', 'depths_M', 'points_M3', 'descriptors_MD')))
    assert len(merge(few, frames, 1000, np.random.default_rng(0))[1].points_L3) == len(TRUTH_K3) + 1


def test_most_is_a_limit_and_nothing_found_is_no_landmark() -> None:
    found, frames = views()
    _, landmarks = merge(found, frames, 7, np.random.default_rng(0))
    assert landmarks.points_L3.shape == landmarks.views_L3.shape == (7, 3) and len(landmarks.descriptors_LC) == 7
    assert merge(found, frames, 0, np.random.default_rng(0))[1] is None
    assert merge({}, frames, 7, np.random.default_rng(0)) == ({}, None)


def test_sums_are_by_label() -> None:
    np.testing.assert_array_equal(sums(np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([1, 0, 1])), [[3, 4], [6, 8]])


@lru_cache(maxsize=1)
def walk() -> tuple[Frame, ...]:
    """24 views of a rendered room, 0.25 s apart."""
    return tuple(SyntheticSource(1, 1, 24, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


@pytest.mark.parametrize('use_depth', [True, False])
def test_in_a_rendered_room_merged_points_lie_nearer_to_the_surfaces(use_depth: bool) -> None:
    frames = list(walk())
    found = triangulate_frames(frames, keypoints_of(frames, True), use_depth, Budget(500), True)
    moved, landmarks = merge(found, frames, 30_000, np.random.default_rng(0))

    def off(points: dict[int, FramePoints]) -> np.ndarray:
        relative = []
        for index, p in points.items():
            x, y = np.clip(np.rint(p.pixels_M2).astype(int), 0, [479, 359]).T
            relative.append(np.abs(p.depths_M / frames[index].depth[y, x] - 1))
        return np.concatenate(relative)

    assert len(landmarks.points_L3) < 0.6 * sum(len(p.pixels_M2) for p in found.values())
    np.testing.assert_allclose(landmarks.cameras_F34, [frames[index].map_from_camera[:3] for index in sorted(found)], atol=1e-6)
    before, after = np.median(off(found)), np.median(off(moved))
    if use_depth:  # which has no noise here: there is nothing to gain
        assert after < 2e-3
    else:  # sixteen of the other 23 views were partners already
        assert after < before < 0.01, (before, after)
    found = triangulate_frames(frames, keypoints_of(frames, True), use_depth, Budget(500), True)
    again = merge(found, frames, 30_000, np.random.default_rng(0))[1]
    np.testing.assert_array_equal(landmarks.points_L3, again.points_L3)  # whichever thread was first
