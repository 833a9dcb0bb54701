"""What the head is trained for."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DEPTH = 0.1


def coordinate_loss(points_N3: Tensor, scales_N: Tensor, logits_NM: Tensor, targets_N3: Tensor, centres_M3: Tensor, known_N: Tensor,
                    cluster_weight: float) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of an isotropic Laplace error with the predicted scale, and the cross entropy of the nearest cluster.

    Returns the mean over the known samples and the errors (N,) [m].
    """
    error_N = (points_N3 - targets_N3).norm(dim=-1)
    likelihood_N = error_N / scales_N + 3 * scales_N.log()
    choice_N = F.cross_entropy(logits_NM, torch.cdist(targets_N3, centres_M3).argmin(1), reduction='none')
    loss_N = torch.where(known_N, likelihood_N + cluster_weight * choice_N, torch.zeros_like(error_N))
    return loss_N.sum() / known_N.sum().clamp(min=1), error_N


def reprojection_loss(points_N3: Tensor, scales_N: Tensor, rays_N2: Tensor, camera_from_map_N44: Tensor, active_N: Tensor,
                      focal_px: float, done: float) -> Tensor:
    """Reprojection error in pixels of the encoder's input, with a tanh whose width shrinks from 50 to 1 px as training goes on.

    Width and schedule after ACE (Brachmann et al. 2023, section 3.3); points too near or behind are drawn to 3 m along their ray.
    The scale is held to the error across the ray, since nothing is known along it.
    """
    camera_N3 = (camera_from_map_N44[:, :3, :3] @ points_N3[..., None])[..., 0] + camera_from_map_N44[:, :3, 3]
    z_N = camera_N3[:, 2]
    ahead_N = z_N > MIN_DEPTH
    safe_N = z_N.clamp(min=MIN_DEPTH)
    error_N = focal_px * (camera_N3[:, :2] / safe_N[:, None] - rays_N2).norm(dim=-1)
    width = 1 + 49 * (1 - done ** 2) ** 0.5
    across_N = (error_N * safe_N / focal_px).detach()
    good_N = width * torch.tanh(error_N / width) + across_N / scales_N + 3 * scales_N.log()
    ray_N3 = torch.cat([rays_N2, torch.ones_like(rays_N2[:, :1])], 1) * 3
    bad_N = width + (camera_N3 - ray_N3).abs().sum(-1)
    loss_N = torch.where(active_N, torch.where(ahead_N, good_N, bad_N), torch.zeros_like(error_N))
    return loss_N.sum() / active_N.sum().clamp(min=1)
