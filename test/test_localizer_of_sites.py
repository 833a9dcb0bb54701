"""A map of two tiny rooms: each is found in its place, one budget serves both, what is of none is refused; and one sub-map is as it was."""
from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsac_ros.config import EstimatorOptions, GatingOptions, IntegrityOptions, TrackingOptions
from dsac_ros.errors import MapError
from dsac_ros.localizer import Localizer, in_site
from dsac_ros.maps.editing import add_experts, merge_sites
from dsac_ros.maps.site import open_site, site_of
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.gating import Gating
from dsac_ros.records import Estimate, Frame, Guess, Verdict
from dsac_ros.tracking.tracker import Tracker

sys.path.append(str(Path(__file__).parent))
import rooms  # noqa: E402

NAMES = {1: 'tiny', 2: 'tiny2'}


@pytest.fixture(scope='module')
def localizer() -> Localizer:
    return Localizer.from_map(rooms.tiny_site(), 'cpu')


class Told(Gating):
    """A gating that says what it is told."""

    def __init__(self, *probabilities: float) -> None:
        self.said = torch.tensor(probabilities)

    def probabilities(self, descriptor_D: torch.Tensor) -> torch.Tensor:
        return self.said

    def look_alikes(self, expert: int) -> list[int]:
        return []


def told(*probabilities: float, gating: GatingOptions = GatingOptions(), **options: object) -> Localizer:
    made = Localizer.from_map(rooms.tiny_site(), 'cpu', EstimatorOptions(**options), gating=gating)
    made.choice.gating = Told(*probabilities)
    return made


def distance(estimate: Estimate, frame: Frame, room: int) -> float:
    return float(np.linalg.norm(estimate.map_from_camera[:3, 3] - rooms.in_site(frame, room).map_from_camera[:3, 3]))


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_each_room_is_found_where_it_lies_in_the_site(localizer: Localizer, modality: str) -> None:
    for room in (1, 2):
        frames = rooms.tiny_frames(room)[::9]
        estimates = [localizer.localize(frame, modality) for frame in frames]
        assert np.mean([e.expert == NAMES[room] and e.verdict.accepted for e in estimates]) > 0.8
        assert np.median([distance(e, f, room) for e, f in zip(estimates, frames)]) < 0.02
        for estimate in estimates:
            assert set(estimate.posterior) == {'tiny', 'tiny2', ''} and sum(estimate.posterior.values()) == pytest.approx(1)
            assert {'gating', 'load'} <= set(estimate.stage_times_ms)
            assert np.linalg.eigvalsh(estimate.covariance).min() > 0


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_geometry_decides_where_gating_does_not_know(modality: str) -> None:
    """Half of the budget each, with cells alone, and with landmarks where gating is rather sure of the wrong room."""
    for made in (told(0.5, 0.5, 0.0, landmarks=False), told(0.7, 0.25, 0.05), told(0.25, 0.7, 0.05)):
        for room in (1, 2):
            frames = rooms.tiny_frames(room)[2::12]
            estimates = [made.localize(frame, modality) for frame in frames]
            assert [e.expert for e in estimates] == [NAMES[room]] * len(frames)
            assert np.median([distance(e, f, room) for e, f in zip(estimates, frames)]) < 0.1


def test_an_expert_without_hypotheses_is_not_run_nor_read() -> None:
    made = told(0.0, 0.999, 0.001)
    for frame in rooms.tiny_frames(1)[::12]:
        estimate = made.localize(frame, 'rgb')
        assert estimate.expert == 'tiny2' and not estimate.verdict.accepted
    assert made.choice.sub_maps.ready(1) and not made.choice.sub_maps.ready(0)


def test_a_likely_one_always_has_a_part() -> None:
    """A part in eight is drawn for it in one frame of two."""
    made = told(0.06, 0.93, 0.01)
    for seed in range(20):
        assert made.choice.shared_out(torch.zeros(CHANNELS, 2, 2), seed, None)[2] == {1: 7, 0: 1}


