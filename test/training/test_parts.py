"""Parts of a recording as sources of their own."""
from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))
import rooms  # noqa: E402

from dsac_ros.errors import DataError  # noqa: E402
from dsac_ros.training.parts import PartSource, parts_of  # noqa: E402

FAR_M = 20.0


def two_places(depth: bool) -> rooms.ListSource:
    """24 frames here, one without a pose, 24 frames far away."""
    frames = rooms.tiny_frames()[:24]
    here = [frame if depth else replace(frame, depth=None) for frame in frames]
    moved = []
    for frame in here:
        pose = frame.map_from_camera.copy()
        pose[0, 3] += FAR_M
        moved.append(replace(frame, map_from_camera=pose))
    return rooms.ListSource([*here, replace(here[0], map_from_camera=None), *moved], black=2)


@pytest.mark.parametrize('depth', [True, False])
def test_two_places_become_two_parts_and_a_frame_without_a_pose_is_in_none(depth: bool) -> None:
    assert parts_of(two_places(depth)) == [list(range(24)), list(range(25, 49))]


def test_a_room_stays_one_part() -> None:
    assert parts_of(rooms.ListSource(rooms.tiny_frames())) == [list(range(rooms.FRAMES))]


def test_no_pose_at_all() -> None:
    frames = [replace(frame, map_from_camera=None) for frame in rooms.tiny_frames()[:3]]
    with pytest.raises(DataError, match='the-bag: no frame has a reference pose'):
        parts_of(rooms.ListSource(frames))


def test_a_part_is_read_again_and_again() -> None:
    whole = two_places(True)
    part = PartSource(whole, [30, 3, 4])
    for _ in range(2):
        frames = list(part)
        assert len(part) == 3 and [frame is whole.frames[index] for frame, index in zip(frames, (3, 4, 30))] == [True] * 3
    assert np.ptp([frame.map_from_camera[0, 3] for frame in frames]) > FAR_M / 2
    assert part.warnings == Counter(black=2) and (part.map_frame, part.path, part.details) == ('map', 'the-bag', {})
