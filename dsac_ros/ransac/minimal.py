"""Minimal sets -> hypotheses: three rays (P3P, every root) or three measured points (Kabsch), both into one pool."""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry.kabsch import align_triangles
from dsac_ros.geometry.p3p import p3p
from dsac_ros.ransac.correspondences import Correspondences


def hypotheses_from_rays(problem: Correspondences, sets_BK3: Tensor) -> tuple[Tensor, Tensor]:
    """rig_from_map (B, 4 K, 4, 4) of all roots and the mask (B, 4 K) of valid ones."""
    points, bearings, known = members(problem, sets_BK3)
    poses, valid = p3p(bearings, points)
    poses, valid = poses.flatten(1, 2), (valid & known[..., None]).flatten(1, 2)
    if problem.origins_BN3 is None:
        return poses, valid
    origin = problem.origins_BN3.gather(1, sets_BK3[..., :1].expand(*sets_BK3.shape[:2], 3)).repeat_interleave(4, 1)
    moved = torch.cat([poses[..., :3, :3], poses[..., :3, 3:] + origin[..., None]], -1)
    return torch.cat([moved, poses[..., 3:, :]], -2), valid


def hypotheses_from_points(problem: Correspondences, sets_BK3: Tensor) -> tuple[Tensor, Tensor]:
    """rig_from_map (B, K, 4, 4) and the mask (B, K), from sets whose members have depth."""
    points, bearings, known = members(problem, sets_BK3)
    flat = sets_BK3.flatten(1)
    ranges = problem.ranges_BN.gather(1, flat).unflatten(1, sets_BK3.shape[1:])
    seen = bearings * ranges[..., None]
    if problem.origins_BN3 is not None:
        seen = seen + problem.origins_BN3.gather(1, flat[..., None].expand(*flat.shape, 3)).unflatten(1, sets_BK3.shape[1:])
    poses, valid = align_triangles(points, seen)
    return poses, valid & known & problem.measured_BN.gather(1, flat).unflatten(1, sets_BK3.shape[1:]).all(-1)


def members(problem: Correspondences, sets_BK3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points and bearings (B, K, 3, 3) of the sets, and which sets are of known correspondences alone (B, K)."""
    flat = sets_BK3.flatten(1)
    index = flat[..., None].expand(*flat.shape, 3)
    shape = sets_BK3.shape[1:]
    known = problem.known_BN.gather(1, flat).unflatten(1, shape).all(-1)
    return problem.points_BN3.gather(1, index).unflatten(1, shape), problem.bearings_BN3.gather(1, index).unflatten(1, shape), known
