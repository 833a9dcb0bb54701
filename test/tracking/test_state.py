"""What is published when: the first pose, after a loss, after a jump; each rule alone, and all of them on drawn sequences."""
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dsac_ros.config import StateOptions
from dsac_ros.records import Camera, Estimate, Verdict
from dsac_ros.tracking.state import SLACK_M, SLACK_RAD, Decision, State, StateMachine, _Fix, moved_covariance, odometry_chi2

OPTIONS = StateOptions(agreeing=2, spare=1, lost_after=1.0, max_speed=2.0, max_turn=1.0, weak_position=0.1, weak_rotation=0.05)
DEVIATION = 1e-3
NOISE = 3 * np.sqrt(2) * DEVIATION


def estimate(seconds: float, x: float = 0.0, turn: float = 0.0, accepted: bool = True, deviation: float = DEVIATION) -> Estimate:
    pose = np.eye(4)
    pose[:3, :3], pose[0, 3] = Rotation.from_rotvec([0, turn, 0]).as_matrix(), x
    verdict = Verdict(accepted, () if accepted else ('few_inliers',))
    return Estimate(round(1e9 * seconds), pose, np.eye(6) * deviation ** 2, verdict, 'rgb', 'room', 1.0, 1.0, 1.0, 1.0)


def decide(machine: StateMachine, *estimates: Estimate) -> list[Decision]:
    return [machine.decide(each) for each in estimates]


def tracking(until_s: float = 1.0, options: StateOptions = OPTIONS) -> StateMachine:
    machine = StateMachine(options)
    decide(machine, *(estimate(until_s - 0.1 * i) for i in range(options.agreeing - 1, -1, -1)))
    return machine


def test_the_first_pose_needs_another_that_agrees() -> None:
    steps = (estimate(1.0), estimate(1.1, accepted=False), estimate(1.2), estimate(1.3))
    first, refused, second, third = decide(StateMachine(OPTIONS), *steps)
    assert first == Decision(State.INITIALISING, False, ('unconfirmed: 1 of 2 frames agree',))
    assert refused == Decision(State.INITIALISING, False, ('few_inliers',))
    assert second == third == Decision(State.TRACKING, True, ())


def test_k_of_n() -> None:
    """Three of the last four, refused and disagreeing ones between them included; a fifth frame back is forgotten."""
    options = StateOptions(agreeing=3, spare=1, max_speed=2.0)
    steps = [estimate(1.0), estimate(1.1, x=50.0), estimate(1.2), estimate(1.3)]
    assert [d.published for d in decide(StateMachine(options), *steps)] == [False] * 3 + [True]
    machine = StateMachine(options)
    steps = [estimate(1.0), estimate(1.1), estimate(1.2, accepted=False), estimate(1.3, accepted=False), estimate(1.4), estimate(1.5)]
    assert [d.published for d in decide(machine, *steps)] == [False] * 6
    assert machine.decide(estimate(1.6)).published


@pytest.mark.parametrize(('x', 'turn', 'agree'), [
    (2.0 * 0.1 + SLACK_M + NOISE - 1e-6, 0.0, True), (2.0 * 0.1 + SLACK_M + NOISE + 1e-6, 0.0, False),
    (0.0, 1.0 * 0.1 + SLACK_RAD + NOISE - 1e-6, True), (0.0, 1.0 * 0.1 + SLACK_RAD + NOISE + 1e-6, False)])
def test_what_the_camera_can_have_done_agrees(x: float, turn: float, agree: bool) -> None:
    assert StateMachine(OPTIONS).decide(estimate(1.0)).published is False
    machine = StateMachine(OPTIONS)
    assert decide(machine, estimate(1.0), estimate(1.1, x, turn))[1].published is agree
    machine = tracking(1.0)
    assert machine.decide(estimate(1.1, x, turn)).published is agree


def test_poses_that_say_they_are_uncertain_may_differ_more() -> None:
    assert not tracking().decide(estimate(1.1, x=0.6)).published
    decision = tracking().decide(estimate(1.1, x=0.6, deviation=0.15))
    assert decision.published and decision.state == State.DEGRADED


def test_a_wild_frame_is_not_believed_and_costs_itself_only() -> None:
    machine = tracking()
    wild, after = decide(machine, estimate(1.1, x=3.0), estimate(1.2))
    assert wild == Decision(State.DEGRADED, False, ('jump: 1 of 2 frames agree',)) and after == Decision(State.TRACKING, True, ())


def test_frames_that_flip_between_two_places_do_not_take_over() -> None:
    machine = tracking()
    assert [d.published for d in decide(machine, *(estimate(1.1 + 0.1 * i, x=3.0 * (i % 2 == 0)) for i in range(8)))] == [False, True] * 4


