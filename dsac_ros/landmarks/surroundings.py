"""What the landmarks in a wide search around a pose say of it: whether most of them agree, and whether its camera has the focal length that
camera_info says. A pose is found by what agrees with it, and makes up for a wrong focal length, so that these cannot tell."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.geometry import se3
from dsac_ros.ransac.evidence import tile_sums

AGREEING = 6.0  # deviations from where the pose puts a landmark: those of poor maps err by more than their noise
GATES = (8.0, 6.0, 4.0, 4.0, 3.0, 3.0)  # deviations, step by step: residuals of this size count a quarter
ALONE = 3  # steps of the pose alone, which is near its optimum
MIN_DEPTH = 0.1  # metres: nearer points, and those behind the camera, do not count
SIGMAS = 3.0  # what chance is granted in the focal length


@dataclass(frozen=True)
class Surroundings:
    """share: of the matched landmarks that agree with the pose, in the mean over the image. focal_misfit: by how much the focal length must
    be too long or too short, as a logarithm; 0 where it may be right, NaN where no fit was possible."""

    share: Tensor
    focal_misfit: Tensor


@dataclass(frozen=True)
class Matched:
    """points_M3: landmarks [m, map frame]; rays_M2: their keypoints on the plane z = 1; places_M2: in the image (keypoints.padded);
    counts_M: 1 for a keypoint with a landmark, else 0. ray_noise: of keypoints, on that plane; point_noise: of landmarks [m]."""

    points_M3: Tensor
    rays_M2: Tensor
    places_M2: Tensor
    counts_M: Tensor
    ray_noise: float
    point_noise: float


def look_around(matched: Matched, pose_44: Tensor, covariance_factor: float) -> Surroundings:
    """Pose and focal length are fitted together, and the standard deviation of the fit is granted SIGMAS times. Where that fits no better
    than the pose alone, the focal length is not what is wrong: before a wall it may be anything, and a fit runs away.

    Args:
        matched: in a wide search, for a pose that makes up for a wrong focal length has only a part of the image where it should be.
        covariance_factor: how far the map understates the errors of its poses; below 1 it is none.
    """
    pose_44, factor = pose_44.double(), max(1.0, covariance_factor)
    none = torch.zeros_like(pose_44[0, 0])
    share = _share(matched, _projected(matched, pose_44, none).square_M < AGREEING ** 2)
    alone_44, both_44, zoom = pose_44, pose_44, none
    for gate in GATES:
        both_44, zoom, deviation = _step(matched, both_44, zoom, gate)
    for gate in GATES[-ALONE:]:
        alone_44, _, _ = _step(matched, alone_44, none, gate, free=0.0)
    better = _loss(matched, alone_44, none) - _loss(matched, both_44, zoom) > factor * SIGMAS ** 2
    misfit = (zoom.abs() - SIGMAS * factor ** 0.5 * deviation).clamp(min=0)
    return Surroundings(share, torch.where(better | misfit.isnan(), misfit, none))


def _loss(matched: Matched, pose_44: Tensor, zoom: Tensor) -> Tensor:
    """Twice the negative logarithm of a likelihood that is blind to outliers (Geman & McClure 1987), whose weights are those of _step."""
    square_M, limit = _projected(matched, pose_44, zoom).square_M, GATES[-1] ** 2
    return (matched.counts_M * limit * (1 - limit / (limit + square_M))).sum()


def _share(matched: Matched, agree_M: Tensor) -> Tensor:
    """Mean over the tiles of the image that have any match, each by Laplace's rule of succession: one part of the image with many of them
    that agree does not speak for the others."""
    counts, agreeing = tile_sums(matched.places_M2, matched.counts_M), tile_sums(matched.places_M2, matched.counts_M * agree_M)
    seen = counts > 0
    return ((agreeing + 1) / (counts + 2) * seen).sum() / seen.sum().clamp(min=1)


@dataclass(frozen=True)
class Projected:
    """slopes_M2: x/z, y/z; scale_M: what a metre across is on the image plane; off_M2: from the keypoint;
    variance_M: of that, along an axis; square_M: squared distance over it, infinite behind the camera."""

    slopes_M2: Tensor
    scale_M: Tensor
    off_M2: Tensor
    variance_M: Tensor
    square_M: Tensor


def _projected(matched: Matched, pose_44: Tensor, zoom: Tensor) -> Projected:
    """Into the image by the focal length in question; on the plane of the fitted one residuals are least where that has no size at all."""
    local_M3 = matched.points_M3 @ pose_44[:3, :3].T + pose_44[:3, 3]
    depths_M1 = local_M3[:, 2:].clamp(min=MIN_DEPTH)
    shrunk, slopes_M2 = (-zoom).exp(), local_M3[:, :2] / depths_M1
    scale_M, off_M2 = shrunk / depths_M1[:, 0], shrunk * slopes_M2 - matched.rays_M2
    variance_M = matched.ray_noise ** 2 + (matched.point_noise * scale_M).square()
    square_M = torch.where(local_M3[:, 2] > MIN_DEPTH, off_M2.square().sum(1) / variance_M, torch.inf)
    return Projected(slopes_M2, scale_M, off_M2, variance_M, square_M)


def _step(matched: Matched, pose_44: Tensor, zoom: Tensor, gate: float, free: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Of Gauss and Newton: pose, zoom (the logarithm of how many times too long; free: 1 or 0), and its standard deviation."""
    seen = _projected(matched, pose_44, zoom)
    weights_M = matched.counts_M / seen.variance_M / (1 + seen.square_M / gate ** 2).square()
    (x_M, y_M), shrunk = seen.slopes_M2.unbind(1), (-zoom).exp()
    none_M, per_metre_M = torch.zeros_like(x_M), seen.scale_M / shrunk
    # By rotation, translation and zoom, on the plane z = 1 (the interaction matrix of Chaumette & Hutchinson 2006).
    jacobian_M27 = shrunk * torch.stack([
        -x_M * y_M, 1 + x_M.square(), -y_M, per_metre_M, none_M, -x_M * per_metre_M, -free * x_M,
        -1 - y_M.square(), x_M * y_M, x_M, none_M, per_metre_M, -y_M * per_metre_M, -free * y_M], 1).unflatten(1, (2, 7))
    weighted = (jacobian_M27 * weights_M[:, None, None]).flatten(0, 1).T
    inverse_77 = torch.linalg.inv_ex(weighted @ jacobian_M27.flatten(0, 1) + 1e-9 * torch.eye(7, dtype=x_M.dtype, device=x_M.device))[0]
    tangent_7 = -inverse_77 @ (weighted @ seen.off_M2.flatten())
    variance = torch.where(inverse_77[6, 6] >= 0, inverse_77[6, 6], torch.inf)  # of a system without a solution it is any number
    return se3.retract(pose_44, tangent_7[:6]), zoom + tangent_7[6], variance.sqrt()
