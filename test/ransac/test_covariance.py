"""The covariance says how far the pose really scatters, in the order and about the axes that ROS wants."""
from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest
import scenes
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.covariance import pose_covariance, sandwich_information, with_common_shift
from dsac_ros.ransac.estimator import Solution, estimate
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.sampling import uniform_draws

TRIALS = 400  # the mean of as many squared errors of six dimensions is known to 2.9 %
COUNT = 300
OPTIONS = EstimatorOptions(refined=2, refine_steps=6, inlier_sigmas=2.5)  # stated, so that tuning the defaults moves nothing here
DIMENSIONS = {'rgb': 2, 'rgbd': 3}


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


def test_a_common_shift_is_seen_in_the_scatter() -> None:
    """Poses drawn from the information, then turned about the camera as a whole: their covariance is that of the new information."""
    rng, count, shift = np.random.default_rng(0), 200_000, torch.tensor(0.02)
    root = rng.normal(size=(6, 6)) * [1, 2, 3, 10, 20, 30]
    hessian = torch.from_numpy(root @ root.T + 50 * np.eye(6))
    draws = rng.multivariate_normal(np.zeros(6), np.linalg.inv(hessian.numpy()), count)
    draws[:, :3] += shift.item() * rng.normal(size=(count, 3))
    ours = torch.linalg.inv(with_common_shift(hessian, shift)).numpy()
    spread = np.sqrt(np.outer(ours.diagonal(), ours.diagonal()))
    np.testing.assert_allclose(ours / spread, np.cov(draws.T) / spread, atol=0.01)  # four deviations of an estimated covariance
    torch.testing.assert_close(with_common_shift(hessian, 0 * shift), hessian, rtol=1e-8, atol=1e-6)


def trials(kind: str, count: int = TRIALS, **arguments: float) -> tuple[Correspondences, list[scenes.Scene]]:
    made = [scenes.scene(seed, kind, count=COUNT, **arguments) for seed in range(count)]
    return scenes.stacked([scene.problem for scene in made]), made


def solved(problem: Correspondences, sets: int = 12) -> Solution:
    """12 sets are plenty where there are no outliers. In parts, which the caches of a processor like better."""
    values, parts = scenes.tensors(problem), []
    for first in range(0, len(problem.scales_BN), 50):
        part = Correspondences(**{name: value[first:first + 50] for name, value in values.items()})
        draws = uniform_draws(range(first, first + len(part.scales_BN)), sets)
        parts.append(estimate(part, torch.ones_like(part.scales_BN), draws, OPTIONS))
    return Solution(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Solution)))


def nees(solution: Solution, information: torch.Tensor, made: list[scenes.Scene]) -> np.ndarray:
    """Squared Mahalanobis errors."""
    errors = np.array([scenes.tangent_between(pose, scene.truth) for pose, scene in zip(solution.camera_from_map_B44.numpy(), made)])
    return np.einsum('ki,kij,kj->k', errors, information.numpy(), errors)


def test_squared_errors_are_the_same_in_ros_terms() -> None:
    """To first order in errors of 1e-3 and the floor under the information."""
    problem, made = trials('rgb', 20, noise=0.03, pixel_noise=0.5)
    solution = solved(problem)
    ours = []
    for pose, hessian, scene in zip(solution.camera_from_map_B44, solution.hessian_B66, made):
        error = ros_error(np.linalg.inv(pose.numpy()), np.linalg.inv(scene.truth))
        ours.append(error @ np.linalg.solve(pose_covariance(hessian, pose).numpy(), error))
    np.testing.assert_allclose(ours, nees(solution, solution.hessian_B66, made), rtol=0.01)


@lru_cache(maxsize=2)
def with_noise_of_points(kind: str) -> tuple[Correspondences, list[scenes.Scene], Solution]:
    problem, made = trials(kind, noise=0.03, pixel_noise=0.5, range_noise=0.005)
    return problem, made, solved(problem)


@pytest.mark.parametrize('kind', ['rgb', 'rgbd'])
def test_honest_for_independent_noise_of_the_points(kind: str) -> None:
    """The mean of 400 trials is that of Huber's sandwich within 10 %, which is 3.5 standard deviations of it."""
    _, made, solution = with_noise_of_points(kind)
    expected = scenes.expected_nees(DIMENSIONS[kind], OPTIONS.inlier_sigmas)
    assert nees(solution, solution.hessian_B66, made).mean() == pytest.approx(expected, rel=0.1) and 6.0 < expected < 9.0


def test_honest_for_independent_noise_of_the_bearings() -> None:
    problem, made = trials('rgb', pixel_noise=1.0, scale=1e-6)
    solution, expected = solved(problem), scenes.expected_nees(2, OPTIONS.inlier_sigmas)
    assert nees(solution, solution.hessian_B66, made).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize('kind', ['rgb', 'rgbd'])
