"""The derivative of the refined optimum against differences of an optimum that is found independently, in float64."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scenes
import torch
from differences import agreement, central, pose_weights
from fixed_point import optimum
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.endtoend import refinement
from dsac_ros.endtoend.refinement import Refined, refined
from dsac_ros.ransac.cells import STATED
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import refine_from
from dsac_ros.ransac.kernel import Kernel

EVEN_AT = 2.0
# Stated, so that tuning the defaults moves nothing here.
OPTIONS = EstimatorOptions(inlier_sigmas=EVEN_AT, refine_steps=5, refine_widening=2.0)
COUNT = 40
SCENES = ('room', 'angles', 'wall', 'far', 'rig')
LEAVES = ('points_BN3', 'scales_BN', 'angles_BN')


def scene(name: str, kind: str, seed: int = 0, count: int = COUNT) -> scenes.Scene:
    """Three of ten are outliers, noise is unequal and that of bearings large, so that every term of the derivative counts.

    angles: noise of bearings alone, as cells without depth have it. wall: all points on a plane. far: points in a corner of the view, where
    turning and shifting look nearly alike.
    """
    made = scenes.scene(seed, kind, count=count, outliers=0.3, noise=0.05, pixel_noise=8.0, range_noise=0.03, rig=name == 'rig')
    rng = np.random.default_rng(seed)
    values = scenes.tensors(made.problem)
    values['scales_BN'] = values['scales_BN'] * torch.from_numpy(rng.uniform(0.5, 2, (1, count)))
    if name == 'angles':
        values['scales_BN'] = torch.full_like(values['scales_BN'], STATED)
        values['angles_BN'] = values['angles_BN'] * torch.from_numpy(rng.uniform(2, 4, (1, count)))
    if name in ('wall', 'far'):
        seen = np.column_stack([rng.uniform(-1.5, 1.5, count), rng.uniform(-1, 1, count), np.full(count, 3.0)])
        if name == 'far':
            seen = np.column_stack([rng.uniform(0.3, 1.0, count), rng.uniform(0.3, 1.0, count), rng.uniform(4, 5, count)])
        ranges = np.linalg.norm(seen, axis=1)
        noise = 0.03 * rng.normal(size=seen.shape) + np.where(made.clean_N, 0, 0.5)[:, None] * rng.normal(size=seen.shape)
        values['points_BN3'] = torch.from_numpy(scenes.in_map(made.truth, seen + noise))[None]
        values['bearings_BN3'] = torch.from_numpy(seen / ranges[:, None])[None]
        if kind != 'rgb':
            values['ranges_BN'] = torch.from_numpy(ranges) * (values['ranges_BN'] > 0)
    return scenes.Scene(Correspondences(**values), made.truth, made.clean_N)


def starts(truth: np.ndarray, size: float = 0.02, count: int = 1) -> Tensor:
    return scenes.poses_near(truth, count, size)


def gradients(problem: Correspondences, starts_BK44: Tensor, weights_K44: Tensor) -> tuple[Refined, list[Tensor]]:
    """Of one problem: its optima, and for each of them the gradients by LEAVES, (K, 3 N) or (K, N)."""
    leaves = {name: getattr(problem, name).clone().requires_grad_() for name in LEAVES}
    found = refined(replace(problem, **leaves), starts_BK44, OPTIONS)
    losses = (found.poses_BK44[0] * weights_K44).sum((-1, -2))
    by_all = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for loss in losses]
    return found, [torch.stack([values.flatten() for values in by_one]) for by_one in zip(*by_all)]


def true_gradients(problem: Correspondences, optima_K44: Tensor, weights_K44: Tensor) -> list[Tensor]:
    """As gradients gives them, by differences that are small beside the values."""
    found = []
    for name in LEAVES:
        at = getattr(problem, name)[0]

        def losses(moved: Tensor, name: str = name, shape: torch.Size = at.shape) -> Tensor:
            values = {leaf: getattr(problem, leaf).expand(len(moved), *getattr(problem, leaf).shape[1:]) for leaf in LEAVES}
            values[name] = moved[:, 0].unflatten(-1, shape)
            each = [optimum(problem, *values.values(), pose, EVEN_AT) * weights for pose, weights in zip(optima_K44, weights_K44)]
            return torch.stack(each, 1).sum((-1, -2))

        repeated = at.flatten().expand(len(optima_K44), -1)
        found.append(central(losses, repeated, 1e-4 if name == 'points_BN3' else 1e-3 * float(at.mean())))
    return found


@pytest.mark.parametrize('kind', scenes.KINDS)
@pytest.mark.parametrize('name', SCENES)
def test_derivative_by_points_and_stated_noise(name: str, kind: str) -> None:
    """Of the optimum near the truth in two scenes, and of whatever optimum is near a pose that is far off."""
    ours, true = [], []
    for seed in range(2):
        made, weights = scene(name, kind, seed), pose_weights(seed, 2)
        found, by_all = gradients(made.problem, torch.cat([starts(made.truth), starts(made.truth, 0.2)], 1), weights)
        sound = found.sound_BK[0]
        assert sound[0]
        ours.append([values[sound] for values in by_all])
        true.append(true_gradients(made.problem, found.poses_BK44[0, sound].detach(), weights[sound]))
    for leaf, *both in zip(LEAVES, zip(*ours), zip(*true)):
        if name == 'angles' and leaf == 'scales_BN':
            continue  # a thousandth of a millimetre has no derivative worth the name
        found = agreement(*map(torch.cat, both))
        print(f'optimum {name} {kind} by {leaf}: {found}')
        assert found.within().all()


def test_a_gauss_newton_matrix_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is usual, J^T W J for the matrix: for how much our terms count."""
    exact = refinement.equations

    def gauss_newton(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        gradient, matrix, _ = exact(*arguments)
        return gradient, matrix, matrix

    monkeypatch.setattr(refinement, 'NEWTON_STEPS', 30)
    for name in ('room', 'angles'):
        made, weights = scene(name, 'rgb'), pose_weights(0, 1)
        monkeypatch.setattr(refinement, 'equations', exact)
        found, by_all = gradients(made.problem, starts(made.truth), weights)
        monkeypatch.setattr(refinement, 'equations', gauss_newton)
        usual, by_usual = gradients(made.problem, starts(made.truth), weights)
        torch.testing.assert_close(usual.poses_BK44, found.poses_BK44, atol=1e-5, rtol=0)
        differ = agreement(by_usual[0], by_all[0])
        print(f'Gauss-Newton matrix, {name}, by points_BN3: {differ}')
        assert not differ.within().any()


@pytest.mark.parametrize('kind', scenes.KINDS)
@pytest.mark.parametrize('name', ['room', 'angles'])
def test_it_is_the_optimum_of_the_estimator(name: str, kind: str) -> None:
    """More steps of the estimator lead there, and stay."""
    made = scene(name, kind, 5)
    found = refined(made.problem, starts(made.truth), OPTIONS)
    assert found.sound_BK.all()
    theirs = refine_from(made.problem, starts(made.truth), replace(OPTIONS, refine_steps=60), 1.0).camera_from_map_B44
    torch.testing.assert_close(found.poses_BK44[:, 0], theirs, atol=2e-6, rtol=0)


def test_many_correspondences_lead_to_the_optimum_of_all() -> None:
    problem = (made := scene('room', 'holes', 6, count=1500)).problem
    found = refined(problem, starts(made.truth), OPTIONS)
    true = optimum(problem, problem.points_BN3, problem.scales_BN, problem.angles_BN, found.poses_BK44[0, 0], EVEN_AT)
    assert found.sound_BK.all()
    torch.testing.assert_close(found.poses_BK44[0], true, atol=2e-6, rtol=0)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_the_optimum_of_a_part_has_the_derivative_of_that(kind: str) -> None:
    """By differences along six random directions: a part is around the centre of all, which is not its own."""
    made, weights = scene('room', kind, 7, count=1200), pose_weights(0, 1)
    points = made.problem.points_BN3.clone().requires_grad_()

    def loss(points_BN3: Tensor) -> Tensor:
        part = replace(made.problem, points_BN3=points_BN3).subset(600)
        return (refined(part, starts(made.truth), OPTIONS).poses_BK44[0] * weights).sum()

    gradient, = torch.autograd.grad(loss(points), points)
    directions = torch.randn(6, *points.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = torch.stack([(loss(points + 1e-4 * direction) - loss(points - 1e-4 * direction)) / 2e-4 for direction in directions]).detach()
    found = agreement((gradient * directions).sum((1, 2, 3))[None], true[None])
    print(f'part {kind}: {found}')
    assert found.within().all()


def test_the_problem_to_search_by_leads_there_and_has_no_part_in_the_derivative() -> None:
    """A wide angle finds the optimum of a narrow one from where that alone goes elsewhere."""
    made = scene('angles', 'rgb')
    wide, far = replace(made.problem, angles_BN=4 * made.problem.angles_BN), starts(made.truth, 0.15)
    leaf = made.problem.points_BN3.clone().requires_grad_()
    narrow = replace(made.problem, points_BN3=leaf)
    found = refined(narrow, far, OPTIONS, wide)
    near = refined(narrow, starts(made.truth), OPTIONS)
    torch.testing.assert_close(found.poses_BK44, near.poses_BK44, atol=1e-6, rtol=0)
    assert (refined(narrow, far, OPTIONS).poses_BK44 - near.poses_BK44).abs().max() > 1e-2
    ours, true = (torch.autograd.grad((one.poses_BK44 * pose_weights(0, 1)).sum(), leaf, retain_graph=True)[0] for one in (found, near))
    torch.testing.assert_close(ours, true, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_a_batch_is_its_problems(kind: str) -> None:
    made = [scene('room', kind, seed) for seed in range(3)]
    begin = torch.cat([starts(one.truth, 0.05, 2) for one in made])
    together = scenes.stacked([one.problem for one in made])
    points = together.points_BN3.clone().requires_grad_()
    weights = pose_weights(2, 3, 2)
    found = refined(replace(together, points_BN3=points), begin, OPTIONS)
    (found.poses_BK44 * weights).sum().backward()
    for index, one in enumerate(made):
        leaf = one.problem.points_BN3.clone().requires_grad_()
        alone = refined(replace(one.problem, points_BN3=leaf), begin[index:index + 1], OPTIONS)
        (alone.poses_BK44 * weights[index]).sum().backward()
        assert torch.equal(alone.sound_BK[0], found.sound_BK[index])
        torch.testing.assert_close(alone.poses_BK44[0], found.poses_BK44[index], atol=1e-6, rtol=0)
        torch.testing.assert_close(leaf.grad[0], points.grad[index], atol=1e-4 * float(leaf.grad.abs().max()), rtol=0)


def few(problem: Correspondences, count: int) -> Correspondences:
    usable = torch.zeros_like(problem.usable_BN)
    usable[:, :count] = True
    return replace(problem, usable_BN=usable)


SPOILT = {'nothing usable': lambda problem: few(problem, 0),
          'two points': lambda problem: few(problem, 2),
          'behind': lambda problem: replace(problem, bearings_BN3=-problem.bearings_BN3),
          'one point again and again': lambda problem: replace(problem, points_BN3=problem.points_BN3[:, :1].expand_as(problem.points_BN3)),
          'no numbers': lambda problem: replace(problem, points_BN3=torch.full_like(problem.points_BN3, torch.nan))}


@pytest.mark.parametrize('kind', scenes.KINDS)
@pytest.mark.parametrize('spoil', SPOILT)
def test_no_gradient_without_an_optimum(spoil: str, kind: str) -> None:
    made = scene('room', kind)
    found, by_all = gradients(SPOILT[spoil](made.problem), starts(made.truth, count=2), pose_weights(0, 2))
    assert not found.sound_BK.any() and found.poses_BK44.isfinite().all()
    assert all((values == 0).all() for values in by_all)


@pytest.mark.parametrize('least, sound, step', [(0.5, True, 0.2), (1e-9, False, 0.0), (-0.5, False, 0.1)])
def test_newton_goes_by_the_true_matrix_at_an_optimum(least: float, sound: bool, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its smallest eigenvalue is what decides: where it is negative the step is that of Gauss and Newton, in a valley there is none."""
    made = scene('room', 'rgb')
    gradient, eye = torch.full((1, 1, 6), 0.1, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[None, None]
    matrix = eye.clone()
    matrix[..., 5, 5] = least
    monkeypatch.setattr(refinement, 'equations', lambda *_: (gradient, eye, matrix))
    found, inverse, is_sound = refinement.newton(made.problem, made.problem.vectors(starts(made.truth)), Kernel(EVEN_AT))
    assert is_sound.item() == sound and found[0, 0, 5].item() == pytest.approx(-step)
    assert inverse[0, 0, 5, 5].item() == pytest.approx(10 * step)


def test_cells_without_numbers_get_no_gradient_and_spoil_none() -> None:
    """As a network in float32 may give them."""
    made = scene('room', 'holes')
    clean, spoilt = [[values[0].float().requires_grad_() for values in (made.problem.points_BN3, made.problem.scales_BN)] for _ in range(2)]
    usable = torch.ones_like(made.problem.usable_BN)
    usable[:, :5] = False
    with torch.no_grad():
        spoilt[0][:3], spoilt[1][3], spoilt[1][4] = torch.nan, torch.inf, torch.nan
    for points, scales in (clean, spoilt):
        problem = replace(made.problem, points_BN3=points.double()[None], scales_BN=scales.double()[None], usable_BN=usable)
        found = refined(problem, starts(made.truth), OPTIONS)
        assert found.sound_BK.all()
        (found.poses_BK44 * pose_weights(0, 1)).sum().backward()
    for ours, true in zip(spoilt, clean):
        assert ours.grad.dtype == torch.float32 and (ours.grad[:5] == 0).all() and ours.grad[5:].abs().min() > 0
        torch.testing.assert_close(ours.grad, true.grad)


def test_the_pose_of_the_solver_is_left_as_it_is() -> None:
    made = scene('room', 'rgb')
    leaf = made.problem.points_BN3.clone().requires_grad_()
    torch.testing.assert_close(refined(replace(made.problem, points_BN3=leaf), starts(made.truth), OPTIONS).poses_BK44.detach(),
                               refined(made.problem, starts(made.truth), OPTIONS).poses_BK44, atol=1e-15, rtol=0)
