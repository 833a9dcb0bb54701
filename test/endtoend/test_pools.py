"""One step through the estimator: against differences of an estimator of one's own, against enumeration, and against its own parts."""
from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scenes
import torch
from differences import agreement
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.endtoend.losses import pose_loss
from dsac_ros.endtoend.pools import Pools, narrowed, solve_pools
from dsac_ros.errors import ConfigError
from dsac_ros.geometry import se3
from dsac_ros.ransac.cells import finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.estimator import estimate, refine_from, shared_out, with_depth
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.sampling import draw_minimal_sets, mixed, uniform_draws

OPTIONS = EstimatorOptions(inlier_sigmas=2.0, uniform_share=0.1)
POOLS, SETS, COUNT = 2, 12, 80


def cells(kind: str, seed: int = 0, count: int = COUNT, outliers: float = 0.3) -> scenes.Scene:
    return scenes.scene(seed, kind, count=count, outliers=outliers, noise=0.03, pixel_noise=2.0, range_noise=0.01)


def truth_of(*made: scenes.Scene) -> Tensor:
    return torch.from_numpy(np.stack([np.linalg.inv(one.truth) for one in made]))


def draws_of(seeds: int, pools: int = POOLS, sets: int = SETS) -> Tensor:
    return uniform_draws(range(seeds), pools * sets).unflatten(1, (pools, sets))


