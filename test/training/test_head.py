"""The head learns a small buffer; schedule, clustering and the ends of training."""
from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch
from scipy.cluster.vq import vq

from dsac_ros.config import MappingOptions
from dsac_ros.errors import DataError
from dsac_ros.training.budget import Budget
from dsac_ros.training.buffer import Buffer
from dsac_ros.training.head import k_means, new_expert, one_cycle, train_head

OPTIONS = MappingOptions(steps=300, width=64, batch=256, seed=3)


def buffer(samples: int = 2000, unknown: float = 0.0, channels: int = 24) -> Buffer:
    """Features that tell the place: random smooth functions of it. Frames stand 4 m before the points."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(samples, 3, generator=g) * torch.tensor([4.0, 3.0, 2.0])
    features = torch.sin(points @ torch.randn(3, channels, generator=g) + torch.rand(channels, generator=g) * 6) * 3 + 5
    pose = torch.eye(4)
    pose[2, 3] = 4.0
    seen = points + pose[:3, 3]
    hidden = torch.rand(samples, generator=g) < unknown
    targets = torch.where(hidden[:, None], torch.full_like(points, torch.nan), points)
    return Buffer(features.half(), targets, seen[:, :2] / seen[:, 2:], torch.zeros(samples, dtype=torch.long), pose[None], 300.0,
                  torch.zeros(1, 8))


def test_learns_places_and_how_sure_it_is() -> None:
    """From metres of spread to under 10 cm in 300 steps; errors over predicted scale average 3 for the Laplace density in space."""
    data = buffer()
    head = train_head(data, OPTIONS, Budget(100), lambda: False, quiet=True)
    points, scales, _ = head.expert(data.features_SC.float())
    error = (points - data.targets_S3).norm(dim=1)
    assert head.steps == 300 and not head.interrupted and not head.expert.training
    assert error.median() < 0.1 and head.median_error_m == pytest.approx(float(error.median()), abs=0.05)
    assert 2.0 < (error / scales).mean() < 4.5


def test_the_seed_decides() -> None:
    a, b, c = (train_head(buffer(400), replace(OPTIONS, steps=5, seed=seed), Budget(0), lambda: False, quiet=True).expert
               for seed in (1, 1, 2))
    for x, y in zip(a.state_dict().values(), b.state_dict().values()):
        assert torch.equal(x, y)
    assert not torch.equal(a.first.weight, c.first.weight)


def test_stops_when_told_and_says_so() -> None:
    calls = []
    head = train_head(buffer(400), OPTIONS, Budget(0), lambda: calls.append(1) or len(calls) > 20, quiet=True)
    assert head.interrupted and head.steps == 20 and head.median_error_m > 0


def test_stopped_before_the_first_step_there_is_a_head() -> None:
    head = train_head(buffer(400), OPTIONS, Budget(0), lambda: True, quiet=True)
    assert head.interrupted and head.steps == 0
    assert all(value.isfinite().all() for value in head.expert.state_dict().values())


def test_trains_until_the_budget_is_over() -> None:
    """On a clock that ticks when it is read: 1 tick before the schedule, then one a step."""
    ticks = count()
    head = train_head(buffer(400), replace(OPTIONS, steps=0), Budget(30, lambda: next(ticks)), lambda: False, quiet=True)
    assert head.steps == 28 and not head.interrupted
    assert train_head(buffer(400), replace(OPTIONS, steps=0), Budget(0), lambda: False, quiet=True).steps >= 1


def test_unknown_coordinates_are_learnt_from_reprojection() -> None:
    """60 % have no coordinate: those samples must come to lie on their rays."""
    data = buffer(unknown=0.6)
    options = replace(OPTIONS, rgb_only=True, reprojection_weight=0.05)
    head = train_head(data, options, Budget(0), lambda: False, quiet=True)
    hidden = ~data.targets_S3.isfinite().all(-1)
    points, _, _ = head.expert(data.features_SC.float())
    seen = points + torch.tensor([0.0, 0.0, 4.0])
    error_px = 300 * (seen[:, :2] / seen[:, 2:] - data.rays_S2).norm(dim=1)[hidden]
    assert error_px.median() < 8  # 3 m of spread at 5 m and f = 300 are 180 px
    assert all(value.isfinite().all() for value in head.expert.state_dict().values())


def test_a_batch_without_any_known_coordinate() -> None:
    data = buffer(300)
    data.targets_S3[:299] = torch.nan
    data.targets_S3[299] = 1.0
    head = train_head(data, replace(OPTIONS, rgb_only=True, steps=10, batch=16), Budget(0), lambda: False, quiet=True)
    assert all(value.isfinite().all() for value in head.expert.state_dict().values())


def test_new_expert_normalises_its_features() -> None:
    data = buffer()
    expert = new_expert(data, 32)
    normal = (data.features_SC.float() - expert.feature_mean) * expert.feature_scale
    assert normal.mean(0).abs().max() < 1e-3 and (normal.std(0) - 1).abs().max() < 5e-3
    assert expert.centres.min() >= 0 and (expert.centres <= torch.tensor([4.0, 3.0, 2.0])).all()


def test_k_means_is_a_fixed_point_of_lloyd() -> None:
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]])
    points = corners.repeat(50, 1) + 0.1 * torch.randn(200, 3)
    centres = k_means(points, 12, 100)
    label, distance = vq(points.numpy(), centres.numpy())
    for k in set(label):
        torch.testing.assert_close(centres[k], points[label == k].mean(0), atol=1e-4, rtol=0)
    assert distance.mean() < 5
    few = k_means(points[:3], 8)
    assert few.shape == (8, 3) and few.isfinite().all()


def test_one_cycle() -> None:
    rates = [one_cycle(x / 1000) for x in range(1001)]
    peak = max(range(1001), key=rates.__getitem__)
    assert 90 <= peak <= 110 and rates[peak] == pytest.approx(1.0, abs=0.01)
    assert rates[0] < 0.1 and rates[-1] < 0.01 and min(rates) > 0
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak + 1:] == sorted(rates[peak + 1:], reverse=True)


def test_a_training_that_diverges_leaves_no_head() -> None:
    broken = buffer()
    broken.targets_S3[:] = 1e38  # its square is infinite
    with pytest.raises(DataError, match='diverged.*learning_rate'):
        train_head(broken, MappingOptions(steps=20), Budget(1e3), lambda: False, quiet=True)
