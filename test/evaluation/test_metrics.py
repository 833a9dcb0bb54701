"""Metrics against SciPy and against cases whose numbers can be counted by hand."""
from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dsac_ros.evaluation import metrics
from dsac_ros.evaluation.records import FrameResult, from_estimate
from dsac_ros.records import Camera, Estimate, Frame, Verdict
from dsac_ros.tracking.state import StateMachine


def transform(rotvec_deg=(0.0, 0.0, 0.0), centre=(0.0, 0.0, 0.0)) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.radians(rotvec_deg)).as_matrix()
    pose[:3, 3] = centre
    return pose


def result(i: int, centimetres: float | None, degrees: float = 0.0, answered: bool = True, **more) -> FrameResult:
    """Frame i of a 10 Hz source, off by so much; None: no pose at all."""
    pose = None if centimetres is None else transform((0, degrees, 0), (centimetres / 100, 0, 0))
    values = {'reference': np.eye(4), **more}
    return FrameResult(i * 100_000_000, str(i), answered and pose is not None, 'rgb', pose, **values)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 0))
def test_pose_error_equals_scipy(seed, exponent):
    """From 1e-9 of half a turn to half a turn; 1e-13 rad and 1e-12 m are rounding of O(1) entries."""
    rng = np.random.default_rng(seed)
    reference = transform(rng.normal(size=3) * 90, rng.normal(size=3))
    turn = Rotation.from_rotvec(rng.normal(size=3))
    turn = Rotation.from_rotvec(turn.as_rotvec() / turn.magnitude() * math.pi * 10**exponent)
    estimate = transform(centre=rng.normal(size=3))
    estimate[:3, :3] = reference[:3, :3] @ turn.as_matrix()
    metres, degrees = metrics.pose_error(estimate, reference)
    assert metres == pytest.approx(math.dist(estimate[:3, 3], reference[:3, 3]), abs=1e-12)
    # acos of the trace would be off by 1e-8 rad near zero and near half a turn.
    assert math.radians(degrees) == pytest.approx(turn.magnitude(), abs=1e-13)


def test_translation_error_is_the_distance_of_centres_whatever_the_rotation():
    assert metrics.pose_error(transform((0, 0, 90), (3, 4, 0)), transform()) == pytest.approx((5.0, 90.0))


def test_counts_by_hand():
    results = [result(0, 1.5, 0.5), result(1, 4.0, 1.0), result(2, 4.0, 6.0), result(3, 60.0, 1.0), result(4, 0.5, 0.5, answered=False),
               result(5, None), result(6, 20.0, 1.9), result(7, 0.2, 0.1, reference=None)]
    summary = metrics.summarise(results)
    assert (summary['frames'], summary['frames_with_reference'], summary['frames_without_reference']) == (8, 7, 1)
    assert summary['answered'] == 6 and summary['availability'] == 6 / 8
    # Errors in order: 1.5, 4, 4, 20, 60, inf, inf cm and 0.5, 1, 1, 1.9, 6, 180, 180 deg.
    assert summary['median_translation_m'] == pytest.approx(0.20) and summary['median_rotation_deg'] == pytest.approx(1.9)
    assert summary['median_translation_m_answered'] == pytest.approx(0.04)
    assert summary['within_2cm_2deg'] == 1 / 7 and summary['within_5cm_5deg'] == 2 / 7
    assert summary['within_25cm_2deg'] == 3 / 7 and summary['within_1cm_1deg'] == 0
    assert summary['false_accepts'] == 2 / 7 and summary['false_accept_count'] == 2  # 6 deg, and 60 cm
    assert summary['false_rejects'] == 1 / 7  # frame 4
    assert summary['max_translation_m_answered'] == pytest.approx(0.6)
    assert summary['longest_gap_s'] == pytest.approx(0.3) and summary['time_to_first_fix_s'] == 0  # from frame 3 to frame 6
    assert summary['reasons'] == {'unknown': 2}


def test_holes_of_the_recording_are_no_gaps():
    """Two parts of a split, a minute apart: only frames that came and got no answer make a gap."""
    answers = [True, True, False, True, True, True]
    results = [result(i + 600 * (i >= 3), 1.0, answered=a) for i, a in enumerate(answers)]
    assert metrics.summarise(results)['longest_gap_s'] == pytest.approx(0.2)


def test_half_without_an_answer_is_an_infinite_median():
    summary = metrics.summarise([result(0, 1.0), result(1, None)])
    assert summary['median_translation_m'] is None and summary['median_rotation_deg'] == pytest.approx(90.0)
    assert summary['median_translation_m_answered'] == pytest.approx(0.01)


def test_all_rejected():
    summary = metrics.summarise([result(i, 1.0, answered=False, reasons=('few_inliers',)) for i in range(4)])
    assert summary['answered'] == summary['availability'] == summary['within_5cm_5deg'] == summary['false_accepts'] == 0
    assert summary['median_translation_m'] is None and summary['median_rotation_deg'] == 180.0
    assert summary['longest_gap_s'] == pytest.approx(0.3) and summary['time_to_first_fix_s'] is None
    assert summary['false_rejects'] == 1.0 and summary['reasons'] == {'few_inliers': 4}


