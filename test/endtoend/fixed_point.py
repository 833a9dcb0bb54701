"""The equation that refinement solves, once more and in float64: from what the docstrings of ransac say, not from its code."""
from __future__ import annotations

import scenes
import torch
from torch import Tensor

from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import Correspondences

STEPS = 8


def pull(problem: Correspondences, points_RN3: Tensor, scales_RN: Tensor, angles_RN: Tensor, poses_R44: Tensor, even_at: float) -> Tensor:
    """(R, 6) torque and force on each pose by its points, of a Student t distribution against odds that are even at even_at."""
    values = {name: value[0] for name, value in scenes.tensors(problem).items()}
    seen = points_RN3 @ poses_R44[:, :3, :3].mT + poses_R44[:, None, :3, 3]
    rays = values['bearings_BN3']
    from_camera = seen - values['origins_BN3'] if 'origins_BN3' in values else seen
    ranges = (from_camera * rays).sum(-1)
    across = from_camera - ranges[..., None] * rays
    across_variance = scales_RN ** 2 + angles_RN ** 2 * ranges ** 2
    square, freedom, force = across.square().sum(-1) / across_variance, 6.0, across / across_variance[..., None]
    if 'ranges_BN' in values:
        measured = (values['ranges_BN'] > 0).double()
        along_variance = scales_RN ** 2 + values['range_noise_BN'] ** 2
        along = measured * (ranges - values['ranges_BN'])
        square, freedom = square + along ** 2 / along_variance, freedom - measured
        force = force + (along / along_variance)[..., None] * rays
    odds = ((freedom + even_at ** 2) / (freedom + square)) ** 4
    weight = 8 * odds / (1 + odds) / (freedom + square) * (ranges > 0.1)
    force = weight[..., None] * force
    return torch.cat([torch.linalg.cross(seen, force).sum(-2), force.sum(-2)], -1)


def optimum(problem: Correspondences, points_RN3: Tensor, scales_RN: Tensor, angles_RN: Tensor, pose_44: Tensor, even_at: float) -> Tensor:
    """(R, 4, 4) where nothing pulls, for points and noise so near those of the problem that its derivative at its own optimum will do."""
    own = problem.points_BN3, problem.scales_BN, problem.angles_BN
    moves = 1e-5 * torch.eye(6, dtype=torch.float64)
    matrix = torch.stack([pull(problem, *own, se3.retract(pose_44[None], move), even_at)[0]
                          - pull(problem, *own, se3.retract(pose_44[None], -move), even_at)[0] for move in moves], -1) / 2e-5
    poses_R44 = pose_44.expand(len(points_RN3), 4, 4)
    for _ in range(STEPS):
        step = pull(problem, points_RN3, scales_RN, angles_RN, poses_R44, even_at) @ torch.linalg.inv(matrix).mT
        poses_R44 = se3.retract(poses_R44, -step)
    assert step.abs().max() < 1e-9
    return poses_R44
