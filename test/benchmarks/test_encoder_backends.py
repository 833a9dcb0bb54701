"""Whatever back ends are installed compute the encoder's features."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.encoder_backends import IMAGE, main, race, there

PICTURE = np.random.default_rng(1).integers(0, 256, IMAGE, np.uint8)


def test_all_that_are_there_compute_the_same() -> None:
    threads = torch.get_num_threads()
    found = race(there(1), PICTURE, rounds=2)
    torch.set_num_threads(threads)
    assert found['torch'][2] == 0 and all(0 < wall and 0 < cpu and off < 1e-3 for wall, cpu, off in found.values())


def test_the_difference_is_measured() -> None:
    found = race({'torch': lambda image: np.float32([1.0, -4.0]), 'other': lambda image: np.float32([1.0, -5.0])}, PICTURE, rounds=1)
    assert found['other'][2] == pytest.approx(0.25)


def test_the_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(['--threads', '1']) == 0
    torch.set_num_threads(threads)
    assert '256x192, 1 threads' in (out := capsys.readouterr().out) and '| torch | ' in out
