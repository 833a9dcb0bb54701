"""Targets of the buffer against an independent back-projection; which cells are kept."""
from __future__ import annotations

from dataclasses import replace
from itertools import count

import cv2
import numpy as np
import pytest
import torch

from dsac_ros.networks.encoder import CHANNELS, input_size, shared_encoder
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.buffer import choose_cells, depth_targets, fill, usable_views


@pytest.fixture
def frames() -> tuple[Frame, ...]:
    import rooms

    return rooms.tiny_frames()[::9]


def projected(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Map points -> pixels, by OpenCV."""
    pose, d = np.linalg.inv(frame.map_from_camera), np.array(frame.camera.distortion)
    turn = cv2.Rodrigues(pose[:3, :3])[0]
    return cv2.projectPoints(points[:, None], turn, pose[:3, 3], frame.camera.matrix(), d if d.size else None)[0][:, 0]


def test_targets_are_where_opencv_projects_them_from(frames: tuple[Frame, ...]) -> None:
    """Whole pixels: a target projected by OpenCV is its pixel, and its distance along the axis the depth there."""
    for frame in frames:
        pixels = np.random.default_rng(0).integers(0, [320, 240], (200, 2)).astype(np.float64)
        points = depth_targets(0, frame, pixels)
        camera_from_map = np.linalg.inv(frame.map_from_camera)
        np.testing.assert_allclose(projected(points, frame), pixels, atol=1e-6)
        depth = (points @ camera_from_map[:3, :3].T + camera_from_map[:3, 3])[:, 2]
        np.testing.assert_allclose(depth, [frame.depth[int(y), int(x)] for x, y in pixels], rtol=1e-6)


def test_targets_of_a_distorted_camera(frames: tuple[Frame, ...]) -> None:
    frame = replace(frames[0], camera=replace(frames[0].camera, distortion_model='plumb_bob', distortion=(-0.2, 0.05, 1e-3, -1e-3, 0.0)))
    pixels = np.array([[5.0, 7.0], [160.0, 120.0], [311.0, 230.0]])
    points = depth_targets(0, frame, pixels)
    np.testing.assert_allclose(projected(points, frame), pixels, atol=1e-3)


def test_no_depth_and_outside_are_unknown(frames: tuple[Frame, ...]) -> None:
    depth = frames[0].depth.copy()
    depth[10, 20] = 0
    frame = replace(frames[0], depth=depth)
    pixels = np.array([[20.0, 10.0], [-0.6, 5.0], [319.6, 5.0], [5.0, 239.6], [21.0, 10.0], [-0.4, 5.0], [-400.0, 1e6]])
    known = np.isfinite(depth_targets(0, frame, pixels)).all(-1)
    assert known.tolist() == [False, False, False, False, True, True, False]


def test_choose_cells(frames: tuple[Frame, ...]) -> None:
    frame, rng = frames[0], np.random.default_rng(0)
    pixels = np.column_stack([np.linspace(-50, 400, 300), np.full(300, 100.0)])
    inside = (pixels[:, 0] > -0.5) & (pixels[:, 0] < 319.5)
    known = np.arange(300) % 3 == 0
    chosen = choose_cells(frame, pixels, known, True, 1000, rng)
    assert chosen.tolist() == np.flatnonzero(inside & known).tolist()
    some = choose_cells(frame, pixels, known, True, 20, rng)
    assert len(set(some)) == 20 and set(some) < set(chosen)
    filled = choose_cells(frame, pixels, known, False, 100, rng)
    assert len(set(filled)) == 100 and set(chosen) < set(filled) and inside[filled].all()
    assert choose_cells(frame, pixels, known & False, True, 10, rng).size == 0


def test_fill_keeps_feature_target_ray_and_owner_of_a_cell_together(frames: tuple[Frame, ...]) -> None:
    """Every sample projects to its ray through the pose of its frame, and the clean features are those of the encoder."""
    encoder, done = shared_encoder('cpu'), []
    rng = np.random.default_rng(0)
    buffer = fill(list(frames), encoder, depth_targets, True, 2400, 1, rng, torch.device('cpu'), Budget(500), lambda: done.append(1))
    assert len(done) == 2 * len(frames) == 8 and 1000 < len(buffer.features_SC) <= 2400
    assert buffer.features_SC.shape[1] == CHANNELS and buffer.features_SC.dtype == torch.float16
    width, height = input_size(320, 240)
    assert buffer.focal_px == pytest.approx(frames[0].camera.fx * width / 320)
    poses = buffer.camera_from_map_F44[buffer.frames_S]
    seen = (poses[:, :3, :3] @ buffer.targets_S3[..., None])[..., 0] + poses[:, :3, 3]
    assert (seen[:, :2] / seen[:, 2:] - buffer.rays_S2).abs().max() < 1e-5
    assert set(buffer.frames_S.tolist()) == {0, 1, 2, 3}
    resized = cv2.resize(frames[2].image, (width, height), interpolation=cv2.INTER_AREA)
    whole = encoder(torch.from_numpy(resized).permute(2, 0, 1)[None])[0].flatten(1).T.half()
    camera = frames[2].camera.resized(width, height)
    j, i = np.meshgrid(np.arange(width // 8), np.arange(height // 8))
    rays = np.stack([(8 * j + 3.5 - camera.cx) / camera.fx, (8 * i + 3.5 - camera.cy) / camera.fy], -1).reshape(-1, 2)
    mine = torch.nonzero(buffer.frames_S == 2)[:, 0]
    distance = torch.cdist(buffer.rays_S2[mine], torch.from_numpy(rays).float())
    near, cell = distance.min(1)
    clean = near < 1e-5
    assert clean.sum() >= 150
    torch.testing.assert_close(buffer.features_SC[mine][clean].float(), whole[cell[clean]].float(), atol=5e-3, rtol=5e-3)


def test_frames_without_a_known_cell_behind_a_distorted_camera(frames: tuple[Frame, ...]) -> None:
    """OpenCV gives None for no points; such a frame adds nothing and breaks nothing."""
    camera = replace(frames[0].camera, distortion_model='plumb_bob', distortion=(0.1, 0.0, 0.0, 0.0))
    empty = replace(frames[0], camera=camera, depth=np.zeros_like(frames[0].depth))
    buffer = fill([replace(frames[0], camera=camera), empty], shared_encoder('cpu'), depth_targets, True, 1000, 0, np.random.default_rng(0),
                  torch.device('cpu'), Budget(500), lambda: None)
    assert set(buffer.frames_S.tolist()) == {0}


def test_augmented_views_end_with_the_budget_and_every_frame_is_there(frames: tuple[Frame, ...]) -> None:
    """On a clock that ticks when it is read: once at the beginning, then before every augmented view."""
    for seconds, views in ((0, 4), (3, 4 + 2), (1000, 12)):
        ticks, done = count(), []
        buffer = fill(list(frames), shared_encoder('cpu'), depth_targets, True, 1200, 2, np.random.default_rng(0), torch.device('cpu'),
                      Budget(seconds, lambda ticks=ticks: next(ticks)), lambda done=done: done.append(1))
        assert len(done) == views and set(buffer.frames_S.tolist()) == {0, 1, 2, 3} and len(buffer.features_SC) == 100 * views


def test_usable_views_fit_the_time(frames: tuple[Frame, ...]) -> None:
    many = list(frames) * 50
    encoder, cpu = shared_encoder('cpu'), torch.device('cpu')
    kept, augmented = usable_views(many, encoder, cpu, Budget(1e6), 2)
    assert len(kept) == len(many) and augmented == 2
    kept, augmented = usable_views(many, encoder, cpu, Budget(0), 2)
    assert 10 <= len(kept) <= 20 and augmented == 0


def test_one_hiccup_does_not_decide_how_many_frames_are_used(frames: tuple[Frame, ...]) -> None:
    """A busy machine may hold up one of the timings for seconds."""
    now, pauses = [0.0], iter([0.01, 10.0])

    def encoder(images: torch.Tensor) -> torch.Tensor:
        now[0] += next(pauses, 0.01)
        return images

    kept, augmented = usable_views(list(frames) * 50, encoder, torch.device('cpu'), Budget(60.0, lambda: now[0]), 2)
    assert len(kept) == 200 and augmented == 2
