"""The factor and the common shift are those of the errors that stretches of a recording make of each other's poses."""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.records import Frame
from dsac_ros.training import stretches
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import MIN_FACTOR
from dsac_ros.training.stretches import GAP, Sample, Trust, fitted, localised_by_others, trust_between_stretches
from dsac_ros.training.triangulation import triangulate_frames

CPU = torch.device('cpu')


def samples(count: int, factor: float, turn: np.ndarray, rng: np.random.Generator) -> list[Sample]:
    """Errors of the covariance that the Hessian and `factor` state, and one turn of all of them."""
    found = []
    for _ in range(count):
        root_66 = rng.normal(size=(6, 6)) * 1e-3 + np.diag([1e-3] * 3 + [3e-3] * 3)
        inverse_66 = root_66 @ root_66.T
        error_6 = np.sqrt(factor) * root_66 @ rng.normal(size=6) + np.concatenate([turn, np.zeros(3)])
        found.append(Sample(error_6, np.linalg.inv(inverse_66)))
    return found


@pytest.mark.parametrize(('factor', 'shift'), [(1.0, 0.0), (4.0, 0.02), (0.05, 3e-3)])
def test_factor_and_shift_of_known_errors(factor: float, shift: float) -> None:
    """60 stretches: 180 draws of the shift tell its deviation to a twentieth, 360 errors the factor to a thirtieth."""
    rng = np.random.default_rng(0)
    trust = fitted([samples(6, factor, shift * rng.normal(size=3), rng) for _ in range(60)])
    assert trust.factor == pytest.approx(factor, rel=0.12)
    assert trust.common_shift == pytest.approx(shift * np.sqrt(60 / 58), rel=0.15, abs=1e-4)


def test_few_stretches_make_the_shift_larger() -> None:
    """Turns about three axes of five stretches: a square over the fitted one is 15 / 13 in the mean, over 5 / 3 with the correction."""
    rng, squares = np.random.default_rng(1), []
    for _ in range(40):
        trust = fitted([samples(6, 1.0, 0.05 * rng.normal(size=3), rng) for _ in range(5)])
        squares.append(0.05 ** 2 / trust.common_shift ** 2)
    assert 0.55 < np.mean(squares) < 0.85


def test_too_few_say_nothing() -> None:
    rng = np.random.default_rng(0)
    assert fitted([samples(20, 1.0, np.zeros(3), rng) for _ in range(2)]) is None
    assert fitted([samples(2, 1.0, np.zeros(3), rng) for _ in range(3)]) is None
    assert fitted([]) is None
    assert fitted([samples(3, 1.0, np.zeros(3), rng) for _ in range(3)]) is not None


def test_errors_of_nothing_make_a_factor_that_a_map_can_hold() -> None:
    exact = [[Sample(np.zeros(6), np.eye(6) * 1e6)] * 5 for _ in range(5)]
    assert fitted(exact) == Trust(pytest.approx(MIN_FACTOR), pytest.approx(0, abs=1e-6))


@lru_cache(maxsize=1)
def walk() -> tuple[Frame, ...]:
    """50 views of a rendered room that come back to where they began; a stretch is ten of them."""
    return tuple(SyntheticSource(1, 1, 50, 480, 360, 2.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


def trust_of(turns_F3: np.ndarray) -> Trust | None:
    """Of the walk with the reference poses turned."""
    frames = []
    for frame, turn in zip(walk(), turns_F3):
        pose = frame.map_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
        frames.append(replace(frame, map_from_camera=pose))
    found = triangulate_frames(frames, True, Budget(500), True)
    return trust_between_stretches(found, frames, 18_000, np.random.default_rng(0), CPU, Budget(500))


def test_turned_stretches_of_a_rendered_room_are_found_out() -> None:
    exact = trust_of(np.zeros((50, 3)))
    assert exact.common_shift < 5e-4 and 1e-3 < exact.factor < 1
    turns_53 = np.random.default_rng(2).normal(size=(5, 3)) * 5e-3
    turned = trust_of(np.repeat(turns_53, 10, 0))
    # Each stretch is turned against the mean of the others, and five draws tell a deviation to a third.
    assert 3e-3 < turned.common_shift < 1.2e-2
    again = trust_of(np.zeros((50, 3)))
    assert again == exact


@pytest.mark.parametrize('first', [0, 20])
def test_a_stretch_has_no_part_in_what_it_is_localised_by(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    seen = []
    monkeypatch.setattr(stretches, 'merge', lambda others, *_: (seen.append(list(others)), (others, None))[1])
    found = dict.fromkeys(range(0, 100, 2))
    assert localised_by_others(list(range(first, first + 20, 2)), found, [], 0, np.random.default_rng(0), CPU) == []
    assert seen == [[i for i in range(0, 100, 2) if i < first - GAP or i > first + 18 + GAP]]


def test_stretches_that_share_nothing_say_nothing() -> None:
    """Each of five in a room of its own. All five in one room, of as many points, do say something."""
    def known(rooms: list[int]) -> bool:
        views = [frame for room in rooms for frame in SyntheticSource(room, 1, 10, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0),
                                                                       texels_per_metre=150.0, workers=1)]
        found = triangulate_frames(views, True, Budget(500), True)
        assert sorted(found) == list(range(50)) and sum(len(points.pixels_M2) for points in found.values()) > 2000
        return trust_between_stretches(found, views, 18_000, np.random.default_rng(0), CPU, Budget(500)) is not None

    assert not known([1, 2, 3, 4, 5]) and known([1, 1, 1, 1, 1])


def test_what_there_is_no_time_for_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, now = np.random.default_rng(0), iter(range(100))
    monkeypatch.setattr(stretches, 'localised_by_others', lambda *_: samples(8, 1.0, np.zeros(3), rng))
    found = dict.fromkeys(range(50))
    assert trust_between_stretches(found, [], 0, rng, CPU, Budget(0)) is None
    budget = Budget(3.5, lambda: float(next(now)))  # looked at once for each stretch, it lasts for three
    assert trust_between_stretches(found, [], 0, rng, CPU, budget) is not None and next(now) == 6
