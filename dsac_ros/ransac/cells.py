"""Cells without depth: searched and finished by the angle between ray and point, whatever noise the network states.

What a network states of its coordinates ranks them well enough to draw by. As a measure of residuals it is worse than one angle for all
cells: a fixed one while the pose is searched, and what the residuals of the frame itself say once it is found, since no angle suits near
and far views and large rooms (docs/mapping.md, "The residual of cells without depth").
"""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.correspondences import MIN_RANGE, Correspondences, Residuals, Whitened
from dsac_ros.ransac.estimator import ASSUMED_SHARE, Solution, damped_step, damping, normal_equations
from dsac_ros.ransac.kernel import Kernel

MIN_COSINE = 0.2  # of the angle off the axis: further out, depth (along the axis) says nothing of the distance
STATED = 1e-6  # metres of noise of the points: none, next to that of the angle
FINAL_WIDENING = 3.0  # of the noise in the first step of the finish, which comes down to 1 in the fourth
FINAL_LIMITS = (0.05, 1.6)  # of that noise, in cells


def cell_problem(points_BN3: Tensor, scales_BN: Tensor, bearings_BN3: Tensor, cell_rad: float, depths_BN: Tensor | None,
                 options: EstimatorOptions) -> Correspondences:
    """What an expert predicts for the cells of B images, as it states its noise.

    Args:
        points_BN3, scales_BN: of the expert [m]. bearings_BN3: unit viewing rays; what is not finite is not usable. cell_rad: angle that a
            cell on the optical axis takes up. depths_BN: measured along the axis [m], 0 where there is none; None: RGB.
    """
    bearings_BN3 = bearings_BN3.double()
    lengths_BN = 1 / bearings_BN3[..., 2].clamp(min=MIN_COSINE)
    ranges_BN = noise_BN = None
    if depths_BN is not None:
        z_BN = torch.where(bearings_BN3[..., 2] > MIN_COSINE, depths_BN.double(), 0.0)
        ranges_BN = z_BN * lengths_BN
        noise_BN = (options.depth_noise_floor + options.depth_noise * z_BN.square()) * lengths_BN
    return Correspondences(points_BN3.double(), bearings_BN3, options.scale_factor * scales_BN.double(),
                           options.pixel_noise * cell_rad / lengths_BN, torch.ones_like(scales_BN, dtype=torch.bool), ranges_BN, noise_BN)


def guidance(scales_N: Tensor) -> Tensor:
    """Sampling weights of the cells from the uncertainty of their coordinates."""
    return 1 / scales_N.double()


def searched_by_angle(cells: Correspondences, options: EstimatorOptions) -> Correspondences:
    """The problem to find a pose by; with depth the cells as they are. cells: noise as stated, angles of options.pixel_noise."""
    return cells if cells.ranges_BN is not None else by_angle(cells, options.rgb_search_noise / options.pixel_noise)


def finished_by_angle(cells: Correspondences, found: Solution, options: EstimatorOptions) -> tuple[Tensor, Tensor]:
    """camera_from_map_B44 and hessian_B66 of the optimum near the poses that were found, those of the cells first; with depth they are as
    good as they get.

    Each step takes the noise of the angle from the residuals so far (as iteratively reweighted least squares does with the median absolute
    deviation), and goes towards the maximum of the score. The estimator itself holds the information across a ray constant in a step: where
    the noise is that of points that is free of bias, with the errors of networks it is the worse choice.
    """
    count = len(cells.points_BN3)
    if cells.ranges_BN is not None:
        return found.camera_from_map_B44[:count], found.hessian_B66[:count]
    kernel, last_B11 = Kernel(options.inlier_sigmas), (options.rgb_final_share * cells.count_B1).long()[..., None]
    along_BN13 = cells.single.rows_B13M[..., -cells.points_BN3.shape[1]:].mT
    vectors_B113 = cells.vectors(found.camera_from_map_B44[:count, None])
    ridge = damping(vectors_B113)
    for step in range(options.rgb_final_steps):
        residuals = cells.residuals(vectors_B113)
        white = _measured(cells, residuals, last_B11, FINAL_WIDENING ** max(0.0, 1 - step / 3), options)
        _, weight = kernel.expectation(cells, white, ASSUMED_SHARE)
        # What makes the gradient that of the angles: nearer points look further off their rays, so each is pushed away along its own.
        pull = torch.bmm(weight * white.square_BKN / residuals.range_BKN.clamp(min=MIN_RANGE), along_BN13)
        gradient, hessian = normal_equations(cells, white, weight, vectors_B113, pull_BK13=-pull.double())
        vectors_B113 = cells.moved(vectors_B113, damped_step(gradient, hessian, ridge))
    white = _measured(cells, cells.residuals(vectors_B113), last_B11, 1.0, options)
    _, weight = kernel.expectation(cells, white, ASSUMED_SHARE)
    _, hessian = normal_equations(cells, white, weight, vectors_B113)
    return cells.poses(vectors_B113)[:, 0], hessian[:, 0]


def _measured(cells: Correspondences, residuals: Residuals, last_B11: Tensor, widening: float, options: EstimatorOptions) -> Whitened:
    """Over the noise of the angles that they themselves say, by the angle of the cell that is the last_B11-th nearest to its ray."""
    stated_BKN = residuals.blur_BKN.clamp(min=1e-18)
    square_BKN = residuals.across_BKN / stated_BKN
    last_BK1 = torch.where(residuals.seen_BKN > 0, square_BKN, torch.inf).sort(-1).values.gather(-1, last_B11)
    low, high = ((limit / options.pixel_noise) ** 2 for limit in FINAL_LIMITS)
    variance_BK1 = (widening ** 2 * last_BK1).clamp(low, high)
    return Whitened(square_BKN / variance_BK1, residuals.seen_BKN / (stated_BKN * variance_BK1), None)


def by_angle(cells: Correspondences, factor: float) -> Correspondences:
    """The same cells with noise of their rays alone, `factor` times what is stated of it."""
    return replace(cells, scales_BN=torch.full_like(cells.scales_BN, STATED), angles_BN=factor * cells.angles_BN)
