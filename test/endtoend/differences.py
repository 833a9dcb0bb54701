"""Derivatives by central differences, and how far ours are from them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_COSINE = 0.9999
MAX_RATIO = 0.01  # of the lengths, apart from 1


@dataclass(frozen=True)
class Agreement:
    """cosine (...) of our gradients to the true ones, and ratio (...) of the lengths."""

    cosine: Tensor
    ratio: Tensor

    def within(self) -> Tensor:
        return (self.cosine >= MIN_COSINE) & ((self.ratio - 1).abs() <= MAX_RATIO)

    def __str__(self) -> str:
        return f'{self.cosine.numel()} gradients, cosine >= {self.cosine.min():.7f}, ratio {self.ratio.min():.5f} to {self.ratio.max():.5f}'


def agreement(ours: Tensor, true: Tensor) -> Agreement:
    """Of gradients (..., M)."""
    return Agreement(torch.nn.functional.cosine_similarity(ours, true, -1, 1e-30), ours.norm(dim=-1) / true.norm(dim=-1))


def central(function: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """d function / d at (..., M), with an error of step^2, of a function that takes any batch of it: (R, ..., M) -> (R, ...)."""
    moves = step * torch.eye(at.shape[-1], dtype=at.dtype).view(-1, *[1] * (at.dim() - 1), at.shape[-1])
    ahead, behind = function(torch.cat([at + moves, at - moves])).chunk(2)
    return ((ahead - behind) / (2 * step)).movedim(0, -1)


def pose_weights(seed: int, *shape: int) -> Tensor:
    """What a loss might weigh the entries of poses with: (..., 4, 4), nothing in the last row."""
    weights = torch.randn(*shape, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights[..., 3, :] = 0
    return weights
