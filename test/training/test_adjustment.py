"""Poses are moved to where the images agree: in a rendered room, whose poses are known, and to the optimum that SciPy finds."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.geometry import se3
from dsac_ros.landmarks.keypoints import Keypoints
from dsac_ros.records import Frame
from dsac_ros.training import adjustment
from dsac_ros.training.adjustment import (
    LEAST_GAIN,
    SHIFT,
    TURN,
    Adjustment,
    Tracks,
    adjusted,
    step,
    tracks_of,
    triangulate_in_agreement,
)
from dsac_ros.training.budget import Budget
from dsac_ros.training.merging import OUTLIER_PX
from dsac_ros.training.triangulation import FramePoints, keypoints_of, map_from_cameras, triangulate_frames


@lru_cache(maxsize=1)
def walk() -> tuple[Frame, ...]:
    """36 views of a rendered room."""
    return tuple(SyntheticSource(1, 1, 36, 480, 360, 3.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1))


@lru_cache(maxsize=1)
def seen() -> list[Keypoints]:
    return keypoints_of(list(walk()), True)


def disturbed(frames: Sequence[Frame], shift: float = 0.01, turn: float = math.radians(0.3)) -> list[Frame]:
    """With noise of so much along and about each axis."""
    rng, found = np.random.default_rng(1), []
    for frame in frames:
        off_44 = np.eye(4)
        off_44[:3, :3], off_44[:3, 3] = Rotation.from_rotvec(turn * rng.normal(size=3)).as_matrix(), shift * rng.normal(size=3)
        found.append(replace(frame, map_from_camera=frame.map_from_camera @ off_44))
    return found


def errors(poses_F44: np.ndarray, gap: int = 3) -> tuple[float, float]:
    """Medians of what the motion over `gap` frames is off by [m, rad]: where the map lies as a whole is nothing that images tell."""
    def motions(poses: np.ndarray) -> np.ndarray:
        return np.linalg.inv(poses[:-gap]) @ poses[gap:]

    off = np.linalg.inv(motions(map_from_cameras(list(walk())))) @ motions(poses_F44)
    return np.median(np.linalg.norm(off[:, :3, 3], axis=1)), np.median(Rotation.from_matrix(off[:, :3, :3]).magnitude())


@pytest.mark.parametrize(('use_depth', 'shift', 'left'), [(True, 0.01, 0.4), (False, 0.005, 0.7)])
def test_disturbed_poses_come_back(use_depth: bool, shift: float, left: float) -> None:
    """Without depth points are fewer, since three views have to agree to two pixels on each."""
    given = disturbed(walk(), shift, 0.5 * shift)
    frames, found, record = triangulate_in_agreement(given, seen(), use_depth, True, Budget(500), 0, True)
    before, after = errors(map_from_cameras(given)), errors(map_from_cameras(frames))
    assert after[0] < left * before[0] and after[1] < left * before[1]
    assert record['px'] < 0.6 * record['given_px'] and 0.5 * shift < record['moved_m'] < 3 * shift and 0.05 < record['turned_deg'] < 1.0
    # What the manifest says, counted by other means; and the points are those of the new poses.
    changed = [mine.map_from_camera for mine, old in zip(frames, given) if np.abs(mine.map_from_camera - old.map_from_camera).max() > 1e-4]
    off = np.linalg.inv(map_from_cameras(given)) @ map_from_cameras(frames)
    moved, turned = np.linalg.norm(off[:, :3, 3], axis=1), np.degrees(Rotation.from_matrix(off[:, :3, :3]).magnitude())
    assert record['moved'] == len(changed) == (turned > 1e-3).sum() >= 30
    assert record['moved_m'] == pytest.approx(np.median(moved[turned > 1e-3]), abs=1e-4)
    assert record['turned_deg'] == pytest.approx(np.median(turned[turned > 1e-3]), abs=1e-3)
    again = triangulate_frames(frames, seen(), use_depth, Budget(500), True)
    assert again.keys() == found.keys() and all((again[i].points_M3 == found[i].points_M3).all() for i in found)
    assert sum(map(len, (p.pixels_M2 for p in found.values()))) > 1.1 * sum(
        map(len, (p.pixels_M2 for p in triangulate_frames(given, seen(), use_depth, Budget(500), True).values())))


def test_exact_poses_stay_to_the_bit_and_so_do_others_where_that_is_asked_for() -> None:
    frames, found, record = triangulate_in_agreement(list(walk()), seen(), True, True, Budget(500), 0, True)
    assert all(mine is given for mine, given in zip(frames, walk())) and len(found) == len(frames)
    assert record['moved_m'] == record['turned_deg'] == 0 and 0.05 < record['px'] == record['given_px'] < 0.6
    given = disturbed(walk())
    frames, _, record = triangulate_in_agreement(given, seen(), True, False, Budget(500), 0, True)
    assert frames is given and record == {}


def test_a_gain_that_is_small_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given, every = list(walk()), np.ones(len(walk()), bool)
    moved = map_from_cameras(disturbed(walk(), 0.02))

    def gains(*least: float) -> list[bool]:
        asked = []

        def told(found: dict[int, FramePoints], frames: list[Frame], held_near: list[Frame], *_: object) -> Adjustment:
            # Poses are held near the given ones in every round, wherever they are by then.
            assert held_near is given and (frames is given) is (not asked)
            assert not asked or (map_from_cameras(frames) == moved).all()
            before = 1.0 if not asked else 0.5
            asked.append(before)
            return Adjustment(moved, every, before, before * (1 - least[len(asked) - 1]))

        monkeypatch.setattr(adjustment, 'adjusted', told)
        frames, found, record = triangulate_in_agreement(given, seen(), True, True, Budget(500), 0, True, np.repeat([0, 1], 18))
        assert record['given_px'] == 1.0 and len(asked) == len(least) and all(points.within is not None for points in found.values())
        assert record['moved'] == (len(given) if frames is not given else 0)
        return [mine is not old for mine, old in zip(frames, given)]

    assert LEAST_GAIN > 0.15  # of what COLMAP's poses of the kitchen have up to 0.12 (docs/mapping.md)
    assert not any(gains(LEAST_GAIN - 0.01)) and not any(gains(math.nan)) and all(gains(LEAST_GAIN + 0.01, 0.0))
    assert all(gains(0.5, 0.5))  # and no third time


@pytest.mark.parametrize('count', [5, 15])
def test_views_of_few_keypoints_are_not_moved_however_well_that_would_suit_them(count: int) -> None:
    few = [Keypoints(k.pixels_M2[:count], k.rays_M2[:count], k.descriptors_MD[:count]) for k in seen()]
    frames, found, record = triangulate_in_agreement(list(walk()), few, True, True, Budget(500), 0, True)
    assert all(mine is given for mine, given in zip(frames, walk())) and record == {}
    assert adjusted(found, frames, disturbed(walk()), np.random.default_rng(0), Budget(500)) is None


def test_a_view_of_few_keypoints_stays_beside_others_that_are_moved() -> None:
    given, few = disturbed(walk()), seen()[10]
    keypoints = list(seen())
    keypoints[10] = Keypoints(few.pixels_M2[:15], few.rays_M2[:15], few.descriptors_MD[:15])
    frames, _, record = triangulate_in_agreement(given, keypoints, True, True, Budget(500), 0, True)
    off = np.abs(map_from_cameras(frames) - map_from_cameras(given)).max((1, 2))
    assert off[10] < 1e-5 and record['moved'] == (off > 1e-4).sum() >= 30


@pytest.mark.parametrize(('first', 'again', 'calls', 'taken'), [
    (10, 10, 3, True),  # twice adjusted
    (16, 16, 2, True),  # there is time for one more, and no third
    (18, 18, 1, False),  # none for another: it is not begun
    (16, 20, 2, False),  # it was begun, and takes longer than the first
    (40, 1, 1, False),  # the first had to be cut short
])
def test_all_rounds_share_the_time(monkeypatch: pytest.MonkeyPatch, first: float, again: float, calls: int, taken: bool) -> None:
    """A clock that stands still but for triangulations, which have 35 of 100 s."""
    now, asked, given = [0.0], [], disturbed(walk())

    def slow(*arguments: object) -> dict[int, FramePoints]:
        found = triangulate_frames(*arguments)
        now[0] += again if asked else first
        asked.append(arguments)
        return found

    told = Adjustment(map_from_cameras(list(walk())), np.ones(len(given), bool), 1.0, 0.5)
    monkeypatch.setattr(adjustment, 'triangulate_frames', slow)
    monkeypatch.setattr(adjustment, 'adjusted', lambda *arguments: None if arguments[4].over() else told)
    budget = Budget(100, lambda: now[0])
    frames, found, record = triangulate_in_agreement(given, seen(), True, True, budget, 0, True)
    assert len(asked) == calls and (frames is not given) is taken and (record.get('moved', 0) > 0) is taken
    assert now[0] <= 36 or first == 40
    assert found.keys() == triangulate_frames(frames, seen(), True, Budget(500), True).keys()


def test_without_time_nothing_is_adjusted() -> None:
    given = disturbed(walk())
    found = triangulate_frames(given, seen(), True, Budget(500), True)
    assert adjusted(found, given, given, np.random.default_rng(0), Budget(0)) is None
    assert adjusted(found, given, given, np.random.default_rng(0), Budget(500)) is not None


def test_a_frame_that_has_no_points_by_the_new_poses_does_not_keep_the_others_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def without_the_first(*arguments: object) -> dict[int, FramePoints]:
        calls.append(arguments)
        found = triangulate_frames(*arguments)
        return found if len(calls) == 1 else {index: points for index, points in found.items() if index > 0}

    monkeypatch.setattr(adjustment, 'triangulate_frames', without_the_first)
    frames, found, record = triangulate_in_agreement(disturbed(walk()), seen(), True, True, Budget(500), 0, True)
    assert record['moved_m'] > 0.005 and sorted(found) == list(range(1, len(frames))) and len(calls) > 1


def test_where_no_views_share_points_there_is_nothing_to_agree_on() -> None:
    given, rng = list(walk()), np.random.default_rng(0)
    found = triangulate_frames(given, seen(), True, Budget(500), True)
    assert tracks_of({}, given, rng) is None and adjusted({}, given, given, rng, Budget(500)) is None
    alone = {4: found[4]}
    assert tracks_of(alone, given, rng) is None
    blank = [Keypoints(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 128), np.float32)) for _ in given]
    assert triangulate_in_agreement(given, blank, True, True, Budget(500), 0, True) == (given, {}, {})


def test_tracks_are_of_several_views_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    given, rng = list(walk()), np.random.default_rng(0)
    found = triangulate_frames(given, seen(), True, Budget(500), True)
    tracks = tracks_of(found, given, rng)
    views = [len(tracks.view_S[tracks.point_S == point].unique()) for point in range(len(tracks.points_K3))]
    assert min(views) == 2 and max(views) >= 8
    assert tracks.along_K.min() > 0.01 and (tracks.focal_S == given[0].camera.fx).all()
    longer = [replace(f, camera=replace(f.camera, fx=2 * f.camera.fx)) if i % 2 else f for i, f in enumerate(given)]
    other = tracks_of(found, longer, np.random.default_rng(0))
    assert (other.focal_S == torch.tensor([f.camera.fx for f in longer], dtype=torch.float64)[other.view_S]).all()
    # Every sighting is on its ray, but for the noise of pixels, and the two directions are across it.
    far_S = adjustment.errors(tracks, se3.inverse(torch.from_numpy(map_from_cameras(given))), tracks.points_K3)[0].norm(dim=1)
    assert far_S.median() < 1 and (far_S < 10).double().mean() > 0.97
    frame = torch.cat([tracks.ray_S3[:, None], tracks.across_S23], 1)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).double().expand(len(frame), 3, 3))
    monkeypatch.setattr(adjustment, 'MOST_SIGHTINGS', 12)
    few = tracks_of(found, given, rng)
    assert 400 < len(few.view_S) <= 12 * len(given) and few.point_S.unique().tolist() == list(range(len(few.points_K3)))


def test_the_optimum_is_that_of_another_solver() -> None:
    """40 points in 5 views, pixels with noise and some of them wrong: the same poses as SciPy's for the sum of logarithms and holds."""
    rng = np.random.default_rng(0)
    points_K3, count = rng.uniform([-2, -1.5, 2], [2, 1.5, 5], (40, 3)), 5
    truth_F44 = np.tile(np.eye(4), (count, 1, 1))
    truth_F44[:, :3, :3] = Rotation.from_rotvec(rng.normal(scale=0.1, size=(count, 3))).as_matrix()
    truth_F44[:, :3, 3] = rng.normal(scale=0.3, size=(count, 3))
    view_S, point_S = (index.ravel() for index in np.meshgrid(np.arange(count), np.arange(40)))
    places = (truth_F44[view_S, :3, :3] @ points_K3[point_S, :, None])[..., 0] + truth_F44[view_S, :3, 3]
    rays = places + places[:, 2:] / 500 * rng.normal(size=places.shape)
    rays[::17] += 0.1
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    given_F44 = se3.retract(torch.from_numpy(truth_F44), torch.from_numpy(rng.normal(size=(count, 6)) * ([2e-3] * 3 + [4e-3] * 3)))
    tracks = Tracks(torch.from_numpy(view_S), torch.from_numpy(point_S), torch.from_numpy(rays),
                    torch.linalg.svd(torch.from_numpy(rays)[:, None])[2][:, 1:], torch.full((len(view_S),), 500.0).double(),
                    torch.from_numpy(points_K3), torch.full((40,), 0.1).double())
    views_F44, found_K3 = given_F44, tracks.points_K3
    for _ in range(60):
        views_F44, found_K3 = step(tracks, views_F44, found_K3, given_F44, torch.ones(count))

    units = np.concatenate([np.full(15, TURN), np.full(15, SHIFT), np.full(120, 0.02)])

    def cost(values: np.ndarray) -> float:
        turns, shifts, points = (part.reshape(-1, 3) for part in np.split(values * units, [15, 30]))
        views = given_F44.numpy()[view_S]
        before_S3 = (views[:, :3, :3] @ points[point_S, :, None])[..., 0] + views[:, :3, 3]
        seen_S3 = Rotation.from_rotvec(turns[view_S]).apply(before_S3) + shifts[view_S]
        along = (seen_S3 * rays).sum(1)
        squares = (500 * np.linalg.norm(seen_S3 - along[:, None] * rays, axis=1) / along) ** 2
        held = (turns ** 2).sum() / TURN ** 2 + (shifts ** 2).sum() / SHIFT ** 2 + ((points - points_K3) ** 2).sum() / 0.1 ** 2
        return OUTLIER_PX ** 2 * np.log1p(squares / OUTLIER_PX ** 2).sum() + held

    theirs = units * minimize(cost, np.concatenate([np.zeros(30), points_K3.ravel()]) / units, method='BFGS').x
    away_F6 = se3.difference(views_F44, given_F44).numpy()
    assert np.linalg.norm(away_F6[:, :3], axis=1).max() > 2e-3  # it had to be moved
    np.testing.assert_allclose(np.concatenate([away_F6[:, :3].ravel(), away_F6[:, 3:].ravel()]), theirs[:30], atol=1e-6)
    np.testing.assert_allclose(found_K3.ravel(), theirs[30:], atol=1e-4)


def test_frames_that_share_no_points_with_others_stay() -> None:
    """Of two rooms at once, one of which is seen by a single view."""
    given = disturbed(walk())
    other = next(iter(SyntheticSource(2, 1, 1, 480, 360, 3.0, sensor=SensorOptions(0, 0, 0, 0), texels_per_metre=150.0, workers=1)))
    frames, keypoints = [*given, other], [*seen(), *keypoints_of([other], True)]
    found = triangulate_frames(frames, keypoints, True, Budget(500), True)
    found = {**{i: p for i, p in found.items() if i < len(given)}, len(given): alone_of(other)}
    moved = adjusted(found, frames, frames, np.random.default_rng(0), Budget(500))
    assert moved.gain > LEAST_GAIN
    np.testing.assert_allclose(moved.map_from_camera_F44[-1], other.map_from_camera, atol=1e-9)


def alone_of(frame: Frame) -> FramePoints:
    pixels = np.array([[100.0, 100.0], [200.0, 150.0]])
    words = np.eye(2, 128, dtype=np.float32)
    return FramePoints(pixels, np.full(2, 2.0), frame.map_from_camera[:3, 3] + [[50, 50, 50], [51, 50, 50.0]], words)
