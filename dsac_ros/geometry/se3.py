"""Rigid transforms as (..., 4, 4) tensors: exponential, inverse, distances. Tangents are (rotation, translation)."""
from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Cross-product matrix: (..., 3) -> (..., 3, 3) with skew(v) @ x = v x x."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def so3_exp(omega: Tensor) -> Tensor:
    """Rodrigues' formula: axis times angle (..., 3) [rad] -> rotation (..., 3, 3); smooth at zero."""
    square = omega.square().sum(-1)[..., None, None]
    small = square < 1e-8
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle.square())
    k = skew(omega)
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + a * k + b * (k @ k)


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle of (..., 3, 3) rotations [rad], accurate near 0 and near pi (atan2 of sine and cosine)."""
    vee = torch.stack([rotation[..., 2, 1] - rotation[..., 1, 2], rotation[..., 0, 2] - rotation[..., 2, 0],
                       rotation[..., 1, 0] - rotation[..., 0, 1]], -1)
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
    """Left perturbation: x -> exp(omega) (R x + t) + v, tangent (..., 6) = (omega, v)."""
    rotation = so3_exp(tangent[..., :3])
    moved = (rotation @ transform[..., :3, 3:])[..., 0] + tangent[..., 3:]
    return from_rotation_translation(rotation @ transform[..., :3, :3], moved)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation closest to (..., 3, 3) in the Frobenius norm (SVD); for poses from files that are not quite orthonormal."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
    return u @ vh