def test_a_robot_that_was_carried_is_found_by_the_second_frame() -> None:
    assert [d.published for d in decide(tracking(), *(estimate(1.1 + 0.1 * i, x=3.0) for i in range(3)))] == [False, True, True]


def test_a_refused_frame_degrades_and_silence_loses() -> None:
    machine = tracking(1.0)
    assert machine.decide(estimate(2.0, accepted=False)) == Decision(State.DEGRADED, False, ('few_inliers',))
    assert machine.decide(estimate(2.001, accepted=False)).state == State.LOST
    assert [d.published for d in decide(machine, estimate(2.1), estimate(2.2))] == [False, True]


def test_a_short_hole_needs_no_second_frame_and_a_long_one_does() -> None:
    assert tracking(1.0).decide(estimate(2.0)).published
    machine = tracking(1.0)
    decide(machine, *(estimate(1.1 + 0.1 * i, accepted=False) for i in range(3)))
    assert machine.decide(estimate(2.5)) == Decision(State.LOST, False, ('unconfirmed: 1 of 2 frames agree',))


def test_a_slow_camera_is_not_lost_for_ever() -> None:
    """One frame in three seconds: each comes after the track was lost, and two that agree make a pose."""
    steps = [estimate(3.0 * i, x=0.1 * i) for i in range(1, 5)]
    assert [d.published for d in decide(StateMachine(OPTIONS), *steps)] == [False, True, False, True]


@pytest.mark.parametrize('x', [0.0, 1.9, 4.0])
@pytest.mark.parametrize('said', [True, False])
def test_what_was_published_before_the_loss_confirms_nothing(x: float, said: bool) -> None:
    """The camera may have been carried, covered or unplugged: frames have to agree with one another."""
    machine = tracking(1.0)
    if said:
        machine.lose()
    assert machine.decide(estimate(3600.0, x)) == Decision(State.LOST, False, ('unconfirmed: 1 of 2 frames agree',))
    assert machine.decide(estimate(3600.1, x)).published


@pytest.mark.parametrize('said', [True, False])
def test_what_was_held_back_before_the_loss_confirms_nothing_either(said: bool) -> None:
    """A jump that no other frame confirmed, and one an hour later that happens to be near it."""
    machine = tracking(1.0)
    assert machine.decide(estimate(1.1, x=10.0)).reasons == ('jump: 1 of 2 frames agree',)
    if said:
        machine.lose()
    assert machine.decide(estimate(3600.0, x=11.0)) == Decision(State.LOST, False, ('unconfirmed: 1 of 2 frames agree',))
    assert machine.decide(estimate(3600.1, x=11.0)).published


@pytest.mark.parametrize(('apart', 'published'), [(10.0 * OPTIONS.lost_after, True), (10.0 * OPTIONS.lost_after + 0.01, False)])
@pytest.mark.parametrize('said', [True, False])
def test_at_the_start_a_frame_of_long_ago_confirms_nothing(apart: float, published: bool, said: bool) -> None:
    machine = StateMachine(OPTIONS)
    machine.decide(estimate(1.0))
    if said:  # the node says so of a slow camera, too
        machine.lose()
    assert machine.decide(estimate(1.0 + apart, x=1.0)).published is published


@pytest.mark.parametrize('back', [0.0, 0.5, 100.0])
def test_a_stamp_that_is_not_later_starts_anew(back: float) -> None:
    machine = tracking(200.0)
    assert machine.decide(estimate(200.0 - back)) == Decision(State.INITIALISING, False, ('unconfirmed: 1 of 2 frames agree',))


@pytest.mark.parametrize(('changes', 'published'), [
    ({}, True), ({'fx': 503.0, 'fy': 503.0}, True), ({'fx': 650.0, 'fy': 650.0}, False), ({'cx': 330.0}, False),
    ({'distortion_model': 'plumb_bob', 'distortion': (0.1, 0.0, 0.0, 0.0)}, False), ({'width': 320, 'height': 240}, False)])
def test_a_calibration_that_changes_has_to_be_confirmed(changes: dict[str, Any], published: bool) -> None:
    """An autofocus at work changes it by less than that."""
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    machine = StateMachine(OPTIONS)
    for k in range(3):
        assert machine.decide(estimate(1.0 + k / 10), None, camera).published is (k > 0)
    other = replace(camera, **changes)
    decision = machine.decide(estimate(1.3), None, other)
    assert (decision.state, decision.published) == ((State.TRACKING, True) if published else (State.LOST, False))
    assert machine.decide(estimate(1.4), None, other).published
    assert machine.decide(estimate(1.5), None, camera).published is published, 'and one damaged message is none'


