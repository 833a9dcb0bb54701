"""Cells without depth are searched and finished by angles; with depth nothing is changed."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch

from dsac_ros.config import EstimatorOptions
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.geometry import se3
from dsac_ros.ransac.cells import by_angle, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate, refine_from
from dsac_ros.ransac.sampling import uniform_draws

OPTIONS = EstimatorOptions(pixel_noise=0.1, rgb_search_noise=0.4, rgb_final_share=0.1)


def test_guidance_prefers_what_is_certain() -> None:
    weights = guidance(torch.tensor([0.01, 0.1, 10.0]))
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64))


def test_a_wrong_statement_of_noise_changes_nothing_without_depth() -> None:
    """Every cell is off by 2 cm; ones that say 1 mm are outliers all together where that is believed, and these do not count for more."""
    scene = scenes.scene(3, 'rgb', count=384, noise=0.02, outliers=0.3)
    cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
    stated = torch.where(torch.arange(384)[None] < 40, 0.001, 0.05).double()
    answers = []
    for scales_BN in (stated, torch.full_like(stated, 0.05)):
        problem = replace(cells, scales_BN=scales_BN)
        found = estimate(searched_by_angle(problem, OPTIONS), torch.ones_like(stated), uniform_draws([0], 64), OPTIONS)
        answers.append(finished_by_angle(problem, found, OPTIONS).camera_from_map_B44)
    assert torch.equal(*answers)
    assert pose_error(answers[0][0].numpy(), scene.truth)[0] < 0.05


def score(camera_from_map: np.ndarray, cells: Correspondences, noise: float) -> float:
    """Of the angles alone, written anew: inliers of a t distribution with six degrees of freedom, even odds at two standard deviations."""
    points, bearings = cells.points_BN3[0].numpy() @ camera_from_map[:3, :3].T + camera_from_map[:3, 3], cells.bearings_BN3[0].numpy()
    square = tangents(points, bearings) ** 2 / noise ** 2
    return float(np.log1p(((6 + 4) / (6 + square)) ** 4).sum())


def tangents(points_N3: np.ndarray, bearings_N3: np.ndarray) -> np.ndarray:
    """Of the angles between points and rays; infinite behind the camera."""
    along = (points_N3 * bearings_N3).sum(1)
    return np.where(along > 0, np.linalg.norm(np.cross(points_N3, bearings_N3), axis=1) / along, np.inf)


@pytest.mark.parametrize('noise', [0.02, 0.1])
def test_the_end_is_the_best_score_by_the_angle_that_the_cells_say(noise: float) -> None:
    """Cells that are off by 2 cm want a narrow angle and such that are off by 10 cm a wide one; the pose is a maximum, not the neighbouring
    point where the residuals across the rays are in balance."""
    scene = scenes.scene(4, 'rgb', count=384, noise=noise, outliers=0.3)
    cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
    found = estimate(searched_by_angle(cells, OPTIONS), torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    end = finished_by_angle(cells, found, replace(OPTIONS, rgb_final_steps=60)).camera_from_map_B44[0]
    points = cells.points_BN3[0].numpy() @ end[:3, :3].numpy().T + end[:3, 3].numpy()
    angle = np.sort(tangents(points, cells.bearings_BN3[0].numpy()))[int(0.1 * 384)]
    assert 0.05 * 0.04 < angle < 1.6 * 0.04  # no limit is reached
    steps = 1e-4 * torch.eye(6).double()
    sides = [[score(se3.retract(end, sign * step).numpy(), cells, angle) for sign in (1, -1)] for step in steps]
    best = score(end.numpy(), cells, angle)
    for ahead, behind in sides:
        slope, curvature = (ahead - behind) / 2e-4, (ahead - 2 * best + behind) / 1e-8
        assert curvature < 0 and abs(slope / curvature) < 1e-4  # the maximum along this axis is a tenth of a millimetre away at the most
    balanced = refine_from(by_angle(cells, angle / 0.004), end[None, None], replace(OPTIONS, refine_steps=60), 1.0).camera_from_map_B44[0]
    assert se3.difference(balanced, end).abs().max() > 1e-4 * noise / 0.02


@pytest.mark.parametrize('kind', ['rgbd', 'holes'])
def test_frames_with_depth_are_left_alone(kind: str) -> None:
    scene = scenes.scene(5, kind, noise=0.02)
    assert searched_by_angle(scene.problem, OPTIONS) is scene.problem
    found = estimate(scene.problem, torch.ones_like(scene.problem.scales_BN), uniform_draws([0], 64), OPTIONS)
    assert finished_by_angle(scene.problem, found, OPTIONS) is found


def test_of_a_batch_the_first_are_the_cells() -> None:
    """As the localizer solves cells and matches together."""
    scene = scenes.scene(6, 'rgb', count=384, noise=0.01)
    cells = scene.problem
    alone = estimate(cells, torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    both = replace(alone, camera_from_map_B44=torch.cat([alone.camera_from_map_B44, torch.eye(4).double()[None]]))
    ends = [finished_by_angle(cells, found, OPTIONS).camera_from_map_B44 for found in (alone, both)]
    assert ends[1].shape == (1, 4, 4) and torch.equal(*ends)
