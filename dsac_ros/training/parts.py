"""Rooms and parts of recordings as jobs that a process of its own can map."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DataError
from dsac_ros.records import Frame
from dsac_ros.training.buffer import depth_targets
from dsac_ros.training.splitting import EXTENT_M, split_frames

LOOKS = (8, 6)  # across and down: pixels of a frame whose depth says where it looks


class PartSource:
    """A FrameSource of some of the frames of another, by their place in it."""

    def __init__(self, whole: FrameSource, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, frozenset(indices)
        self.map_frame, self.path = whole.map_frame, getattr(whole, 'path', 'the data')

    @property
    def warnings(self) -> Counter[str]:
        return self.whole.warnings

    @property
    def details(self) -> dict[str, str]:
        return getattr(self.whole, 'details', {})

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame]:
        return (frame for index, frame in enumerate(self.whole) if index in self.indices)


def parts_of(source: FrameSource, extent_m: float = EXTENT_M) -> list[list[int]]:
    """Places in the source of the frames of each overlapping sub-map (split_frames); frames without a pose are in none.

    Where there is no depth, cameras stand in for what they see. Raises DataError where no frame has a pose.
    """
    kept, poses, points = [], [], []
    for index, frame in enumerate(source):
        if frame.map_from_camera is not None:
            kept.append(index)
            poses.append(frame.map_from_camera)
            points.append(_seen(frame))
    if not kept:
        raise DataError(f'{getattr(source, "path", "the data")}: no frame has a reference pose')
    return [[kept[index] for index in part] for part in split_frames(np.stack(poses), points, extent_m)]


def _seen(frame: Frame) -> np.ndarray:
    if frame.depth is None:
        return np.zeros((0, 3))
    x, y = ((np.arange(count) + 0.5) * size / count for count, size in zip(LOOKS, (frame.camera.width, frame.camera.height)))
    return depth_targets(0, frame, np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
