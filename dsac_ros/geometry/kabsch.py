"""Triangles -> rigid transforms in closed form, batched.

Inside, components come first and sets last, (3, 3 points, ...): every operation then runs over all sets in one go, which takes half of the
time of the other way round.
"""
from __future__ import annotations

import torch
from torch import Tensor

MIN_SPREAD = 1e-3  # twice the area of a triangle over its longest side squared: below, its points lie on a line


def align_triangles(source_K33: Tensor, target_K33: Tensor) -> tuple[Tensor, Tensor]:
    """Rigid transforms with target ~ transform @ source of three points: the least squares of Kabsch (1976) without his decomposition.

    The best rotation takes the plane of one triangle into that of the other; what is left is an angle in the plane, in closed form.

    Args:
        source_K33, target_K33: (..., 3, 3) corresponding points, one a row.
    Returns:
        target_from_source (..., 4, 4) and a mask (...): false for collinear, coincident or non-finite points (then the identity).
    """
    source, target = components_first(source_K33), components_first(target_K33)
    source_centre, target_centre = source.mean(1), target.mean(1)
    source, target = source - source_centre[:, None], target - target_centre[:, None]
    frame_s, frame_t = triangle_frame(source), triangle_frame(target)
    s, t = ((points[:, :, None] * frame[:, None, :2]).sum(0) for points, frame in ((source, frame_s), (target, frame_t)))  # in the planes
    cosine = (s * t).sum((0, 1))
    sine = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum(0)
    length = (cosine * cosine + sine * sine).sqrt().clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
    cosine, sine = cosine / length, sine / length
    x, y, z = frame_t.unbind(1)
    rotation = between(frame_s, torch.stack([x * cosine + y * sine, y * cosine - x * sine, z], 1))
    valid = ~_sliver(source) & ~_sliver(target)
    return finite_poses(rotation, target_centre - (rotation * source_centre).sum(1), valid)


def components_first(vectors_K33: Tensor) -> Tensor:
    """(..., points, 3) -> (3, points, ...)."""
    return vectors_K33.movedim((-1, -2), (0, 1)).contiguous()


def triangle_frame(points: Tensor) -> Tensor:
    """Orthonormal axes (3, 3 axes, ...) of three points (3, 3 points, ...): along the first side, in the plane, across it."""
    along, aside = (points[:, 1:] - points[:, :1]).unbind(1)
    x = _unit(along)
    z = _unit(torch.linalg.cross(x, aside, dim=0))
    return torch.stack([x, torch.linalg.cross(z, x, dim=0), z], 1)


def between(source: Tensor, target: Tensor) -> Tensor:
    """The rotation (3, 3, ...) that takes one frame (3, 3 axes, ...) into another one."""
    return (target[:, None] * source).sum(2)


def finite_poses(rotation: Tensor, translation: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(3, 3, ...), (3, ...) and a mask (...) -> (..., 4, 4) and the mask of what is finite too; the identity where it is not."""
    top = torch.cat([rotation, translation[:, None]], 1)
    valid = valid & top.sum((0, 1)).isfinite()
    eye = torch.eye(4, dtype=top.dtype, device=top.device).view(4, 4, *(1 for _ in valid.shape))
    pose = torch.cat([torch.where(valid, top, eye[:3]), eye[3:].expand(-1, -1, *valid.shape)])
    return pose.movedim((0, 1), (-2, -1)), valid


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors * vectors).sum(0).clamp(min=torch.finfo(vectors.dtype).tiny).rsqrt()


def _sliver(triangle: Tensor) -> Tensor:
    first, second = (triangle[:, 1:] - triangle[:, :1]).unbind(1)
    across = torch.linalg.cross(first, second, dim=0)
    longest = torch.maximum((first * first).sum(0), (second * second).sum(0))
    return ~((across * across).sum(0) > (MIN_SPREAD * longest) ** 2) | ~(longest > torch.finfo(longest.dtype).tiny ** 0.25)