def test_one_is_enough_where_one_is_asked_for() -> None:
    machine = StateMachine(StateOptions(agreeing=1, spare=0))
    assert [d.published for d in decide(machine, estimate(1.0), estimate(1.1, x=9.0), estimate(9.0, x=-9.0))] == [True] * 3


def test_frames_that_cannot_be_localised() -> None:
    machine = tracking(1.0)
    assert [machine.refuse(round(1e9 * s)) for s in (1.1, 2.0, 2.1)] == [State.DEGRADED, State.DEGRADED, State.LOST]
    machine = tracking(1.0)
    assert [machine.refuse(stamp) for stamp in (0, 5, -1)] == [State.DEGRADED] * 3  # no stamp of this camera: no time has passed
    assert machine.decide(estimate(1.1)).published
    assert StateMachine(OPTIONS).refuse(5) == State.INITIALISING


def test_no_frames_at_all() -> None:
    machine = StateMachine(OPTIONS)
    assert machine.lose() == State.INITIALISING
    machine = tracking(1.0)
    assert machine.lose() == State.LOST
    assert [d.published for d in decide(machine, estimate(5.0, x=9.0), estimate(5.1, x=9.0))] == [False, True]


@pytest.mark.parametrize(('deviation', 'reasons'), [
    (0.049, ()), (0.051, ('weak_rotation',)), (0.101, ('weak_position', 'weak_rotation'))])
def test_weak_evidence_is_published_and_named(deviation: float, reasons: tuple[str, ...]) -> None:
    decision = tracking().decide(estimate(1.1, deviation=deviation))
    assert decision == Decision(State.DEGRADED if reasons else State.TRACKING, True, reasons)


def test_what_is_not_finite_is_never_published() -> None:
    for name in ('map_from_camera', 'covariance'):
        broken = estimate(1.1)
        getattr(broken, name)[0, 0] = np.nan
        decision = tracking().decide(broken)
        assert not decision.published and decision.reasons == ('pose_not_finite',)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.sampled_from([0.0, 0.05, 5.0, 9.0]), st.booleans()), min_size=1, max_size=30),
       st.integers(1, 4), st.integers(0, 3))
def test_rules_that_hold_for_every_sequence(steps: list[tuple[float, float, bool]], agreeing: int, more: int) -> None:
    """Only accepted frames are published; none before `agreeing` accepted ones; an unexplained jump never without as many that agree."""
    options = StateOptions(agreeing=agreeing, spare=more, max_speed=0.1, max_turn=0.1)
    machine = StateMachine(options)
    times = np.cumsum([seconds for seconds, _, _ in steps])
    estimates = [estimate(t, x, accepted=accepted) for t, (_, x, accepted) in zip(times, steps)]
    decisions = decide(machine, *estimates)
    published = [i for i, decision in enumerate(decisions) if decision.published]
    for i, (each, decision) in enumerate(zip(estimates, decisions)):
        assert each.verdict.accepted or not decision.published
        assert decision.published == (decision.state == State.TRACKING)
        assert decision.published or decision.reasons
        assert (decision.state == State.INITIALISING) == (not any(p <= i for p in published))
    assert not published or sum(e.verdict.accepted for e in estimates[:published[0] + 1]) >= agreeing
    for earlier, later in pairwise(published):
        seconds = times[later] - times[earlier]
        if abs(steps[later][1] - steps[earlier][1]) > 0.1 * seconds + SLACK_M + NOISE:
            window = range(max(earlier, later - agreeing - more + 1), later + 1)
            assert sum(steps[i][2] and abs(steps[i][1] - steps[later][1]) <= 0.1 * (times[later] - times[i]) + SLACK_M + NOISE
                       for i in window) >= agreeing


def odom(x: float, turn: float = 0.0) -> np.ndarray:
    """odom_from_camera of an odometry whose frame lies elsewhere than the map's."""
    odom_from_map = np.eye(4)
    odom_from_map[:3, :3], odom_from_map[:3, 3] = Rotation.from_rotvec([0.2, -0.4, 1.0]).as_matrix(), (3.0, -7.0, 1.0)
    return odom_from_map @ estimate(1.0, x, turn).map_from_camera


