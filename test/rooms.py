"""A tiny synthetic room and a map of it, made once per process: what the tests of mapping and of the localizer share."""
from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from dsac_ros.config import MappingOptions
from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.records import Frame

FRAMES = 36
TINY = dict(steps=900, width=96, batch=512, augmented=0, capacity=60_000, seed=0)


def tiny_source(frames: int = FRAMES, trajectory: int = 1, width: int = 320, height: int = 240, rate_hz: float = 4.0) -> SyntheticSource:
    """320 x 240 is the encoder's own size; coarse textures paint in a second."""
    bare = SensorOptions(0, 0, 0, 0)
    return SyntheticSource(1, trajectory, frames, width, height, rate_hz, sensor=bare, texels_per_metre=80.0, workers=1)


@lru_cache(maxsize=1)
def tiny_frames() -> tuple[Frame, ...]:
    return tuple(tiny_source())


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


@lru_cache(maxsize=1)
def tiny_map() -> tuple[Path, MapBundle]:
    """Path of the map and what map_source returned."""
    from dsac_ros.training.mapping import map_source

    path = Path(tempfile.mkdtemp(prefix='dsac_tiny_')) / 'tiny.dsacmap'
    return path, map_source(ListSource(tiny_frames()), path, MappingOptions(**TINY), 'cpu', 'tiny', quiet=True)
