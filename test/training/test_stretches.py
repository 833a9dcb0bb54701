"""Factor, growth and common shift are those of the errors that stretches of a recording make of each other's poses."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.records import Frame
from dsac_ros.training import stretches
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import MIN_FACTOR
from dsac_ros.training.merging import merge
from dsac_ros.training.stretches import GAP, Sample, Trust, fitted, localised_by_others, stretch_of, trust_between_stretches
from dsac_ros.training.triangulation import FramePoints, keypoints_of, triangulate_frames

CPU = torch.device('cpu')


def samples(count: int, trust: Trust, distance: float, rng: np.random.Generator) -> list[Sample]:
    """Errors of one view after the other, independent of each other, each of the covariance that `trust` says."""
    found = []
    for _ in range(count):
        root_66 = rng.normal(size=(6, 6)) * 1e-3 + np.diag([1e-3] * 3 + [3e-3] * 3)
        turn_6 = np.concatenate([trust.common_shift * np.sqrt(distance) * rng.normal(size=3), np.zeros(3)])
        error_6 = np.sqrt(trust.factor + distance * trust.growth) * root_66 @ rng.normal(size=6) + turn_6
        found.append(Sample(error_6, np.linalg.inv(root_66 @ root_66.T), distance))
    return found


@pytest.mark.parametrize('trust', [Trust(1.0, 0.0, 0.0), Trust(1.0, 6.0, 0.0), Trust(4.0, 0.0, 0.02), Trust(0.5, 8.0, 0.01)])
def test_what_errors_are_drawn_with_is_found(trust: Trust) -> None:
    """500 errors of six numbers at each of four distances tell a factor to some percent where it alone matters."""
    rng = np.random.default_rng(0)
    found = fitted([sample for distance in (0.0, 0.1, 0.4, 1.0) for sample in samples(500, trust, distance, rng)])
    assert found.factor == pytest.approx(trust.factor, rel=0.1)
    assert found.growth == pytest.approx(trust.growth, rel=0.15, abs=0.15 * trust.factor)
    assert found.common_shift == pytest.approx(trust.common_shift, rel=0.1, abs=3e-4)


def test_errors_of_nothing_make_a_factor_that_a_map_can_hold() -> None:
    exact = [Sample(np.zeros(6), np.eye(6) * 1e6, 0.3)] * 25
    assert fitted(exact) == Trust(pytest.approx(MIN_FACTOR), pytest.approx(MIN_FACTOR), pytest.approx(0, abs=1e-6))


@lru_cache(maxsize=1)
def walk() -> tuple[Frame, ...]:
    """50 views of a rendered room that come back to where they began; a stretch is ten of them."""
    return tuple(SyntheticSource(1, 1, 50, 480, 360, 2.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


def trust_among(frames: list[Frame], held_out: Sequence[Frame] = ()) -> Trust | None:
    found = triangulate_frames(frames, keypoints_of(frames, True), True, Budget(500), True, stretches_F=stretch_of(len(frames)))
    landmarks = merge(found, frames, 18_000, np.random.default_rng(0))[1]
    rng = np.random.default_rng(0)
    return trust_between_stretches(found, frames, frames, landmarks, list(held_out), 18_000, rng, CPU, Budget(500), True)


def with_turns(frames: Sequence[Frame], turns_F3: np.ndarray) -> list[Frame]:
    """With the reference poses turned."""
    turned = []
    for frame, turn in zip(frames, turns_F3):
        pose = frame.map_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
        turned.append(replace(frame, map_from_camera=pose))
    return turned


def test_turned_stretches_of_a_rendered_room_are_found_out() -> None:
    """Their distance from each other is some tenths, so that the shift at a distance of one is larger than the turns."""
    exact = trust_among(list(walk()))
    assert exact.common_shift < 1e-3 and 1e-3 < exact.factor + 0.3 * exact.growth < 1
    turns_53 = np.random.default_rng(2).normal(size=(5, 3)) * 5e-3
    turned = trust_among(with_turns(walk(), np.repeat(turns_53, 10, 0)))
    assert 5e-3 < turned.common_shift < 3e-2
    assert trust_among(list(walk())) == exact


def test_held_out_frames_speak_for_views_near_the_mapped_ones() -> None:
    """Every third frame, turned by itself, as its neighbours are not: what is wrong there, too, is no matter of distance."""
    mapped, held_out = [f for i, f in enumerate(walk()) if i % 3], walk()[::3]
    good = trust_among(mapped, held_out)
    bad = trust_among(mapped, with_turns(held_out, np.random.default_rng(3).normal(size=(len(held_out), 3)) * 1e-2))
    assert bad.factor > 10 * good.factor and good.common_shift < 1e-3


def test_held_out_frames_are_few_beside_the_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(stretches, 'localised_by', lambda _, some, *__: asked.append(len(some)) or [])
    for count, most in ((5, 5), (18, 18), (19, 10), (600, 18)):
        trust_between_stretches({}, [], [], None, [None] * count, 0, np.random.default_rng(0), CPU, Budget(500), True)
        assert asked.pop() == most


def test_a_stretch_is_a_fifth_of_the_recording() -> None:
    assert np.bincount(stretch_of(50)).tolist() == [10] * 5 and (np.diff(stretch_of(52)) >= 0).all()
    assert sorted(np.bincount(stretch_of(52))) == [10, 10, 10, 11, 11] and len(stretch_of(0)) == 0


@pytest.mark.parametrize('first', [0, 20])
def test_a_stretch_has_no_part_in_what_it_is_localised_by(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    seen = []
    monkeypatch.setattr(stretches, 'merge', lambda others, *_: (seen.append(list(others)), (others, None))[1])
    found = dict.fromkeys(range(0, 100, 2))
    assert localised_by_others(list(range(first, first + 20, 2)), found, [], [], 0, np.random.default_rng(0), CPU) == []
    assert seen == [[i for i in range(0, 100, 2) if i < first - GAP or i > first + 18 + GAP]]


def test_errors_are_counted_from_the_given_poses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks are of the adjusted ones."""
    asked, adjusted, given = [], [object() for _ in range(50)], [object() for _ in range(50)]

    def merged(_: Any, frames: Any, *__: Any) -> tuple[None, object]:
        assert frames is adjusted
        return None, object()

    monkeypatch.setattr(stretches, 'merge', merged)
    monkeypatch.setattr(stretches, 'localised_by', lambda _, frames, __: asked.extend(frames) or [])
    localised_by_others(list(range(10, 20)), dict.fromkeys(range(50)), adjusted, given, 0, np.random.default_rng(0), CPU)
    assert asked and set(map(id, asked)) <= set(map(id, given))


