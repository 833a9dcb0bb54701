"""The classical peer has to be a good one, or beating it says nothing: it finds views of a rendered room to a centimetre."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenery

from benchmarks.structure_based import StructureMap, evaluate, full_size, lifted, mutual, triangulated
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.landmarks.keypoints import Keypoints
from dsac_ros.records import Camera, Frame

pytest.importorskip('poselib')


@pytest.fixture
def walk() -> list[Frame]:
    return list(scenery.walk()[:16])


def test_views_between_the_key_frames_are_found(walk: list[Frame]) -> None:
    structure = StructureMap(walk[::2])
    errors = [pose_error(structure.localize(frame), frame.map_from_camera) for frame in walk[1::4]]
    assert max(metres for metres, _ in errors) < 0.01 and max(degrees for _, degrees in errors) < 0.3
    assert structure.megabytes == pytest.approx(sum(len(k.points_M3) for k in structure.key_frames) * 140e-6 + 8 * 32 * 128 * 4e-6)
    row = evaluate(structure.localize, walk[1::8])
    assert '| 100.0 | 100.0 | 100.0 | 100.0 | 0 |' in row


def test_triangulated_points_are_those_of_the_room_and_carry_a_pose(walk: list[Frame]) -> None:
    """Against the exact depth of a rendered room: 1.5 deg of parallax and pixels of f = 480 leave percents."""
    pytest.importorskip('pycolmap')
    frames = walk[::2]
    keypoints = [full_size(frame) for frame in frames]
    errors = []
    for frame, own, found in zip(frames, keypoints, triangulated(frames, keypoints), strict=True):
        true = lifted(frame, own)
        errors.append(np.linalg.norm(found - true, axis=1) / np.linalg.norm(true - frame.map_from_camera[:3, 3], axis=1))
    relative = np.concatenate(errors)
    relative = relative[np.isfinite(relative)]
    assert len(relative) > 700 and np.median(relative) < 0.02 and (relative < 0.1).mean() > 0.85
    structure = StructureMap([replace(frame, depth=None) for frame in frames], rgb_only=True)
    errors = [pose_error(structure.localize(frame), frame.map_from_camera) for frame in walk[1::4]]
    assert max(metres for metres, _ in errors) < 0.02 and max(degrees for _, degrees in errors) < 0.5


def test_a_point_seen_by_two_views_only_stays_out(walk: list[Frame]) -> None:
    pytest.importorskip('pycolmap')
    pair = walk[:2]
    assert all(np.isnan(points).all() for points in triangulated(pair, [full_size(frame) for frame in pair]))


def test_a_keypoint_that_the_other_views_contradict_stays_out() -> None:
    """Five cameras side by side see five points; one keypoint of the first slid along its epipolar line, where no match can tell."""
    pytest.importorskip('pycolmap')
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
    points = np.array([[-0.6, -0.4, 3.0], [-0.3, 0.2, 3.2], [0.0, -0.1, 2.8], [0.3, 0.4, 3.1], [0.6, 0.0, 2.9]])
    words = np.eye(5, 128, dtype=np.float32)
    frames, keypoints = [], []
    for number in range(5):
        pose = np.eye(4)
        pose[0, 3] = 0.2 * number
        offset = points - pose[:3, 3]
        rays = offset[:, :2] / offset[:, 2:] + [[0.1 if (number, at) == (0, 2) else 0.0, 0.0] for at in range(5)]
        frames.append(Frame(np.zeros((480, 640, 3), np.uint8), camera, number + 1, None, pose))
        keypoints.append(Keypoints(rays * 500 + [320, 240], rays, words))
    first, *others = triangulated(frames, keypoints)
    assert np.isnan(first[2]).all()
    np.testing.assert_allclose(np.delete(first, 2, 0), np.delete(points, 2, 0), atol=1e-6)
    for found in others:
        np.testing.assert_allclose(found, points, atol=1e-6)


def test_nothing_in_view_is_no_answer(walk: list[Frame]) -> None:
    structure = StructureMap(walk[::4])
    blank = Frame(np.zeros_like(walk[0].image), walk[0].camera, 1)
    assert structure.localize(blank) is None
    assert evaluate(lambda _: None, walk[:2]).startswith('inf cm 180.00 deg | 0.0 | 0.0 | 0.0 | 0.0 | 0 |')


def test_matches_are_mutual(walk: list[Frame]) -> None:
    words = full_size(walk[0]).descriptors_MD
    first, second = mutual(words, words[::-1])
    assert len(first) > 0.8 * len(words) and (first == len(words) - 1 - second).all()
    assert all(len(part) == 0 for part in mutual(words[:1], words))