def test_a_frame_that_is_refused_is_looked_for_in_the_others_too() -> None:
    """One sub-map at a time, the wrong one first: the second search finds what the first could not, and tells of both."""
    one = {'most_experts': 1, 'parts': 4}
    twice, once = (told(0.3, 0.6, 0.1, gating=GatingOptions(searches=count, **one)) for count in (2, 1))
    for frame in rooms.tiny_frames(1)[::12]:
        first, second = once.localize(frame, 'rgb'), twice.localize(frame, 'rgb')
        assert first.expert == 'tiny2' and not first.verdict.accepted and not once.choice.sub_maps.ready(0)
        assert second.expert == 'tiny' and second.verdict.accepted and distance(second, frame, 1) < 0.05
        assert twice.seen is not None and twice.seen.sub_map.bundle.entry.name == 'tiny'
    blank = replace(frame, image=np.zeros_like(frame.image))
    first, second = once.localize(blank, 'rgb'), twice.localize(blank, 'rgb')
    assert second.expert == 'tiny2' and second.verdict == first.verdict and twice.seen.sub_map.bundle.entry.name == 'tiny2'
    assert second.map_from_camera.tobytes() == first.map_from_camera.tobytes()


@pytest.mark.parametrize(('reasons', 'landmarks', 'searches'), [
    (('focal_length',), 80.0, 1), (('focal_length',), 79.0, 2), (('focal_length', 'ambiguous'), 80.0, 2)])
def test_another_lens_is_not_looked_for_in_other_rooms(reasons: tuple[str, ...], landmarks: float, searches: int) -> None:
    """All agrees but the focal length, by many landmarks: the other sub-map is not asked. By few ones it is."""
    made, asked = told(0.3, 0.6, 0.1, gating=GatingOptions(searches=2, most_experts=1, parts=4)), []
    search = made._search

    def refused(*arguments: Any) -> Estimate:
        asked.append(1)
        return replace(search(*arguments), verdict=Verdict(False, reasons), landmarks=landmarks)

    made._search = refused
    assert made.localize(rooms.tiny_frames(1)[12], 'rgb').verdict.reasons == reasons and len(asked) == searches


def test_another_lens_is_named() -> None:
    frame = rooms.tiny_frames(1)[12]
    longer = replace(frame.camera, fx=1.3 * frame.camera.fx, fy=1.3 * frame.camera.fy)
    estimate = told(0.6, 0.3, 0.1).localize(replace(frame, camera=longer), 'rgb')
    assert estimate.expert == 'tiny' and 'focal_length' in estimate.verdict.reasons


def test_what_has_hardly_a_chance_is_not_searched() -> None:
    choice = told(0.01, 0.97, 0.02).choice
    assert choice.others(np.array([0.01, 0.97, 0.02]), {1}) == {} and choice.others(np.array([0.1, 0.0, 0.9]), {0, 1}) == {}
    assert choice.others(np.array([0.1, 0.0, 0.9]), {1}) == {0: 8}
    assert choice.others(np.array([0.03, 0.02, 0.95]), {}) == {0: 4, 1: 4}
    choice.gating.look_alikes = lambda expert: [1 - expert]
    assert choice.others(np.array([0.1, 0.0, 0.9]), {1}) == {0: 8}  # what it looks like was tried
    choice.unreadable = {0}
    assert choice.others(np.array([0.1, 0.0, 0.9]), {1}) == {}


def test_a_second_search_spends_the_whole_budget() -> None:
    choice = told(0.5, 0.4, 0.1, gating=GatingOptions(parts=3, most_experts=2)).choice
    choice.names = ['a', 'b', 'c', 'd']
    assert choice.others(np.array([0.1, 0.2, 0.3, 0.1, 0.3]), {2}) == {1: 2, 0: 1}
    choice.gating.look_alikes = lambda expert: [3] if expert == 1 else []
    assert choice.others(np.array([0.1, 0.2, 0.3, 0.1, 0.3]), {2}) == {1: 2, 3: 1}


def test_what_is_near_a_place_is_read_beforehand() -> None:
    made = told(0.5, 0.5, 0.0)
    place_3 = made.choice.site.entries[1].site_from_map_44[:3, 3] + made.choice.site.entries[1].centre
    near = made.near(place_3)
    assert near == {name: bool(distance < made.choice.options.preload_distance)
                    for name, distance in zip(made.choice.names, made.choice.site.distances(place_3))} and near['tiny2']
    made.choice.sub_maps.get(1)
    assert made.choice.sub_maps.ready(1)
    assert Localizer.from_map(rooms.tiny_map()[0], 'cpu').near(place_3) == {}


