"""The managed node over its real services: every state, what is heard and said in it, what is freed, and what fails."""
from __future__ import annotations

import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402

from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import sensor_messages  # noqa: E402
from dsac_ros.ros.live_replay import NodeProcess, Player  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 30.0
EXIT_S = 2.0


@pytest.fixture
def managed(domain_id: int, node_in_process: Any, tmp_path: Path) -> Callable[..., Any]:
    """managed(map): a node that waits for a lifecycle manager, and its player."""
    @contextmanager
    def run(map_path: Path, **parameters: Any) -> Iterator[tuple[Any, Player]]:
        parameters = {'map': str(map_path), 'autostart': False, 'modality': 'rgb'} | parameters
        with node_in_process(domain_id, **parameters) as target, Player(target, False) as player:
            yield target, player
    return run


def state_of(call: Callable[..., Any], player: Player) -> str:
    return call(player, GetState, 'get_state', GetState.Request()).current_state.label


def answered(player: Player, frame: Frame, within_s: float = ANSWER_S) -> bool:
    """Whether a frame, shown again and again, gets a pose; discovery takes its time."""
    before, until = len(player.poses), time.monotonic() + within_s
    while len(player.poses) == before and time.monotonic() < until:
        player.send(time.time_ns(), sensor_messages.camera_info_message(frame.camera), sensor_messages.colour_message(frame.image))
        player.wait_for(lambda: len(player.poses) > before, 0.3)
    return len(player.poses) > before


def test_a_whole_life(managed: Callable[..., Any], call: Callable[..., Any], change: Callable[..., bool],
                      small_room: tuple[Path, list[Frame]]) -> None:
    path, frames = small_room
    with managed(path) as (target, player):
        assert state_of(call, player) == 'unconfigured'
        assert change(player, 'configure') and state_of(call, player) == 'inactive'
        assert player.node.count_subscribers('image') == 0 and not answered(player, frames[0], 1.0)
        for _ in range(2):
            assert change(player, 'activate') and state_of(call, player) == 'active'
            assert answered(player, frames[0])
            assert change(player, 'deactivate') and state_of(call, player) == 'inactive'
            assert not answered(player, frames[0], 1.0)
            assert not [thread for thread in threading.enumerate() if thread.name == 'localize']
        localizer = weakref.ref(target.node.tracker.localizer)
        assert change(player, 'cleanup') and state_of(call, player) == 'unconfigured'
        assert localizer() is None, 'the memory of the map is not freed'
        assert change(player, 'configure') and change(player, 'activate') and answered(player, frames[0])
        assert change(player, 'shutdown') and state_of(call, player) == 'finalized'
        assert not answered(player, frames[0], 1.0)


