"""The implicit function theorem for poses: one Newton step whose matrix is held constant, from a pose that is there already.

A solver has found the pose at which some equations are zero. One more Newton step changes nothing, but its derivative by whatever the
equations depend on is that of the solution (Krantz & Parks, The Implicit Function Theorem, 2002). So the solver itself, with its branches
and iterations, is never differentiated.
"""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry import se3


def with_gradient(poses: Tensor, tangent: Tensor, sound: Tensor) -> Tensor:
    """The same poses (..., 4, 4), with the derivative of the left perturbation `tangent` (..., 6) where `sound` (...), else with none.

    Args:
        tangent: a Newton step in a graph; of value zero but for rounding, which is taken out.
    """
    tangent = torch.where(sound[..., None], tangent, torch.zeros_like(tangent))
    return se3.retract(poses.detach(), tangent - tangent.detach())


def inverse(matrix: Tensor, max_condition: float) -> tuple[Tensor, Tensor]:
    """Inverse of (..., 6, 6), and where it is sound (...): condition at most `max_condition` in the Frobenius norm. Elsewhere zero."""
    inverted = torch.linalg.inv_ex(matrix)[0]
    condition = matrix.norm(dim=(-2, -1)) * inverted.norm(dim=(-2, -1))
    sound = condition <= max_condition  # false for what is no number
    return torch.where(sound[..., None, None], inverted, torch.zeros_like(inverted)), sound