@pytest.mark.parametrize('results', [[], [result(0, 1.0, reference=None)], [result(0, None)]])
def test_nothing_to_judge_is_null_and_strict_json(results):
    summary = metrics.summarise(results)
    assert summary['frames'] == len(results) and summary['median_translation_m'] is None
    json.loads(json.dumps(summary, allow_nan=False))


def test_keys_do_not_depend_on_the_results(run_of_60):
    assert list(metrics.summarise([])) == list(metrics.summarise(run_of_60))


def test_latency_percentiles_skip_frames_without_one():
    results = [result(i, 1.0, latency_ms=float(i)) for i in range(101)] + [result(101, None)]
    summary = metrics.summarise(results)
    assert (summary['latency_p50_ms'], summary['latency_p95_ms'], summary['latency_p99_ms']) == (50.0, 95.0, 99.0)


def test_coverage_limits_are_chi_square_quantiles():
    for percent, limit in metrics.COVERAGE:
        assert limit == pytest.approx(chi2(6).ppf(percent / 100), abs=1e-9)


def test_honest_covariance_has_nominal_nees():
    """1,500 draws of a correlated covariance; 4 sigma of the mean are 4 sqrt(12 / 1500) = 0.36, of a share 0.052."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(6, 6)) * np.array([0.02, 0.01, 0.03, 0.004, 0.01, 0.006])[:, None]
    covariance = root @ root.T
    results = []
    for i in range(1500):
        error = root @ rng.normal(size=6)
        reference = transform(rng.normal(size=3) * 90, rng.normal(size=3))
        estimate = reference.copy()
        estimate[:3, 3] -= error[:3]
        estimate[:3, :3] = Rotation.from_rotvec(-error[3:]).as_matrix() @ reference[:3, :3]
        results.append(FrameResult(i, '', True, 'rgb', estimate, covariance, reference))
    summary = metrics.summarise(results)
    assert summary['nees_frames'] == 1500 and summary['nees_mean'] == pytest.approx(6.0, abs=0.36)
    for percent in (50, 90, 99):
        assert summary[f'coverage_{percent}'] == pytest.approx(percent / 100, abs=0.052)


def test_nees_of_one_axis_is_the_squared_ratio():
    one = result(0, 3.0, covariance=np.diag([0.01**2] * 3 + [1.0] * 3))
    assert metrics.nees(one) == pytest.approx(9.0)


def test_covariance_that_is_none_is_counted_as_uncovered():
    summary = metrics.summarise([result(0, 1.0, covariance=np.zeros((6, 6))), result(1, 1.0, covariance=np.full((6, 6), np.nan))])
    assert summary['nees_invalid'] == 2 and summary['nees_mean'] is None and summary['coverage_99'] == 0.0


def test_an_answer_needs_a_pose():
    with pytest.raises(ValueError, match='frame 3'):
        FrameResult(0, '3', True, 'rgb')
    frame = Frame(np.zeros((4, 4, 3), np.uint8), Camera(4, 4, 4, 4, 2, 2), 5, name='x')
    broken = Estimate(5, np.full((4, 4), np.nan), np.eye(6), Verdict(True), 'rgb', 'room', 1.0, 1.0, 1.0, 1.0)
    made = from_estimate(frame, broken, StateMachine().decide(broken), 1.0)
    assert not made.answered and made.reasons == ('pose_not_finite',)


def test_what_the_node_publishes_is_counted_beside_the_answers():
    """Two of four frames are published, one of them far off; a frame that nothing is known of counts as not published."""
    results = [replace(result(i, error), published=published) for i, (error, published) in
               enumerate([(1.0, False), (1.0, True), (900.0, True), (900.0, None)])]
    summary = metrics.summarise(results)
    assert summary['published'] == 0.5 and summary['published_false_accept_count'] == 1
    assert summary['answered'] == 4 and summary['false_accept_count'] == 2
    assert metrics.summarise([result(0, 1.0)])['published'] is None


def test_a_pose_difference_is_about_the_axes_of_the_map() -> None:
    """Independent: error = reference -> estimate, rebuilt from its six numbers."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        reference, estimate = np.eye(4), np.eye(4)
        reference[:3, :3], estimate[:3, :3] = Rotation.random(2, random_state=seed).as_matrix()
        reference[:3, 3], estimate[:3, 3] = rng.normal(size=(2, 3))
        e = metrics.pose_difference(estimate, reference)
        np.testing.assert_allclose(Rotation.from_rotvec(e[3:]).as_matrix() @ reference[:3, :3], estimate[:3, :3], atol=1e-12)
        np.testing.assert_allclose(reference[:3, 3] + e[:3], estimate[:3, 3], atol=1e-12)
