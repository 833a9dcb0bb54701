"""The finetuner as its own process, over real services and topics, with a training that really trains: a tiny room."""
from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSDurabilityPolicy, QoSProfile  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from dsac_ros.data.writing import BagWriter  # noqa: E402
from dsac_ros.maps.bundle import load_map  # noqa: E402
from dsac_ros.msg import FinetuneProgress as Told  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import finetuner_node  # noqa: E402
from dsac_ros.ros.live_replay import Player, dds_environment  # noqa: E402
from dsac_ros.srv import LoadMap  # noqa: E402
from dsac_ros.training.checkpoint import load_checkpoint  # noqa: E402
from dsac_ros.training.state import checkpoint_of  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(900)]  # several processes import torch one after the other
WAIT_S = 200.0  # importing torch and encoding where others keep the machine busy
SMALL = {'training.iterations': 4, 'training.batch': 2, 'training.hypotheses': 16, 'training.bits': 3.0, 'training.augmented': 0,
         'training.check_every': 2, 'training.held_out_share': 0.2}
LONG = SMALL | {'training.iterations': 100000}


@pytest.fixture(scope='module')
def bag(small_room: tuple[Path, list[Frame]]) -> Path:
    path = small_room[0].with_name('drive')
    with BagWriter(path) as writer:
        for frame in small_room[1]:
            writer.write(frame)
    return path


