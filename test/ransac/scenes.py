"""Correspondences of a camera in a made-up room, with the noise that the estimator believes in and outliers that it has to find."""
from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.ransac.problems import PointProblem, RayProblem

FOCAL_PX = 525.0


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


def in_map(camera_from_map: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points - camera_from_map[:3, 3]) @ camera_from_map[:3, :3]


def ray_problem(seed: int, count: int = 600, outliers: float = 0.0, scene_noise: float = 0.0, pixel_noise: float = 0.0,
                scale: float = 0.02) -> tuple[RayProblem, np.ndarray]:
    """Noise: [m] along each axis of the scene coordinates, [px] of the rays. Returns camera_from_map beside the problem."""
    rng = np.random.default_rng(seed)
    truth, seen = pose(seed), camera_points(rng, count)
    points = in_map(truth, seen) + scene_noise * rng.normal(size=(count, 3))
    rays = seen[:, :2] / seen[:, 2:] + pixel_noise / FOCAL_PX * rng.normal(size=(count, 2))
    wrong = rng.permutation(count)[:round(outliers * count)]
    points[wrong] = in_map(truth, camera_points(rng, len(wrong)))  # elsewhere in what is seen
    return RayProblem(torch.from_numpy(points), torch.from_numpy(rays), torch.full((count,), scale, dtype=torch.float64),
                      torch.ones(count, dtype=torch.bool), max(pixel_noise, 0.5) / FOCAL_PX), truth


def point_problem(seed: int, count: int = 600, outliers: float = 0.0, scene_noise: float = 0.0, depth_noise: float = 0.0,
                  scale: float = 0.02) -> tuple[PointProblem, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, seen = pose(seed), camera_points(rng, count)
    points = in_map(truth, seen) + scene_noise * rng.normal(size=(count, 3))
    wrong = rng.permutation(count)[:round(outliers * count)]
    points[wrong] = in_map(truth, camera_points(rng, len(wrong)))
    seen = seen + depth_noise * rng.normal(size=(count, 3))
    return PointProblem(torch.from_numpy(points), torch.from_numpy(seen), torch.full((count,), scale, dtype=torch.float64),
                        torch.ones(count, dtype=torch.bool), torch.full((count,), max(depth_noise, 0.005), dtype=torch.float64)), truth


def mean_weight(dimensions: int, threshold: float) -> float:
    """Soft inlier weight of a correspondence whose whitened residual is standard normal in so many dimensions."""
    r = np.linalg.norm(np.random.default_rng(0).normal(size=(200_000, dimensions)), axis=1)
    return float(np.mean(1 / (1 + np.exp(5 * (r / threshold - 1)))))


def expected_nees(dimensions: int, threshold: float) -> float:
    """Mean squared Mahalanobis error of the M-estimator with those weights when 1 / sum(w J^T J) is taken for its covariance.

    Huber's sandwich with psi(r) = w(|r|) r: variance E[|psi|^2] / D over (E[div psi] / D)^2, against the 1 / E[w] that is claimed.
    """
    r = np.linalg.norm(np.random.default_rng(0).normal(size=(1_000_000, dimensions)), axis=1)
    w = 1 / (1 + np.exp(5 * (r / threshold - 1)))
    slope = -5 / threshold * w * (1 - w)
    return float(6 * np.mean(w ** 2 * r ** 2) / dimensions / np.mean(w + slope * r / dimensions) ** 2 * np.mean(w))


def pose_error(ours: torch.Tensor, truth: np.ndarray) -> tuple[float, float]:
    """Distance of the camera centres [m] and angle [deg] between two camera_from_map."""
    a, b = np.linalg.inv(ours.numpy()), np.linalg.inv(truth)
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.degrees(Rotation.from_matrix(a[:3, :3] @ b[:3, :3].T).magnitude()))
