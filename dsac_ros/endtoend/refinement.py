"""The refined optimum of a hypothesis with its exact derivative by the scene coordinates and their stated noise.

What refinement (ransac.estimator.refine) converges to is the pose at which the weighted residuals pull nowhere. Where bearings have noise
that is no maximum of the score: the information across a ray depends on the range, hence on the pose, and is held constant in each step.
So the equation is differentiated and not the score, with all that its weights and its information depend on; its matrix is not symmetric.
"""
from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.endtoend.implicit import inverse, with_gradient
from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import ASSUMED_SHARE, SCORED_NEXT, Candidates, normal_equations, refine
from dsac_ros.ransac.kernel import Kernel

SETTLING_STEPS = 12  # of expectation maximisation beyond those of the estimator, which need not reach the optimum
STRETCH = 1.7  # of these steps (ransac.estimator.refine)
NEWTON_STEPS = 3
MAX_STEP = 0.2  # of Newton [m, rad]
CONVERGED = 1e-5  # [m, rad] that a further step would go
MAX_CONDITION = 1e6  # of the scaled matrix: beyond, the optimum is a valley


@dataclass(frozen=True)
class Refined:
    """poses_BK44: rig_from_map. sound_BK: whether an optimum was reached that is no valley; the pose has a gradient there alone."""

    poses_BK44: Tensor
    sound_BK: Tensor


def refined(problem: Correspondences, poses_BK44: Tensor, options: EstimatorOptions, searched: Correspondences | None = None) -> Refined:
    """The optima near K poses as refine() with stated noise finds them, followed to the end; differentiable by points, scales and angles.

    As in the estimator, a part of many correspondences leads to the neighbourhood of the optimum of all.

    Args:
        searched: the problem that poses are refined in before, as are cells without depth (ransac.cells).
    """
    kernel = Kernel(options.inlier_sigmas)
    with torch.no_grad():
        still = constant(problem)
        first = still if searched is None else constant(searched)
        poses_BK44 = _nearer(first, poses_BK44, options.refine_steps, options.refine_widening, 1.0, kernel)
        vectors_BK13 = still.vectors(_nearer(still, poses_BK44, SETTLING_STEPS, 1.0, STRETCH, kernel))
        for _ in range(NEWTON_STEPS):
            vectors_BK13 = still.moved(vectors_BK13, newton(still, vectors_BK13, kernel)[0])
        step_BK6, inverse_BK66, sound_BK = newton(still, vectors_BK13, kernel)
        sound_BK = sound_BK & (step_BK6.norm(dim=-1) < CONVERGED)
    white = problem.whitened(problem.residuals(vectors_BK13), torch.ones_like(vectors_BK13[..., 0]))
    _, weight_BKN = kernel.expectation(problem, white, ASSUMED_SHARE)
    gradient_BK6, _ = normal_equations(problem, white, weight_BKN, vectors_BK13)
    tangent_BK6 = -(inverse_BK66 @ gradient_BK6[..., None])[..., 0]
    return Refined(with_gradient(still.poses(vectors_BK13), tangent_BK6, sound_BK), sound_BK)


def _nearer(problem: Correspondences, poses_BK44: Tensor, steps: int, widening: float, stretch: float, kernel: Kernel) -> Tensor:
    """Poses after some steps of expectation maximisation."""
    part, ones_BK = problem.subset(SCORED_NEXT), torch.ones_like(poses_BK44[..., 0, 0])
    candidates = Candidates(part.vectors(poses_BK44), ones_BK, ASSUMED_SHARE * ones_BK, ones_BK)
    return part.poses(refine(part, candidates, steps, widening, kernel, stretch=stretch).vectors_BK13)


def constant(problem: Correspondences) -> Correspondences:
    """The same problem in no graph. That of a part keeps the centre and the spread of all: pose vectors are around that centre."""
    values = {f.name: getattr(problem, f.name) for f in fields(problem)}
    still = Correspondences(**{name: None if value is None else value.detach() for name, value in values.items()})
    still.__dict__.update({name: getattr(problem, name).detach() for name in ('centre_B3', 'spread_B', 'unit_scale_B1')})
    return still