def test_the_sandwich_is_honest_without_any_correlation(kind: str) -> None:
    """Each correspondence a block of its own."""
    problem, made, solution = with_noise_of_points(kind)
    blocks = torch.arange(COUNT).expand(TRIALS, COUNT)
    information = sandwich_information(problem, solution, Kernel(OPTIONS.inlier_sigmas), blocks, COUNT)
    assert nees(solution, information, made).mean() == pytest.approx(6.0, rel=0.1)


@pytest.mark.parametrize('kind', ['rgb', 'rgbd'])
def test_outliers_do_not_make_it_overconfident(kind: str) -> None:
    """With 30 % outliers some near ones join in with part of their weight; the median stays that of chi-square, by what the sandwich adds,
    within a factor 1.4 (150 trials know it to 10 %)."""
    problem, made = trials(kind, 150, noise=0.02, outliers=0.3, pixel_noise=0.5, range_noise=0.005)
    solution = solved(problem, 48)
    expected = 5.35 * scenes.expected_nees(DIMENSIONS[kind], OPTIONS.inlier_sigmas) / 6
    assert expected / 1.4 < np.median(nees(solution, solution.hessian_B66, made)) < expected * 1.4


def shaken_together(problem: Correspondences, blocks: int, noise: float) -> tuple[Correspondences, torch.Tensor]:
    """The same with noise that the points of a block share, as an unseen part of a room is off as a whole; and the blocks (B, N)."""
    size = problem.scales_BN.shape
    index = (torch.arange(size[1]) * blocks // size[1]).expand(size)
    shared = noise * torch.randn(size[0], blocks, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = problem.points_BN3 + shared.gather(1, index[..., None].expand(*size, 3))
    return replace(problem, points_BN3=moved, scales_BN=torch.full(size, (noise ** 2 + 0.01 ** 2) ** 0.5, dtype=torch.float64)), index


@pytest.mark.parametrize('kind', ['rgb', 'rgbd'])
def test_the_sandwich_is_honest_where_blocks_share_their_noise(kind: str) -> None:
    """60 blocks of five, each off by 3 cm as a whole: hardly more independent residuals than blocks. The mean squared error of 400 trials
    is 6 within 10 %, where that of the Hessian alone is more than twice as much."""
    problem, made = trials(kind, noise=0.01, pixel_noise=0.1, range_noise=0.005)
    problem, blocks = shaken_together(problem, 60, 0.03)
    solution = solved(problem)
    information = sandwich_information(problem, solution, Kernel(OPTIONS.inlier_sigmas), blocks, 60)
    assert nees(solution, information, made).mean() == pytest.approx(6.0, rel=0.1)
    assert nees(solution, solution.hessian_B66, made).mean() > 12.0


def test_the_sandwich_is_that_of_numpy() -> None:
    """Written out for one problem: curvature of the score over the sum of the outer products of the gradients of blocks."""
    scene = scenes.scene(3, 'rgb', count=120, noise=0.02, pixel_noise=0.5)
    solution, kernel, blocks = solved(scene.problem), Kernel(OPTIONS.inlier_sigmas), torch.arange(120)[None] * 12 // 120
    ours = sandwich_information(scene.problem, solution, kernel, blocks, 15)[0].numpy()  # three blocks are empty
    pose = solution.camera_from_map_B44[0].numpy()
    values = {name: value[0].numpy() for name, value in scenes.tensors(scene.problem).items()}
    seen = scenes.moved(pose, values['points_BN3'])
    curvature, gradients = np.zeros((6, 6)), np.zeros((12, 6))
    for n, (point, ray) in enumerate(zip(seen, values['bearings_BN3'])):
        axes = np.linalg.svd(ray[None])[2][1:]
        information = 1 / (values['scales_BN'][n] ** 2 + (values['angles_BN'][n] * (point @ ray)) ** 2)
        rows = np.hstack([np.cross(point, axes), axes])
        square, step = ((axes @ point) ** 2).sum() * information, 1e-5
        weight, slope = (scenes.weight(square, 2, OPTIONS.inlier_sigmas),
                         np.subtract(*(scenes.weight(square + s, 2, OPTIONS.inlier_sigmas) for s in (step, -step))) / (2 * step))
        # In the mean over the two directions a residual could have: d (w r) / d r = w + 2 r^2 w' / 2.
        curvature += max(0.0, weight + square * slope) * information * rows.T @ rows
        gradients[blocks[0, n]] += weight * information * rows.T @ (axes @ point)
    meat = 12 / 6 * 12 / 5 * gradients.T @ gradients
    np.testing.assert_allclose(ours, curvature @ np.linalg.solve(meat, curvature), rtol=1e-2, atol=1e-3 * np.abs(ours).max())


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_the_sandwich_of_nothing_is_finite(kind: str) -> None:
    problem = scenes.scene(4, kind, count=COUNT).problem
    problem = replace(problem, usable_BN=torch.arange(COUNT)[None] < 2)
    solution = solved(problem)
    information = sandwich_information(problem, solution, Kernel(OPTIONS.inlier_sigmas), torch.zeros(1, COUNT, dtype=torch.long), 4)
    assert information.isfinite().all() and pose_covariance(information[0], solution.camera_from_map_B44[0]).isfinite().all()
