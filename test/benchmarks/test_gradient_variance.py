"""The benchmark's true gradients against finite differences, and that it sees the biases that are known."""
from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import gradient_variance
from benchmarks.gradient_variance import (
    EMPTY_LOSS,
    by_draws,
    by_pools,
    gating_problem,
    in_sample,
    measure,
    not_renormalised,
    only_top,
    over_pools,
    top_only,
    true_gradient,
)


def test_true_gradient_is_that_of_all_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of two out of five hypotheses, enumerated; the draws of the other hypothesis leave a per cent."""
    monkeypatch.setattr(gradient_variance, 'HYPOTHESES', 2)
    logits = torch.tensor([0.3, -0.2, 0.8, 0.0, -1.0], dtype=torch.float64)
    problem = gradient_variance.Problem(lambda values: values.log_softmax(-1), logits, torch.tensor([0.1, 0.9, 0.5, 0.2, 0.7]).double(),
                                        torch.tensor([3.0, 9.0, 1.0, 20.0, 6.0]).double(), torch.tensor([True, True, True, False, True]))
    alpha = torch.tensor(2.0, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    pools = torch.tensor(list(itertools.product(range(5), repeat=2)))
    losses = problem.expectation(pools, alpha).loss
    assert losses[18] == EMPTY_LOSS  # twice the one that is none
    (expected,) = torch.autograd.grad((leaf.softmax(-1)[pools].prod(-1) * losses).sum(), leaf)
    found = true_gradient(problem, alpha, 100_000)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_known_biases_are_seen() -> None:
    gating = gating_problem()
    alpha = gating.alpha()
    truth = true_gradient(gating, alpha, 5000)
    for estimator, scale in ((by_draws(gating, alpha), 1.0), (by_pools(gating, alpha, over_pools, 4), 1.0),
                             (by_pools(gating, alpha, in_sample, 4), 0.75), (by_pools(gating, alpha, in_sample, 2), 0.5)):
        quality = measure(estimator, gating.logits, truth, 4000)
        assert quality.scale == pytest.approx(scale, abs=0.02 + 4 * quality.scale_error) and quality.scale_error < 0.03
        assert quality.cosine > 0.98
    top_truth = true_gradient(only_top(gating), alpha, 5000)
    assert measure(not_renormalised(gating, alpha), gating.logits, top_truth, 4000).cosine < 0.5
    assert measure(by_draws(only_top(gating), alpha), gating.logits, top_truth, 4000).cosine > 0.98


def test_only_the_top_experts_can_be_drawn() -> None:
    gating = gating_problem()
    assert (top_only(gating.logits).exp() > 0).tolist() == [True, True, True, False, True, False, False]
    drawn = only_top(gating).draw(gating.logits[None], torch.Generator().manual_seed(0), 1000) // gradient_variance.OUTCOMES
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 4}
