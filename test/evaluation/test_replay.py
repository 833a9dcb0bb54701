"""The offline replay with a localizer of known conduct."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dsac_ros.config import StateOptions
from dsac_ros.errors import DataError, MapError
from dsac_ros.evaluation.replay import ThinnedSource, choose_modality, replay_offline
from dsac_ros.networks.encoder import input_size
from dsac_ros.records import Camera, Estimate, Frame, Verdict

CAMERA = Camera(8, 6, 8.0, 8.0, 3.5, 2.5)


class ListSource:
    """Frames from a list; counts how many were read."""

    map_frame = 'map'

    def __init__(self, frames: list[Frame]) -> None:
        self.frames, self.read, self.warnings = frames, 0, Counter({'no_image': 2})

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self):
        for frame in self.frames:
            self.read += 1
            yield frame


class RuleLocalizer:
    """Answers with the reference; rejects frames named 'dark', raises for cameras that the encoder does not take."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def warm_up(self, camera, modality):
        input_size(camera.width, camera.height)
        self.calls.append(f'warm {camera.width} {modality}')

    def localize(self, frame, modality):
        self.calls.append(frame.name)
        if frame.name == 'misfit':
            raise MapError('of another encoder')
        verdict = Verdict(False, ('few_inliers',)) if frame.name == 'dark' else Verdict(True)
        return Estimate(frame.stamp_ns, frame.map_from_camera, np.eye(6), verdict, modality, 'room', 10.0, 0.5, 0.5, 1.0, {'encoder': 1.0})


def frames(*names: str, depth: bool = True) -> list[Frame]:
    return [Frame(np.zeros((6, 8, 3), np.uint8), CAMERA, i * 10**8, np.ones((6, 8), np.float32) if depth else None, np.eye(4), name)
            for i, name in enumerate(names)]


def test_every_frame_has_a_result_in_order():
    localizer, seen = RuleLocalizer(), []
    source = frames('a', 'dark', 'odd', 'b')
    source[2] = replace(source[2], image=np.zeros((6, 80, 3), np.uint8), camera=replace(CAMERA, width=80))
    results = replay_offline(localizer, ListSource(source), 'rgb', lambda *p: seen.append(p))
    assert localizer.calls == ['warm 8 rgb', 'a', 'dark', 'b']  # one warm-up before the clock runs
    odd = 'bad_frame: image of 80x6 pixels: expected sides that differ by a factor of 4 at the most'
    assert [(r.name, r.answered, r.reasons) for r in results] == [
        ('a', True, ('unconfirmed: 1 of 2 frames agree',)), ('dark', False, ('few_inliers',)), ('odd', False, (odd,)),
        ('b', True, ('unconfirmed: 1 of 2 frames agree',))]
    assert results[0].latency_ms > 0 and results[1].latency_ms > 0 and results[2].latency_ms is None
    assert results[1].map_from_camera is not None and results[0].stage_times_ms == {'encoder': 1.0}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_state_machine_of_the_node_speaks_too():
    """The first of two agreeing frames is an answer that the node holds back; with one enough, none is."""
    source = ListSource(frames('a', 'b', 'dark', 'c'))
    results = replay_offline(RuleLocalizer(), source, 'rgb')
    assert [(r.answered, r.published) for r in results] == [(True, False), (True, True), (False, False), (True, True)]
    assert [r.state for r in results[:2]] == ['INITIALISING', 'DEGRADED'] and results[1].reasons == ('weak_position', 'weak_rotation')
    assert replay_offline(RuleLocalizer(), source, 'rgb', state=StateOptions(agreeing=1))[0].published


def test_another_calibration_has_to_be_confirmed():
    longer = replace(CAMERA, fx=1.3 * CAMERA.fx)
    source = [frame if i < 2 else replace(frame, camera=longer) for i, frame in enumerate(frames(*'abcd'))]
    assert [r.published for r in replay_offline(RuleLocalizer(), ListSource(source), 'rgb')] == [False, True, False, True]


def test_a_map_error_is_not_hidden():
    with pytest.raises(MapError):
        replay_offline(RuleLocalizer(), ListSource(frames('misfit')), 'rgb')


def test_empty_source_says_what_was_left_out():
    with pytest.raises(DataError, match='no_image: 2'):
        replay_offline(RuleLocalizer(), ListSource([]), 'rgb')


@pytest.mark.parametrize(('every', 'limit', 'kept', 'read'), [
    (1, 0, 'abcdefg', 7), (3, 0, 'adg', 7), (2, 2, 'ac', 3), (1, 4, 'abcd', 4), (9, 9, 'a', 7)])
def test_thinned_source(every, limit, kept, read):
    whole = ListSource(frames(*'abcdefg'))
    thin = ThinnedSource(whole, every, limit)
    assert ''.join(f.name for f in thin) == kept and whole.read == read
    assert ''.join(f.name for f in thin) == kept  # iterating again starts again
    assert len(thin) == len(kept) and thin.map_frame == 'map' and thin.warnings == {'no_image': 2}


def test_modality_follows_the_first_frame():
    assert choose_modality(ListSource(frames('a')), 'auto') == 'rgbd'
    assert choose_modality(ListSource(frames('a', depth=False)), 'auto') == 'rgb'
    assert choose_modality(ListSource([]), 'auto') == 'rgb'
    assert choose_modality(ListSource(frames('a', depth=False)), 'rgbd') == 'rgbd'
