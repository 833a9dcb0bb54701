"""Hypotheses of minimal sets with their exact derivative by the scene coordinates: P3P and the alignment of triangles.

Neither solver is differentiated; what its poses fulfil is. A root of P3P takes three points onto three rays: six equations, linear in the
points. The alignment of triangles is Kabsch's least squares, whose optimum is one of Wahba's problem: the sum of cross products of turned
and measured points is zero. Its matrix trace(B) - B holds sums of two singular values, hence is regular also where two are equal, and
three points, whose third singular value is zero, are no special case.
"""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.endtoend.implicit import inverse, with_gradient
from dsac_ros.ransac.correspondences import across

MAX_CONDITION = 1e4  # of the equations, with lengths over the distance of the points: beyond, a pose says nothing of its points


def from_rays(poses_K44: Tensor, valid_K: Tensor, bearings_K33: Tensor, points_K33: Tensor) -> Tensor:
    """Roots of P3P (..., 4, 4) with their derivative by the points (..., 3, 3); none where the root is a double one, or not valid.

    Args:
        poses_K44, valid_K: camera_from_map of geometry.p3p, any root. bearings_K33: unit rays.
    """
    poses_K44 = poses_K44.detach()
    seen_K33 = points_K33 @ poses_K44[..., :3, :3].mT + poses_K44[..., None, :3, 3]
    axes = torch.stack(across(_where(valid_K, bearings_K33)), -2)  # (..., 3 points, 2 across, 3)
    residuals_K6 = (axes @ seen_K33[..., None])[..., 0].flatten(-2)
    seen = seen_K33.detach()[..., None, :].expand_as(axes)
    length_K = seen_K33.detach().norm(dim=-1).mean(-1)
    length_K11 = torch.where(valid_K, length_K, torch.ones_like(length_K))[..., None, None]
    equations = torch.cat([torch.linalg.cross(seen, axes) / length_K11[..., None], axes], -1).flatten(-3, -2)
    inverted, sound = inverse(equations, MAX_CONDITION)
    tangent_K6 = -(inverted @ residuals_K6[..., None])[..., 0]
    return with_gradient(poses_K44, torch.cat([tangent_K6[..., :3] / length_K11[..., 0], tangent_K6[..., 3:]], -1), sound & valid_K)


def from_triangles(poses_K44: Tensor, valid_K: Tensor, points_K33: Tensor, seen_K33: Tensor) -> Tensor:
    """Transforms (..., 4, 4) of geometry.kabsch.align_triangles with their derivative by the points (..., 3, 3); none where not valid.

    Args:
        seen_K33: the measured points [m, camera frame].
    """
    poses_K44, seen_K33 = poses_K44.detach(), _where(valid_K, seen_K33)
    seen_centre_K3 = seen_K33.mean(-2)
    seen = seen_K33 - seen_centre_K3[..., None, :]
    moved = points_K33 @ poses_K44[..., :3, :3].mT + poses_K44[..., None, :3, 3]
    shift_K3 = moved.mean(-2) - seen_centre_K3  # zero, and so is the torque
    torque_K3 = torch.linalg.cross(moved - moved.mean(-2, keepdim=True), seen).sum(-2)
    b_K33 = moved.detach().mT @ seen
    eye = torch.eye(3, dtype=seen.dtype, device=seen.device)
    # Of products of lengths, hence the square of the condition; the solver refuses slivers before.
    inverted, sound = inverse(b_K33.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * eye - b_K33, MAX_CONDITION ** 2)
    turn_K3 = (inverted @ torque_K3[..., None])[..., 0]
    tangent_K6 = torch.cat([turn_K3, -shift_K3 - torch.linalg.cross(turn_K3, seen_centre_K3)], -1)
    return with_gradient(poses_K44, tangent_K6, sound & valid_K)


def _where(valid_K: Tensor, vectors_K33: Tensor) -> Tensor:
    """Zeros elsewhere: what is no number would make none of a gradient of zero."""
    return torch.where(valid_K[..., None, None], vectors_K33, torch.zeros_like(vectors_K33))
