"""The oracle starts at the truth and finds it; images of nowhere are refused; what a map lacks is said."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.limits import main, oracle, print_strangers
from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import COVARIANCE_KEYS, save_map
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.merging import merge
from dsac_ros.training.triangulation import triangulate_frames


@pytest.fixture(scope='module')
def walk() -> list[Frame]:
    return list(SyntheticSource(1, 1, 24, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


def saved(path: Path, frames: list[Frame] | None) -> Path:
    """A map whose head knows nothing."""
    torch.manual_seed(0)
    landmarks = None
    if frames:
        landmarks = merge(triangulate_frames(frames, True, Budget(500), True), frames, 30_000, np.random.default_rng(0))[1]
    save_map(path, 'map', 'room', Expert(CHANNELS), landmarks, dict.fromkeys(COVARIANCE_KEYS, 1.0), [0.0] * 3, [20.0] * 3, {})
    return path


def test_the_oracle_finds_views_between_the_mapped_ones(walk: list[Frame], tmp_path: Path) -> None:
    localizer = Localizer.from_map(saved(tmp_path / 'room.dsacmap', walk[::2]), 'cpu')
    with torch.inference_mode():
        errors, counts = oracle(localizer, walk[1::6])
    assert errors[:, 0].max() < 0.02 and errors[:, 1].max() < 0.5 and counts.min() > localizer.integrity.min_landmarks


def test_views_of_another_room_are_refused(walk: list[Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    localizer = Localizer.from_map(saved(tmp_path / 'room.dsacmap', walk[::2]), 'cpu')
    other = SyntheticSource(3, 1, 4, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1)
    print_strangers(localizer, list(other), 'rgb')
    assert capsys.readouterr().out.startswith('4 frames of another place: 0 accepted')


def test_a_map_without_landmarks_has_no_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / 'bare.dsacmap', None)
    assert main(['oracle', str(path), str(tmp_path / 'nowhere')]) == 1
    assert 'no such file or folder' in capsys.readouterr().err
