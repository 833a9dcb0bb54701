"""Point sets -> rigid transforms in closed form, batched."""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry import se3

MIN_SPREAD = 1e-3  # second over first singular value of the correlation: below, the points lie on a line


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
