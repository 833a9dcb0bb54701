"""What residuals and weights at a pose say of it, for the tests of integrity."""
from __future__ import annotations

import torch
from torch import Tensor


def weighted_rms(square_N: Tensor, over_N: Tensor, weights_N: Tensor) -> Tensor:
    """Root of the weighted sum of squares over that of other squares, 0 without any weight: one point at the camera's own centre, where an
    angle means nothing, does not spoil it as it would a mean of ratios."""
    square, over = ((weights_N * values_N.nan_to_num(0, 0, 0)).sum() for values_N in (square_N, over_N))
    return (square / over.clamp(min=1e-9)).sqrt()


def tile_sums(places_N2: Tensor, weights_N: Tensor) -> Tensor:
    """(16,): of the weights in each tile of a 4 x 4 grid over the view; what is no number lies in the first."""
    low_2, high_2 = places_N2.amin(0), places_N2.amax(0)
    tile_N2 = (4 * (places_N2 - low_2) / (high_2 - low_2 + 1e-9)).nan_to_num(0, 0, 0).clamp(0, 3.99).long()
    sums = torch.zeros(16, dtype=weights_N.dtype, device=weights_N.device)
    return sums.index_add_(0, 4 * tile_N2[:, 1] + tile_N2[:, 0], weights_N)


def occupied(places_N2: Tensor, weights_N: Tensor, least: float) -> Tensor:
    """Share of the tiles of such a grid that hold more than `least` of the weights."""
    per_tile = tile_sums(places_N2, weights_N)
    return (per_tile > least).double().mean()
