"""What may be asked of the running node, over its real services: another map while frames come, a full search, a pause, a first guess."""
from __future__ import annotations

import gc
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from dsac_ros.data.transforms import quat_xyzw_of  # noqa: E402
from dsac_ros.msg import LocalizationStatus  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import sensor_messages  # noqa: E402
from dsac_ros.ros.live_replay import NodeProcess, Player  # noqa: E402
from dsac_ros.srv import LoadMap  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 30.0


@pytest.fixture
def running(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> Callable[..., Any]:
    @contextmanager
    def run(**parameters: Any) -> Iterator[Player]:
        parameters = {'map': str(small_room[0]), 'modality': 'rgb'} | parameters
        with node_in_process(domain_id, **parameters) as target, Player(target, False) as player:
            player.target = target
            if parameters.get('autostart', True):
                player.wait_until_ready()
            yield player
            target.check()
    return run


@pytest.fixture
def frames(small_room: tuple[Path, list[Frame]]) -> list[Frame]:
    return small_room[1]


@pytest.fixture
def other_map(small_room: tuple[Path, list[Frame]], tmp_path: Path) -> Path:
    """The same room under another name and frame."""
    path = shutil.copytree(small_room[0], tmp_path / 'attic.dsacmap')
    manifest = yaml.safe_load((path / 'manifest.yaml').read_text())
    (path / 'manifest.yaml').write_text(yaml.safe_dump(manifest | {'frame_id': 'attic'}))
    return path


def send(player: Player, frame: Frame) -> int:
    player.send(stamp := time.time_ns(), sensor_messages.camera_info_message(frame.camera), sensor_messages.colour_message(frame.image))
    return stamp


def show(player: Player, frame: Frame) -> LocalizationStatus:
    stamp = send(player, frame)
    assert player.wait_for(lambda: stamp in player.statuses, ANSWER_S), f'no status within {ANSWER_S} s'
    return player.statuses[stamp]


def load_map(path: Any) -> tuple[Any, str, Any]:
    return LoadMap, 'load_map', LoadMap.Request(path=str(path))


def test_another_map_takes_over_between_two_frames(running: Callable[..., Any], call: Callable[..., Any], frames: list[Frame],
                                                   other_map: Path) -> None:
    with running() as player:
        alone_s = []
        for frame in frames[:4] * 2:
            start = time.monotonic()
            assert show(player, frame).header.frame_id == 'map'
            alone_s.append(time.monotonic() - start)
        answer: list[Any] = []
        asking = threading.Thread(target=lambda: answer.append(call(player, *load_map(other_map))))
        asking.start()
        meanwhile = 0
        while asking.is_alive():  # one frame at a time: each has to be looked at, none waits for the whole of the loading
            assert show(player, frames[0]).frames_dropped == 0
            meanwhile += 1
        assert answer[0].success and str(other_map) in answer[0].message, answer
        assert meanwhile >= 2, 'frames have waited for the map'
        assert show(player, frames[0]).header.frame_id == 'attic'


@pytest.mark.parametrize('damage', ['absent', 'empty', 'truncated', 'other_version'])
def test_a_bad_map_is_refused_and_the_old_one_stays(running: Callable[..., Any], call: Callable[..., Any], frames: list[Frame],
                                                    other_map: Path, damage: str) -> None:
    path = other_map
    if damage == 'absent':
        shutil.rmtree(path)
    elif damage == 'truncated':
        weights = next((path / 'experts').iterdir())
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == 'other_version':
        manifest = path / 'manifest.yaml'
        manifest.write_text(yaml.safe_dump(yaml.safe_load(manifest.read_text()) | {'format_version': 999, 'version': 999, 'format': 999}))
    with running() as player:
        answer = call(player, *load_map('' if damage == 'empty' else path))
        assert not answer.success and 'stays' in answer.message and 'Traceback' not in answer.message
        assert damage == 'empty' or path.name in answer.message
        assert show(player, frames[0]).header.frame_id == 'map'
        assert any(show(player, frames[0]).accepted for _ in range(3))


def test_an_inactive_node_takes_another_map_and_an_unconfigured_one_does_not(
        running: Callable[..., Any], call: Callable[..., Any], change: Callable[..., bool], frames: list[Frame], other_map: Path) -> None:
    with running(autostart=False) as player:
        for request in (load_map(other_map), (Trigger, 'relocalize', Trigger.Request()), (SetBool, 'enable', SetBool.Request(data=True))):
            answer = call(player, *request)
            assert not answer.success and answer.message.startswith('not ')
        assert change(player, 'configure') and call(player, *load_map(other_map)).success and change(player, 'activate')
        player.wait_until_ready()
        assert show(player, frames[0]).header.frame_id == 'attic'


def test_without_images_another_map_is_used_at_once(running: Callable[..., Any], call: Callable[..., Any], frames: list[Frame],
                                                    other_map: Path, small_room: tuple[Path, list[Frame]]) -> None:
    """The one before is let go, and a pose in the new frame is taken."""
    with running(**{'state.agreeing': 1}) as player:
        trackers = [weakref.ref(player.target.node.tracker)]
        for path in (other_map, small_room[0], other_map):
            assert call(player, *load_map(path)).success
            trackers.append(weakref.ref(player.target.node.tracker))
        until = time.monotonic() + ANSWER_S
        while any(tracker() is not None for tracker in trackers[:-1]) and time.monotonic() < until:
            time.sleep(0.05)
            gc.collect()
        assert [tracker() is not None for tracker in trackers] == [False, False, False, True]
        assert show(player, frames[0]).header.frame_id == 'attic'


def test_a_map_in_a_frame_that_tf_has_for_something_else_is_refused(running: Callable[..., Any], call: Callable[..., Any],
                                                                    frames: list[Frame], other_map: Path) -> None:
    with running(tf_mode='map_to_camera', tf_child_frame='attic') as player:
        answer = call(player, *load_map(other_map))
        assert not answer.success and "frame 'attic'" in answer.message and 'set map_frame' in answer.message
        assert show(player, frames[0]).header.frame_id == 'map'


def test_relocalize_forgets_the_track(running: Callable[..., Any], call: Callable[..., Any], frames: list[Frame]) -> None:
    with running(**{'tracking.max_gap': 60.0}) as player:
        assert [show(player, frames[0]).tracked for _ in range(3)] == [False, True, True]
        answer = call(player, Trigger, 'relocalize', Trigger.Request())
        assert answer.success and 'searched in full' in answer.message
        assert [show(player, frames[0]).tracked for _ in range(2)] == [False, True]


def test_disabled_refuses_every_frame_and_says_so(running: Callable[..., Any], call: Callable[..., Any], frames: list[Frame]) -> None:
    with running(**{'tracking.max_gap': 60.0}) as player:
        assert any(show(player, frames[0]).accepted for _ in range(3))
        assert call(player, SetBool, 'enable', SetBool.Request(data=False)).success
        posed = len(player.poses)
        for _ in range(3):
            status = show(player, frames[0])
            assert not status.accepted and status.reasons[0].startswith('disabled') and status.state == LocalizationStatus.INITIALISING
        assert len(player.poses) == posed
        assert 'already' in call(player, SetBool, 'enable', SetBool.Request(data=False)).message
        assert call(player, SetBool, 'enable', SetBool.Request(data=True)).success
        status = show(player, frames[0])
        assert not status.tracked and any(show(player, frames[0]).accepted for _ in range(3))


def initial_pose(frame: Frame, frame_id: str = 'map', **off: float) -> PoseWithCovarianceStamped:
    message = PoseWithCovarianceStamped()
    message.header.frame_id = frame_id
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, position.z = frame.map_from_camera[:3, 3].tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = quat_xyzw_of(frame.map_from_camera).tolist()
    for name, value in off.items():
        setattr(position, name, getattr(position, name) + value)
    return message


def tell(player: Player, message: PoseWithCovarianceStamped, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    publisher = player.node.create_publisher(PoseWithCovarianceStamped, 'initialpose', 1)
    until = time.monotonic() + ANSWER_S
    while not publisher.get_subscription_count() and time.monotonic() < until:
        time.sleep(0.01)
    capfd.readouterr()
    publisher.publish(message)
    heard, until = '', time.monotonic() + ANSWER_S
    while 'initialpose' not in heard and time.monotonic() < until:
        time.sleep(0.05)
        heard += capfd.readouterr().err
    assert said in heard, heard
    player.node.destroy_publisher(publisher)


def test_an_initial_pose_is_the_guess_of_the_next_frame(running: Callable[..., Any], frames: list[Frame],
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    with running() as player:
        tell(player, initial_pose(frames[0], x=0.08), 'taken', capfd)
        status = show(player, frames[0])
        assert status.tracked, 'not looked for where it was told to be'
        tell(player, initial_pose(frames[0], x=1.5), 'taken', capfd)
        assert not show(player, frames[0]).tracked
        stamp = send(player, frames[0])  # and a wrong one has done no harm
        assert player.wait_for(lambda: stamp in player.poses, ANSWER_S)


@pytest.mark.parametrize(('change', 'said'), [
    (dict(frame_id='odom'), "'odom', expected the map frame 'map'"), (dict(frame_id=''), "''"),
    (dict(x=np.nan), 'refused: a pose is not one'), (dict(y=np.inf), 'refused')], ids=['odom', 'none', 'nan', 'inf'])
def test_a_bad_initial_pose_is_refused_with_the_reason(running: Callable[..., Any], frames: list[Frame], change: dict[str, Any], said: str,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    with running(**{'tracking.max_gap': 60.0}) as player:
        show(player, frames[0])
        tell(player, initial_pose(frames[0], **change), said, capfd)
        assert show(player, frames[0]).tracked, 'what was refused has cost the track'


def test_initial_poses_that_are_no_place_end_nothing(running: Callable[..., Any], frames: list[Frame],
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    with running() as player:
        tell(player, initial_pose(frames[0], x=1e300), 'taken', capfd)
        assert not show(player, frames[0]).tracked
        zero = initial_pose(frames[0])
        zero.pose.pose.orientation.w = zero.pose.pose.orientation.x = zero.pose.pose.orientation.y = zero.pose.pose.orientation.z = 0.0
        tell(player, zero, 'refused', capfd)
        assert any(show(player, frames[0]).accepted for _ in range(3))


def test_sigint_while_a_map_is_loaded_ends_with_zero(domain_id: int, small_room: tuple[Path, list[Frame]], other_map: Path) -> None:
    with NodeProcess({'map': str(small_room[0]), 'modality': 'rgb'}, domain_id) as node, Player(node, False) as player:
        player.wait_until_ready()
        client = player.node.create_client(LoadMap, 'localizer/load_map')
        assert client.wait_for_service(ANSWER_S)
        client.call_async(LoadMap.Request(path=str(other_map)))
        time.sleep(0.2)
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait(ANSWER_S) == 0, node.last_words()
        assert 'Traceback' not in node.last_words()
