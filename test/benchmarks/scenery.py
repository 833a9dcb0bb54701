"""A made-up wavy surface and problem sets on it, a walk through a rendered room and maps of it: small, but of the shape of real ones."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from benchmarks.problems import ProblemSet, make_sets
from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.maps.bundle import save_map
from dsac_ros.maps.manifest import COVARIANCE_KEYS
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Camera, Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.merging import merge
from dsac_ros.training.triangulation import keypoints_of, triangulate_frames

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


@lru_cache(maxsize=2)
def walk(room: int = 1) -> tuple[Frame, ...]:
    """24 views without noise, a quarter of a second apart."""
    return tuple(SyntheticSource(room, 1, 24, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


def saved_map(path: Path, frames: list[Frame] | None) -> Path:
    """A map with the landmarks of the frames, where there are any, and a head that knows nothing."""
    torch.manual_seed(0)
    landmarks = None
    if frames:
        found = triangulate_frames(frames, keypoints_of(frames, True), True, Budget(500), True)
        landmarks = merge(found, frames, 30_000, np.random.default_rng(0))[1]
    save_map(path, 'map', 'room', Expert(CHANNELS), landmarks, dict.fromkeys(COVARIANCE_KEYS, 1.0), [0.0] * 3, [20.0] * 3, {})
    return path
