"""Minimal sets drawn by learned weights (NG-RANSAC, Brachmann & Rother 2019) with a uniform share."""
from __future__ import annotations

import torch
from torch import Tensor


def draw_minimal_sets(weights_N: Tensor, count: int, uniform_share: float, generator: torch.Generator) -> Tensor:
    """Indices (count, 3) of correspondences, drawn with replacement; sets with repeats are left for the solver to mask.

    Args:
        weights_N: non-negative weights, zero for unusable cells; need not sum to one.
        uniform_share: probability that a draw ignores the weights, so that a confident wrong region cannot hold all of them.
    """
    usable = (weights_N > 0).to(weights_N.dtype)
    learned = weights_N / weights_N.sum().clamp(min=1e-12)
    uniform = usable / usable.sum().clamp(min=1)
    mixed = (1 - uniform_share) * learned + uniform_share * uniform
    # A frame without a usable cell must not raise inside of multinomial; its hypotheses are masked as degenerate later.
    mixed = torch.where(mixed.sum() > 0, mixed, torch.ones_like(mixed))
    return torch.multinomial(mixed, 3 * count, replacement=True, generator=generator).view(count, 3)
