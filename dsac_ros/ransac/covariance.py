"""From the Hessian of the refinement to the covariance that ROS wants."""
from __future__ import annotations

import torch
from torch import Tensor


def pose_covariance(hessian_66: Tensor, camera_from_map_44: Tensor) -> Tensor:
    """Covariance (6, 6) of the camera in the map: x, y, z, rotation about the map's fixed axes [m, rad].

    Args:
        hessian_66: of the whitened cost for a left perturbation (rotation, translation) of camera_from_map, already divided by the factor
            by which its inverse understates the truth, since errors of neighbouring cells are correlated (training.calibration).
    """
    floor = 1e-9 * hessian_66.diagonal().sum() + 1e-9
    eye = torch.eye(6, dtype=hessian_66.dtype, device=hessian_66.device)
    tangent = torch.linalg.inv_ex(hessian_66 + floor * eye)[0]
    # First order: camera centre c = -R^T t moves by -R^T v, the rotation of map_from_camera by -R^T omega.
    turn = -camera_from_map_44[:3, :3].T
    o = torch.zeros_like(turn)
    to_map = torch.cat([torch.cat([o, turn], 1), torch.cat([turn, o], 1)], 0)
    covariance = to_map @ tangent @ to_map.T
    return (covariance + covariance.T) / 2
