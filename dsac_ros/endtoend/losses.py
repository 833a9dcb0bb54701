"""How bad a pose is, as something to learn from: bounded gradients everywhere, also at the truth and half a turn away from it."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from dsac_ros.geometry import se3

ROUNDING = 0.1  # of the loss: nearer to the truth each term is a parabola instead of a cone, whose tip has no gradient


def pose_loss(estimates_BK44: Tensor, truths_B44: Tensor, per_degree: float = 1.0, per_metre: float = 100.0,
              cut_off: float = 100.0) -> Tensor:
    """(B, K): rotation [deg] and distance of the camera centres [m], each with its weight; the square root beyond the cut-off.

    Weights and cut-off of DSAC* (Brachmann & Rother 2021), where 1 deg counts as 1 cm. The angle comes from both its sine and cosine;
    by the cosine alone its gradient is 0 / 0 at the truth.

    Args:
        estimates_BK44, truths_B44: map_from_camera.
    """
    turn_BK33 = truths_B44[:, None, :3, :3].mT @ estimates_BK44[..., :3, :3]
    degrees_BK = math.degrees(1) * se3.rotation_angle(turn_BK33)
    metres_BK3 = estimates_BK44[..., :3, 3] - truths_B44[:, None, :3, 3]
    loss_BK = _rounded((per_degree * degrees_BK).square()) + _rounded((per_metre * metres_BK3).square().sum(-1))
    return torch.where(loss_BK > cut_off, (cut_off * loss_BK.clamp(min=cut_off)).sqrt(), loss_BK)


def _rounded(square: Tensor) -> Tensor:
    return (square + ROUNDING ** 2).sqrt() - ROUNDING
