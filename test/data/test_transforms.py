"""Trajectories and trees against scipy, and what a live stream adds: forgetting, and time that goes back."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from dsac_ros.data.transforms import Trajectory, TransformTree, matrix_from, quat_xyzw_of, rigid_inverse
from dsac_ros.errors import DataError

S = 10 ** 9


def drawn(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return matrix_from(rng.normal(size=3), rng.normal(size=4))


@pytest.mark.parametrize('share', [0.0, 0.2, 0.5, 0.99])
def test_between_two_samples_it_is_linear_and_slerp(share: float) -> None:
    first, last = drawn(1), drawn(2)
    trajectory = Trajectory()
    trajectory.add(5 * S, last)
    trajectory.add(5 * S - 400_000_000, first)
    found = trajectory.at(5 * S - 400_000_000 + round(share * 400_000_000))
    turns = Slerp([0, 1], Rotation.from_matrix([first[:3, :3], last[:3, :3]]))
    np.testing.assert_allclose(found[:3, :3], turns(share).as_matrix(), atol=1e-9)
    np.testing.assert_allclose(found[:3, 3], (1 - share) * first[:3, 3] + share * last[:3, 3], atol=1e-9)


def test_nothing_is_extrapolated_nor_bridged() -> None:
    trajectory = Trajectory(max_gap_ns=S)
    for stamp in (1, 2, 4):
        trajectory.add(stamp * S, np.eye(4))
    assert [trajectory.at(round(stamp * S)) is None for stamp in (0.9, 1.0, 1.5, 3.0, 4.0, 4.1)] == [True, False, False, True, False, True]


def test_a_live_stream_forgets_and_starts_anew_when_time_goes_back() -> None:
    live, recording = Trajectory(keep_ns=2 * S), Trajectory()
    for k in range(1, 101):
        live.add(k * S // 10, drawn(k))
        recording.add(k * S // 10, drawn(k))
    assert len(recording) == 100 and 20 <= len(live) <= 22
    assert live.at(5 * S) is None and np.array_equal(live.at(9 * S), recording.at(9 * S))
    live.add(S, drawn(7))
    assert len(live) == 1 and np.array_equal(live.at(S), drawn(7)), 'samples of before the bag looped'
    live.add(10 ** 6 * S, drawn(8))  # a stamp from another world does not stay for ever either
    live.add(S + S // 10, drawn(9))
    assert len(live) == 1 and np.array_equal(live.at(S + S // 10), drawn(9))


def test_a_sample_that_takes_the_place_of_a_forgotten_one_is_found() -> None:
    """As many samples as before, but not the same ones."""
    live = Trajectory(keep_ns=S, max_gap_ns=S)
    live.add(1 * S, drawn(1))
    live.add(2 * S, drawn(2))
    assert live.at(2 * S - 1) is not None
    live.add(3 * S, drawn(3))
    live.add(4 * S - 1, drawn(4))
    assert live.at(3 * S + 5) is not None and live.at(S + S // 2) is None


def test_a_lookup_is_the_product_along_the_tree() -> None:
    tree = TransformTree(keep_ns=10 * S)
    odom_from_base, base_from_mast, mast_from_eye, base_from_wheel = (drawn(k) for k in range(4))
    tree.add('odom', 'base', S, odom_from_base, static=False)
    tree.add('base', '/mast', 0, base_from_mast, static=True)
    tree.add('mast', 'eye', 0, mast_from_eye, static=True)
    tree.add('base', 'wheel', 0, base_from_wheel, static=True)
    np.testing.assert_allclose(tree.lookup('odom', 'eye', S), odom_from_base @ base_from_mast @ mast_from_eye, atol=1e-9)
    np.testing.assert_allclose(tree.lookup('wheel', 'eye', 0), np.linalg.inv(base_from_wheel) @ base_from_mast @ mast_from_eye, atol=1e-9)
    np.testing.assert_allclose(tree.lookup('eye', 'odom', S), np.linalg.inv(tree.lookup('odom', 'eye', S)), atol=1e-9)
    np.testing.assert_allclose(rigid_inverse(odom_from_base), np.linalg.inv(odom_from_base), atol=1e-9)


def test_what_is_missing_is_named() -> None:
    tree = TransformTree(max_gap_ns=S)
    tree.add('base', 'eye', 0, np.eye(4), static=True)
    assert tree.lookup('base', 'nose', S) is None and tree.why_not('base', 'nose', S) == 'no transform names nose'
    assert tree.why_not('odom', 'nose', S) == 'no transform names nose and odom'
    tree.add('map', 'odom', 0, np.eye(4), static=True)
    assert tree.why_not('odom', 'eye', S) == 'the two are not connected'
    tree.add('odom', 'base', 3 * S, np.eye(4), static=False)
    tree.add('odom', 'base', 6 * S, np.eye(4), static=False)
    assert tree.why_not('odom', 'eye', S) == 'odom <- base begins 2.000 s after the image'
    assert tree.why_not('odom', 'eye', 7 * S) == 'odom <- base ends 1.000 s before the image'
    assert tree.why_not('odom', 'eye', 4 * S) == 'odom <- base has a gap of more than 1.0 s around the image'


def test_frames_that_are_each_others_parents() -> None:
    tree = TransformTree()
    tree.add('a', 'b', 0, np.eye(4), static=True)
    tree.add('b', 'a', 0, np.eye(4), static=True)
    with pytest.raises(DataError, match='no loops'):
        tree.lookup('a', 'b', 0)


def test_quaternions() -> None:
    turn = Rotation.from_rotvec([0.3, -2.0, 1.1])
    np.testing.assert_allclose(matrix_from(np.zeros(3), 5 * turn.as_quat())[:3, :3], turn.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(quat_xyzw_of(matrix_from(np.zeros(3), -turn.as_quat())), turn.as_quat(canonical=True), atol=1e-12)
    for quat in ([0, 0, 0, 0], [np.nan, 0, 0, 1]):
        with pytest.raises(DataError):
            matrix_from(np.zeros(3), np.array(quat))