def test_points_of_other_stretches_alone_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As triangulated within each of them; frames that no view of their own stretch agrees with have none."""
    seen, alone = [], object()
    monkeypatch.setattr(stretches, 'localised_by_others', lambda part, within, *_: seen.append((list(part), dict(within))) or [])
    monkeypatch.setattr(stretches, 'localised_by', lambda *_: [])
    mine = FramePoints(np.zeros((1, 2)), np.zeros(1), np.zeros((1, 3)), np.zeros((1, 128)))
    none = FramePoints(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3)), np.zeros((0, 128)))
    found = {index: replace(mine, within={0: none, 7: None}.get(index, replace(mine))) for index in range(10)}
    assert trust_between_stretches(found, [alone] * 10, [alone] * 10, None, [], 0, np.random.default_rng(0), CPU, Budget(500), True) is None
    assert [part for part, _ in seen] == [[1], [2, 3], [4, 5], [6], [8, 9]]
    assert all(within == {i: found[i].within for i in range(10) if i not in (0, 7)} for _, within in seen)


def test_stretches_that_share_nothing_say_nothing() -> None:
    """Each of five in a room of its own. All five in one room, of as many points, do say something."""
    def known(rooms: list[int]) -> bool:
        views = [frame for room in rooms for frame in SyntheticSource(room, 1, 10, 480, 360, 4.0, sensor=SensorOptions(0, 0, 0, 0),
                                                                       texels_per_metre=150.0, workers=1)]
        return trust_among(views) is not None

    assert not known([1, 2, 3, 4, 5]) and known([1, 1, 1, 1, 1])


def test_too_few_answers_and_what_there_is_no_time_for_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, each = np.random.default_rng(0), [8]
    monkeypatch.setattr(stretches, 'localised_by_others', lambda *_: samples(each[0], Trust(1.0, 0.0, 0.0), 0.3, rng))
    monkeypatch.setattr(stretches, 'localised_by', lambda *_: samples(20, Trust(1.0, 0.0, 0.0), 0.1, rng))
    points = FramePoints(np.zeros((1, 2)), np.zeros(1), np.zeros((1, 3)), np.zeros((1, 128)))
    found = {index: replace(points, within=points) for index in range(50)}

    def trust(budget: Budget) -> Trust | None:
        return trust_between_stretches(found, [None] * 50, [None] * 50, None, [], 0, rng, CPU, budget, True)

    assert trust(Budget(0)) is None and trust(Budget(500)) is not None
    now = iter(range(100))
    # Looked at once for the held-out frames, and once more for each stretch: it lasts for three.
    assert trust(Budget(4.5, lambda: float(next(now)))) is not None and next(now) == 7
    assert trust(Budget(3.5, lambda now=iter(range(100)): float(next(now)))) is None  # for two
    each[0] = 1
    assert trust(Budget(500)) is None  # five answers, however many there are of the held-out frames
