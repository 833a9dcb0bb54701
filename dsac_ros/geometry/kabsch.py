"""Point sets -> rigid transforms in closed form, batched."""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry import se3

MIN_SPREAD = 1e-3  # second over first singular value of the correlation: below, the points lie on a line


def align_triangles(source_K33: Tensor, target_K33: Tensor) -> tuple[Tensor, Tensor]:
    """kabsch() for three points, without a singular value decomposition: least squares too, masked in the same cases.

    The best rotation takes the plane of one triangle into that of the other; what is left is an angle in the plane, in closed form.
    """
    source_centre, target_centre = source_K33.mean(-2), target_K33.mean(-2)
    source, target = source_K33 - source_centre[..., None, :], target_K33 - target_centre[..., None, :]
    frame_s, flat_s = _plane_frame(source)
    frame_t, flat_t = _plane_frame(target)
    s, t = source @ frame_s[..., :2], target @ frame_t[..., :2]  # (..., 3, 2) in the planes
    cosine = (s * t).sum((-2, -1))
    sine = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1)
    length = (cosine.square() + sine.square()).sqrt().clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
    cosine, sine = (cosine / length)[..., None], (sine / length)[..., None]
    turned = torch.stack([frame_t[..., 0] * cosine + frame_t[..., 1] * sine, frame_t[..., 1] * cosine - frame_t[..., 0] * sine,
                          frame_t[..., 2]], -1)
    rotation = turned @ frame_s.mT
    pose = se3.from_rotation_translation(rotation, target_centre - (rotation @ source_centre[..., None])[..., 0])
    valid = ~flat_s & ~flat_t & pose.isfinite().all(-1).all(-1)
    eye = torch.eye(4, dtype=pose.dtype, device=pose.device)
    return torch.where(valid[..., None, None], pose, eye), valid


def _plane_frame(triangle_K33: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes (..., 3, 3), in columns, the third across the triangle; and which triangles are slivers (...)."""
    first, second = triangle_K33[..., 1, :] - triangle_K33[..., 0, :], triangle_K33[..., 2, :] - triangle_K33[..., 0, :]
    normal = torch.linalg.cross(first, second)
    area, x_length = normal.norm(dim=-1, keepdim=True), first.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(normal.dtype).tiny ** 0.25
    longest = torch.maximum(first.square().sum(-1), second.square().sum(-1))
    flat = ~(area[..., 0] > MIN_SPREAD * longest) | ~(longest > tiny)
    x, z = first / x_length.clamp(min=tiny), normal / area.clamp(min=tiny)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1), flat


def kabsch(source_KN3: Tensor, target_KN3: Tensor, weights_KN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least-squares rigid transforms with target ~ transform @ source (Kabsch 1976; proper rotations only).

    Args:
        source_KN3, target_KN3: (..., N, 3) corresponding points, N >= 3.
        weights_KN: (..., N) non-negative weights; one each when left out.
    Returns:
        target_from_source (..., 4, 4) and a mask (...): false for collinear, coincident or non-finite sets (then the identity).
    """
    if weights_KN is None:
        weights_KN = torch.ones_like(source_KN3[..., 0])
    finite = source_KN3.isfinite().all(-1).all(-1) & target_KN3.isfinite().all(-1).all(-1)
    source = torch.where(finite[..., None, None], source_KN3, torch.zeros_like(source_KN3))
    target = torch.where(finite[..., None, None], target_KN3, torch.zeros_like(target_KN3))
    weights = weights_KN / weights_KN.sum(-1, keepdim=True).clamp(min=torch.finfo(source.dtype).tiny ** 0.5)
    centre_s = (weights[..., None] * source).sum(-2)
    centre_t = (weights[..., None] * target).sum(-2)
    correlation = (weights[..., None] * (target - centre_t[..., None, :])).mT @ (source - centre_s[..., None, :])
    # Squares of huge coordinates overflow, and svd raises for the whole batch where one matrix is not finite.
    finite = finite & correlation.isfinite().all(-1).all(-1)
    u, singular, vh = torch.linalg.svd(torch.where(finite[..., None, None], correlation, torch.zeros_like(correlation)))
    sign = torch.linalg.det(u @ vh).sign()
    rotation = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ vh
    translation = centre_t - (rotation @ centre_s[..., None])[..., 0]
    tiny = torch.finfo(source.dtype).tiny ** 0.5
    valid = finite & (singular[..., 1] > MIN_SPREAD * singular[..., 0]) & (singular[..., 0] > tiny)
    pose = se3.from_rotation_translation(rotation, translation)
    eye = torch.eye(4, dtype=pose.dtype, device=pose.device)
    return torch.where(valid[..., None, None], pose, eye), valid
