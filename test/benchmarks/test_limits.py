"""The oracle starts at the truth and finds it; images of nowhere are refused; what a map lacks is said."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenery import saved_map, walk

from benchmarks.limits import main, oracle, print_strangers
from dsac_ros.localizer import Localizer


def test_the_oracle_finds_views_between_the_mapped_ones(tmp_path: Path) -> None:
    localizer = Localizer.from_map(saved_map(tmp_path / 'room.dsacmap', list(walk()[::2])), 'cpu')
    with torch.inference_mode():
        errors, counts = oracle(localizer, list(walk()[1::6]))
    assert errors[:, 0].max() < 0.02 and errors[:, 1].max() < 0.5 and counts.min() > localizer.integrity.min_landmarks


def test_views_of_another_room_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    localizer = Localizer.from_map(saved_map(tmp_path / 'room.dsacmap', list(walk()[::2])), 'cpu')
    print_strangers(localizer, list(walk(3)[:4]), 'rgb')
    assert capsys.readouterr().out.startswith('4 frames of another place: 0 accepted')


def test_a_map_without_landmarks_has_no_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved_map(tmp_path / 'bare.dsacmap', None)
    assert main(['oracle', str(path), str(tmp_path / 'nowhere')]) == 1
    assert 'no such file or folder' in capsys.readouterr().err