def test_a_surprise_stays_one_in_the_next_frame() -> None:
    """What was refused of one frame is in the prior of the next, and must not speak for it: alone, and through a tracker."""
    frame = rooms.tiny_frames(1)[4]
    again = replace(frame, stamp_ns=frame.stamp_ns + 200_000_000)
    strict = replace(IntegrityOptions(), min_landmarks=0.75 * told(0.9, 0.0, 0.1).localize(frame, 'rgb').landmarks)
    for by_image, accepted in ((0.15, False), (0.25, True)):
        made = told(by_image, 0.9 - by_image, 0.1)
        made.integrity = strict
        tracker = Tracker(made)
        estimates = [tracker.localize(each, 'rgb') for each in (frame, again)]
        assert [each.verdict.accepted for each in estimates] == [accepted, accepted] and estimates[0].posterior['tiny'] > 0.9
        assert accepted or {each.verdict.reasons for each in estimates} == {('unknown_place',)}


def test_a_look_alike_is_run_also_where_gating_is_sure() -> None:
    made = told(0.0, 0.999, 0.001)
    made.choice.gating.look_alikes = lambda expert: [1 - expert]
    for frame in rooms.tiny_frames(1)[::12]:
        assert made.localize(frame, 'rgb').expert == 'tiny'  # geometry decides
    assert made.choice.sub_maps.ready(0) and made.choice.sub_maps.ready(1)


def test_a_damaged_sub_map_costs_one_frame_and_not_those_of_others(tmp_path: Path) -> None:
    site = shutil.copytree(rooms.tiny_site(), tmp_path / 'site.dsacmap')
    file = site / 'experts' / 'tiny2.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    made = Localizer.from_map(site, 'cpu')
    tracker = Tracker(made)
    with pytest.raises(MapError, match=r'tiny2\.safetensors.*damaged'):
        for frame in rooms.tiny_frames(2)[::9]:
            tracker.localize(frame, 'rgb')
    for frame in rooms.tiny_frames(2)[::9]:
        estimate = tracker.localize(frame, 'rgb')
        assert not estimate.verdict.accepted and estimate.posterior['tiny2'] < 1e-9
    frames = rooms.tiny_frames(1)[::9]
    assert np.mean([made.localize(frame, 'rgb').verdict.accepted for frame in frames]) > 0.8
    made.choice.unreadable = {0, 1}
    with pytest.raises(MapError, match='no sub-map'):
        made.localize(frames[0], 'rgb')


def test_what_is_probably_of_none_needs_more_evidence() -> None:
    """The same frame and pose: refused as of an unknown place, or accepted, by what gating says and landmarks add."""
    frame = rooms.tiny_frames(1)[4]
    cells = told(0.001, 0.0, 0.999, landmarks=False).localize(frame, 'rgbd')
    assert cells.verdict.reasons == ('unknown_place',) and cells.posterior[''] > 0.1
    assert 'unknown_place' not in told(0.9, 0.0, 0.1, landmarks=False).localize(frame, 'rgbd').verdict.reasons
    sure = told(0.3, 0.0, 0.7).localize(frame, 'rgbd')
    assert sure.verdict.accepted and sure.posterior['tiny'] > 0.9


def test_look_alikes_are_kept_apart_by_motion_alone(tmp_path: Path) -> None:
    """One room twice under two names: a frame by itself is ambiguous, a tracker that is told which one it is in goes on there."""
    site = tmp_path / 'twins.dsacmap'
    merge_sites([rooms.tiny_map(1)[0]], site)
    add_experts(site, rooms.tiny_map(1)[0], 'twin', rooms.second_place())
    made = Localizer.from_map(site, 'cpu')
    views = list(rooms.tiny_source(40, rate_hz=10.0))[:4]
    ambiguous = made.localize(views[0], 'rgb')
    assert ambiguous.verdict.reasons == ('ambiguous_place',) and ambiguous.posterior['tiny'] == pytest.approx(0.5, abs=0.2)
    tracker = Tracker(made, TrackingOptions(search_every=1))
    where = rooms.second_place() @ views[0].map_from_camera
    tracker.expect(where)
    begun = tracker.localize(views[0], 'rgb')
    assert begun.tracked and begun.expert == 'twin' and np.linalg.norm(begun.map_from_camera[:3, 3] - where[:3, 3]) < 0.05


def test_the_prior_sharpens_gating(localizer: Localizer) -> None:
    frame = rooms.tiny_frames(1)[7]
    free = localizer.localize(frame, 'rgb')
    sharp = localizer.localize(frame, 'rgb', prior={'tiny': 0.999, 'tiny2': 0.001})
    assert sharp.posterior['tiny'] >= free.posterior['tiny'] and sharp.expert == 'tiny'
    wrong = localizer.localize(frame, 'rgb', prior={'tiny': 0.1, 'tiny2': 0.9})
    assert wrong.posterior['tiny'] < free.posterior['tiny'] + 1e-9


