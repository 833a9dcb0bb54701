"""Residuals by NumPy, derivatives by finite differences, and nothing that depends on where the map begins."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch

from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import MIN_RANGE, Correspondences, across

CASES = [(kind, rig) for kind in scenes.KINDS for rig in (False, True)]


@pytest.mark.parametrize(('kind', 'rig'), CASES)
def test_rows_give_the_distances_from_the_ray_and_from_the_range(kind: str, rig: bool, device: str) -> None:
    """In float64 to the rounding of sums of 10 m; float32, which weights and scores take, has 1e-6 of that."""
    scene = scenes.scene(1, kind, noise=0.1, pixel_noise=2.0, range_noise=0.05, rig=rig)
    problem, poses = scenes.on(device, scene.problem), scenes.poses_near(scene.truth)
    vectors = problem.vectors(poses.to(device))
    rows_across, rows_along = problem.rows_B13M
    first, second = (vectors @ rows_across).cpu().chunk(2, -1)
    along, single = (vectors @ rows_along).cpu(), problem.residuals(vectors)
    ranges = scene.problem.ranges_BN[0].numpy() if kind != 'rgb' else 0.0
    assert (single.range_BKN > 1).any() and single.seen_BKN.all()
    for k, pose in enumerate(poses[0].numpy()):
        distance, depth = scenes.measured(scene.problem, pose)
        np.testing.assert_allclose(torch.hypot(first, second)[0, k].numpy(), distance, atol=1e-12)
        np.testing.assert_allclose(along[0, k].numpy(), depth - ranges, atol=1e-12)
        np.testing.assert_allclose(single.across_BKN[0, k].cpu().sqrt().numpy(), distance, atol=1e-5)
        np.testing.assert_allclose(single.range_BKN[0, k].cpu().numpy(), depth, atol=1e-5)
        np.testing.assert_allclose(single.along_BKN[0, k].cpu().numpy(), depth - ranges, atol=1e-5)


@pytest.mark.parametrize(('kind', 'rig'), CASES)
def test_whitening_divides_by_the_variances_of_point_bearing_and_range(kind: str, rig: bool) -> None:
    """Every correspondence with a noise of its own; float32."""
    scene = scenes.scene(2, kind, count=200, noise=0.1, range_noise=0.05, rig=rig)
    noises = torch.linspace(0.003, 0.3, 200, dtype=torch.float64)[None]
    problem = replace(scene.problem, scales_BN=noises, angles_BN=noises.flip(1) / 10)
    if kind != 'rgb':
        problem = replace(problem, range_noise_BN=noises.roll(50, 1))
    poses, factors = scenes.poses_near(scene.truth), torch.tensor([[0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
    white = problem.whitened(problem.residuals(problem.vectors(poses)), factors)
    values = {name: value[0].numpy() for name, value in scenes.tensors(problem).items()}
    for k, pose in enumerate(poses[0].numpy()):
        distance, depth = scenes.measured(problem, pose)
        variance = (factors[0, k].item() * values['scales_BN']) ** 2
        information = 1 / (variance + (values['angles_BN'] * depth) ** 2)
        square = distance ** 2 * information
        np.testing.assert_allclose(white.across_BKN[0, k].numpy(), information, rtol=1e-4)
        if kind != 'rgb':
            along = np.where(values['ranges_BN'] > 0, 1 / (variance + values['range_noise_BN'] ** 2), 0.0)
            square = square + (depth - values['ranges_BN']) ** 2 * along
            np.testing.assert_allclose(white.along_BKN[0, k].numpy(), along, rtol=1e-4)
        # 1e-5 m of a residual over the least noise here, 3 mm times 0.5
        np.testing.assert_allclose(np.sqrt(white.square_BKN[0, k].numpy()), np.sqrt(square), atol=0.01, rtol=1e-4)


def test_axes_across_a_bearing_are_orthonormal_in_every_direction() -> None:
    rng = np.random.default_rng(0)
    bearings = np.vstack([rng.normal(size=(500, 3)), np.eye(3), -np.eye(3), [[1e-9, 0, -1], [0, -1e-9, 1], [1e-200, 0, -1], [-0.0, 0, -1]]])
    bearings /= np.linalg.norm(bearings, axis=1, keepdims=True)
    axes = np.stack([*(axis.numpy() for axis in across(torch.from_numpy(bearings))), bearings], 1)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (len(bearings), 1, 1)), atol=1e-14)


@pytest.mark.parametrize('rig', [False, True])
def test_generators_are_the_derivative_by_a_left_perturbation(rig: bool) -> None:
    """Central differences of 1e-5: 1e-10 of the third derivative, 1e-11 of rounding."""
    scene = scenes.scene(3, rig=rig)
    problem, pose = scene.problem, scenes.poses_near(scene.truth, 1)
    ours = problem.moves(problem.vectors(pose))[0, 0]
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    plus, minus = (problem.vectors(se3.retract(pose.expand(1, 6, 4, 4), sign * step)) for sign in (1, -1))
    torch.testing.assert_close(ours, ((plus - minus) / 2e-5)[0].mT, atol=1e-9, rtol=0)


def test_vectors_and_poses_are_inverse_to_each_other() -> None:
    scene = scenes.scene(4)
    poses = scenes.poses_near(scene.truth, size=1.0)
    torch.testing.assert_close(scene.problem.poses(scene.problem.vectors(poses)), poses, atol=1e-13, rtol=0)


def test_centre_and_spread_are_those_of_a_cloud_and_move_with_it() -> None:
    """Of 20,000 normal points around a place, a third of them without numbers; medians keep 1 % and, in shares, 1 %."""
    rng = np.random.default_rng(5)
    points = torch.from_numpy(rng.normal(size=(1, 20000, 3)))
    points[0, ::3] = torch.nan
    ones = torch.ones(1, 20000, dtype=torch.float64)
    for place, size in ((0.0, 1.0), (1e5, 0.01), (-3.0, 1e4)):
        problem = Correspondences(place + size * points, torch.zeros_like(points) + 0.5, ones, ones, ones > 0)
        assert problem.count_B1.item() == 20000 - 6667
        np.testing.assert_allclose((problem.centre_B3 - place).numpy() / size, 0.0, atol=0.05)
        np.testing.assert_allclose(problem.spread_B.numpy() / size, 1.0, rtol=0.03)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_residuals_do_not_depend_on_where_the_map_begins(kind: str) -> None:
    """1 km away float32 alone would be off by 0.1 mm; what is left is the rounding of the coordinates themselves, 1e-13 m."""
    scene = scenes.scene(6, kind, noise=0.05)
    poses = scenes.poses_near(scene.truth)
    shift = torch.tensor([1000.0, -700.0, 300.0], dtype=torch.float64)
    away = replace(scene.problem, points_BN3=scene.problem.points_BN3 + shift)
    origin = torch.eye(4, dtype=torch.float64)
    origin[:3, 3] = -shift
    near, far = scene.problem.residuals(scene.problem.vectors(poses)), away.residuals(away.vectors(poses @ origin))
    torch.testing.assert_close(far.across_BKN.sqrt(), near.across_BKN.sqrt(), atol=5e-6, rtol=0)
    torch.testing.assert_close(far.along_BKN, near.along_BKN, atol=5e-6, rtol=0)
    rows = [problem.vectors(pose) @ problem.rows_B13M[0] for problem, pose in ((scene.problem, poses), (away, poses @ origin))]
    torch.testing.assert_close(rows[1], rows[0], atol=1e-11, rtol=0)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_near_and_unusable_correspondences_are_not_seen(kind: str) -> None:
    """Step forward until some points are nearer than the limit or behind: they have no information, and no number is lost."""
    scene = scenes.scene(7, kind, count=200)
    usable = torch.ones(1, 200, dtype=torch.bool)
    usable[0, [3, 7]] = False
    problem = replace(scene.problem, usable_BN=usable)
    ahead = scene.truth.copy()
    ahead[2, 3] -= 2.0
    near = scenes.measured(problem, ahead)[1] <= MIN_RANGE
    assert 10 < near.sum() < 190
    white = problem.whitened(problem.residuals(problem.vectors(torch.from_numpy(ahead)[None, None])), torch.ones(1, 1).double())
    assert (white.across_BKN[0, 0] == 0).tolist() == (near | ~usable[0].numpy()).tolist()
    assert white.square_BKN.isfinite().all()
    if kind != 'rgb':
        depth = problem.ranges_BN[0].numpy() > 0
        assert (white.along_BKN[0, 0] == 0).tolist() == (near | ~usable[0].numpy() | ~depth).tolist()


@pytest.mark.parametrize('name', ['points_BN3', 'bearings_BN3', 'scales_BN', 'angles_BN', 'ranges_BN', 'range_noise_BN'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_left_out_and_spoils_nothing_else(name: str, value: float) -> None:
    """Depth that is no number is no depth; with anything else the correspondence is not known at all."""
    scene = scenes.scene(8, 'rgbd', count=50, noise=0.02)
    broken = getattr(scene.problem, name).clone()
    broken[0, 4:9] = value
    problem = replace(scene.problem, **{name: broken})
    poses, ones = scenes.poses_near(scene.truth), torch.ones(1, 4).double()
    white = problem.whitened(problem.residuals(problem.vectors(poses)), ones)
    depth_alone = name.startswith('range')
    assert problem.known_BN[0, 4:9].tolist() == [depth_alone] * 5 and problem.known_BN.sum() == (50 if depth_alone else 45)
    assert not problem.measured_BN[0, 4:9].any() and problem.measured_BN.sum() == 45
    assert (white.along_BKN[..., 4:9] == 0).all() and (white.across_BKN[..., 4:9] > 0).all() == depth_alone
    assert all(part.isfinite().all() for part in (*problem.rows_B13M, white.square_BKN, white.across_BKN, white.along_BKN))
    # The others have the residuals that they have without it, though the centre is another.
    clean = scene.problem.whitened(scene.problem.residuals(scene.problem.vectors(poses)), ones)
    torch.testing.assert_close(white.square_BKN[..., 9:], clean.square_BKN[..., 9:], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_a_subset_is_evenly_spread_and_keeps_centre_and_spread(kind: str) -> None:
    problem = scenes.scene(9, kind, count=600, rig=True).problem
    assert problem.subset(600) is problem
    part = problem.subset(256)
    index = (np.arange(256) * 600 / 256).astype(int)
    for name, value in scenes.tensors(problem).items():
        assert torch.equal(getattr(part, name), value[:, index]), name
    assert torch.equal(part.centre_B3, problem.centre_B3) and torch.equal(part.spread_B, problem.spread_B)