def newton(problem: Correspondences, vectors_BK13: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """The next step (B, K, 6), the inverse (B, K, 6, 6) of the matrix, and whether that is sound (B, K): of a stable optimum, and regular.

    Where the matrix is that of no optimum the step is one of expectation maximisation, by the matrix of Gauss and Newton.
    """
    gradient_BK6, gauss_newton_BK66, matrix_BK66 = equations(problem, vectors_BK13, kernel)
    scale_BK6 = gauss_newton_BK66.diagonal(dim1=-2, dim2=-1).clamp(min=1e-9).rsqrt()
    scale_BK66 = scale_BK6[..., None] * scale_BK6[..., None, :]
    scaled_BK66 = matrix_BK66 * scale_BK66
    stable_BK = torch.linalg.cholesky_ex((scaled_BK66 + scaled_BK66.mT) / 2)[1] == 0
    used_BK66 = torch.where(stable_BK[..., None, None], scaled_BK66, gauss_newton_BK66 * scale_BK66)
    inverse_BK66, regular_BK = inverse(used_BK66, MAX_CONDITION)
    inverse_BK66 = inverse_BK66 * scale_BK66
    step_BK6 = -(inverse_BK66 @ gradient_BK6[..., None])[..., 0]
    return step_BK6.clamp(-MAX_STEP, MAX_STEP), inverse_BK66, stable_BK & regular_BK


def equations(problem: Correspondences, vectors_BK13: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and Gauss-Newton Hessian of refine(), and the true derivative (B, K, 6, 6) of that gradient by a left perturbation."""
    residuals = problem.residuals(vectors_BK13)
    white = problem.whitened(residuals, torch.ones_like(vectors_BK13[..., 0]))
    inlier_BKN, weight_BKN = kernel.expectation(problem, white, ASSUMED_SHARE)
    gradient_BK6, gauss_newton_BK66 = normal_equations(problem, white, weight_BKN, vectors_BK13)
    slope_BKN = kernel.weight_slope(problem, white, inlier_BKN, weight_BKN)
    rows_B13M = problem.single.rows_B13M
    # How the residuals change (B, K, 6, N), and what they pull at: over their variances, and across the ray as they are.
    changes = torch.bmm(problem.moves(vectors_BK13).mT.flatten(1, 2).float(), rows_B13M).unflatten(1, (-1, 6))
    first, second, along = changes.chunk(3, -1)
    apart = residuals.first_BKN[:, :, None] * first + residuals.second_BKN[:, :, None] * second
    pull = white.across_BKN[:, :, None] * apart
    forces = [weight_BKN * white.across_BKN * residual for residual in (residuals.first_BKN, residuals.second_BKN)]
    if white.along_BKN is not None:
        pull = pull + (white.along_BKN * residuals.along_BKN)[:, :, None] * along
        forces.append(weight_BKN * white.along_BKN * residuals.along_BKN)
    forces_BKM = torch.cat(forces, -1)
    pulled_BK13 = torch.bmm(forces_BKM, rows_B13M[..., :forces_BKM.shape[-1]].mT).double()
    # The weights change with the squared residuals, the information across the ray with the range.
    fading_BKN = -2 * white.across_BKN.square() * problem.single.angle_square * residuals.range_BKN
    by_range = (fading_BKN * slope_BKN * residuals.across_BKN)[:, :, None] * pull + (fading_BKN * weight_BKN)[:, :, None] * apart
    curvature_BK66 = (2 * slope_BKN[:, :, None] * pull) @ pull.mT + by_range @ along.mT
    turning_BK66 = _turning(vectors_BK13, pulled_BK13)
    return gradient_BK6, gauss_newton_BK66, gauss_newton_BK66 + curvature_BK66.double() + turning_BK66


def _turning(vectors_BK13: Tensor, pulled_BK13: Tensor) -> Tensor:
    """(B, K, 6, 6) change of the gradient since points that turn are pulled at another lever; `pulled`: sum of forces times rows."""
    force_BK34 = pulled_BK13[..., :12].unflatten(-1, (3, 4))
    moment_BK33 = vectors_BK13[..., :12].unflatten(-1, (3, 4)) @ force_BK34.mT  # sum of point times force
    trace_BK11 = moment_BK33.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(3, dtype=trace_BK11.dtype, device=trace_BK11.device)
    top = torch.cat([moment_BK33 - trace_BK11 * eye, -se3.skew(force_BK34[..., 3])], -1)
    return torch.cat([top, torch.zeros_like(top)], -2)
