"""The covariance says how far the pose really scatters, in the order and about the axes that ROS wants."""
from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
import scenes
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.ransac.covariance import pose_covariance
from dsac_ros.ransac.estimator import estimate

TRIALS = 150
OPTIONS = EstimatorOptions(refined=8, refine_steps=8, inlier_sigmas=2.5)  # stated, so that tuning the defaults moves nothing here


def ros_error(map_from_camera: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(x, y, z, rotation about the fixed map axes) that leads from the truth to the estimate."""
    turn = Rotation.from_matrix(map_from_camera[:3, :3] @ truth[:3, :3].T).as_rotvec()
    return np.concatenate([map_from_camera[:3, 3] - truth[:3, 3], turn])


def test_order_and_axes_are_those_of_a_numeric_perturbation() -> None:
    """Push camera_from_map by small tangents; the pose's change in ROS terms must have the covariance that the formula gives."""
    camera_from_map = torch.from_numpy(scenes.pose(3))
    truth = np.linalg.inv(camera_from_map.numpy())
    columns = []
    for axis in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[axis] = 1e-6
        columns.append(ros_error(se3.inverse(se3.retract(camera_from_map, step)).numpy(), truth) / 1e-6)
    ros_from_tangent = np.stack(columns, 1)
    root = np.random.default_rng(0).normal(size=(6, 6)) * [1, 2, 3, 10, 20, 30]
    tangent = root @ root.T + np.eye(6)
    ours = pose_covariance(torch.from_numpy(np.linalg.inv(tangent)), camera_from_map).numpy()
    np.testing.assert_allclose(ours, ros_from_tangent @ tangent @ ros_from_tangent.T, rtol=2e-4, atol=2e-4 * ours.max())
    np.testing.assert_array_equal(ours, ours.T)


def test_translation_along_one_axis_of_the_camera() -> None:
    """By hand: the camera looks along the map's x; certain but for its own depth axis, hence uncertain in x alone."""
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    hessian = torch.diag(torch.tensor([1e8, 1e8, 1e8, 1e8, 1e8, 25.0], dtype=torch.float64))
    ours = pose_covariance(hessian, torch.from_numpy(np.linalg.inv(map_from_camera))).numpy()
    # The floor of 1e-9 of the trace (0.5) takes 2 % off.
    assert ours[0, 0] == pytest.approx(0.04, rel=0.03) and np.delete(np.diagonal(ours), 0).max() < 1e-7


@pytest.mark.parametrize('hessian', [torch.zeros(6, 6), torch.full((6, 6), 1e3), torch.diag(torch.tensor([1e12, 1, 1, 1, 1, 0.0]))])
def test_singular_information_is_a_finite_large_covariance(hessian: torch.Tensor) -> None:
    ours = pose_covariance(hessian.double(), torch.eye(4, dtype=torch.float64))
    assert ours.isfinite().all() and ours.diagonal().max() > 1e-4 and torch.linalg.eigvalsh(ours).min() > -1e-9 * ours.max()


def nees(make: Callable, scene_noise: float, outliers: float, **noise: float) -> np.ndarray:
    """Squared Mahalanobis errors over independent draws of the noise that the problem states."""
    values = []
    for seed in range(TRIALS):
        problem, truth = make(seed, count=400, scene_noise=scene_noise, outliers=outliers, scale=max(scene_noise, 1e-6), **noise)
        solution = estimate(problem, torch.ones(400, dtype=torch.float64), 64, OPTIONS, torch.Generator().manual_seed(seed))
        covariance = pose_covariance(solution.hessian_66, solution.camera_from_map_44).numpy()
        error = ros_error(np.linalg.inv(solution.camera_from_map_44.numpy()), np.linalg.inv(truth))
        values.append(error @ np.linalg.solve(covariance, error))
    return np.array(values)


@pytest.mark.parametrize(('make', 'noise'), [(scenes.ray_problem, {'scene_noise': 0.0, 'pixel_noise': 1.0}),
                                             (scenes.point_problem, {'scene_noise': 0.02, 'depth_noise': 0.01})])
def test_honest_for_independent_noise(make: Callable, noise: dict[str, float]) -> None:
    """The mean of 150 trials is that of Huber's sandwich (near 6) +- 3.5 sqrt(12 / 150) = 1.0. Noise of the points themselves is left to
    the test of the bias below: it is what rays are not honest about."""
    values = nees(make, outliers=0.0, **noise)
    expected = scenes.expected_nees(2 if make is scenes.ray_problem else 3, OPTIONS.inlier_sigmas)
    assert 5.0 < expected < 8.5 and abs(values.mean() - expected) < 1.0, (values.mean(), expected)


@pytest.mark.parametrize(('make', 'noise'), [(scenes.ray_problem, {'pixel_noise': 1.0}), (scenes.point_problem, {'depth_noise': 0.01})])
def test_outliers_do_not_make_it_overconfident(make: Callable, noise: dict[str, float]) -> None:
    """With 30 % outliers some near ones join in with part of their weight; the median stays that of chi-square within a factor 1.6."""
    values = nees(make, 0.02, 0.3, **noise)
    assert 5.35 / 1.6 < np.median(values) < 5.35 * 1.6


@pytest.mark.xfail(strict=True, reason='the reprojection residual, whitened with the noisy depth, prefers points that seem far: 52 mm too '
                                       'near at 0.1 m of noise, where a point-to-ray residual has 0.2 mm; see the docstring')
def test_the_position_is_not_drawn_along_the_optical_axis() -> None:
    """Points with 0.1 m of noise, as a head has it: the mean error along the axis must vanish against the scatter (8 mm) of one frame.

    A point that noise puts farther away counts more (its whitening is z / scale) and its error on the image plane is smaller (1 / z is
    convex): both draw the camera the same way, whatever the number of points.
    """
    along = []
    for seed in range(30):
        problem, truth = scenes.ray_problem(seed, count=1000, scene_noise=0.1, pixel_noise=1.0, scale=0.1)
        solution = estimate(problem, torch.ones(1000, dtype=torch.float64), 64, OPTIONS, torch.Generator().manual_seed(seed))
        shift = np.linalg.inv(solution.camera_from_map_44.numpy())[:3, 3] - np.linalg.inv(truth)[:3, 3]
        along.append((truth[:3, :3] @ shift)[2])
    assert abs(np.mean(along)) < 0.008, np.mean(along)
