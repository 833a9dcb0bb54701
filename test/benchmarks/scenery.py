"""Frames of a made-up wavy surface, and problem sets on it: small, but of the same shape as the real ones."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.problems import ProblemSet, make_sets
from dsac_ros.records import Camera, Frame

CAMERA = Camera(320, 240, 260.0, 265.0, 158.0, 121.0)
FRAMES = 6


class Surface:
    """A FrameSource."""

    map_frame = 'map'

    def __init__(self) -> None:
        self.warnings: Counter[str] = Counter()

    def __len__(self) -> int:
        return FRAMES

    def __iter__(self) -> Iterator[Frame]:
        x, y = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
        for number in range(FRAMES):
            depth = (2 + 0.8 * np.sin(x / 40 + number) * np.cos(y / 30)).astype(np.float32)
            depth[:16, :16] = 0
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_rotvec([0.1 * number, 0.2, -0.1 * number]).as_matrix()
            pose[:3, 3] = [number, 1, 2]
            yield Frame(np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8), CAMERA, number + 1, depth, pose)


@lru_cache(maxsize=1)
def folder() -> Path:
    path = Path(mkdtemp(prefix='dsac_sets_'))
    make_sets(Surface(), path, FRAMES, seed=3)
    return path


def problem_set(name: str) -> ProblemSet:
    return ProblemSet(folder() / f'{name}.npz')
