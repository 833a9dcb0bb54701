"""Sharing out a budget, one score for all experts, and the posterior: against enumeration, and where the answer is known."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.ransac.cells import cell_problem, searched_by_angle
from dsac_ros.ransac.correspondences import stacked
from dsac_ros.ransac.estimator import estimate, generate
from dsac_ros.ransac.experts import added, agreement, draws_of_parts, parts_of_budget, posterior, problem_of, with_parts_for
from dsac_ros.ransac.sampling import uniform_draws

OPTIONS = EstimatorOptions()
CELL_RAD = 8 / 250


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 16), st.integers(1, 6), st.floats(0, 1, exclude_max=True))
def test_every_share_is_rounded_up_or_down(weights: list[float], parts: int, most: int, offset: float) -> None:
    probabilities = np.array(weights) + 1e-6
    shares = parts_of_budget(probabilities, parts, most, offset)
    kept = np.argsort(-probabilities, kind='stable')[:most]
    assert sum(shares.values()) == parts and list(shares) == [e for e in kept if e in shares] and min(shares.values()) > 0
    fair = parts * probabilities[kept] / probabilities[kept].sum()
    for expert, share in zip(kept, fair):
        assert abs(shares.get(int(expert), 0) - share) < 1 + 1e-6


def test_the_mean_over_offsets_is_the_share() -> None:
    probabilities = np.array([0.03, 0.5, 0.02, 0.25, 0.2])
    totals = np.zeros(5)
    for offset in (np.arange(1000) + 0.5) / 1000:
        for expert, count in parts_of_budget(probabilities, 8, 4, offset).items():
            totals[expert] += count / 1000
    expected = 8 * np.where(probabilities > 0.02, probabilities, 0) / 0.98
    np.testing.assert_allclose(totals, expected, atol=0.01)


def test_gating_that_knows_gives_all_to_one() -> None:
    assert parts_of_budget(np.array([1e-4, 0.9997, 1e-4, 1e-4]), 8, 4, 0.5) == {1: 8}
    assert parts_of_budget(np.zeros(3), 6, 3, 0.5) == {0: 2, 1: 2, 2: 2}  # of none of them: all alike


def views(wrong: bool = False, depth: bool = False, scale: float = 0.02, cells: int = 300, seed: int = 0):
    """Cells of a camera in a room of 4 m, and its pose; wrong: points that have nothing to do with the rays."""
    rng = np.random.default_rng(seed)
    rays = np.concatenate([rng.uniform(-0.5, 0.5, (cells, 2)), np.ones((cells, 1))], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    seen = rays * rng.uniform(1, 4, (cells, 1))
    pose = se3.retract(torch.eye(4, dtype=torch.float64), torch.from_numpy(rng.normal(size=6)))
    points = torch.from_numpy(seen) @ pose[:3, :3] - pose[:3, :3].T @ pose[:3, 3]
    points = points + scale * torch.from_numpy(rng.normal(size=points.shape))
    if wrong:
        points = torch.from_numpy(rng.uniform(-2, 2, points.shape))
    depths = torch.from_numpy(seen[None, :, 2]) if depth else None
    return cell_problem(points[None], torch.full((1, cells), scale / 2), torch.from_numpy(rays)[None], CELL_RAD, depths, OPTIONS), pose


@pytest.mark.parametrize('depth', [False, True])
def test_sets_that_nobody_has_are_no_hypotheses(depth: bool) -> None:
    """Half of the budget, and the other half with equal numbers: what is found is what half of the sets alone find."""
    problem, pose = views(depth=depth)
    problem, weights = searched_by_angle(problem, OPTIONS), torch.ones(1, 300, dtype=torch.float64)
    draws = uniform_draws([3], 96)
    shared = draws_of_parts(draws, [8, 4, 1], 8)
    assert shared.shape == (3, 96, 3) and torch.equal(shared[0], draws[0]) and torch.equal(shared[1, :48], draws[0, :48])
    assert not shared[1, 48:].any() and not shared[2, 12:].any() and draws_of_parts(draws, [2, 1], 8).shape == (2, 24, 3)
    half, padded = (estimate(problem, weights, each, replace(OPTIONS, refined=1)) for each in (draws[:, :48], shared[1:2]))
    torch.testing.assert_close(padded.camera_from_map_B44[0], pose, atol=0.02, rtol=0)
    torch.testing.assert_close(padded.camera_from_map_B44, half.camera_from_map_B44, atol=5e-3, rtol=0)
    assert not generate(problem, weights, torch.zeros(1, 48, 3, dtype=torch.float64))[1].any()
    assert generate(problem, weights, draws)[1].any()


@pytest.mark.parametrize('depth', [False, True])
def test_an_expert_that_is_sure_of_nothing_does_not_win(depth: bool) -> None:
    """By the noise that it states itself, points at random with a noise of metres agree with any pose; by the angle they do not."""
    right, pose = views(depth=depth)
    lost, _ = views(wrong=True, depth=depth, scale=3.0)
    ours, theirs = (agreement(each, pose[None], OPTIONS).item() for each in (right, lost))
    assert ours > 5 * theirs > 0
    sure = replace(right, scales_BN=right.scales_BN / 10)
    torch.testing.assert_close(agreement(sure, pose[None], OPTIONS).item(), ours)  # nor does one that is sure of all


def test_posterior_is_bayes() -> None:
    gated = np.array([0.5, 0.3, 0.15, 0.05])
    after = posterior(gated, {1: 2.0, 0: -1.0})
    expected = gated * np.exp([-1.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(after, expected / expected.sum())
    np.testing.assert_allclose(posterior(gated, {}), gated)
    np.testing.assert_allclose(posterior(np.array([0.0, 1.0, 0.0]), {0: 2000.0, 1: 500.0}), [1, 0, 0], atol=1e-9)  # no overflow


def test_evidence_adds_up() -> None:
    assert added({1: 2.0, 0: 1.0}, {1: 0.5, 7: 4.0}, {}) == {0: 1.0, 1: 2.5, 7: 4.0}


def test_batches_of_any_size_are_stacked() -> None:
    """Two problems with depth and a shorter one without: each is solved as alone."""
    (one, pose), (two, other), (short, third) = views(depth=True), views(depth=True, seed=1), views(cells=200, seed=2)
    weights = torch.ones(1, 300, dtype=torch.float64)
    both, weights_BN = stacked(one, weights, two, weights)
    batch, weights_BN = stacked(both, weights_BN, short, weights[:, :200])
    found = estimate(batch, weights_BN, uniform_draws([0], 64).expand(3, -1, -1), OPTIONS)
    torch.testing.assert_close(found.camera_from_map_B44, torch.stack([pose, other, third]), atol=0.02, rtol=0)


def test_one_problem_of_a_batch() -> None:
    problems = [views(depth=True, seed=seed)[0] for seed in range(3)]
    names = ('points_BN3', 'bearings_BN3', 'scales_BN', 'angles_BN', 'usable_BN', 'ranges_BN', 'range_noise_BN')
    batch = replace(problems[0], **{name: torch.cat([getattr(each, name) for each in problems]) for name in names})
    for row, each in enumerate(problems):
        for name in names:
            assert torch.equal(getattr(problem_of(batch, row), name), getattr(each, name))
    assert problem_of(problems[0], 0) is problems[0]


def test_wanted_experts_get_a_part_of_the_first() -> None:
    assert list(with_parts_for([1, 5, 7], {3: 6, 1: 2}, 4).items()) == [(3, 4), (1, 2), (5, 1), (7, 1)]
    assert with_parts_for([5, 7], {3: 2, 1: 6}, 4) == {3: 1, 5: 1, 1: 6} and with_parts_for([5], {3: 1, 1: 7}, 4) == {3: 1, 1: 7}
    assert with_parts_for([], {3: 8}, 4) == {3: 8} and with_parts_for([1, 2], {3: 8}, 1) == {3: 8}


def test_wanted_experts_take_the_place_of_less_wanted_ones_alone() -> None:
    assert with_parts_for([5], {3: 4, 1: 2, 2: 1, 9: 1}, 4) == {3: 4, 5: 1, 1: 2, 2: 1}
    assert with_parts_for([9, 5], {3: 4, 1: 2, 2: 1, 9: 1}, 3) == {3: 6, 9: 1, 5: 1}
    assert with_parts_for([0, 1, 2, 3, 4, 5], {0: 5, 1: 1, 2: 1, 3: 1}, 4) == {0: 5, 1: 1, 2: 1, 3: 1}
    assert with_parts_for([0, 1, 2, 3, 4, 5], {0: 6, 1: 1, 5: 1}, 4) == {0: 5, 1: 1, 2: 1, 3: 1}