def test_the_same_frame_gives_the_same_bits() -> None:
    frame = rooms.tiny_frames(2)[3]
    made = told(0.5, 0.5, 0.0)
    first = made.localize(frame, 'rgbd')
    made.localize(rooms.tiny_frames(1)[3], 'rgbd')
    for again in (made.localize(frame, 'rgbd'), told(0.5, 0.5, 0.0).localize(frame, 'rgbd')):
        assert again.map_from_camera.tobytes() == first.map_from_camera.tobytes() and again.posterior == first.posterior


def test_one_sub_map_alone_is_no_site(localizer: Localizer) -> None:
    """Its own map, and the same expert read out of a site: bit for bit, without gating, posterior or stages of it."""
    path, frame = rooms.tiny_map(1)[0], rooms.tiny_frames(1)[4]
    alone, out_of_site = Localizer.from_map(path, 'cpu'), Localizer(site_of(open_site(rooms.tiny_site()).read(0)), 'cpu')
    for modality in ('rgb', 'rgbd'):
        one, two, among = (each.localize(frame, modality) for each in (alone, out_of_site, localizer))
        assert one.map_from_camera.tobytes() == two.map_from_camera.tobytes() and one.covariance.tobytes() == two.covariance.tobytes()
        assert not one.posterior and not {'gating', 'load'} & set(one.stage_times_ms)
        assert among.map_from_camera.tobytes() == one.map_from_camera.tobytes()  # gating is sure of this frame: nothing else ran


def test_a_placed_map_of_one_turns_pose_and_covariance() -> None:
    bundle, frame, place = rooms.tiny_map(1)[1], rooms.tiny_frames(1)[9], rooms.second_place()
    moved = replace(bundle, entry=replace(bundle.entry, site_from_map=place[:3].tolist()))
    here, there = (Localizer(each, 'cpu').localize(frame, 'rgbd') for each in (bundle, moved))
    np.testing.assert_allclose(there.map_from_camera, place @ here.map_from_camera, atol=1e-12)
    guess = Guess(np.linalg.inv(there.map_from_camera), 48.0, 0.0)
    tracked = Localizer(moved, 'cpu').localize(frame, 'rgb', guess)
    assert tracked.tracked and np.linalg.norm(tracked.map_from_camera[:3, 3] - there.map_from_camera[:3, 3]) < 0.01


def test_covariance_of_samples_turned() -> None:
    """Poses drawn around one, moved one by one: their scatter is the covariance that in_site says."""
    rng = np.random.default_rng(0)
    place, pose = rooms.second_place(), np.eye(4)
    half = rng.normal(size=(6, 6)) * 1e-3
    covariance = half @ half.T
    _, turned = in_site(place, pose, covariance)
    samples = rng.multivariate_normal(np.zeros(6), covariance, 200_000)
    moved = np.concatenate([samples[:, :3] @ place[:3, :3].T, samples[:, 3:] @ place[:3, :3].T], 1)
    np.testing.assert_allclose(np.cov(moved.T), turned, atol=0.02 * np.abs(turned).max())


def test_near_sub_maps_are_read_beforehand() -> None:
    made = told(1.0, 0.0, 0.0, gating=GatingOptions(preload_distance=100.0))
    estimate = made.localize(rooms.tiny_frames(1)[4], 'rgb')
    assert estimate.verdict.accepted
    made.choice.sub_maps.get(1)
    far = told(1.0, 0.0, 0.0, gating=GatingOptions(preload_distance=1.0))
    far.localize(rooms.tiny_frames(1)[4], 'rgb')
    assert 1 not in far.choice.sub_maps._made and 1 in made.choice.sub_maps._made


def test_a_tracker_goes_through_both_rooms(localizer: Localizer) -> None:
    walk = [(room, replace(frame, stamp_ns=round(1e9 * (1 + room + 0.2 * i)))) for room in (1, 2)
            for i, frame in enumerate(rooms.tiny_frames(room)[3:8])]
    tracker = Tracker(localizer)
    estimates = [tracker.localize(frame, 'rgb') for _, frame in walk]
    for estimate, (room, frame) in zip(estimates, walk):
        assert estimate.verdict.accepted and estimate.expert == NAMES[room] and distance(estimate, frame, room) < 0.05
        assert sum(estimate.posterior.values()) == pytest.approx(1)
    assert any(e.tracked for e in estimates[1:5]) and not estimates[5].tracked and any(e.tracked for e in estimates[6:])
