"""What the tracker expects and when, with a localizer that writes down what it is asked; and on a real map of a synthetic room."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation

from dsac_ros.config import GatingOptions, TrackingOptions
from dsac_ros.localizer import Localizer
from dsac_ros.records import Camera, Estimate, Frame, Guess, Verdict
from dsac_ros.tracking.tracker import UNSETTLED, Tracker, extrapolate, spread

sys.path.append(str(Path(__file__).parents[1]))
import rooms  # noqa: E402

CAMERA = Camera(8, 6, 8.0, 8.0, 3.5, 2.5)
LANDMARKS = 80.0


class Scribe:
    """Accepts every frame at the pose that it is told; keeps the guesses. A guess counts as confirmed while `confirms`."""

    map_frame = 'map'

    def __init__(self) -> None:
        self.guesses: list[Guess | None] = []
        self.priors: list[Mapping[str, float] | None] = []
        self.posterior: dict[str, float] = {}
        self.reasons: tuple[str, ...] = ()
        self.accepts = self.confirms = True
        self.rooms: dict[str, float] = {}  # of the site: where they begin along x, each 10 m long

    def near(self, place_3: np.ndarray) -> dict[str, bool]:
        return {name: bool(begin <= place_3[0] < begin + 10) for name, begin in self.rooms.items()}

    def localize(self, frame: Frame, modality: str, guess: Guess | None = None, prior: Mapping[str, float] | None = None) -> Estimate:
        self.guesses.append(guess)
        self.priors.append(prior)
        tracked = guess is not None and self.confirms
        verdict = Verdict(self.accepts, self.reasons)
        return Estimate(frame.stamp_ns, frame.map_from_camera, np.eye(6), verdict, modality, 'room', 1.0, 1.0, 1.0, 1.0, {},
                        LANDMARKS / 2 if tracked else LANDMARKS, tracked, posterior=self.posterior)


def moved(metres: float, radians: float = 0.0) -> np.ndarray:
    """map_from_camera: along x, turned about y."""
    pose = np.eye(4)
    pose[:3, :3], pose[0, 3] = Rotation.from_rotvec([0, radians, 0]).as_matrix(), metres
    return pose


def frame(seconds: float, pose: np.ndarray = np.eye(4)) -> Frame:
    return Frame(np.zeros((6, 8, 3), np.uint8), CAMERA, round(1e9 * seconds), map_from_camera=pose)


def run(tracker: Tracker, *frames: Frame) -> list[Guess | None]:
    tracker.localizer.guesses.clear()
    for each in frames:
        tracker.localize(each, 'rgb')
    return list(tracker.localizer.guesses)


def test_a_motion_goes_on() -> None:
    tracker = Tracker(Scribe())
    none, still, going, late = run(tracker, frame(0, moved(0)), frame(0.1, moved(0.1, 0.02)), frame(0.2, moved(0.2, 0.04)),
                                   frame(0.5, moved(0.5, 0.1)))
    assert none is None
    np.testing.assert_allclose(still.camera_from_map, np.eye(4))
    np.testing.assert_allclose(np.linalg.inv(going.camera_from_map), moved(0.2, 0.04), atol=2e-3)
    np.testing.assert_allclose(np.linalg.inv(late.camera_from_map), moved(0.5, 0.1), atol=2e-2)
    assert going.radius_px == TrackingOptions().radius_px


@pytest.mark.parametrize('steps', [0.5, 1.0, 2.0])
def test_a_turn_on_the_spot_is_the_exponential_of_its_logarithm(steps: float) -> None:
    rng = np.random.default_rng(0)
    earlier, motion = np.eye(4), np.eye(4)
    earlier[:3, :3], earlier[:3, 3] = Rotation.random(random_state=1).as_matrix(), rng.normal(size=3)
    motion[:3, :3] = Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix()
    expected = expm(steps * logm(motion)).real @ motion @ earlier
    np.testing.assert_allclose(extrapolate(earlier, motion @ earlier, steps), expected, atol=1e-9)


def test_no_motion_is_carried_on_for_ever() -> None:
    far, further = (extrapolate(np.eye(4), moved(0.1), steps) for steps in (3.0, 300.0))
    np.testing.assert_array_equal(far, further)


def test_odometry_says_where_to_look_whatever_the_motion_before() -> None:
    """A turn that nothing announced: constant velocity would look ahead. Where one frame has no odometry, it does."""
    odom_from_map = np.linalg.inv(moved(4.0, 1.0))
    poses = [moved(0.0), moved(0.1), moved(0.1, 0.8)]

    def seen(at: int, with_odometry: bool) -> Frame:
        return replace(frame(1 + at / 10, poses[at]), odom_from_camera=odom_from_map @ poses[at] if with_odometry else None)
    for last, expected in ((True, poses[2]), (False, moved(0.2))):
        guess = run(Tracker(Scribe()), seen(0, True), seen(1, True), seen(2, last))[-1]
        np.testing.assert_allclose(np.linalg.inv(guess.camera_from_map), expected, atol=1e-9)
    tracker = Tracker(Scribe())
    run(tracker, seen(0, True))
    tracker.localizer.accepts = False
    run(tracker, seen(1, True))
    tracker.localizer.accepts = True
    guess = run(tracker, seen(2, True))[-1]
    np.testing.assert_allclose(np.linalg.inv(guess.camera_from_map), poses[2], atol=1e-9, err_msg='from the last accepted frame')


@pytest.mark.parametrize(('stamp', 'expected'), [(1.05, True), (2.0, True), (2.1, False), (1.0, False), (0.5, False)])
def test_a_gap_or_a_stamp_that_goes_back_starts_anew(stamp: float, expected: bool) -> None:
    """The last frame came at 1 s; a bag that loops starts at a lower stamp again."""
    *_, last = run(Tracker(Scribe(), TrackingOptions(max_gap=1.0)), frame(0.9), frame(1.0), frame(stamp))
    assert (last is not None) == expected


def test_a_full_search_comes_every_so_often_and_when_tracking_fails() -> None:
    tracker = Tracker(Scribe(), TrackingOptions(search_every=3))
    guesses = run(tracker, *(frame(0.1 * i) for i in range(9)))
    assert [guess is not None for guess in guesses] == [False, True, True, True, False, True, True, True, False]
    tracker.localizer.confirms = False  # then every frame is searched, each with a guess tried first
    assert all(guess is not None for guess in run(tracker, *(frame(1 + 0.1 * i) for i in range(9))))


def test_half_of_the_landmarks_of_the_last_search_have_to_be_found_again() -> None:
    guesses = run(Tracker(Scribe(), TrackingOptions(keep_share=0.5)), *(frame(0.1 * i) for i in range(4)))
    assert [guess.min_landmarks for guess in guesses[1:]] == [LANDMARKS / 2] * 3  # not of the tracked frame before, which would wear off


def test_a_tracked_frame_needs_landmarks_enough_for_itself() -> None:
    """However few the search had: no cell is asked."""
    guesses = run(Tracker(Scribe(), TrackingOptions(keep_share=0.1, min_landmarks=30.0)), *(frame(0.1 * i) for i in range(3)))
    assert [guess.min_landmarks for guess in guesses[1:]] == [30.0] * 2


def test_a_refused_frame_is_not_built_upon() -> None:
    tracker = Tracker(Scribe())
    run(tracker, frame(0.0, moved(0.0)), frame(0.1, moved(0.1)))
    tracker.localizer.accepts = False
    run(tracker, frame(0.2, moved(9.0)))
    tracker.localizer.accepts = True
    guess, = run(tracker, frame(0.3, moved(0.3)))
    np.testing.assert_allclose(np.linalg.inv(guess.camera_from_map), moved(0.3), atol=1e-9)


def test_after_some_refused_frames_nothing_is_expected_any_more() -> None:
    tracker = Tracker(Scribe())
    run(tracker, frame(0.0), frame(0.1))
    tracker.localizer.accepts = False
    assert [guess is not None for guess in run(tracker, *(frame(0.2 + 0.1 * i) for i in range(5)))] == [True, True, True, False, False]
    tracker.localizer.accepts = True
    assert [guess is not None for guess in run(tracker, frame(0.7), frame(0.8))] == [False, True]


def test_what_somebody_says_is_the_guess_of_one_frame_also_when_switched_off() -> None:
    for enabled in (True, False):
        tracker = Tracker(Scribe(), TrackingOptions(enabled=enabled))
        run(tracker, frame(0.0), frame(0.1))
        tracker.expect(moved(5.0, 0.3))
        told, after = run(tracker, frame(0.2), frame(0.3))
        np.testing.assert_allclose(np.linalg.inv(told.camera_from_map), moved(5.0, 0.3), atol=1e-12)
        assert told.radius_px > TrackingOptions().radius_px and told.min_landmarks == TrackingOptions().min_landmarks
        assert (after is not None) == enabled


@pytest.mark.parametrize(('reason', 'expected'), [('focal_length', False), ('landmarks_disagree', False), ('few_inliers', True)])
def test_a_search_that_tracked_frames_would_not_fail_ends_the_track(reason: str, expected: bool) -> None:
    """Else they go on from the pose before it, and are accepted without being asked: 60 frames, until the next search."""
    tracker = Tracker(Scribe(), TrackingOptions(search_every=3))
    assert [guess is not None for guess in run(tracker, *(frame(t / 10) for t in range(5)))] == [False, True, True, True, False]
    tracker.localizer.confirms, tracker.localizer.accepts, tracker.localizer.reasons = False, False, ('few_inliers', reason)
    run(tracker, frame(0.5))
    tracker.localizer.confirms, tracker.localizer.accepts, tracker.localizer.reasons = True, True, ()
    again, after = run(tracker, frame(0.6), frame(0.7))
    assert (again is not None) == expected and after is not None


@pytest.mark.parametrize(('gain', 'expected'), [(1.005, True), (1.3, False)])
@pytest.mark.parametrize('told', [False, True])
def test_by_another_lens_a_frame_is_searched(gain: float, expected: bool, told: bool) -> None:
    tracker = Tracker(Scribe())
    run(tracker, frame(1.0), frame(1.1))
    if told:
        tracker.expect(np.eye(4))
    other = replace(frame(1.2), camera=replace(CAMERA, fx=gain * CAMERA.fx, fy=gain * CAMERA.fy))
    assert (run(tracker, other)[0] is not None) == expected
    assert run(tracker, replace(other, stamp_ns=1_300_000_000))[0] is not None


def test_what_somebody_says_is_searched_next() -> None:
    """A tracked frame is not asked everything, and no search was before this one."""
    tracker = Tracker(Scribe())
    tracker.expect(moved(2.0))
    assert [guess is not None for guess in run(tracker, frame(1.0), frame(1.1), frame(1.2))] == [True, False, True]


def test_forgetting_leads_to_a_search() -> None:
    tracker = Tracker(Scribe())
    run(tracker, frame(0.0), frame(0.1))
    tracker.forget()
    assert run(tracker, frame(0.2)) == [None]


def test_switched_off_every_frame_is_by_itself() -> None:
    assert run(Tracker(Scribe(), TrackingOptions(enabled=False)), frame(0.0), frame(0.1), frame(0.2)) == [None] * 3


def priors(tracker: Tracker, *frames: Frame) -> list[Mapping[str, float] | None]:
    tracker.localizer.priors.clear()
    run(tracker, *frames)
    return list(tracker.localizer.priors)


def test_the_last_sub_map_is_expected_again_and_a_lost_one_is_not() -> None:
    tracker, leak = Tracker(Scribe(), gating=GatingOptions(leak=0.05)), 0.05
    tracker.localizer.confirms = False  # every frame is searched
    assert priors(tracker, frame(0.0), frame(0.1)) == [None, None]  # a map of one sub-map has no posterior
    tracker.localizer.posterior = {'hall': 0.9, 'lab': 0.06, '': 0.04}
    nothing, sharp = priors(tracker, frame(0.2), frame(0.3))
    assert nothing is None and sharp == pytest.approx({'hall': 0.95 * 0.9 + (leak + 0.95 * 0.04) / 2,
                                                       'lab': 0.95 * 0.06 + (leak + 0.95 * 0.04) / 2})
    tracker.localizer.accepts, tracker.localizer.reasons = False, ('few_inliers',)
    first, *wide = priors(tracker, *(frame(0.4 + 0.1 * i) for i in range(5)))
    assert first == sharp and wide[0] == wide[1] == pytest.approx(spread(tracker.localizer.posterior, UNSETTLED))
    assert wide[0]['hall'] < sharp['hall'] and wide[2:] == [None, None]
    tracker.localizer.reasons = ('ambiguous_place',)  # then every frame adds to what is known
    *_, later = priors(tracker, *(frame(0.9 + 0.1 * i) for i in range(6)))
    assert later == sharp
    alone = Tracker(tracker.localizer, TrackingOptions(enabled=False))
    assert priors(alone, frame(2.0), frame(2.1)) == [None, None]


def test_odometry_says_which_sub_maps_are_near_and_less_so_with_every_frame_that_is_refused() -> None:
    """From the hall at 1 m, past a blind stretch of 20 s, to 14 m, which is in the lab."""
    def driven(seconds: float, metres: float) -> Frame:
        return replace(frame(seconds, moved(metres)), odom_from_camera=moved(metres - 5, 0.0))

    tracker = Tracker(Scribe(), gating=GatingOptions(leak=0.05))
    scribe, scribe.rooms = tracker.localizer, {'hall': 0.0, 'lab': 10.0, 'attic': 50.0}
    scribe.posterior = {'hall': 0.9, 'lab': 0.06, 'attic': 0.0, '': 0.04}
    first, near = priors(tracker, driven(0.0, 0.9), driven(0.1, 1.0))
    assert first is None and near['hall'] > 0.99  # by the frame before and by odometry
    scribe.accepts, scribe.reasons = False, ('few_inliers',)
    *_, blind, behind = priors(tracker, *(driven(float(at), 1.0) for at in range(1, 20)), driven(20.0, 14.0))
    for prior, refused, here in ((blind, 18, 'hall'), (behind, 19, 'lab')):
        far = 1 - 0.95 ** (1 + refused)
        assert prior == pytest.approx({name: (1.0 if name == here else far) / (1 + 2 * far) for name in scribe.rooms})
    *_, late = priors(tracker, *(driven(20.0 + 0.01 * at, 14.0) for at in range(1, 100)))
    assert late == pytest.approx(dict.fromkeys(scribe.rooms, 1 / 3), abs=0.01)  # carried away meanwhile: all are asked
    assert priors(tracker, frame(21.0)) == [None]  # no odometry
    assert priors(tracker, driven(0.05, 1.0), driven(22.0, 1.0)) == [None, None]  # a stamp from before the anchor ends it
    scribe.accepts, scribe.rooms = True, {}
    scribe.posterior = {}
    assert priors(tracker, driven(30.0, 1.0), driven(30.1, 1.0)) == [None, None]  # a map of one sub-map


def test_nothing_is_expected_after_a_gap_or_when_forgotten() -> None:
    tracker = Tracker(Scribe(), TrackingOptions(max_gap=1.0))
    tracker.localizer.posterior = {'hall': 1.0, 'lab': 0.0, '': 0.0}
    assert priors(tracker, frame(0.0), frame(2.0), frame(1.0)) == [None, None, None]
    tracker.forget()
    assert priors(tracker, frame(1.1)) == [None] and priors(tracker, frame(1.2)) != [None]


def test_the_guess_is_in_the_sub_map_of_the_last_pose() -> None:
    guesses = run(Tracker(Scribe()), frame(0.0), frame(0.1))
    assert guesses[1].expert == 'room'
    tracker = Tracker(Scribe())
    tracker.expect(moved(1.0))
    assert run(tracker, frame(0.0))[0].expert == ''  # nobody says which


def test_spread_is_a_distribution() -> None:
    for leak in (0.0, 0.3, 1.0):
        after = spread({'a': 0.5, 'b': 0.2, '': 0.3}, leak)
        assert sum(after.values()) == pytest.approx(1) and after['a'] >= after['b']
    assert spread({'a': 0.5, 'b': 0.2, '': 0.3}, 1.0) == pytest.approx({'a': 0.5, 'b': 0.5})
    assert spread({'a': 0.0, 'b': 0.0, '': 1.0}, 0.05) == pytest.approx({'a': 0.5, 'b': 0.5})


@pytest.fixture(scope='module')
def localizer() -> Localizer:
    return Localizer.from_map(rooms.tiny_map()[0], 'cpu')


def distance(estimate: Estimate, truth: Frame) -> float:
    return float(np.linalg.norm(estimate.map_from_camera[:3, 3] - truth.map_from_camera[:3, 3]))


def test_in_a_room_tracking_is_as_good_as_searching(localizer: Localizer) -> None:
    views = list(rooms.tiny_source(40, rate_hz=10.0))[:15]
    tracker = Tracker(localizer, TrackingOptions(search_every=6))
    tracked, searched = [tracker.localize(view, 'rgb') for view in views], [localizer.localize(view, 'rgb') for view in views]
    assert not tracked[0].tracked and np.mean([e.tracked for e in tracked]) > 0.7
    errors = [np.median([distance(e, view) for e, view in zip(run, views)]) for run in (tracked, searched)]
    assert errors[0] < 0.02 and errors[0] < 1.5 * errors[1], errors
    for estimate in tracked:
        if estimate.tracked:
            assert estimate.verdict.accepted and estimate.modality == 'rgb' and estimate.landmarks >= 40
            assert 'encoder' not in estimate.stage_times_ms
            assert 0 < estimate.residual < 2 and 0 < estimate.spread <= 1 and np.linalg.eigvalsh(estimate.covariance).min() > 0


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_a_wrong_guess_costs_time_and_nothing_else(localizer: Localizer, modality: str) -> None:
    """A robot that was carried away: the answer is that of a search, bit for bit."""
    view = rooms.tiny_frames()[4]
    away = np.linalg.inv(view.map_from_camera)
    away[:3, 3] += [1.0, 0.5, -0.7]
    searched, despite = localizer.localize(view, modality), localizer.localize(view, modality, Guess(away, 48.0, 0.0))
    assert not despite.tracked and {'tracking', 'encoder'} <= set(despite.stage_times_ms)
    assert despite.map_from_camera.tobytes() == searched.map_from_camera.tobytes()
    assert replace(despite, stage_times_ms={}).verdict == searched.verdict


def test_too_few_landmarks_confirm_nothing(localizer: Localizer) -> None:
    view = rooms.tiny_frames()[4]
    right = np.linalg.inv(view.map_from_camera)
    assert localizer.localize(view, 'rgb', Guess(right, 48.0, 0.0)).tracked
    assert not localizer.localize(view, 'rgb', Guess(right, 48.0, 1e4)).tracked
