"""Cells without depth: searched and finished by the angle between ray and point, whatever noise the network states.

What a network states of its coordinates ranks them well enough to draw by. As a measure of residuals it is worse than one angle for all
cells: wide while the pose is searched, narrow once it is found (docs/mapping.md, "The residual of cells without depth").
"""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import Solution, refine_from

MIN_COSINE = 0.2  # of the angle off the axis: further out, depth (along the axis) says nothing of the distance
STATED = 1e-6  # metres of noise of the points: none, next to that of the angle


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
    return cells if cells.ranges_BN is not None else _by_angle(cells, options.rgb_search_noise / options.pixel_noise)


def finished_by_angle(cells: Correspondences, found: Solution, options: EstimatorOptions) -> Solution:
    """The optimum near the poses that were found, those of the cells first; with depth they are as good as they get."""
    if cells.ranges_BN is not None:
        return found
    steps = replace(options, refine_steps=options.rgb_final_steps)
    return refine_from(narrowed(cells, options), found.camera_from_map_B44[:len(cells.points_BN3), None], steps, widening=1.0)


def narrowed(cells: Correspondences, options: EstimatorOptions) -> Correspondences:
    """The problem to finish a pose by; with depth the cells as they are."""
    return cells if cells.ranges_BN is not None else _by_angle(cells, options.rgb_final_noise / options.pixel_noise)


def _by_angle(cells: Correspondences, factor: float) -> Correspondences:
    return replace(cells, scales_BN=torch.full_like(cells.scales_BN, STATED), angles_BN=factor * cells.angles_BN)
