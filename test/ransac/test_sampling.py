"""Minimal sets follow the weights and the uniform share."""
from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from dsac_ros.ransac.sampling import draw_minimal_sets

WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0, 8.0, 5.0], dtype=torch.float64)
COUNT = 20000


def drawn(weights: torch.Tensor, share: float, seed: int = 0, count: int = COUNT) -> torch.Tensor:
    return draw_minimal_sets(weights, count, share, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('scale', [1.0, 1e-9, 1e9])
def test_frequencies_are_those_of_the_mixture(share: float, scale: float) -> None:
    """Chi-square of 60,000 draws at p = 1e-4: an error of 1 % in a probability of 0.25 fails it."""
    sets = drawn(scale * WEIGHTS, share)
    assert sets.shape == (COUNT, 3)
    usable = WEIGHTS > 0
    expected = (1 - share) * WEIGHTS / WEIGHTS.sum() + share * usable / usable.sum()
    counts = torch.bincount(sets.flatten(), minlength=len(WEIGHTS))
    assert (counts[~usable] == 0).all()
    assert chisquare(counts[usable].numpy(), (expected[usable] * 3 * COUNT).numpy()).pvalue > 1e-4


def test_the_three_places_of_a_set_are_independent() -> None:
    sets = drawn(WEIGHTS, 0.1)
    p = 0.9 * WEIGHTS / WEIGHTS.sum() + 0.1 * (WEIGHTS > 0) / 5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = torch.bincount(sets[:, a] * 7 + sets[:, b], minlength=49)
        expected = torch.outer(p, p).flatten()
        assert chisquare(pairs[expected > 0].numpy(), (expected[expected > 0] * COUNT).numpy()).pvalue > 1e-4


def test_the_seed_decides() -> None:
    assert torch.equal(drawn(WEIGHTS, 0.1, 5), drawn(WEIGHTS, 0.1, 5))
    assert not torch.equal(drawn(WEIGHTS, 0.1, 5), drawn(WEIGHTS, 0.1, 6))


def test_a_confident_wrong_cell_cannot_hold_all_draws() -> None:
    weights = torch.ones(1000, dtype=torch.float64)
    weights[0] = 1e12
    sets = drawn(weights, 0.1)
    assert 0.09 < (sets != 0).double().mean() < 0.11  # 6,000 of 60,000; 4 sigma are 0.005
    assert (drawn(weights, 0.0) == 0).all()


@pytest.mark.parametrize('weights', [torch.zeros(5, dtype=torch.float64), torch.full((5,), torch.nan, dtype=torch.float64)])
def test_nothing_usable_raises_nothing(weights: torch.Tensor) -> None:
    sets = drawn(weights, 0.1, count=100)
    assert sets.shape == (100, 3) and sets.min() >= 0 and sets.max() < 5
