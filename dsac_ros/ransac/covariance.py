"""From the optimum of the refinement to the covariance that ROS wants."""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.ransac.correspondences import SHAPE, Correspondences, Whitened
from dsac_ros.ransac.estimator import Solution, normal_equations
from dsac_ros.ransac.kernel import Kernel


def sandwich_information(problem: Correspondences, solution: Solution, kernel: Kernel, blocks_BN: Tensor, count: int) -> Tensor:
    """(B, 6, 6) information for a left perturbation that knows of correlated errors (Huber 1967; clusters: Liang & Zeger 1986).

    Residuals of one block, such as cells that share much of their receptive field, may agree in any way; those of different blocks are
    taken for independent.

    Args:
        kernel: what the solution was found with. blocks_BN: integer block of each correspondence, below `count`.
    """
    vectors = problem.vectors(solution.camera_from_map_B44[:, None])
    scale_B1, share_B1 = solution.scale_B[:, None], solution.share_B[:, None]
    white = problem.whitened(problem.residuals(vectors), scale_B1)
    inlier, weight = kernel.expectation(problem, white, share_B1)
    _, slope = normal_equations(problem, white, _slope(problem, white, inlier, weight, kernel), vectors)
    rows_across, rows_along = problem.rows_B13M
    across, along = (vectors @ rows_across)[:, 0], (vectors @ rows_along)[:, 0]
    pull = (weight * white.across_BKN)[:, 0].double()
    pulled = (rows_across * (across * torch.cat([pull, pull], -1))[:, None]).unflatten(-1, (2, -1)).sum(-2)
    if white.along_BKN is not None:
        pulled = pulled + rows_along * (along * (weight * white.along_BKN)[:, 0])[:, None]
    summed = torch.zeros(*pulled.shape[:2], count, dtype=pulled.dtype, device=pulled.device)
    summed = summed.scatter_add(2, blocks_BN[:, None].expand_as(pulled), pulled)
    gradients = problem.moves(vectors)[:, 0].mT @ summed  # (B, 6, blocks)
    occupied = (summed.abs().sum(1) > 0).sum(1).double()
    # Six numbers were fitted to these blocks, and a covariance estimated from few of them is too sure of itself (Hotelling 1931).
    few = (occupied / (occupied - 6).clamp(min=1) * occupied / (occupied - 7).clamp(min=1))[:, None, None]
    bread = slope[:, 0]
    return bread @ torch.linalg.solve_ex(few * gradients @ gradients.mT + _floor(bread), bread)[0]


def _slope(problem: Correspondences, white: Whitened, inlier: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    """Derivative of weight times residual by the residual, in the mean over directions: what the curvature of the score really is."""
    dimensions = 2 * SHAPE - problem.single.freedom
    change = kernel.weight_slope(problem, white, inlier, weight)
    return (weight + 2 / dimensions * white.square_BKN * change).clamp(min=0)


def _floor(matrix: Tensor) -> Tensor:
    eye = torch.eye(6, dtype=matrix.dtype, device=matrix.device)
    return (1e-12 * matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1e-12) * eye


def with_common_shift(hessian_66: Tensor, shift: Tensor) -> Tensor:
    """The information (6, 6) where all that a pose was found by may be turned by `shift` [rad] about each axis of the camera."""
    turn = torch.zeros(6, dtype=hessian_66.dtype, device=hessian_66.device)
    turn[:3] = shift ** 2
    return torch.linalg.inv_ex(torch.linalg.inv_ex(hessian_66 + _floor(hessian_66))[0] + turn.diag())[0]


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
