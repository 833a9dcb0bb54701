"""Cells without depth are searched and finished by angles; with depth nothing is changed."""
from __future__ import annotations

from dataclasses import replace

import pytest
import scenes
import torch

from dsac_ros.config import EstimatorOptions
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.geometry import se3
from dsac_ros.ransac.cells import finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.estimator import estimate, refine_from
from dsac_ros.ransac.sampling import uniform_draws

OPTIONS = EstimatorOptions(pixel_noise=0.1, rgb_search_noise=0.4, rgb_final_noise=0.15)


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


def test_the_end_is_the_optimum_of_the_narrow_angle() -> None:
    """0.15 cells where 0.1 cells are 4 mrad: 6 mrad, without noise of the points; started at the truth and at what the search found."""
    scene = scenes.scene(4, 'rgb', count=384, noise=0.02, outliers=0.3)
    cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
    found = estimate(searched_by_angle(cells, OPTIONS), torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    ours = finished_by_angle(cells, found, replace(OPTIONS, rgb_final_steps=30)).camera_from_map_B44
    narrow = replace(cells, angles_BN=torch.full((1, 384), 0.006, dtype=torch.float64), scales_BN=torch.full((1, 384), 1e-9).double())
    start = torch.from_numpy(scene.truth)[None, None]
    expected = refine_from(narrow, start, replace(OPTIONS, refine_steps=40), 1.0).camera_from_map_B44
    assert se3.difference(ours, expected).abs().max() < 1e-4
    assert se3.difference(found.camera_from_map_B44, expected).abs().max() > 1e-3


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
