"""Rigid transforms as (..., 4, 4) tensors: perturbation, inverse, distances. Tangents are (rotation, translation)."""
from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Cross-product matrix: (..., 3) -> (..., 3, 3) with skew(v) @ x = v x x."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def cayley(omega: Tensor) -> Tensor:
    """Rotation (..., 3, 3) about omega (..., 3) by 2 atan(|omega| / 2)."""
    turn = skew(omega / 2)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return eye + (turn + turn @ turn) * (2 / (1 + omega.square().sum(-1) / 4))[..., None, None]


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle of (..., 3, 3) rotations [rad], accurate near 0 and near pi (atan2 of sine and cosine)."""
    _, r01, r02, r10, _, r12, r20, r21, _ = rotation.flatten(-2).unbind(-1)
    vee = torch.stack([r21 - r12, r02 - r20, r10 - r01], -1)
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(vee.norm(dim=-1), trace - 1)


def from_rotation_translation(rotation: Tensor, translation: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def inverse(transform: Tensor) -> Tensor:
    """Inverse of rigid (..., 4, 4)."""
    rotation_t = transform[..., :3, :3].mT
    return from_rotation_translation(rotation_t, -(rotation_t @ transform[..., :3, 3:])[..., 0])


def retract(transform: Tensor, tangent: Tensor) -> Tensor:
    """Left perturbation: x -> C(omega) (R x + t) + v, tangent (..., 6) = (omega, v).

    C is Cayley's rotation, by 2 atan(|omega| / 2): exp to the second order, and a third of its operations.
    """
    rotation = cayley(tangent[..., :3])
    moved = (rotation @ transform[..., :3, 3:])[..., 0] + tangent[..., 3:]
    return from_rotation_translation(rotation @ transform[..., :3, :3], moved)


def difference(transform: Tensor, reference: Tensor) -> Tensor:
    """The tangent (..., 6) with transform = retract(reference, tangent), short of half a turn."""
    rotation = transform[..., :3, :3] @ reference[..., :3, :3].mT
    _, r01, r02, r10, _, r12, r20, r21, _ = rotation.flatten(-2).unbind(-1)
    vee = torch.stack([r21 - r12, r02 - r20, r10 - r01], -1)
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    omega = vee * (2 / (1 + trace).clamp(min=1e-3))[..., None]  # Cayley's parameters: 2 tan(angle / 2) about the axis
    return torch.cat([omega, transform[..., :3, 3] - (rotation @ reference[..., :3, 3:])[..., 0]], -1)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation closest to (..., 3, 3) in the Frobenius norm (SVD); for poses from files that are not quite orthonormal."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
    return u @ vh
