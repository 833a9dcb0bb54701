"""Triangles -> rigid transforms in closed form, batched."""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry import se3

MIN_SPREAD = 1e-3  # twice the area of a triangle over its longest side squared: below, its points lie on a line


def align_triangles(source_K33: Tensor, target_K33: Tensor) -> tuple[Tensor, Tensor]:
    """Rigid transforms with target ~ transform @ source of three points: the least squares of Kabsch (1976) without his decomposition.

    The best rotation takes the plane of one triangle into that of the other; what is left is an angle in the plane, in closed form.

    Args:
        source_K33, target_K33: (..., 3, 3) corresponding points, one a row.
    Returns:
        target_from_source (..., 4, 4) and a mask (...): false for collinear, coincident or non-finite points (then the identity).
    """
    source_centre, target_centre = source_K33.mean(-2), target_K33.mean(-2)
    source, target = source_K33 - source_centre[..., None, :], target_K33 - target_centre[..., None, :]
    frame_s, frame_t = triangle_frame(source), triangle_frame(target)
    s, t = source @ frame_s[..., :2], target @ frame_t[..., :2]  # (..., 3, 2) in the planes
    cosine = (s * t).sum((-2, -1))
    sine = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1)
    length = (cosine.square() + sine.square()).sqrt().clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
    cosine, sine = (cosine / length)[..., None], (sine / length)[..., None]
    turned = torch.stack([frame_t[..., 0] * cosine + frame_t[..., 1] * sine, frame_t[..., 1] * cosine - frame_t[..., 0] * sine,
                          frame_t[..., 2]], -1)
    rotation = turned @ frame_s.mT
    pose = se3.from_rotation_translation(rotation, target_centre - (rotation @ source_centre[..., None])[..., 0])
    valid = ~_sliver(source) & ~_sliver(target) & pose.isfinite().all(-1).all(-1)
    eye = torch.eye(4, dtype=pose.dtype, device=pose.device)
    return torch.where(valid[..., None, None], pose, eye), valid


def triangle_frame(points_K33: Tensor) -> Tensor:
    """Orthonormal axes (..., 3, 3), in columns, of three points, in rows: along the first side, in the plane, across it."""
    normalize = torch.nn.functional.normalize
    x = normalize(points_K33[..., 1, :] - points_K33[..., 0, :], dim=-1)
    y = normalize(points_K33[..., 2, :] - points_K33[..., 0, :], dim=-1)
    z = normalize(torch.linalg.cross(x, y), dim=-1)  # of unit vectors: normalize takes less than 1e-12 for nothing
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


def _sliver(triangle_K33: Tensor) -> Tensor:
    first, second = triangle_K33[..., 1, :] - triangle_K33[..., 0, :], triangle_K33[..., 2, :] - triangle_K33[..., 0, :]
    area = torch.linalg.cross(first, second).norm(dim=-1)
    longest = torch.maximum(first.square().sum(-1), second.square().sum(-1))
    return ~(area > MIN_SPREAD * longest) | ~(longest > torch.finfo(area.dtype).tiny ** 0.25)
