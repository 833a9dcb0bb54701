"""What the noise leaves to be had: the Cramer-Rao bound of the pose, and the fits of someone who knows the true inliers."""
from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.problems import STRIDE, NoiseModel, Problem

FIT_STEPS = 10


def position_bound(problem: Problem, noise_m: float, noise: NoiseModel) -> float:
    """Root mean square error [m] of the camera centre in an RGB fit to the true inliers by their distance from the rays.

    For independent noise it is the Cramer-Rao bound. For noise that neighbours share it is the error of that same fit (the sandwich
    H^-1 J^T C J H^-1, C the covariance of the noise), which a fit that knows C could better.
    """
    inliers = problem.true_inliers()
    across_N23, jacobian_N26 = linearise(inliers, inliers.camera_from_map)
    gradient_N63 = np.swapaxes(jacobian_N26, 1, 2) @ across_N23
    hessian = np.einsum('nki,nkj->ij', jacobian_N26, jacobian_N26)
    covariance = (1 - noise.shared) * hessian
    if noise.shared:
        columns, rows = (problem.camera.width // STRIDE, problem.camera.height // STRIDE)
        padded = np.zeros((6, 3, rows + 2 * noise.margin, columns + 2 * noise.margin))
        cells_N2 = inliers.pixels_N2.astype(int) // STRIDE + noise.margin
        padded[..., cells_N2[:, 1], cells_N2[:, 0]] = np.moveaxis(gradient_N63, 0, -1)
        spread = noise.smooth(padded).reshape(6, -1)
        covariance = covariance + noise.shared * spread @ spread.T
    inverse = np.linalg.inv(hessian)
    # The centre moves by minus the translation of a left perturbation, turned into the map: its length is the same.
    return noise_m * float(np.sqrt(np.trace((inverse @ covariance @ inverse)[3:, 3:])))


def fit_rays(problem: Problem) -> np.ndarray:
    """camera_from_map (4, 4) that brings the true inliers nearest to their viewing rays, by Gauss-Newton from the true pose."""
    inliers = problem.true_inliers()
    pose = inliers.camera_from_map.copy()
    for _ in range(FIT_STEPS):
        across_N23, jacobian_N26 = linearise(inliers, pose)
        residual_N2 = (across_N23 @ (inliers.points_N3 @ pose[:3, :3].T + pose[:3, 3])[..., None])[..., 0]
        step = -np.linalg.lstsq(jacobian_N26.reshape(-1, 6), residual_N2.ravel(), rcond=None)[0]
        turn = Rotation.from_rotvec(step[:3]).as_matrix()
        pose[:3] = np.column_stack([turn @ pose[:3, :3], turn @ pose[:3, 3] + step[3:]])
    return pose


def fit_points(problem: Problem) -> np.ndarray:
    """camera_from_map (4, 4) by least squares between the true inliers and their measured points (Kabsch 1976)."""
    inliers = problem.true_inliers()
    seen, points = inliers.camera_points_N3(), inliers.points_N3
    rotation = Rotation.align_vectors(seen - seen.mean(0), points - points.mean(0))[0].as_matrix()
    pose = np.eye(4)
    pose[:3] = np.column_stack([rotation, seen.mean(0) - rotation @ points.mean(0)])
    return pose


def linearise(problem: Problem, camera_from_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors across each ray (N, 2, 3), and the derivative of a point's distances along them (N, 2, 6) by turn and shift."""
    bearings = problem.bearings_N3()
    across_N23 = np.linalg.svd(bearings[:, None, :])[2][:, 1:]
    points = problem.points_N3 @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    return across_N23, np.concatenate([np.cross(points[:, None], across_N23), across_N23], -1)
