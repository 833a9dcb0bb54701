"""The benchmark of integrity counts what it says it does."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.integrity import DAMAGES, OTHER_VIEWS, asked, damaged
from dsac_ros.localizer import Localizer

sys.path.append(str(Path(__file__).resolve().parents[1]))
import rooms  # noqa: E402


def test_good_frames_are_right_and_of_another_place_always_wrong() -> None:
    localizer, frames = Localizer.from_map(rooms.tiny_map(1)[0], 'cpu'), rooms.tiny_frames(1)[::9]
    good = asked(localizer, frames, 'rgbd', True)
    assert good.frames == len(frames) and good.accepted > 0.8 * len(frames) and good.wrong == 0 and 0 < good.exact <= good.accepted
    elsewhere = asked(localizer, frames, 'rgbd', False)
    assert (elsewhere.accepted, elsewhere.wrong, elsewhere.exact) == (good.accepted, good.accepted, 0)


def test_every_kind_of_damage_changes_a_frame_and_black_ones_are_refused() -> None:
    frames = rooms.tiny_frames(1)[:12:3]
    kinds = {kind: (those, is_there) for kind, those, is_there in damaged(frames)}
    assert len(kinds) == len(DAMAGES) + 3
    for kind, (those, is_there) in kinds.items():
        assert len(those) == len(frames) and is_there == (kind not in OTHER_VIEWS)
        for frame, other in zip(frames, those):
            assert other.image.shape == frame.image.shape and other.image.dtype == np.uint8
            assert (other.image != frame.image).any() or other.depth is not frame.depth or other.camera != frame.camera
    black = asked(Localizer.from_map(rooms.tiny_map(1)[0], 'cpu'), kinds['black'][0], 'rgb', True)
    assert black.accepted == black.exact == 0