@pytest.mark.parametrize('between', [(), ('cleanup', 'configure')], ids=['at once', 'another map'])
def test_no_second_thread_beside_a_slow_frame(managed: Callable[..., Any], change: Callable[..., bool], between: tuple[str, ...],
                                              small_room: tuple[Path, list[Frame]]) -> None:
    path, frames = small_room
    begun, go_on = threading.Event(), threading.Event()
    with managed(path) as (target, player):
        assert change(player, 'configure')
        tracker, localize = target.node.tracker, target.node.tracker.localize

        def slow(*arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(4 * ANSWER_S)
            return localize(*arguments)
        tracker.localize = slow
        assert change(player, 'activate') and not answered(player, frames[0], 2.0) and begun.is_set()
        for name in ('deactivate', *between):
            assert change(player, name)
        assert not change(player, 'activate')
        assert player.wait_for(lambda: 'not done yet' in ''.join(player.newest.reasons), ANSWER_S)
        [thread] = [thread for thread in threading.enumerate() if thread.name == 'localize']
        go_on.set()
        thread.join(ANSWER_S)
        assert change(player, 'activate') and answered(player, frames[0])


def test_threads_do_not_pile_up(managed: Callable[..., Any], change: Callable[..., bool], small_room: tuple[Path, list[Frame]]) -> None:
    with managed(small_room[0]) as (_, player):
        counts = []

        def now() -> tuple[int, int]:
            return threading.active_count(), psutil.Process().num_fds()
        for _ in range(4):
            for name in ('configure', 'activate'):
                assert change(player, name)
            assert answered(player, small_room[1][0])
            for name in ('deactivate', 'cleanup'):
                assert change(player, name)
            counts.append(now())
        # On a busy machine what ends may take its time; what piles up stays.
        assert player.wait_for(lambda: all(a <= b for a, b in zip(now(), counts[1])), ANSWER_S), (counts, now())


def test_what_fails_says_why_and_may_be_tried_again(managed: Callable[..., Any], call: Callable[..., Any], change: Callable[..., bool],
                                                    small_room: tuple[Path, list[Frame]], tmp_path: Path,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'late.dsacmap'
    with managed(path) as (_, player):
        assert not change(player, 'configure') and state_of(call, player) == 'unconfigured'
        assert 'cannot configure' in capfd.readouterr().err
        assert player.wait_for(lambda: player.newest and str(path) in player.newest.reasons[0], ANSWER_S)
        shutil.copytree(small_room[0], path)
        assert change(player, 'configure') and change(player, 'activate') and answered(player, small_room[1][0])


def test_a_bad_topic_fails_the_activation(managed: Callable[..., Any], call: Callable[..., Any], change: Callable[..., bool],
                                          small_room: tuple[Path, list[Frame]], capfd: pytest.CaptureFixture[str]) -> None:
    with managed(small_room[0], image_topic='no topic') as (_, player):
        assert change(player, 'configure') and not change(player, 'activate') and state_of(call, player) == 'inactive'
        assert 'cannot activate' in (said := capfd.readouterr().err) and 'Traceback' not in said
        assert player.node.count_subscribers('camera_info') == 0
        assert change(player, 'cleanup') and state_of(call, player) == 'unconfigured'


@pytest.mark.parametrize('transition', [Transition(id=Transition.TRANSITION_ACTIVATE), Transition(label='deactivate'),
                                        Transition(id=Transition.TRANSITION_DESTROY), Transition(id=211), Transition(label='dance')])
def test_a_transition_that_the_state_does_not_have_is_refused(managed: Callable[..., Any], call: Callable[..., Any],
                                                              transition: Transition) -> None:
    with managed(Path('/no/map')) as (target, player):
        assert not call(player, ChangeState, 'change_state', ChangeState.Request(transition=transition)).success
        assert state_of(call, player) == 'unconfigured'
        target.check()


@pytest.mark.parametrize('transitions', [(), ('configure',), ('configure', 'activate'), ('configure', 'activate', 'deactivate'),
                                         ('configure', 'cleanup'), ('configure', 'activate', 'shutdown')], ids=' '.join)
def test_sigint_in_every_state_ends_with_zero(domain_id: int, change: Callable[..., bool], small_room: tuple[Path, list[Frame]],
                                              transitions: tuple[str, ...]) -> None:
    with NodeProcess({'map': str(small_room[0]), 'autostart': False}, domain_id) as node, Player(node, True) as player:
        wait_for_the_node(player)
        for name in transitions:
            assert change(player, name)
        end_with_zero(node)


@pytest.mark.parametrize('autostart', [True, False])
def test_sigint_while_configuring_ends_with_zero(domain_id: int, small_room: tuple[Path, list[Frame]], autostart: bool) -> None:
    with NodeProcess({'map': str(small_room[0]), 'autostart': autostart}, domain_id) as node, Player(node, True) as player:
        wait_for_the_node(player)
        if not autostart:
            client = player.node.create_client(ChangeState, 'localizer/change_state')
            assert client.wait_for_service(ANSWER_S)
            client.call_async(ChangeState.Request(transition=Transition(label='configure')))
        time.sleep(0.3)
        end_with_zero(node)


def wait_for_the_node(player: Player) -> None:
    until = time.monotonic() + ANSWER_S
    while not player.node.count_publishers('status') and time.monotonic() < until:
        time.sleep(0.01)


def end_with_zero(node: NodeProcess) -> None:
    """Within EXIT_S of the processor or of the clock, whichever is later: other work shares the machine."""
    process = psutil.Process(node.process.pid)
    spent_s, start_s, used_s = sum(process.cpu_times()[:2]), time.monotonic(), 0.0
    node.process.send_signal(signal.SIGINT)
    while node.process.poll() is None and time.monotonic() < start_s + 30.0:
        try:
            used_s = sum(process.cpu_times()[:2]) - spent_s
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    assert node.process.wait(1.0) == 0, node.last_words()
    took_s = time.monotonic() - start_s
    print(f'{took_s:.2f} s after SIGINT, {used_s:.2f} s of them on the processor')
    assert min(took_s, used_s) < EXIT_S
    assert 'Traceback' not in node.last_words()
