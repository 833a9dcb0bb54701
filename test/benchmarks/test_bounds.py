"""The bound against repeated draws: the fit that knows the inliers errs as much as the bound says, for both models of noise."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scenery import FRAMES, Surface, problem_set

from benchmarks.bounds import fit_points, fit_rays, position_bound
from benchmarks.problems import NOISE_MODELS, STRIDE, draw_noise, read_scene
from dsac_ros.evaluation.metrics import pose_error

DRAWS = 15  # of six frames each


def error_m(camera_from_map: np.ndarray, truth: np.ndarray) -> float:
    return pose_error(np.linalg.inv(camera_from_map), np.linalg.inv(truth))[0]


@pytest.mark.parametrize('name', NOISE_MODELS)
def test_fit_to_true_inliers_reaches_the_bound(name: str) -> None:
    model, scene, rng = NOISE_MODELS[name], read_scene(Surface(), FRAMES), np.random.default_rng(1)
    problems = [problem_set(name).problem(1, 1, frame, 2 * STRIDE) for frame in range(FRAMES)]
    bounds = np.array([position_bound(problem, 0.02, model) for problem in problems])
    ratios = []
    for _ in range(DRAWS):
        noisy = (scene.points_FHW3 + 0.02 * draw_noise(rng, scene, model))[:, ::2, ::2]
        depths = scene.depths_FHW[:, ::2, ::2]
        fits = [fit_rays(replace(problem, points_N3=points[depth > 0])) for problem, points, depth in zip(problems, noisy, depths)]
        ratios.append([error_m(fit, problem.camera_from_map) for fit, problem in zip(fits, problems)] / bounds)
    assert np.sqrt(np.mean(np.square(ratios))) == pytest.approx(1, abs=0.15)


def test_fits_undo_exact_correspondences() -> None:
    problem = problem_set('iid').problem(0, 0, 3)
    exact = (problem.camera_points_N3() - problem.camera_from_map[:3, 3]) @ problem.camera_from_map[:3, :3]
    for fit in (fit_rays, fit_points):
        np.testing.assert_allclose(fit(replace(problem, points_N3=exact)), problem.camera_from_map, atol=1e-9)
