"""The robust estimator: generate, score, refine, with a fixed budget. Correspondences in, the best pose and its evidence out."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.ransac.problems import PointProblem, RayProblem
from dsac_ros.ransac.sampling import draw_minimal_sets


@dataclass(frozen=True)
class Solution:
    """camera_from_map_44 float64; hessian_66 of the whitened robust cost (left perturbation: rotation, translation);
    weights_N: soft inlier weights in [0, 1]; residuals_N: in standard deviations, infinite where unusable; score: soft inlier count."""

    camera_from_map_44: Tensor
    hessian_66: Tensor
    weights_N: Tensor
    residuals_N: Tensor
    score: Tensor


def estimate(problem: RayProblem | PointProblem, sampling_weights_N: Tensor, hypotheses: int, options: EstimatorOptions,
             generator: torch.Generator, start_44: Tensor | None = None) -> Solution:
    """The pose that most correspondences agree on.

    Args:
        problem: float64 correspondences.
        sampling_weights_N: learned guidance, zero for cells that may not be drawn.
        hypotheses: number of minimal sets (all roots of each are scored).
        start_44: a camera_from_map that competes with them.
    """
    weights_N = torch.where(problem.usable_N, sampling_weights_N, torch.zeros_like(sampling_weights_N))
    sets_K3 = draw_minimal_sets(weights_N, hypotheses, options.uniform_share, generator)
    poses_K44, valid_K = problem.solve(sets_K3)
    if start_44 is not None:
        poses_K44 = torch.cat([poses_K44, start_44[None]])
        valid_K = torch.cat([valid_K, torch.ones_like(valid_K[:1])])
    scores_K = soft_inliers(problem.residuals(poses_K44.float()), options.inlier_sigmas).sum(-1)
    scores_K = torch.where(valid_K, scores_K, torch.full_like(scores_K, -1))
    top = scores_K.topk(min(options.refined, len(scores_K))).indices
    return refine_best(problem, poses_K44[top], options)


def refine_best(problem: RayProblem | PointProblem, poses_k44: Tensor, options: EstimatorOptions, widening: float = 0.0) -> Solution:
    """Refine all candidates; the best is chosen afterwards."""
    refined_k44 = refine(problem, poses_k44, options, widening or options.refine_widening)
    residuals_kN = problem.residuals(refined_k44)
    weights_kN = soft_inliers(residuals_kN, options.inlier_sigmas)
    best = weights_kN.sum(-1).argmax()
    pose_144 = refined_k44[best][None]
    _, hessian_166, _ = normal_equations(problem, pose_144, options.inlier_sigmas)
    return Solution(pose_144[0], hessian_166[0], weights_kN[best], residuals_kN[best], weights_kN.sum(-1)[best])


def soft_inliers(residuals: Tensor, threshold: float) -> Tensor:
    """1 - sigmoid(5 (r / threshold - 1)), the soft inlier score of DSAC* (Brachmann & Rother 2021); 0 at infinity."""
    return torch.sigmoid(5 - residuals * (5 / threshold))


def refine(problem: RayProblem | PointProblem, poses_k44: Tensor, options: EstimatorOptions, widening: float) -> Tensor:
    """Iteratively re-weighted Gauss-Newton from a threshold `widening` times as wide to the final one, all candidates at once."""
    steps = options.refine_steps
    for step in range(steps):
        threshold = options.inlier_sigmas * widening ** (1 - step / max(1, steps - 1))
        gradient_k6, hessian_k66, _ = normal_equations(problem, poses_k44, threshold)
        damped = hessian_k66 + 1e-6 * torch.diag_embed(hessian_k66.diagonal(dim1=-2, dim2=-1)) + 1e-9 * torch.eye(
            6, dtype=hessian_k66.dtype, device=hessian_k66.device)
        update_k6 = torch.linalg.solve_ex(damped, -gradient_k6)[0]
        poses_k44 = se3.retract(poses_k44, update_k6.nan_to_num(0).clamp(-0.5, 0.5))
    return poses_k44


def normal_equations(problem: RayProblem | PointProblem, poses_k44: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (k, 6), Gauss-Newton Hessian (k, 6, 6) and weights (k, N) of the soft inlier cost at the poses."""
    residual, jacobian, usable_kN = problem.linearise(poses_k44)
    weights_kN = soft_inliers(residual.norm(dim=-1), threshold) * usable_kN
    weights = weights_kN[..., None].expand(residual.shape).flatten(1)
    jacobian = jacobian.flatten(1, 2)
    weighted = jacobian * weights[..., None]
    return (weighted.mT @ residual.flatten(1)[..., None])[..., 0], weighted.mT @ jacobian, weights_kN
