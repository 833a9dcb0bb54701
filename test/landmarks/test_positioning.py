"""The pose by landmarks near a start, on matches that are known, from starts that are near and far."""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.landmarks.keypoints import Keypoints
from dsac_ros.landmarks.landmarks import NEAREST, STRONGEST
from dsac_ros.landmarks.positioning import LEAST_MEASURED, USUAL_DISTANCE, Positioning, View, bearings_of, measured

sys.path.append(str(Path(__file__).parents[1] / 'ransac'))
from test_hot_path import NoWaiting  # noqa: E402

PIXEL = 1 / 500


def positioning(scene, **options: float) -> tuple[Positioning, View]:
    view = View(scene['rays'], scene['rays'], scene['words'], torch.ones(len(scene['rays']), dtype=torch.bool), PIXEL)
    return Positioning(scene['landmarks'], torch.device('cpu'), EstimatorOptions(**options), 4.0), view


@pytest.mark.parametrize(('off', 'radius_px', 'found'), [(0.0, 16.0, True), (0.03, 40.0, True), (0.5, 16.0, False)])
def test_found_from_near_and_not_from_far(scene, off: float, radius_px: float, found: bool) -> None:
    """`off` in radians and metres along each axis; a pixel is 2 mrad."""
    solver, view = positioning(scene)
    near = solver.near(view, se3.retract(scene['pose'], off * torch.ones(6, dtype=torch.float64)), radius_px * PIXEL)
    assert bool(near.enough) == found
    if found:
        torch.testing.assert_close(near.pose_44, scene['pose'], atol=1e-3, rtol=0)
        assert near.inliers > 0.8 * len(view.rays_M2) and near.spread == 1 and near.rms < 0.5 * PIXEL
        assert torch.linalg.eigvalsh(near.hessian_66).min() > 0


