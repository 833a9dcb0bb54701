"""What /diagnostics says of the real node, heard over real DDS: every level of every part, and why no data comes."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rclpy.qos import QoSProfile, QoSReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from dsac_ros.msg import LocalizationStatus  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import sensor_messages  # noqa: E402
from dsac_ros.ros.diagnostics import localization  # noqa: E402
from dsac_ros.ros.live_replay import Player  # noqa: E402
from dsac_ros.tracking.state import State  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 30.0
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
MS = 10 ** 6


class Ear:
    """Hears /diagnostics; part('timing') is the newest status of that part of the node."""

    def __init__(self, player: Player, target: Any) -> None:
        self._player, self._name = player, f'{target.namespace.lstrip("/")}/localizer'
        self.heard: list[tuple[float, DiagnosticArray]] = []
        player.node.create_subscription(DiagnosticArray, '/diagnostics', lambda m: self.heard.append((time.monotonic(), m)), 10)

    def part(self, part: str) -> DiagnosticStatus | None:
        return next((s for s in self.heard[-1][1].status if s.name == f'{self._name}: {part}'), None) if self.heard else None

    def wait(self, part: str, level: bytes, words: str, do: Callable[[], Any] = lambda: None) -> dict[str, str]:
        """Until that is said, doing something all the time; the values."""
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            do()
            found = self.part(part)
            if found is not None and found.level == level and words in found.message:
                return {value.key: value.value for value in found.values}
            self._player.wait_for(lambda: False, 0.1)
        raise AssertionError(f'expected {part} at {level} with {words!r}, last {self.part(part)}')


@pytest.fixture
def heard(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> Callable[..., Any]:
    @contextmanager
    def run(**parameters: Any) -> Iterator[tuple[Player, Ear]]:
        target = node_in_process(domain_id, **({'map': str(small_room[0]), 'modality': 'rgb'} | parameters))
        with target, Player(target, parameters.get('modality') == 'rgbd') as player:
            yield player, Ear(player, target)
            target.check()
    return run


@pytest.fixture
def frames(small_room: tuple[Path, list[Frame]]) -> list[Frame]:
    return small_room[1]


def send(player: Player, frame: Frame, depth_later_ns: int | None = None, info: bool = True) -> None:
    stamp = time.time_ns()
    if depth_later_ns is not None:
        player.send(stamp + depth_later_ns, depth=sensor_messages.depth_message(frame.depth))
    player.send(stamp, sensor_messages.camera_info_message(frame.camera) if info else None, sensor_messages.colour_message(frame.image))


def test_a_node_that_is_well(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(modality='rgbd') as (player, ear):
        values = ear.wait('localization', OK, 'tracking', lambda: send(player, frames[0], 0))
        assert values['state'] == 'TRACKING' and values['expert'] == 'room' and float(values['seconds_since_pose']) < ANSWER_S
        assert int(values['frames_accepted']) >= 1
        for stream in ('image', 'depth', 'camera_info'):
            values = ear.wait(f'input {stream}', OK, 'Hz', lambda: send(player, frames[0], 0))
            assert int(values['publishers']) == 1 and int(values['messages']) >= 1 and 0 < float(values['rate_hz']) < 100
        assert float(ear.wait('pairing', OK, 'have their depth', lambda: send(player, frames[0], 0))['median_gap_ms']) == 0
        values = ear.wait('timing', OK, 'dropped', lambda: send(player, frames[0], 0))
        assert 0 < float(values['stage.decode_ms.p50']) <= float(values['stage.decode_ms.p95'])
        assert float(values['latency_receive_ms.p95']) > 0
        while len(ear.heard) < 4:
            time.sleep(0.1)
        times = [at for at, _ in ear.heard]
        assert 0.7 < np.median(np.diff(times)) < 1.5, 'once a second'


def test_before_and_after_it_is_active(heard: Callable[..., Any], change: Callable[..., bool]) -> None:
    with heard(autostart=False) as (player, ear):
        ear.wait('localization', OK, 'unconfigured')
        assert ear.part('input image') is None
        assert change(player, 'configure')
        ear.wait('localization', OK, 'inactive')
        assert change(player, 'activate')
        ear.wait('localization', WARN, 'no frame yet')
    with heard(autostart=False, map='/no/such.dsacmap') as (player, ear):
        assert not change(player, 'configure')
        ear.wait('localization', ERROR, '/no/such.dsacmap')


def test_no_publisher(heard: Callable[..., Any], frames: list[Frame], capfd: pytest.CaptureFixture[str]) -> None:
    with heard(modality='rgbd', image_topic='eye', depth_topic='far', camera_info_topic='lens') as (_, ear):
        for stream, level, topic in (('image', ERROR, 'eye'), ('depth', WARN, 'far'), ('camera_info', ERROR, 'lens')):
            assert ear.wait(f'input {stream}', level, 'no publisher on')['topic'].endswith(f'/{topic}')
        assert '/eye' in capfd.readouterr().err, 'one log line says it too'


def test_a_quality_of_service_that_does_not_fit(heard: Callable[..., Any], frames: list[Frame]) -> None:
    strict = {'namespace': '/strict', 'qos_overrides./strict/image.subscription.reliability': 'reliable'}
    with heard(modality='rgbd', **strict) as (player, ear):
        ear.wait('input image', ERROR, 'QoS of /strict/image does not fit in RELIABILITY: player offers BEST_EFFORT, asked for is RELIABLE',
                 lambda: send(player, frames[0]))
        for stream in ('camera_info', 'depth'):  # the override is of one topic
            ear.wait(f'input {stream}', OK, 'Hz', lambda: send(player, frames[0], 0))


def test_a_topic_of_another_type(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(image_topic='squeezed') as (player, ear):
        player.node.create_publisher(CompressedImage, 'squeezed', QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT))
        ear.wait('input image', ERROR, 'is published as sensor_msgs/msg/CompressedImage, expected sensor_msgs/msg/Image')


def test_a_publisher_that_says_nothing(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(image_topic='mute') as (player, ear):
        player.node.create_publisher(Image, 'mute', QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT))
        ear.wait('input image', ERROR, 'but no message comes')


def test_stamps_that_do_not_pair(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(modality='rgbd', depth_wait=0.05) as (player, ear):
        values = ear.wait('pairing', WARN, 'stamps do not pair: median gap 30.0 ms, sync_slop is 10.0 ms',
                          lambda: send(player, frames[0], 30 * MS))
        assert int(values['paired']) == 0 and int(values['of_the_last_images']) >= 1


def test_depth_that_stops(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(modality='rgbd', depth_wait=0.05) as (player, ear):
        ear.wait('input depth', OK, 'Hz', lambda: send(player, frames[0], 0))
        ear.wait('input depth', WARN, 'no message comes', lambda: send(player, frames[0]))
        ear.wait('localization', OK, 'tracking', lambda: send(player, frames[0]))
        ear.wait('input depth', OK, 'Hz', lambda: send(player, frames[0], 0))


def test_frames_that_cannot_be_used(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard() as (player, ear):
        values = ear.wait('localization', WARN, 'no_camera_info', lambda: send(player, frames[0], info=False))
        assert int(values['refused.no_camera_info']) >= 1
        ear.wait('localization', OK, 'tracking', lambda: send(player, frames[0]))
        ear.wait('localization', WARN, 'LOST: no_images')
        values = ear.wait('localization', ERROR, 'LOST: no_images')
        assert float(values['seconds_since_pose']) > 5.0


def test_disabled_is_no_fault(heard: Callable[..., Any], frames: list[Frame], call: Callable[..., Any]) -> None:
    with heard() as (player, ear):
        ear.wait('localization', OK, 'tracking', lambda: send(player, frames[0]))
        assert call(player, SetBool, 'enable', SetBool.Request(data=False)).success
        assert int(ear.wait('localization', OK, 'disabled', lambda: send(player, frames[0]))['refused.disabled']) >= 0


def test_dropping_more_than_half(heard: Callable[..., Any], frames: list[Frame]) -> None:
    with heard(queue_depth=50) as (player, ear):
        def burst() -> None:
            for _ in range(10):
                send(player, frames[0])
        assert 0.5 < float(ear.wait('timing', WARN, 'images dropped', burst)['dropped_share']) < 1


@pytest.mark.parametrize(('alive', 'at_work_s', 'said'), [(True, 0.2, ''), (True, 600.0, 'at one frame for 600 s'),
                                                          (False, 0.0, 'has ended')])
@pytest.mark.parametrize('state', [None, *State])
def test_a_thread_that_hangs_or_has_ended_is_an_error(alive: bool, at_work_s: float, said: str, state: State | None) -> None:
    """Whatever was said last, and before anything was; not that no image has come for long."""
    worker = SimpleNamespace(is_alive=lambda: alive, seconds_at_work=lambda: at_work_s, seconds_since_pose=lambda: 600.0, map_frame='map',
                             enabled=True)
    found = localization(worker, [] if state is None else [LocalizationStatus(state=int(state))])
    bad = bool(said) or state == State.LOST
    assert (found[0] == DiagnosticStatus.ERROR) == bad and said in found[1]


def test_a_frame_that_hangs_is_told(heard: Callable[..., Any], frames: list[Frame], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('dsac_ros.ros.diagnostics.STUCK_S', 0.5)
    go_on = threading.Event()
    monkeypatch.setattr('dsac_ros.tracking.tracker.Tracker.localize', lambda *_: go_on.wait(60.0))
    with heard() as (player, ear):
        try:
            ear.wait('localization', ERROR, 'at one frame for', lambda: send(player, frames[0]))
        finally:
            go_on.set()
        ear.wait('localization', WARN, 'internal_error')
