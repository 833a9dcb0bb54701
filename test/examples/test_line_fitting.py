"""The tutorial: its parts against numpy, and that it shows what it says."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where examples/ lies; last, since the overlay's dsac_ros has to come first

from examples import line_fitting  # noqa: E402
from examples.line_fitting import HALF, LineProblem, draw_images, end_to_end_loss, ransac  # noqa: E402


def scattered(seed: int = 0) -> LineProblem:
    generator = torch.Generator().manual_seed(seed)
    points = 40 * torch.rand(2, 20, 2, dtype=torch.float64, generator=generator) - 20
    ends = draw_images(2, generator).ends_B22.double()
    return LineProblem(points, torch.randn(2, 20, dtype=torch.float64, generator=generator), ends)


def test_images_are_bright_where_the_line_is() -> None:
    images = draw_images(50, torch.Generator().manual_seed(1))
    assert images.ends_B22.abs().amax(-1).sub(HALF).abs().max() < 1e-3
    generator = torch.Generator().manual_seed(2)
    for batch in (images, *(images.some(200, generator) for _ in range(8))):
        places = batch.ends_B22[:, :1] + torch.linspace(0.05, 0.95, 50)[None, :, None] * (batch.ends_B22[:, 1:] - batch.ends_B22[:, :1])
        columns, rows = (places + HALF).long().clamp(0, 63).unbind(-1)
        on_line = batch.pixels_B1HW[torch.arange(len(places))[:, None], 0, rows, columns]
        assert on_line.mean() > 2 * batch.pixels_B1HW.mean()


def test_a_line_goes_through_its_points_and_a_repeat_is_none() -> None:
    problem = scattered()
    lines, valid = problem.solve(torch.tensor([[[3, 7], [4, 4]], [[0, 19], [5, 2]]]))
    assert valid.tolist() == [[True, False], [True, True]]
    off = lines[..., :2] @ problem.points_BN2.mT - lines[..., 2:]
    for image, line, point in ((0, 0, 3), (0, 0, 7), (1, 0, 0), (1, 0, 19), (1, 1, 5), (1, 1, 2)):
        assert abs(float(off[image, line, point])) < 1e-9
    torch.testing.assert_close(lines[valid][:, :2].norm(dim=-1), torch.ones(3, dtype=torch.float64))


def test_loss_is_the_mean_distance_of_the_true_ends() -> None:
    problem = scattered()
    losses = problem.loss(problem.solve(torch.tensor([[[3, 7]], [[0, 19]]]))[0])
    for image, (first, second) in enumerate(((3, 7), (0, 19))):
        a, b = problem.points_BN2[image, [first, second]].numpy()
        away = [abs(np.linalg.det([b - a, end - a])) / np.linalg.norm(b - a) for end in problem.ends_B22[image].numpy()]
        assert float(losses[image, 0]) == pytest.approx(np.mean(away), rel=1e-9)


def test_refinement_is_total_least_squares() -> None:
    problem = scattered()
    lines, _ = problem.solve(torch.tensor([[[3, 7]], [[0, 19]]]))
    refined, votes = problem.refine(lines), problem.votes(lines)
    for image in range(2):
        weights, points = votes[image, 0].numpy() + 1e-9, problem.points_BN2[image].numpy()
        mean = np.average(points, axis=0, weights=weights)
        normal = np.linalg.svd(np.sqrt(weights)[:, None] * (points - mean))[2][1]
        expected = np.append(normal, normal @ mean)
        found = refined[image, 0].numpy()
        np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-6)


def test_gradient_of_the_whole_expectation() -> None:
    """Of both terms of DSAC, by finite differences with the draws held; the gradient of guidance has tests of its own."""
    draws = torch.rand(2, 12, 2, generator=torch.Generator().manual_seed(3)).double()
    alpha = torch.tensor(8.0, dtype=torch.float64)
    problem = scattered()

    def expected(points: torch.Tensor) -> torch.Tensor:
        return end_to_end_loss(ransac(LineProblem(points, problem.log_weights_BN, problem.ends_B22), draws), alpha)[1].loss.sum()
    assert torch.autograd.gradcheck(expected, problem.points_BN2.clone().requires_grad_(), atol=1e-5)


@pytest.mark.slow
def test_end_to_end_beats_regression(tmp_path: Path) -> None:
    """A third of the time that the tutorial takes gives a half less loss; a tenth less is asked for."""
    threads = torch.get_num_threads()
    try:
        losses = line_fitting.main(['--out', str(tmp_path), '--seconds', '4'])
    finally:
        torch.set_num_threads(threads)
    assert losses['end to end'] < 0.9 * losses['regression']
    assert (tmp_path / 'line_fitting.png').stat().st_size > 50_000
