"""Minimal sets drawn by learned weights (NG-RANSAC, Brachmann & Rother 2019) with a uniform share.

Random numbers come in as tensors: the same ones give the same sets, alone or in a batch, in Python or in an exported program.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_draws(seeds: Sequence[int], sets: int, device: torch.device | str = 'cpu') -> Tensor:
    """(B, sets, 3) float64 in [0, 1), for each image from its own seed."""
    return torch.stack([torch.rand(sets, 3, dtype=torch.float64, device=device, generator=torch.Generator(device).manual_seed(seed))
                        for seed in seeds])


def mixed(weights_BN: Tensor, uniform_share: float) -> Tensor:
    """Probabilities (B, N) of being drawn.

    Args:
        weights_BN: non-negative, zero for what may not be drawn; need not sum to one.
        uniform_share: probability that a draw ignores the weights, so that a confident wrong region cannot hold all of them.
    """
    allowed = (weights_BN > 0).to(weights_BN.dtype)
    learned = weights_BN / weights_BN.sum(-1, keepdim=True).clamp(min=1e-12)
    uniform = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
    return (1 - uniform_share) * learned + uniform_share * uniform


def systematic_draws(offsets: Tensor, hypotheses: int) -> Tensor:
    """(..., hypotheses) points in [0, 1) at equal distances, for draw_minimal_sets: an expert of probability p gets
    p * hypotheses of them, rounded up or down, instead of a binomial number (Kitagawa 1996, systematic resampling).

    Args:
        offsets: (...) uniform in [0, 1).
    """
    return (offsets[..., None] + torch.arange(hypotheses, dtype=offsets.dtype, device=offsets.device)) / hypotheses


def draw_minimal_sets(probabilities_BN: Tensor, draws_BK3: Tensor, cameras_BN: Tensor | None = None) -> Tensor:
    """Indices (B, K, 3), drawn with replacement; sets with repeats, or of nothing, are left for the solver to mask.

    Args:
        cameras_BN: ascending integers of the cameras of a rig; a set then comes from one camera.
    """
    total = probabilities_BN.cumsum(-1)
    last = total.shape[-1] - 1
    wanted = draws_BK3 * total[:, None, -1:]
    if cameras_BN is not None:
        first = torch.searchsorted(total, wanted[..., 0].contiguous(), right=True).clamp(max=last)
        camera = cameras_BN.gather(1, first)
        end = torch.searchsorted(cameras_BN.contiguous(), camera, right=True)
        begin = torch.searchsorted(cameras_BN.contiguous(), camera)
        padded = torch.nn.functional.pad(total, (1, 0))
        low, high = padded.gather(1, begin)[..., None], padded.gather(1, end)[..., None]
        wanted = torch.cat([wanted[..., :1], low + draws_BK3[..., 1:] * (high - low)], -1)
    return torch.searchsorted(total, wanted.flatten(1), right=True).clamp(max=last).unflatten(1, draws_BK3.shape[1:])
