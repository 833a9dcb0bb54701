"""The correction of an odometry: told at once or in small steps, of the robot and not of the origin of odom, and not for ever."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation

from dsac_ros.config import NodeOptions
from dsac_ros.tracking.drift import DriftCorrection, between, displacement

S = 10 ** 9


def pose(x: float, turn: float = 0.0, y: float = 0.0) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = Rotation.from_rotvec([0, 0, turn]).as_matrix(), (x, y, 0)
    return out


def correction(**options: float) -> DriftCorrection:
    return DriftCorrection(NodeOptions(tf_max_age=2.0, **options))


def test_without_smoothing_the_newest_correction_is_told() -> None:
    drift = correction()
    assert drift.at(S) is None, 'nothing before the first pose, and never an identity'
    for target in (pose(1.0), pose(1.1, 0.1)):
        drift.correct(S, target, pose(5.0))
        np.testing.assert_array_equal(drift.at(S), target)


@pytest.mark.parametrize(('age', 'known'), [(0.0, True), (1.99, True), (2.01, False), (-1.99, True), (-2.01, False), (1e6, False)])
def test_a_correction_is_not_told_for_ever(age: float, known: bool) -> None:
    drift = correction()
    drift.correct(10 ** 16, pose(1.0), pose(0.0))
    assert (drift.at(10 ** 16 + round(age * S)) is not None) == known


def test_smoothing_is_exponential_whatever_the_rate() -> None:
    """After t of many steps or one: exp(-t / tau) of the correction is left."""
    for steps in (1, 7, 100):
        drift = correction(tf_smoothing=0.5)
        drift.correct(S, pose(0.0), pose(0.0))
        drift.at(S)
        drift.correct(S, pose(0.4), pose(0.0))
        for k in range(1, steps + 1):
            shown = drift.at(S + k * S // steps)
        assert shown[0, 3] == pytest.approx(0.4 * (1 - np.exp(-1 / 0.5)), abs=1e-6)


def test_no_step_is_larger_than_the_time_allows() -> None:
    """Drift of 0.2 m that a pose reveals: at 20 Hz and tau 1 s no step of the robot is more than 1 - exp(-0.05) of it."""
    drift, odom_from_base = correction(tf_smoothing=1.0), pose(30.0, 0.7)
    drift.correct(S, pose(0.0), odom_from_base)
    shown = [drift.at(S) @ odom_from_base]
    drift.correct(S, pose(0.2, 0.002), odom_from_base)
    for k in range(1, 40):
        shown.append(drift.at(S + k * S // 20) @ odom_from_base)
    steps = [displacement(a, b)[0] for a, b in zip(shown, shown[1:])]
    whole = displacement(pose(0.0) @ odom_from_base, pose(0.2, 0.002) @ odom_from_base)[0]
    assert max(steps) <= (1 - np.exp(-0.05)) * whole + 1e-9 and sum(steps) > 0.8 * whole


@pytest.mark.parametrize('target', [pose(0.6), pose(0.0, 0.35)])
def test_a_robot_that_was_carried_does_not_glide(target: np.ndarray) -> None:
    drift = correction(tf_smoothing=5.0, tf_jump_distance=0.5, tf_jump_angle=0.3)
    drift.correct(S, pose(0.0), pose(0.0))
    drift.at(S)
    drift.correct(S, target, pose(0.0))
    np.testing.assert_array_equal(drift.at(S + 1), target)


def test_after_a_silence_and_after_forgetting_it_starts_anew() -> None:
    drift = correction(tf_smoothing=5.0)
    drift.correct(S, pose(0.0), pose(0.0))
    drift.at(S)
    assert drift.at(9 * S) is None
    drift.correct(9 * S, pose(0.3), pose(0.0))
    np.testing.assert_array_equal(drift.at(9 * S), pose(0.3))
    drift.forget()
    assert drift.at(9 * S) is None


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_the_robot_goes_straight(share: float) -> None:
    """Far from the origin of odom a turn of map_from_odom alone would swing the robot around; rotation against logm and expm."""
    rng = np.random.default_rng(4)
    old, new, odom_from_base = (np.eye(4) for _ in range(3))
    for matrix, reach in ((old, 1.0), (new, 1.0), (odom_from_base, 80.0)):
        matrix[:3, :3], matrix[:3, 3] = Rotation.from_rotvec(rng.normal(size=3) * 0.3).as_matrix(), rng.normal(size=3) * reach
    a, b, found = old @ odom_from_base, new @ odom_from_base, between(old, new, odom_from_base, share) @ odom_from_base
    np.testing.assert_allclose(found[:3, 3], (1 - share) * a[:3, 3] + share * b[:3, 3], atol=1e-9)
    np.testing.assert_allclose(found[:3, :3], expm(share * np.real(logm(b[:3, :3] @ a[:3, :3].T))) @ a[:3, :3], atol=1e-9)