def test_noise_shows_in_the_residual_and_the_factor_in_the_information(scene) -> None:
    solver, view = positioning(scene)
    noise = 0.7 * PIXEL * torch.randn(view.rays_M2.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = solver.near(View(view.rays_M2 + noise, view.places_M2, view.descriptors_MC, view.usable_M, PIXEL), scene['pose'], 16 * PIXEL)
    assert near.rms.item() == pytest.approx(0.7 * PIXEL * 2 ** 0.5, rel=0.2)
    trusting = Positioning(scene['landmarks'], torch.device('cpu'), EstimatorOptions(), 1.0).near(view, scene['pose'], 16 * PIXEL)
    doubting = solver.near(view, scene['pose'], 16 * PIXEL)
    torch.testing.assert_close(4 * doubting.hessian_66, trusting.hessian_66)


def test_noise_shows_in_the_misfit(scene) -> None:
    solver, view = positioning(scene)
    generator, misfits = torch.Generator().manual_seed(0), []
    for noise in (0.0, 0.5, 1.0, 3.0):
        rays = view.rays_M2 + noise * PIXEL * torch.randn(view.rays_M2.shape, dtype=torch.float64, generator=generator)
        misfits.append(solver.near(replace(view, rays_M2=rays), scene['pose'], 16 * PIXEL).misfit.item())
    assert misfits == sorted(misfits) and misfits[0] < 0.05 and misfits[1] == pytest.approx(0.5 * misfits[2], rel=0.3) and misfits[-1] > 1.2


def test_the_misfit_of_normal_noise_is_in_its_deviations(scene) -> None:
    """In two dimensions, each with one deviation, less what outliers are weighted down by: integrated, 1.23."""
    solver, view = positioning(scene, landmark_noise=1e-4)
    square = np.linspace(0, 40, 400_001)
    inlier = (10 / (6 + square)) ** 4
    weights = np.exp(-square / 2) * inlier / (1 + inlier)
    expected = np.sqrt((weights * square).sum() / weights.sum())
    noise = PIXEL * torch.randn(view.rays_M2.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = solver.near(replace(view, rays_M2=view.rays_M2 + noise), scene['pose'], 16 * PIXEL).misfit.item()
    assert expected == pytest.approx(1.23, abs=0.03) and found == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize('share', [0.9, 1.0, 1.3])
def test_depth_that_the_landmarks_do_not_have_shows(scene, share: float) -> None:
    """A third of the depths is missing, some are of what is behind, the others differ from each other; keypoints that are outliers, most
    of those with a depth, have no say."""
    solver, view = positioning(scene)
    points = scene['landmarks'].points_L3[scene['order']].double()
    error = (share - 1) + torch.linspace(-0.05, 0.15, len(points), dtype=torch.float64)
    depths = (1 + error) * (points @ scene['pose'][:3, :3].T + scene['pose'][:3, 3])[:, 2]
    depths[::3], depths[1::9] = 0.0, 9.0
    rays = view.rays_M2.clone()
    outliers = torch.arange(len(points)) % 5 < 3
    rays[outliers] += 12 * PIXEL
    depths[outliers & (depths > 0)] *= 1.5
    inliers = ~outliers & (depths > 0)
    truth = (points @ scene['pose'][:3, :3].T + scene['pose'][:3, 3])[:, 2]
    expected = ((truth - depths).abs() / depths.clamp(min=1e-9))[inliers].median().item()
    found = solver.near(replace(view, rays_M2=rays, depths_M=depths), scene['pose'], 16 * PIXEL)
    assert found.depth_misfit.item() == pytest.approx(expected, abs=0.004) and outliers[depths > 0].double().mean() > 0.5
    few = torch.where(torch.arange(len(depths)) < LEAST_MEASURED - 1, depths, 0.0)
    for none in (None, few):
        assert solver.near(replace(view, depths_M=none), scene['pose'], 16 * PIXEL).depth_misfit.isnan()


def test_depth_is_read_where_the_keypoints_are() -> None:
    depth = np.zeros((30, 40), np.float32)
    depth[12, 7], depth[29, 39], depth[3, 3] = 2.0, 3.0, np.nan
    seen = Keypoints(np.array([[7.4, 11.6], [39.6, 29.7], [3.0, 3.0], [20.0, 20.0]]), np.zeros((4, 2)), np.zeros((4, 128), np.float32))
    assert measured(depth, seen, 6).tolist() == [2.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    assert measured(depth, seen, 1).tolist() == [2.0]


def test_what_landmarks_share_is_no_smaller_for_being_many(scene) -> None:
    """Covariance of rotation and translation in the camera: as of independent noise, and the shift of a whole view on top. So it is at a
    distance of 1, and wherever a view is where the map does not know where it was mapped from."""
    solver, view = positioning(scene)
    nowhere = replace(scene['landmarks'], common_shift=2e-3, cameras_F34=torch.zeros(0, 3, 4))
    shifted = Positioning(nowhere, torch.device('cpu'), EstimatorOptions(), 4.0)
    before, after = (torch.linalg.inv(s.near(view, scene['pose'], 16 * PIXEL).hessian_66) for s in (solver, shifted))
    torch.testing.assert_close(after - before, torch.diag(torch.tensor([4e-6] * 3 + [0.0] * 3, dtype=torch.float64)), atol=1e-10, rtol=0)
    assert before.diagonal()[:3].max() < 4e-6


def test_covariance_grows_with_the_distance_from_the_mapped_views(scene) -> None:
    """Of a view turned by 0.3 rad from the only mapped one: 4 + 0.3 * 20 times the inverse Hessian, and 0.3 of the square of the shift. Of
    one half a metre off the same with the angle that this is."""
    (trusting, view), turn = positioning(scene), 0.3
    camera = torch.linalg.inv(scene['pose'])
    about_x = torch.tensor([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    camera[:3, :3] = camera[:3, :3] @ about_x
    aside, seen = torch.linalg.inv(scene['pose']), scene['landmarks'].points_L3.double() @ scene['pose'][2, :3] + scene['pose'][2, 3]
    aside[0, 3] += 0.5
    as_an_angle = 0.5 * (1 / seen).mean().item()  # at the mean of what is seen
    for cameras, distance in ((camera[None, :3], turn), (aside[None, :3], as_an_angle), (scene['landmarks'].cameras_F34, NEAREST)):
        doubting = replace(scene['landmarks'], common_shift=2e-3, growth=20.0, cameras_F34=cameras.float())
        near = Positioning(doubting, torch.device('cpu'), EstimatorOptions(), 4.0).near(view, scene['pose'], 16 * PIXEL)
        assert near.distance.item() == pytest.approx(distance, abs=2e-3)
        before, after = (torch.linalg.inv(s.hessian_66) for s in (trusting.near(view, scene['pose'], 16 * PIXEL), near))
        factor, square = (4 + 20 * near.distance) / 4, 4e-6 * near.distance
        torch.testing.assert_close(after, factor * before + torch.diag(square * torch.tensor([1.0] * 3 + [0.0] * 3)), rtol=1e-6, atol=1e-12)


def test_the_focal_length_is_granted_more_where_poses_are_poor_wherever_they_are(scene) -> None:
    """One that is 10 % too long is seen unless the map says that poses err by much; the distance of the pose has no say."""
    _, view = positioning(scene)
    wrong, misfits = replace(view, rays_M2=view.rays_M2 / 1.1), []
    for growth in (0.0, 1e6):
        for cameras in (scene['landmarks'].cameras_F34, torch.zeros(0, 3, 4)):
            doubting = replace(scene['landmarks'], growth=growth, cameras_F34=cameras)
            doubted = Positioning(doubting, torch.device('cpu'), EstimatorOptions(), 1.0)
            around = doubted.around(wrong, scene['pose'])
            misfits.append(around.focal_misfit.item())
            assert doubted.usual_factor == pytest.approx(1 + growth * USUAL_DISTANCE)
    assert misfits[0] == misfits[1] > 0.03 and misfits[2] == misfits[3] == 0


def test_too_few_or_too_close_together_are_not_enough(scene) -> None:
    for options in ({'min_landmarks': 1e4}, {'min_landmark_spread': 1.0}):
        solver, view = positioning(scene, **options)
        corner = (view.rays_M2 < 0).all(1)
        seen = View(view.rays_M2, view.places_M2, view.descriptors_MC, corner if 'min_landmark_spread' in options else view.usable_M, PIXEL)
        assert not solver.near(seen, scene['pose'], 16 * PIXEL).enough


def test_spread_is_that_of_places_in_the_image(scene) -> None:
    """At the edge of a wide fisheye lens rays say little of them."""
    solver, view = positioning(scene)
    places = torch.zeros_like(view.places_M2)
    places[0] = 1.0
    together = replace(view, places_M2=places)
    assert solver.near(together, scene['pose'], 16 * PIXEL).spread.item() == 1 / 16
    assert solver.around(together, scene['pose']).share != solver.around(view, scene['pose']).share


def test_anywhere_is_a_problem_of_the_strongest_keypoints(scene) -> None:
    solver, view = positioning(scene)
    problem, weights = solver.anywhere(view)
    assert problem.points_BN3.shape == (1, STRONGEST, 3) and weights.shape == (1, STRONGEST)
    true = (problem.points_BN3[0] == scene['landmarks'].points_L3[scene['order'][:STRONGEST]].double()).all(1)
    assert true.double().mean() > 0.95 and (weights > 0).all()
    residuals = problem.residuals(problem.vectors(scene['pose'][None, None]))
    assert residuals.across_BKN[0, 0][true].sqrt().max() < 1e-5


def test_bearings_are_unit_vectors_along_the_rays() -> None:
    bearings, lengths = bearings_of(torch.tensor([[0.0, 0.0], [0.75, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(bearings * lengths[:, None], torch.tensor([[0.0, 0, 1], [0.75, -1, 1]], dtype=torch.float64))
    torch.testing.assert_close(bearings.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_the_host_waits_for_nothing(scene) -> None:
    """Between the keypoints and what is said of the pose, with a start far off, where little matches."""
    solver, view = positioning(scene)
    view = replace(view, depths_M=torch.ones(len(view.rays_M2), dtype=torch.float64))
    for start in (scene['pose'], se3.retract(scene['pose'], 0.5 * torch.ones(6, dtype=torch.float64))):
        with NoWaiting():
            near = solver.near(view, start, 40 * PIXEL)
            solver.around(view, near.pose_44)