def test_what_odometry_says_agrees_however_fast() -> None:
    """Ten metres in a tenth of a second are no jump when the wheels say the same, and half a metre is one when they say nothing."""
    machine = StateMachine(OPTIONS)
    for k, (x, odom_x, published) in enumerate([(0, 0, False), (0, 0, True), (10, 10, True), (10.5, 10, False), (10, 10, True)]):
        decision = machine.decide(estimate(1.0 + k / 10, x), odom(odom_x))
        assert decision.published == published, (k, decision)
        if k >= 2:
            (check,) = decision.checks
            assert (check.value <= check.limit) == published and check.limit == OPTIONS.max_odometry_chi2


def test_after_a_loss_odometry_still_knows_where_the_camera_is() -> None:
    machine = StateMachine(OPTIONS)
    for k in range(2):
        machine.decide(estimate(1.0 + k / 10), odom(0.0))
    assert machine.decide(estimate(60.0, 4.0), odom(4.0)).published
    assert not machine.decide(estimate(120.0, 0.0), odom(4.0)).published


@pytest.mark.parametrize('carried', [True, False])
def test_a_carried_robot_and_an_odometry_that_jumps_cost_one_frame(carried: bool) -> None:
    machine = StateMachine(OPTIONS)
    decisions = [machine.decide(estimate(1.0 + k / 10, 2.0 if carried and k > 1 else 0.0), odom(0.0 if carried or k < 2 else 2.0))
                 for k in range(5)]
    assert [decision.published for decision in decisions] == [False, True, False, True, True]
    assert decisions[2].reasons == ('jump: 1 of 2 frames agree',)


def test_where_odometry_is_missing_or_off_speed_limits_hold() -> None:
    for options, second in ((OPTIONS, None), (StateOptions(agreeing=2, max_speed=2.0, max_odometry_chi2=0.0), odom(0.0))):
        machine = StateMachine(options)
        machine.decide(estimate(1.0), odom(0.0))
        assert machine.decide(estimate(1.1, 0.2), second).published, 'within 2 m/s'


def test_the_distance_is_that_of_the_stated_noise() -> None:
    """Drawn errors of both poses and of the odometry, with their stated covariances: chi2 has 6 degrees of freedom."""
    rng = np.random.default_rng(5)
    halves = [rng.normal(size=(6, 6)) * np.array([0.01] * 3 + [0.004] * 3)[:, None] for _ in range(2)]
    options = StateOptions(odometry_position_noise=0.02, odometry_rotation_noise=0.01, odometry_turn_noise=0.01,
                           odometry_position_floor=0.01, odometry_rotation_floor=0.005)
    earlier, motion = estimate(1.0, 3.0, 0.5).map_from_camera, estimate(1.0, 0.8, 0.3).map_from_camera
    metres, radians = 0.8, 0.3
    sigma_m = np.hypot(0.01, 0.02 * metres)
    sigma_rad = np.sqrt(0.005 ** 2 + (0.01 * radians) ** 2 + (0.01 * metres) ** 2)

    def wrong(pose: np.ndarray, error: np.ndarray) -> np.ndarray:
        out = pose.copy()
        out[:3, 3] += error[:3]
        out[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ pose[:3, :3]
        return out

    found = []
    for _ in range(1500):
        fixes = [_Fix(0, wrong(pose, half @ rng.normal(size=6)), half @ half.T, 0.0, 0.0, None)
                 for pose, half in zip((earlier, earlier @ motion), halves)]
        # The noise of the odometry, in the axes of the map, on the later pose: the same difference.
        noise = np.concatenate([rng.normal(size=3) * sigma_m, rng.normal(size=3) * sigma_rad])
        fixes[1] = replace(fixes[1], map_from_camera=wrong(fixes[1].map_from_camera, noise), odom_from_camera=odom(0.0) @ motion)
        found.append(odometry_chi2(replace(fixes[0], odom_from_camera=odom(0.0)), fixes[1], options))
    # Mean 6 and variance 12: the mean of 1500 is within 0.36 by four standard deviations.
    assert np.mean(found) == pytest.approx(6.0, abs=0.4)
    assert np.mean(np.array(found) < chi2.ppf(0.9, 6)) == pytest.approx(0.9, abs=0.03)


def test_a_covariance_moves_with_the_lever() -> None:
    """Against drawn errors: of the position of a point 2 m away from where the pose is stated."""
    rng = np.random.default_rng(6)
    half, lever = rng.normal(size=(6, 6)) * 1e-3, np.array([0.5, -2.0, 0.3])
    errors = rng.normal(size=(200_000, 6)) @ half.T
    moved = np.hstack([errors[:, :3] + Rotation.from_rotvec(errors[:, 3:]).apply(lever) - lever, errors[:, 3:]])
    np.testing.assert_allclose(moved_covariance(half @ half.T, lever), np.cov(moved.T), atol=0.02 * np.abs(np.cov(moved.T)).max())
