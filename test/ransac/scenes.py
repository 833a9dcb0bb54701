"""Correspondences of a camera, or of a rig of two, in a made-up room: noise that they state, and outliers that have to be found."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import Correspondences

FOCAL_PX = 525.0
KINDS = ('rgb', 'rgbd', 'holes')  # holes: two of five have no depth


@dataclass(frozen=True)
class Scene:
    """A batch of one problem; truth: camera_from_map or rig_from_map (4, 4); clean_N: which correspondences are no outliers."""

    problem: Correspondences
    truth: np.ndarray
    clean_N: np.ndarray


def pose(seed: int) -> np.ndarray:
    """camera_from_map, (4, 4)."""
    out = np.eye(4)
    out[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    out[:3, 3] = np.random.default_rng(seed).normal(size=3) * 2
    return out


def camera_points(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points 0.8 to 5 m ahead in a 63 degree view, (N, 3)."""
    z = rng.uniform(0.8, 5.0, count)
    return np.column_stack([rng.uniform(-0.6, 0.6, count) * z, rng.uniform(-0.45, 0.45, count) * z, z])


def moved(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def in_map(camera_from_map: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points - camera_from_map[:3, 3]) @ camera_from_map[:3, :3]


def rig_from_cameras() -> np.ndarray:
    """(2, 4, 4): one looks ahead, the other one to the right and down, 0.4 m beside it."""
    out = np.tile(np.eye(4), (2, 1, 1))
    out[0, :3, 3] = [-0.1, 0.05, 0.02]
    out[1, :3, :3], out[1, :3, 3] = Rotation.from_euler('yx', [70, -15], degrees=True).as_matrix(), [0.3, 0.0, -0.05]
    return out


def scene(seed: int, kind: str = 'rgb', *, count: int = 600, outliers: float = 0.0, noise: float = 0.0, pixel_noise: float = 0.0,
          range_noise: float = 0.0, scale: float | None = None, truth: np.ndarray | None = None, rig: bool = False) -> Scene:
    """Noise: [m] along each axis of the points, [px] of the bearings, [m] of the ranges; where it is zero, something is stated for it
    nonetheless. scale: what is stated of the points in place of the noise. Outliers are points elsewhere in what is seen."""
    rng = np.random.default_rng(seed)
    truth = pose(seed) if truth is None else truth
    cameras = np.arange(count) * 2 // count if rig else np.zeros(count, int)
    extrinsics = rig_from_cameras() if rig else np.eye(4)[None]

    def seen_by_camera() -> tuple[np.ndarray, np.ndarray]:
        """In the frame of the camera or rig, from its origin and from the camera that sees it."""
        turned = np.einsum('nij,nj->ni', extrinsics[cameras, :3, :3], camera_points(rng, count))
        return turned + extrinsics[cameras, :3, 3], turned

    seen, along = seen_by_camera()
    ranges = np.linalg.norm(along, axis=1)
    bearings = along / ranges[:, None] + pixel_noise / FOCAL_PX * rng.normal(size=(count, 3))
    bearings /= np.linalg.norm(bearings, axis=1, keepdims=True)
    points = in_map(truth, seen) + noise * rng.normal(size=(count, 3))
    wrong = rng.permutation(count)[:round(outliers * count)]
    points[wrong] = in_map(truth, seen_by_camera()[0])[wrong]
    clean = np.ones(count, bool)
    clean[wrong] = False
    stated = np.full(count, (noise or 0.02) if scale is None else scale)
    values = {'points_BN3': points, 'bearings_BN3': bearings, 'scales_BN': stated,
              'angles_BN': np.full(count, max(pixel_noise, 0.5) / FOCAL_PX), 'usable_BN': np.ones(count, bool)}
    if kind != 'rgb':
        depth = np.ones(count, bool) if kind == 'rgbd' else rng.uniform(size=count) > 0.4
        values['ranges_BN'] = np.where(depth, ranges + range_noise * rng.normal(size=count), 0.0)
        values['range_noise_BN'] = np.where(depth, max(range_noise, 0.005), 0.0)
    if rig:
        values.update(cameras_BN=cameras, origins_BN3=extrinsics[cameras, :3, 3])
    return Scene(Correspondences(**{name: torch.from_numpy(value)[None] for name, value in values.items()}), truth, clean)


def tensors(problem: Correspondences) -> dict[str, torch.Tensor]:
    """What a problem has, by name."""
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    return {name: value for name, value in values.items() if value is not None}


def stacked(problems: Sequence[Correspondences]) -> Correspondences:
    """One batch of them all."""
    return Correspondences(**{name: torch.cat([getattr(problem, name) for problem in problems]) for name in tensors(problems[0])})


def on(device: str, problem: Correspondences) -> Correspondences:
    return Correspondences(**{name: value.to(device) for name, value in tensors(problem).items()})


def information(true: Scene, noise: float, pixel_noise: float = 0.0, range_noise: float = 0.0) -> np.ndarray:
    """Fisher information (6, 6) of the true inliers, for a left perturbation (rotation, translation): its inverse is the Cramer-Rao bound.

    Of a clean point that noise moves independently along each axis: across the ray, and along it where it has depth.
    """
    values = {name: value[0].numpy()[true.clean_N] for name, value in tensors(true.problem).items()}
    seen, rays = moved(true.truth, values['points_BN3']), values['bearings_BN3']
    distance = np.linalg.norm(seen - values.get('origins_BN3', 0.0), axis=1)
    depth = values.get('ranges_BN', np.zeros(len(seen))) > 0
    first, second = np.moveaxis(np.linalg.svd(rays[:, None])[2][:, 1:], 1, 0)
    deviation = np.hypot(noise, pixel_noise / FOCAL_PX * distance)
    parts = [(first, deviation), (second, deviation), (rays * depth[:, None], np.full(len(seen), np.hypot(noise, range_noise)))]
    rows = [np.hstack([np.cross(seen, axis), axis]) / deviation[:, None] for axis, deviation in parts]
    return sum(row.T @ row for row in rows)


def poses_near(truth: np.ndarray, count: int = 4, size: float = 0.05) -> torch.Tensor:
    """(1, K, 4, 4)"""
    tangent = size * torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return se3.retract(torch.from_numpy(truth).expand(count, 4, 4), tangent)[None]


def measured(problem: Correspondences, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) by NumPy: distance of the transformed point from its ray, and how far along the ray it is [m]."""
    values = {name: value[0].numpy() for name, value in tensors(problem).items()}
    seen = moved(pose, values['points_BN3']) - values.get('origins_BN3', 0.0)
    along = (seen * values['bearings_BN3']).sum(1)
    return np.linalg.norm(np.cross(seen, values['bearings_BN3']), axis=1), along


def tangent_between(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rotation vector and translation of the left perturbation that leads from the truth to ours."""
    turn = ours[:3, :3] @ truth[:3, :3].T
    return np.concatenate([Rotation.from_matrix(turn).as_rotvec(), ours[:3, 3] - turn @ truth[:3, 3]])


def pose_error(ours: torch.Tensor, truth: np.ndarray) -> tuple[float, float]:
    """Distance of the camera centres [m] and angle [deg] between two camera_from_map."""
    tangent = tangent_between(ours.cpu().numpy(), truth)
    return float(np.linalg.norm(tangent[3:])), float(np.degrees(np.linalg.norm(tangent[:3])))


def inlier_probability(square: float, dimensions: int, even_at: float) -> float:
    """Of a squared whitened residual when odds are even at even_at: the ratio of densities of a Student t distribution with 8 - dimensions
    degrees of freedom, whose exponent is 4."""
    odds = ((8 - dimensions + even_at ** 2) / (8 - dimensions + square)) ** 4
    return odds / (1 + odds)


def weight(square: float, dimensions: int, even_at: float | None) -> float:
    """In the least squares: that of the t distribution (Lange, Little & Taylor 1989) times the probability, 1 where even_at is None."""
    share = 1.0 if even_at is None else inlier_probability(square, dimensions, even_at)
    return 8 / (8 - dimensions + square) * share


def over_normal(function: Callable[[float], float], dimensions: int) -> float:
    """Expectation of a function of the squared length of a standard normal vector."""
    return quad(lambda square: function(square) * chi2.pdf(square, dimensions), 0, 100)[0]


def curvature(dimensions: int, even_at: float) -> float:
    """Mean second derivative of the score over the mean weight for normal noise: what sum(w J^T J) overstates the information by."""
    def divergence(square: float) -> float:
        step = 1e-4 * (1 + square)
        slope = (weight(square + step, dimensions, even_at) - weight(square - step, dimensions, even_at)) / (2 * step)
        return weight(square, dimensions, even_at) + 2 * square * slope / dimensions

    return over_normal(divergence, dimensions) / over_normal(lambda square: weight(square, dimensions, even_at), dimensions)


def expected_nees(dimensions: int, even_at: float) -> float:
    """Mean squared Mahalanobis error of the fit with those weights to normal noise when 1 / sum(w J^T J) is taken for its covariance.

    Huber's sandwich with psi(r) = w(|r|) r: variance E[|psi|^2] / D over (E[div psi] / D)^2, against the 1 / E[w] that is claimed.
    """
    claimed = over_normal(lambda square: weight(square, dimensions, even_at), dimensions)
    variance = over_normal(lambda square: square * weight(square, dimensions, even_at) ** 2, dimensions) / dimensions
    return 6 * variance / (claimed * curvature(dimensions, even_at) ** 2)


def found_scale(dimensions: int) -> float:
    """Scale of the t distribution that fits standard normal noise best, where the mean of w(r) r^2 is that of as many dimensions."""
    def excess(scale: float) -> float:
        return over_normal(lambda square: weight(square / scale ** 2, dimensions, None) * square / scale ** 2, dimensions) - dimensions

    return brentq(excess, 0.5, 1.5)
