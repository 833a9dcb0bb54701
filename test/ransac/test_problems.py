"""Residuals by NumPy and OpenCV, Jacobians by automatic differentiation, hypotheses by what they have to fulfil."""
from __future__ import annotations

from dataclasses import replace
from typing import Callable

import cv2
import numpy as np
import pytest
import scenes
import torch

from dsac_ros.geometry import se3
from dsac_ros.ransac.problems import MIN_DEPTH, PointProblem, RayProblem

KINDS = [scenes.ray_problem, scenes.point_problem]


def poses_near(truth: np.ndarray, count: int = 4, size: float = 0.05) -> torch.Tensor:
    tangent = size * torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return se3.retract(torch.from_numpy(truth).expand(count, 4, 4), tangent)


def varied(problem: RayProblem | PointProblem) -> RayProblem | PointProblem:
    """Every correspondence with a noise of its own."""
    scales = torch.linspace(0.003, 0.3, len(problem.points_N3), dtype=torch.float64)
    return replace(problem, scales_N=scales)


@pytest.mark.parametrize('make', KINDS)
def test_jacobian_is_that_of_automatic_differentiation(make: Callable) -> None:
    """linearise's own residual, differentiated through se3.retract with the whitening held; exact up to rounding (1e3 of whitening)."""
    problem, truth = make(1, count=30, scene_noise=0.05)
    problem = varied(problem)
    poses = poses_near(truth)
    residual, jacobian, usable = problem.linearise(poses)
    assert usable.all()

    def raw(tangent: torch.Tensor) -> torch.Tensor:
        """Residuals of one pose in their own units, by projection written out here."""
        moved = se3.retract(pose, tangent)
        seen = problem.points_N3 @ moved[:3, :3].T + moved[:3, 3]
        return seen[:, :2] / seen[:, 2:] - problem.rays_N2 if isinstance(problem, RayProblem) else seen - problem.camera_N3

    for k, pose in enumerate(poses):
        zero = torch.zeros(6, dtype=torch.float64)
        depth = (problem.points_N3 @ pose[:3, :3].T + pose[:3, 3])[:, 2]
        if isinstance(problem, RayProblem):
            deviation = ((problem.scales_N / depth) ** 2 + problem.noise ** 2).sqrt()
        else:
            deviation = (problem.scales_N ** 2 + problem.noise_N ** 2).sqrt()
        torch.testing.assert_close(residual[k], raw(zero) / deviation[:, None], atol=1e-10, rtol=1e-10)
        expected = torch.autograd.functional.jacobian(raw, zero) / deviation[:, None, None]
        torch.testing.assert_close(jacobian[k], expected, atol=1e-8, rtol=1e-9)


@pytest.mark.parametrize('make', KINDS)
def test_residuals_are_the_lengths_of_the_whitened_rows(make: Callable) -> None:
    problem, truth = make(2, count=50, scene_noise=0.05)
    problem, poses = varied(problem), poses_near(truth)
    torch.testing.assert_close(problem.residuals(poses), problem.linearise(poses)[0].norm(dim=-1), atol=1e-10, rtol=1e-10)


def test_ray_distances_are_opencvs_reprojection_errors() -> None:
    problem, truth = scenes.ray_problem(3, scene_noise=0.05, pixel_noise=1.0)
    poses = poses_near(truth)
    for pose, ours in zip(poses.numpy(), problem.distances(poses)):
        image = cv2.projectPoints(problem.points_N3.numpy()[:, None], cv2.Rodrigues(pose[:3, :3])[0], pose[:3, 3], np.eye(3), None)[0]
        np.testing.assert_allclose(ours.numpy(), np.linalg.norm(image[:, 0] - problem.rays_N2.numpy(), axis=1), rtol=1e-9)


def test_point_distances_are_metres() -> None:
    problem, truth = scenes.point_problem(3, scene_noise=0.05)
    poses = poses_near(truth)
    for pose, ours in zip(poses.numpy(), problem.distances(poses)):
        moved = problem.points_N3.numpy() @ pose[:3, :3].T + pose[:3, 3]
        np.testing.assert_allclose(ours.numpy(), np.linalg.norm(moved - problem.camera_N3.numpy(), axis=1), rtol=1e-10)


@pytest.mark.parametrize('make', KINDS)
def test_scoring_in_float32_is_good_to_a_thousandth_of_a_sigma(make: Callable) -> None:
    problem, truth = make(4, scene_noise=0.03)
    poses = poses_near(truth)
    single = problem.residuals(poses.float())
    assert single.dtype == torch.float32
    # 1e-6 m of coordinates of 10 m against 1e-3 of ray noise and 5e-3 m of depth noise
    torch.testing.assert_close(single.double(), problem.residuals(poses), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize('make', KINDS)
def test_unusable_and_near_correspondences_are_infinitely_far(make: Callable) -> None:
    problem, truth = make(5, count=20)
    usable = torch.ones(20, dtype=torch.bool)
    usable[[3, 7]] = False
    problem = replace(problem, usable_N=usable)
    pose = torch.from_numpy(truth)[None]
    for far in (problem.residuals(pose), problem.distances(pose), problem.residuals(pose.float())):
        assert far[0].isinf().tolist() == (~usable).tolist()
    if make is scenes.ray_problem:
        # Step forward until some points are nearer than the limit or behind.
        ahead = pose.clone()
        ahead[0, 2, 3] -= 2.0
        depth = (problem.points_N3 @ ahead[0, :3, :3].T + ahead[0, :3, 3])[:, 2]
        assert (depth < MIN_DEPTH).sum() > 3
        assert problem.residuals(ahead)[0].isinf().tolist() == (~usable | (depth <= MIN_DEPTH)).tolist()
        assert all(part.isfinite().all() for part in problem.linearise(ahead))


@pytest.mark.parametrize('make', KINDS)
def test_clean_sets_are_solved_and_unusable_or_repeated_ones_masked(make: Callable) -> None:
    problem, truth = make(6, count=40)
    usable = torch.ones(40, dtype=torch.bool)
    usable[5] = False
    problem = replace(problem, usable_N=usable)
    sets = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 6, 7], [8, 9, 10]])
    poses, valid = problem.solve(sets)
    roots = len(valid) // 4
    assert poses.shape == (4 * roots, 4, 4) and poses.isfinite().all()
    valid, error = valid.view(4, roots), (poses - torch.from_numpy(truth)).abs().amax((1, 2)).view(4, roots)
    assert valid.any(1).tolist() == [True, False, False, True]
    for k in (0, 3):
        assert error[k][valid[k]].min() < 1e-6
