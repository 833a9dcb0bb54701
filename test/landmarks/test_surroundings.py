"""What landmarks around a pose say of it, against a camera that is known and an optimiser that is not ours."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.landmarks.positioning import Positioning, View
from dsac_ros.landmarks.surroundings import SIGMAS, Matched, look_around

PIXEL = 1 / 500


def matched_in(scene, gain: float = 1.0, noise_px: float = 0.5) -> Matched:
    """All landmarks of the scene, seen by a camera that says a focal length `gain` times too long."""
    noise = noise_px * PIXEL * torch.randn(scene['rays'].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = scene['landmarks'].points_L3[scene['order']].double()
    counts = torch.ones(len(points), dtype=torch.float64)
    return Matched(points, (scene['rays'] + noise) / gain, scene['rays'], counts, noise_px * PIXEL, 1e-4)


@pytest.mark.parametrize('gain', [0.7, 0.9, 1.0, 1.05, 1.3])
def test_pose_and_focal_length_are_those_of_another_optimiser(scene, gain: float) -> None:
    """From the pose by the wrong focal length, which is where one is looked around."""
    matched = matched_in(scene, gain)
    points, rays, deviation = matched.points_M3.numpy(), matched.rays_M2.numpy(), matched.ray_noise

    def off(numbers: np.ndarray, zoom: float) -> np.ndarray:
        local = Rotation.from_rotvec(numbers[:3]).apply(points) + numbers[3:6]
        return ((np.exp(-zoom) * local[:, :2] / local[:, 2:] - rays) / deviation).ravel()

    truth = np.concatenate([Rotation.from_matrix(scene['pose'][:3, :3].numpy()).as_rotvec(), scene['pose'][:3, 3].numpy()])
    wrong = least_squares(off, truth, args=(0.0,), loss='cauchy').x
    found = least_squares(lambda numbers: off(numbers[:6], numbers[6]), np.append(truth, 0.0))
    granted = SIGMAS * np.linalg.inv(found.jac.T @ found.jac)[6, 6] ** 0.5
    pose_44 = torch.eye(4, dtype=torch.float64)
    pose_44[:3, :3], pose_44[:3, 3] = torch.from_numpy(Rotation.from_rotvec(wrong[:3]).as_matrix()), torch.from_numpy(wrong[3:6])
    expected = max(0.0, abs(found.x[6]) - granted)
    assert found.x[6] == pytest.approx(np.log(gain), abs=0.01)
    # Weights that fall with the residual know up to a third less than least squares.
    assert look_around(matched, pose_44, 1.0).focal_misfit.item() == pytest.approx(expected, abs=0.4 * granted)
    assert (expected > 0) == (gain != 1)


@pytest.mark.parametrize('outliers', [0.0, 0.5])
@pytest.mark.parametrize('tilt', [0.0, 0.2])
def test_before_a_wall_nothing_is_said(tilt: float, outliers: float) -> None:
    """It would look the same by any focal length from another distance, and a fit runs away."""
    said = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        rays = rng.uniform(-0.5, 0.5, (80, 2))
        depths = 2 + tilt * rays[:, :1]
        points = np.hstack([rays * depths, depths]) + rng.normal(0, 0.01, (80, 3))
        rays += PIXEL * rng.normal(size=rays.shape)
        rays[:int(80 * outliers)] += rng.uniform(-0.02, 0.02, (int(80 * outliers), 2))
        seen, counts = torch.from_numpy(rays), torch.ones(80, dtype=torch.float64)
        matched = Matched(torch.from_numpy(points), seen, seen, counts, PIXEL, 0.01)
        said.append(look_around(matched, torch.eye(4, dtype=torch.float64), 1.0).focal_misfit.item())
    assert np.count_nonzero(said) <= 1, said


def test_a_map_that_understates_its_errors_is_sure_of_less(scene) -> None:
    matched = matched_in(scene, 1.05)
    found = [look_around(matched, scene['pose'], factor).focal_misfit.item() for factor in (0.01, 1.0, 4.0, 1e4)]
    assert found[0] == found[1] > found[2] > found[3] == 0
    assert np.log(1.05) - found[2] == pytest.approx(2 * (np.log(1.05) - found[1]), rel=0.1)


@pytest.mark.parametrize('wrong', [0, 100, 300])
def test_the_share_is_of_those_that_agree(scene, wrong: int) -> None:
    """Where they lie in the image is by chance, some 22 in each tile."""
    matched = matched_in(scene)
    rays, counts = matched.rays_M2.clone(), matched.counts_M.clone()
    rays[:wrong] += 0.05
    counts[350:] = 0
    around = look_around(replace(matched, rays_M2=rays, counts_M=counts), scene['pose'], 1.0)
    expected = (1 + 350 / 16 * (1 - wrong / 350)) / (2 + 350 / 16)
    assert around.share.item() == pytest.approx(expected, abs=0.02) and around.focal_misfit == 0


def test_one_part_of_the_image_does_not_speak_for_the_others(scene) -> None:
    """Most landmarks agree, all of them in one quarter of the image."""
    matched = matched_in(scene)
    quarter = (matched.rays_M2 < 0).all(1)
    counts, few = torch.where(quarter, 1.0, 0.0).double(), torch.arange(len(quarter)) % 4 == 0
    rays = torch.where(quarter[:, None], matched.rays_M2, matched.rays_M2 + 0.1 * (0.5 - matched.rays_M2.flip(1)))
    counts[few] = 1.0
    agree = (quarter & (counts > 0)).sum().item() / counts.sum().item()
    alone = look_around(replace(matched, counts_M=torch.where(quarter, counts, 0.0)), scene['pose'], 1.0).share.item()
    assert agree > 0.5 and alone > 0.9 and look_around(replace(matched, rays_M2=rays, counts_M=counts), scene['pose'], 1.0).share < 0.45


def test_of_nothing_nothing_is_said(scene) -> None:
    matched = matched_in(scene)
    behind = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)) @ scene['pose']
    none, all_behind = look_around(replace(matched, counts_M=0 * matched.counts_M), scene['pose'], 1.0), look_around(matched, behind, 1.0)
    assert none.share == 0 and all_behind.share < 0.05 and none.focal_misfit == all_behind.focal_misfit == 0


@pytest.mark.parametrize('gain', [1.0, 1.2])
def test_landmarks_are_matched_around_the_pose(scene, gain: float) -> None:
    """A pose that is 3 cm and 2 degrees off has few landmarks where it says, and its camera the right focal length all the same."""
    view = View(scene['rays'] / gain, scene['rays'], scene['words'], torch.ones(len(scene['rays']), dtype=torch.bool), PIXEL)
    solver = Positioning(scene['landmarks'], torch.device('cpu'), EstimatorOptions(), 1.0)
    right, off = solver.around(view, scene['pose']), solver.around(view, se3.retract(scene['pose'], 0.03 * torch.ones(6).double()))
    assert off.share < 0.2 and (gain > 1 or right.share > 0.93)
    for around in (right, off):
        assert around.focal_misfit.item() == pytest.approx(np.log(gain), abs=0.03)


def test_where_no_fit_is_possible_it_says_so(scene) -> None:
    matched = matched_in(scene)
    assert look_around(matched, scene['pose'] * torch.nan, 1.0).focal_misfit.isnan()