def solved(made: scenes.Scene, **changed: Tensor) -> Pools:
    problem = replace(made.problem, **changed)
    return solve_pools(problem, guidance(problem.scales_BN), draws_of(1), truth_of(made), OPTIONS)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_scores_and_losses_by_differences(kind: str) -> None:
    """Each along six random directions, of the whole step: with sets drawn, solved and refined anew. Scores are summed in float32, whose
    last digit counts beside scores that hardly change; and a hypothesis on a watershed goes to another optimum however little is moved."""
    made = cells(kind)
    points = made.problem.points_BN3.clone().requires_grad_()
    pools = solved(made, points_BN3=points)
    directions = torch.randn(6, *points.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = [[solved(made, points_BN3=made.problem.points_BN3 + step * direction) for step in (2e-5, -2e-5)] for direction in directions]
    for name, usable in (('scores_BPK', pools.valid_BPK), ('losses_BPK', pools.valid_BPK & pools.sound_BPK)):
        values = getattr(pools, name)
        gradients = torch.stack([torch.autograd.grad(value, points, retain_graph=True)[0] for value in values[usable]])
        true = torch.stack([(getattr(ahead, name) - getattr(behind, name))[usable] / 4e-5 for ahead, behind in moved], -1)
        size, jumps = true.norm(dim=-1), true.abs().amax(-1) > 3000
        told = (size > 10) & ~jumps
        found = agreement((gradients[:, None] * directions).sum((2, 3, 4))[told], true[told])
        print(f'step {kind} {name}: {found}; {int(jumps.sum())} to another optimum')
        assert told.sum() > SETS // 2 and jumps.sum() <= 2
        assert (found.cosine > 0.9995).all() and ((found.ratio - 1).abs() < 0.01).all()


@pytest.mark.parametrize('kind', ['rgb', 'rgbd'])
def test_likelihood_of_a_draw_is_its_frequency(kind: str) -> None:
    """Over all sets of a few cells the likelihoods sum to one, and each set comes up as often as they say."""
    made = cells(kind, count=4, outliers=0.0)
    weights = torch.tensor([[1.0, 2.0, 0.0, 4.0]], dtype=torch.float64)
    sets = 3000
    pools = solve_pools(made.problem, weights, draws_of(1, 1, sets), truth_of(made), OPTIONS)
    shares = mixed(weights, OPTIONS.uniform_share)
    parts = (draws_of(1, 1, sets),) if kind == 'rgb' else shared_out(draws_of(1, 1, sets))
    drawn = torch.cat([draw_minimal_sets(shares, draws[0]) for draws in parts], 1)[0]
    likelihood = {members: float(shares[0, list(members)].prod()) for members in product((0, 1, 3), repeat=3)}
    assert sum(likelihood.values()) == pytest.approx(1)
    for row, ours in zip(drawn.tolist()[:200], pools.log_likelihoods_BPK[0, 0]):
        assert float(ours.exp()) == pytest.approx(likelihood[tuple(row)])
    for members, expected in likelihood.items():
        count = int((drawn == torch.tensor(members)).all(-1).sum())
        assert abs(count - sets * expected) < 4.5 * (sets * expected) ** 0.5


def test_likelihood_of_measured_sets_knows_that_the_others_had_none() -> None:
    made = cells('holes')
    weights = guidance(made.problem.scales_BN) * torch.linspace(1, 3, COUNT, dtype=torch.float64)
    pools = solve_pools(made.problem, weights, draws_of(1), truth_of(made), OPTIONS)
    depth = with_depth(made.problem, mixed(weights, OPTIONS.uniform_share))
    depth = depth / depth.sum()
    drawn = draw_minimal_sets(depth, shared_out(draws_of(1))[1].flatten(1, 2))
    expected = depth[0, drawn[0]].log().sum(-1).unflatten(0, (POOLS, -1))
    torch.testing.assert_close(pools.log_likelihoods_BPK[0, :, SETS // 3:], expected)


def test_gradient_of_the_likelihood_is_the_score_function() -> None:
    """Its expectation over all draws is zero, which it is for likelihoods and for little else; and nothing that was not drawn spoils it."""
    made = cells('rgb', count=6, outliers=0.0)
    logits = torch.tensor([[0.3, -1.0, 0.7, 0.1, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    usable = torch.tensor([[True, True, True, True, False, True]])
    pools = solve_pools(replace(made.problem, usable_BN=usable), logits.exp(), draws_of(1, 1, 4000), truth_of(made), OPTIONS)
    each = torch.autograd.grad(pools.log_likelihoods_BPK.sum(), logits)[0] / 4000
    assert each.isfinite().all() and each[0, 4] == 0
    assert each.abs().max() < 5 * 3 ** 0.5 / 4000 ** 0.5  # of a sum of three with deviations of at most one


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_scores_are_the_kernels_and_losses_those_of_refined_poses(kind: str) -> None:
    """Scores are the kernel's in the problem to search by, losses those of the poses that the estimator refines, more steps granted; cells
    without depth end with one narrow angle (pools.narrowed)."""
    made = cells(kind, 1, outliers=0.1)
    patient = replace(OPTIONS, refine_steps=30)
    pools = solve_pools(made.problem, guidance(made.problem.scales_BN), draws_of(1), truth_of(made), patient)
    best = pools.scores_BPK[0].masked_fill(~pools.valid_BPK[0], 0).flatten().argmax()
    start = torch.from_numpy(made.truth)[None, None]
    long = replace(patient, refine_steps=60)
    found = refine_from(searched_by_angle(made.problem, patient), start, long, 1.0).camera_from_map_B44
    theirs = refine_from(narrowed(made.problem, patient), found[:, None], long, 1.0).camera_from_map_B44
    expected = pose_loss(se3.inverse(theirs)[:, None], truth_of(made))
    assert pools.sound_BPK.flatten()[best]
    torch.testing.assert_close(pools.losses_BPK.flatten()[best], expected[0, 0], atol=1e-2, rtol=0)  # of 1 cm or degree
    # No pose of three cells scores as high as the optimum of all, and the best of so many comes near.
    search = searched_by_angle(made.problem, patient)
    white = search.whitened(search.residuals(search.vectors(theirs[:, None])), torch.ones(1, 1, dtype=torch.float64))
    most = Kernel(2.0).score(search, white, 0.3)[0, 0]
    assert 0.5 * most < pools.scores_BPK.flatten()[best] < 1.05 * most


def test_without_depth_it_ends_near_where_the_localizer_does() -> None:
    """Cells that are 5 cm off, as those of a map of minutes: within a centimetre and a hundredth of a radian in the median."""
    patient, away = EstimatorOptions(refine_steps=60, rgb_final_steps=60), []
    for seed in range(12):
        problem = scenes.scene(seed, 'rgb', count=384, noise=0.05, outliers=0.3).problem
        problem = replace(problem, angles_BN=torch.full((1, 384), patient.pixel_noise * 0.04, dtype=torch.float64))
        found = estimate(searched_by_angle(problem, patient), torch.ones(1, 384, dtype=torch.float64), uniform_draws([0], 64), patient)
        theirs, _ = finished_by_angle(problem, found, patient)
        ours = refine_from(narrowed(problem, patient), found.camera_from_map_B44[:, None], patient, 1.0).camera_from_map_B44
        away.append(se3.difference(ours, theirs).abs().max().item())
    assert sorted(away)[6] < 0.01, away


def test_noise_has_a_part_with_depth_alone() -> None:
    for kind in scenes.KINDS:
        made = cells(kind)
        scales = made.problem.scales_BN.clone().requires_grad_()
        problem = replace(made.problem, scales_BN=scales)
        pools = solve_pools(problem, torch.ones_like(scales).detach(), draws_of(1), truth_of(made), OPTIONS)
        for values in (pools.scores_BPK, pools.losses_BPK):
            gradient = torch.autograd.grad(values.sum() + 0 * scales.sum(), scales, retain_graph=True)[0]
            assert (gradient != 0).any() == (kind != 'rgb') and gradient.isfinite().all()


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_a_batch_is_its_images(kind: str) -> None:
    made = [cells(kind, seed) for seed in range(3)]
    draws = draws_of(3)
    together = scenes.stacked([one.problem for one in made])
    points = together.points_BN3.clone().requires_grad_()
    problem = replace(together, points_BN3=points)
    pools = solve_pools(problem, guidance(together.scales_BN), draws, truth_of(*made), OPTIONS)
    assert pools.scores_BPK.shape == (3, POOLS, SETS)
    used = (pools.valid_BPK & pools.sound_BPK).double()
    ((pools.scores_BPK / 100 + pools.losses_BPK) * used).sum().backward()
    for index, one in enumerate(made):
        leaf = one.problem.points_BN3.clone().requires_grad_()
        problem = replace(one.problem, points_BN3=leaf)
        alone = solve_pools(problem, guidance(problem.scales_BN), draws[index:index + 1], truth_of(one), OPTIONS)
        torch.testing.assert_close(alone.log_likelihoods_BPK[0], pools.log_likelihoods_BPK[index])
        for name, atol in (('scores_BPK', 1e-3), ('losses_BPK', 1e-3)):
            ours, theirs = getattr(alone, name)[0], getattr(pools, name)[index]
            torch.testing.assert_close(ours * used[index], theirs * used[index], atol=atol, rtol=1e-4)
        ((alone.scores_BPK / 100 + alone.losses_BPK) * used[index:index + 1]).sum().backward()
        torch.testing.assert_close(leaf.grad[0], points.grad[index], atol=2e-3 * float(leaf.grad.abs().max()), rtol=0)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_images_that_see_nothing_spoil_no_batch(kind: str) -> None:
    """One of nothing usable, not even rays, one of no numbers, one of points all at one place, beside a good one; in float32 as networks
    give them."""
    made = [cells(kind, seed) for seed in range(4)]
    together = scenes.stacked([one.problem for one in made])
    usable, raw = together.usable_BN.clone(), together.points_BN3.float()
    usable[0], together.bearings_BN3[0] = False, torch.nan
    raw[1], raw[2] = torch.nan, raw[2, :1]
    points, scales = raw.requires_grad_(), together.scales_BN.float().requires_grad_()
    problem = replace(together, points_BN3=points.double(), scales_BN=scales.double(), usable_BN=usable)
    pools = solve_pools(problem, guidance(scales), draws_of(4), truth_of(*made), OPTIONS)
    assert not pools.valid_BPK[:3].any() and pools.valid_BPK[3].any()
    total = pools.scores_BPK.sum() + pools.losses_BPK.sum() + pools.log_likelihoods_BPK.sum()
    assert total.isfinite()
    total.backward()
    assert points.grad.isfinite().all() and scales.grad.isfinite().all()
    assert (points.grad[0] == 0).all() and (points.grad[1] == 0).all() and (points.grad[3] != 0).any()


def test_cells_of_a_rig_are_refused() -> None:
    made = scenes.scene(0, rig=True)
    with pytest.raises(ConfigError, match='rig'):
        solve_pools(made.problem, guidance(made.problem.scales_BN), draws_of(1), truth_of(made), OPTIONS)
