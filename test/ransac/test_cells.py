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
from dsac_ros.ransac.cells import FINAL_WIDENING, by_angle, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import ASSUMED_SHARE, estimate, normal_equations, refine_from
from dsac_ros.ransac.kernel import Kernel
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
        answers.append(finished_by_angle(problem, found, OPTIONS)[0])
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
    end = finished_by_angle(cells, found, replace(OPTIONS, rgb_final_steps=60))[0][0]
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


def test_the_information_is_that_of_the_weighted_residuals() -> None:
    """By differences of the distances from the rays, over the range: what has the angle that the cells say as its deviation."""
    scene = scenes.scene(4, 'rgb', count=384, noise=0.03, outliers=0.3)
    cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
    found = estimate(searched_by_angle(cells, OPTIONS), torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    (end,), (hessian,) = finished_by_angle(cells, found, OPTIONS)
    bearings = cells.bearings_BN3[0].numpy()

    def off(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = cells.points_BN3[0].numpy() @ pose[:3, :3].T + pose[:3, 3]
        along = (points * bearings).sum(1)
        return points - along[:, None] * bearings, along

    across, along = off(end.numpy())
    angles = np.where(along > 0, np.linalg.norm(across, axis=1) / along, np.inf)
    square = (angles / np.sort(angles)[int(0.1 * 384)]) ** 2
    odds = (10 / (6 + square)) ** 4
    weights = odds / (1 + odds) * 8 / (6 + square) / (along * np.sort(angles)[int(0.1 * 384)]) ** 2
    slopes = np.stack([(off(se3.retract(end, step).numpy())[0] - off(se3.retract(end, -step).numpy())[0]) / 2e-5
                       for step in 1e-5 * torch.eye(6).double()], -1)
    np.testing.assert_allclose(hessian.numpy(), np.einsum('ncj,n,nck->jk', slopes, weights, slopes), rtol=1e-3, atol=1e-3 * hessian.max())


def test_a_wide_angle_at_first_comes_nearer_from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses that are 3 cm and 3 hundredths of a radian off, and the steps that there are; eight stop some millimetres short."""
    short: dict[float, list[float]] = {FINAL_WIDENING: [], 1.0: []}
    for seed in range(12):
        scene = scenes.scene(seed, 'rgb', count=384, noise=0.05, outliers=0.3)
        cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
        found = estimate(searched_by_angle(cells, OPTIONS), torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
        best, _ = finished_by_angle(cells, found, replace(OPTIONS, rgb_final_steps=60))
        afar = se3.retract(best, 0.03 * torch.tensor([[1.0, -1, 1, -1, 1, 1]], dtype=torch.float64))
        for widening, each in short.items():
            monkeypatch.setattr('dsac_ros.ransac.cells.FINAL_WIDENING', widening)
            end, _ = finished_by_angle(cells, replace(found, camera_from_map_B44=afar), OPTIONS)
            each.append(se3.difference(end, best).abs().max().item())
    assert np.median(short[FINAL_WIDENING]) < min(0.7 * np.median(short[1.0]), 0.01), short


@pytest.mark.parametrize(('limit', 'noise'), [(1.6, 1.0), (0.05, 1e-4)])
def test_the_noise_has_limits(limit: float, noise: float) -> None:
    """Cells of a frame that shows nothing known do not count for good ones, nor perfect ones for better than a twentieth of a cell."""
    scene = scenes.scene(4, 'rgb', count=384, noise=noise, outliers=0.3)
    cells = replace(scene.problem, angles_BN=torch.full((1, 384), 0.004, dtype=torch.float64))
    found = estimate(searched_by_angle(cells, OPTIONS), torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    pose, hessian = finished_by_angle(cells, found, replace(OPTIONS, rgb_final_steps=60))
    fixed = by_angle(cells, limit / OPTIONS.pixel_noise)
    white = fixed.whitened(fixed.residuals(fixed.vectors(pose[:, None])), torch.ones(1, 1, dtype=torch.float64))
    _, weight = Kernel(OPTIONS.inlier_sigmas).expectation(fixed, white, ASSUMED_SHARE)
    expected = normal_equations(fixed, white, weight, fixed.vectors(pose[:, None]))[1][:, 0]
    torch.testing.assert_close(hessian, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize('kind', ['rgbd', 'holes'])
def test_frames_with_depth_are_left_alone(kind: str) -> None:
    scene = scenes.scene(5, kind, noise=0.02)
    assert searched_by_angle(scene.problem, OPTIONS) is scene.problem
    found = estimate(scene.problem, torch.ones_like(scene.problem.scales_BN), uniform_draws([0], 64), OPTIONS)
    pose_B44, hessian_B66 = finished_by_angle(scene.problem, found, OPTIONS)
    assert torch.equal(pose_B44, found.camera_from_map_B44) and torch.equal(hessian_B66, found.hessian_B66)


def test_of_a_batch_the_first_are_the_cells() -> None:
    """As the localizer solves cells and matches together."""
    scene = scenes.scene(6, 'rgb', count=384, noise=0.01)
    cells = scene.problem
    alone = estimate(cells, torch.ones(1, 384).double(), uniform_draws([0], 64), OPTIONS)
    both = replace(alone, camera_from_map_B44=torch.cat([alone.camera_from_map_B44, torch.eye(4).double()[None]]))
    ends = [finished_by_angle(cells, found, OPTIONS)[0] for found in (alone, both)]
    assert ends[1].shape == (1, 4, 4) and torch.equal(*ends)
