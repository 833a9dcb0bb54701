"""What is timed is a step that reaches the cells, batched or not; the command prints a row for each way to do it."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenery import folder, problem_set

from benchmarks.training_step import fullest, main, repeated, timed


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_a_timed_step_has_a_gradient(modality: str) -> None:
    problem, truth = fullest(problem_set('iid'), '1 cm 20%', modality)
    took = timed(problem, truth, 16, 2, 600)
    assert len(took.forward_ms) == len(took.backward_ms) == 2 and (took.forward_ms > 0).all() and (took.backward_ms > 0).all()
    assert took.gradient.isfinite().all() and (took.gradient != 0).any(-1).double().mean() > 0.5
    assert took.sound > 0.5


def test_what_is_not_refined_on_has_less_of_a_gradient() -> None:
    problem, truth = fullest(problem_set('iid'), '1 cm 20%', 'rgb')
    shares = [(timed(problem, truth, 8, 1, most).gradient != 0).any(-1).double().mean() for most in (100, 10_000)]
    assert shares[0] < 0.3 < 0.8 < shares[1]


def test_a_batch_repeats_the_image() -> None:
    problem, truth = fullest(problem_set('iid'), '1 cm 20%', 'rgbd')
    batch = repeated(problem, 3)
    assert batch.points_BN3.shape == (3, *problem.points_BN3.shape[1:]) and torch.equal(batch.ranges_BN[2], problem.ranges_BN[0])
    assert timed(batch, truth.expand(3, 4, 4), 8, 1, 600).gradient.shape == batch.points_BN3.shape


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder()), '--cell', '1 cm 20%', '--threads', str(torch.get_num_threads()), '--hypotheses', '8', '--steps', '1']
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ['rgb'] * 3 + ['rgbd'] * 3 and all(row.endswith('%') for row in rows)


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(folder()), '--cell', '7 cm 20%']) == 1
    said = capsys.readouterr().err
    assert 'pose_estimators make' in said and 'known: 1 cm 20%' in said
