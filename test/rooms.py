"""A tiny synthetic room and a map of it, made once per process: what the tests of mapping and of the localizer share."""
from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from dsac_ros.config import MappingOptions
from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.maps.editing import add_experts, merge_sites
from dsac_ros.records import Frame

FRAMES = 36
TINY = dict(steps=900, width=96, batch=512, augmented=0, capacity=60_000, seed=0)


def tiny_source(frames: int = FRAMES, trajectory: int = 1, width: int = 320, height: int = 240, rate_hz: float = 4.0,
                room: int = 1) -> SyntheticSource:
    """320 x 240 is the encoder's own size; coarse textures paint in a second."""
    bare = SensorOptions(0, 0, 0, 0)
    return SyntheticSource(room, trajectory, frames, width, height, rate_hz, sensor=bare, texels_per_metre=80.0, workers=1)


@lru_cache(maxsize=4)
def tiny_frames(room: int = 1) -> tuple[Frame, ...]:
    return tuple(tiny_source(room=room))


class ListSource:
    """A FrameSource of frames that are there already."""

    map_frame = 'map'

    def __init__(self, frames: Any, **warnings: int) -> None:
        from collections import Counter

        self.frames, self.warnings, self.path = list(frames), Counter(warnings), 'the-bag'

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Any:
        return iter(self.frames)


@lru_cache(maxsize=4)
def tiny_map(room: int = 1) -> tuple[Path, MapBundle]:
    """Path of the map and what map_source returned."""
    from dsac_ros.training.mapping import map_source

    path, name = Path(tempfile.mkdtemp(prefix='dsac_tiny_')) / 'tiny.dsacmap', 'tiny' if room == 1 else f'tiny{room}'
    return path, map_source(ListSource(tiny_frames(room)), path, MappingOptions(**TINY), 'cpu', name, quiet=True)


def second_place() -> np.ndarray:
    """site_from_map of the second room of the tiny site: turned by a right angle about an axis that is none of the room's, and far off."""
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = Rotation.from_rotvec(np.pi / 2 * np.array([0.6, 0.0, 0.8])).as_matrix(), [30.0, -4.0, 2.0]
    return place


@lru_cache(maxsize=1)
def tiny_site() -> Path:
    """Two rooms: tiny, in the frame of the site, and tiny2, elsewhere."""
    site = Path(tempfile.mkdtemp(prefix='dsac_tiny_')) / 'site.dsacmap'
    merge_sites([tiny_map(1)[0]], site)
    add_experts(site, tiny_map(2)[0], site_from_map=second_place())
    return site


def in_site(frame: Frame, room: int) -> Frame:
    """The frame with its reference pose in the frame of the site."""
    return frame if room == 1 else replace(frame, map_from_camera=second_place() @ frame.map_from_camera)