class Finetuner:
    """The node in a process of its own, and the ear for what it tells."""

    def __init__(self, domain_id: int, **parameters: Any) -> None:
        self.domain_id, self.namespace = domain_id, f'/tune_{os.getpid()}'
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        environment = os.environ | dds_environment() | {'ROS_DOMAIN_ID': str(domain_id), 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
        command = [sys.executable, '-m', 'dsac_ros.ros.finetuner_node', '--ros-args', '-r', f'__ns:={self.namespace}']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd='/', env=environment, text=True)
        self.told: list[Told] = []

    def check(self) -> None:
        assert self.process.poll() is None, 'the node has ended'

    def listen(self, player: Player) -> None:
        qos = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        player.node.create_subscription(Told, 'finetuner/progress', self.told.append, qos)

    def wait(self, *states: int, step: int = 0) -> Told:
        """The newest message, once it has one of the states and the step."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            if self.told and self.told[-1].state in states and self.told[-1].step >= step:
                return self.told[-1]
            self.check()
            time.sleep(0.02)
        raise AssertionError(f'expected {states}, last {self.told[-1:]}')

    def training(self) -> psutil.Process:
        [child] = psutil.Process(self.process.pid).children()
        return child

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0 and 'Traceback' not in out, out
        return out


@pytest.fixture
def tuning(domain_id: int, small_room: tuple[Path, list[Frame]], bag: Path) -> Callable[..., Any]:
    @contextmanager
    def run(out: Path, **parameters: Any) -> Iterator[tuple[Finetuner, Player]]:
        node = Finetuner(domain_id, **({'map': small_room[0], 'bags': f'[{bag}]', 'out': out, 'nice': 0} | parameters))
        try:
            with Player(node, False) as player:
                node.listen(player)
                yield node, player
        finally:
            if node.process.poll() is None:
                node.process.kill()
            node.process.wait()
            node.process.stdout.close()
    return run


@pytest.fixture
def ask(call: Callable[..., Any]) -> Callable[..., Any]:
    def answer(player: Player, name: str, data: bool | None = None) -> Any:
        request = (Trigger, name, Trigger.Request()) if data is None else (SetBool, name, SetBool.Request(data=data))
        return call(player, *request, node='finetuner')
    return answer


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_starts_when_asked_tells_its_progress_and_the_localizer_loads_the_map(
        tuning: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path, small_room: tuple[Path, list[Frame]], node_in_process: Any,
        domain_id: int) -> None:
    out = tmp_path / 'better.dsacmap'
    with tuning(out, autostart=False, nice=2, localizer='localizer', **SMALL) as (node, player):
        assert node.wait(Told.IDLE).message == 'not started' and not ask(player, 'pause', True).success
        with node_in_process(domain_id, node.namespace, map=str(small_room[0]), modality='rgb') as target:
            before = target.node.tracker
            assert ask(player, 'start').success and not ask(player, 'start').success
            node.wait(Told.TRAINING)
            assert node.training().nice() - psutil.Process(node.process.pid).nice() == 2
            share = Path(f'/proc/{node.training().pid}/autogroup')  # of its session, which is its own
            assert os.getsid(node.training().pid) == node.training().pid
            assert not share.exists() or share.read_text().split()[-1] == str(node.training().nice())
            node.wait(Told.FINISHED)
            while 'uses it' not in node.wait(Told.FINISHED).message:
                assert 'refuses' not in node.told[-1].message
                time.sleep(0.05)
            assert target.node.tracker is not before and str(out) in node.told[-1].message
        states = list(dict.fromkeys(told.state for told in node.told))
        assert states[:2] == [Told.IDLE, Told.STARTING] and states[-1] == Told.FINISHED and Told.TRAINING in states
        last = node.told[-1]
        assert (last.step, last.steps, last.map) == (4, 4, str(out)) and last.entropy_bits > 0
        assert math.isfinite(last.loss) and last.held_out_position > 0 and last.held_out_rotation > 0
        record = load_map(out).training['finetuned']
        assert record['steps'] == 4 and abs(last.best_loss - record['held_out_loss']) < 1e-3 and last.best_step == record['best_step']
        node.stop()


def test_paused_it_stands_still_and_stopped_it_writes_the_best_state(tuning: Callable[..., Any], ask: Callable[..., Any],
                                                                     tmp_path: Path) -> None:
    out = tmp_path / 'better.dsacmap'
    with tuning(out, **LONG) as (node, player):
        node.wait(Told.TRAINING, step=1)
        assert ask(player, 'pause', True).success
        node.wait(Told.PAUSED)
        cpu_s = -1.0  # a step that has begun is finished
        while cpu_s != (cpu_s := sum(node.training().cpu_times()[:2])):
            time.sleep(1.0)
        step = node.wait(Told.PAUSED).step
        time.sleep(2.0)
        assert sum(node.training().cpu_times()[:2]) - cpu_s < 0.05 and node.wait(Told.PAUSED).step == step
        assert ask(player, 'pause', False).success and node.wait(Told.TRAINING, step=step + 2)
        assert ask(player, 'stop').success
        node.wait(Told.FINISHED)
        record = load_map(out).training['finetuned']
        assert step + 2 <= record['steps'] < 100000 and not checkpoint_of(out).exists()
        assert not ask(player, 'stop').success
        node.stop()


@contextmanager
def ended_here(domain_id: int, localizer: str) -> Iterator[tuple[finetuner_node.FinetunerNode, SingleThreadedExecutor, Context]]:
    """The node in this process, whose times can be changed, just when a training has ended well."""
    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    values = {'map': 'a', 'bags': ['b'], 'out': 'c', 'autostart': False, 'localizer': localizer}
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = finetuner_node.FinetunerNode(context=context, parameter_overrides=overrides)
    executor = SingleThreadedExecutor(context=context)
    try:
        executor.add_node(node)
        node._ended(SimpleNamespace(said=[]), 0)
        yield node, executor, context
    finally:
        executor.shutdown()
        node.end()
        context.try_shutdown()


def complaint(node: finetuner_node.FinetunerNode, executor: SingleThreadedExecutor) -> str:
    """What the node warns of, once it does."""
    until = time.monotonic() + WAIT_S
    while node._finding()[0] == DiagnosticStatus.OK and time.monotonic() < until:
        executor.spin_once(0.1)
    level, message, _ = node._finding()
    assert level == DiagnosticStatus.WARN, message
    return message


def test_a_localizer_that_is_not_there_is_said(domain_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuner_node, 'HAND_OVER_S', 1.0)
    begun = time.monotonic()
    with ended_here(domain_id, 'nobody') as (node, executor, _):
        message = complaint(node, executor)
    assert message == 'c is written; no /nobody/load_map was found within 1 s' and time.monotonic() - begun >= 1.0


def test_a_localizer_that_does_not_answer_is_said(domain_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and nobody looks after its requests, as where it hangs. What it answers later is of no training any more."""
    monkeypatch.setattr(finetuner_node, 'ANSWER_S', 0.5)
    asked = []

    def answered(request: LoadMap.Request, response: LoadMap.Response) -> LoadMap.Response:
        asked.append(request)
        response.success = True
        return response

    with ended_here(domain_id, 'mute') as (node, executor, context):
        mute = Node('mute', context=context)
        try:
            mute.create_service(LoadMap, 'mute/load_map', answered)
            message = complaint(node, executor)
            assert not asked and message.endswith('/mute/load_map has not answered for 0 s'), message
            executor.add_node(mute)
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                executor.spin_once(0.1)
            assert asked and node._finding()[1] == message
        finally:
            executor.remove_node(mute)
            mute.destroy_node()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_zero_and_the_next_one_goes_on(tuning: Callable[..., Any], tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / 'better.dsacmap'
    with tuning(out, **LONG) as (node, _):
        node.wait(Told.TRAINING, step=2)
        child = node.training().pid
        node.stop(number)
        assert gone(child) and not out.exists()
    _, values = load_checkpoint(checkpoint_of(out))
    assert values['step'] >= 2
    with tuning(out, **LONG) as (node, _):
        assert node.wait(Told.TRAINING).step >= values['step']
        node.stop()


def test_killed_the_node_takes_its_training_along_and_killed_the_training_can_be_started_again(
        tuning: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / 'better.dsacmap'
    with tuning(out, **LONG) as (node, _):
        node.wait(Told.TRAINING, step=1)
        child = node.training().pid
        node.process.kill()
        node.process.wait()
        until = time.monotonic() + 30
        while not gone(child):
            assert time.monotonic() < until, 'the training has outlived its node'
            time.sleep(0.05)
    _, values = load_checkpoint(checkpoint_of(out))
    with tuning(out, **LONG) as (node, player):
        assert node.wait(Told.TRAINING).step >= values['step'] >= 1
        node.training().kill()
        assert 'signal 9' in node.wait(Told.FAILED).message
        assert ask(player, 'start').success
        node.wait(Told.TRAINING)
        node.stop()


def test_stopped_before_it_trains_it_is_idle(tuning: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / 'better.dsacmap'
    with tuning(out, **LONG) as (node, player):
        assert ask(player, 'stop').success
        assert 'nothing to keep' in node.wait(Told.IDLE).message and not list(tmp_path.iterdir())
        node.stop()


def test_a_bad_map_is_one_clear_error(tuning: Callable[..., Any], tmp_path: Path) -> None:
    heard: list[DiagnosticStatus] = []
    with tuning(tmp_path / 'better.dsacmap', map='/no/such.dsacmap', **SMALL) as (node, player):
        player.node.create_subscription(DiagnosticArray, '/diagnostics', lambda m: heard.extend(m.status), 10)
        assert node.wait(Told.FAILED).message.startswith('/no/such.dsacmap: no map')
        assert player.wait_for(lambda: False, 2.5) is False and heard[-1].name.endswith('finetuner: training')
        assert heard[-1].level == DiagnosticStatus.ERROR and '/no/such.dsacmap' in heard[-1].message
        out = node.stop()
    errors = [line for line in out.splitlines() if 'ERROR' in line]
    assert len(errors) == 1 and '/no/such.dsacmap' in errors[0]


@pytest.mark.parametrize('parameters, words', [
    ({'map': "''"}, 'parameter map: required'), ({'bags': "['']"}, 'parameter bags'),
    ({'training.batc': 3}, 'did you mean training.batch?'),
    ({'training.learning_rate': -1.0}, 'training.learning_rate'), ({'nice': 20}, 'nice')])
def test_what_cannot_start_says_so_in_one_line(domain_id: int, tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    node = Finetuner(domain_id, **({'map': 'a', 'bags': '[b]', 'out': tmp_path / 'c'} | parameters))
    out, _ = node.process.communicate(timeout=WAIT_S)
    lines = [line for line in out.splitlines() if '[rcl]' not in line]
    assert node.process.returncode == 1 and len(lines) == 1 and words in lines[0], out
