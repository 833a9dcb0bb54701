"""The classical peer has to be a good one, or beating it says nothing: it finds views of a rendered room to a centimetre."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenery

from benchmarks.structure_based import StructureMap, evaluate, full_size, lifted, mutual, triangulated
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.records import Frame

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
