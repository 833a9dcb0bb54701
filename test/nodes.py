"""A room small enough for seconds, its map, and real nodes in a DDS domain of their own."""
from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from dsac_ros.ros.dds import room_for_images

# Before the first DDS participant of this process, which reads them once.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ.update(room_for_images())

_domains = itertools.count(os.getpid())
_nodes = itertools.count()


@pytest.fixture
def domain_id() -> int:
    """Unique within this run; above 101 the ports may be taken."""
    return 1 + next(_domains) % 101


class NodeInProcess:
    """The real LocalizerNode with its executor in a thread, as a target for live_replay.Player.

    Each has a namespace of its own: the lifecycle services of a destroyed node are seen in its domain until Python has collected its state
    machine, and a client that finds those first sends its request to nobody.
    """

    def __init__(self, domain_id: int, namespace: str = '', **parameters: Any) -> None:
        self.domain_id, self.namespace = domain_id, namespace or f'/test_{os.getpid()}_{domain_id}_{next(_nodes)}'
        self._parameters = parameters

    def __enter__(self) -> NodeInProcess:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter

        from dsac_ros.ros.localizer_node import LocalizerNode
        from dsac_ros.ros.running import spin
        self._context = Context()
        rclpy.init(context=self._context, domain_id=self.domain_id)
        self.node = LocalizerNode(context=self._context, namespace=self.namespace,
                                  parameter_overrides=[Parameter(name, value=value) for name, value in self._parameters.items()])
        assert not self.node.options.autostart or self.node.start()
        self._thread = threading.Thread(target=spin, args=(self.node, SingleThreadedExecutor(context=self._context)), daemon=True)
        self._thread.start()
        return self

    def check(self) -> None:
        worker = self.node.worker
        assert self._thread.is_alive() and (worker is None or worker.is_alive()), 'the node has died'

    def last_words(self) -> str:
        return ''

    def __exit__(self, *_: object) -> None:
        with self._context.handle:
            self._context.handle.shutdown()  # as the signal handler's thread does
        self._thread.join(10.0)
        assert not self._thread.is_alive() and self.node.end()
        self._context.try_shutdown()


@pytest.fixture(scope='session')
def node_in_process() -> type[NodeInProcess]:
    """The class itself: test modules cannot import a conftest."""
    return NodeInProcess


@pytest.fixture(scope='session')
def small_room(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A map of a synthetic room, and frames that it was made of: here the messages are tested, not the map. Each folder that imports
    this has a fixture of its own, so it is the process that makes the map once."""
    path, frames = _small_room(tmp_path_factory.getbasetemp() / 'small_room')
    return path, list(frames)


@lru_cache(maxsize=1)
def _small_room(folder: Path) -> tuple[Path, tuple[Any, ...]]:
    from dsac_ros.config import MappingOptions
    from dsac_ros.data.synthetic import SyntheticSource
    from dsac_ros.training.mapping import map_source
    source = SyntheticSource(room_seed=3, trajectory_seed=1, frames=20, width=320, height=240, texels_per_metre=150.0)
    folder.mkdir()
    path = folder / 'room.dsacmap'
    options = MappingOptions(minutes=1.0, steps=250, augmented=0, capacity=24_000, width=128, held_out_share=0.1)
    map_source(source, path, options, device='cpu', quiet=True)
    return path, tuple(source)[::2]


@pytest.fixture(scope='session')
def call() -> Callable[..., Any]:
    """call(player, type, name, request): the answer of a service of the node that the player plays to."""
    def answer(player: Any, kind: Any, name: str, request: Any, timeout_s: float = 150.0, node: str = 'localizer') -> Any:
        client = player.node.create_client(kind, f'{node}/{name}')
        assert client.wait_for_service(timeout_s), f'no service {name}'
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(timeout_s), f'{name} does not answer'
        player.node.destroy_client(client)
        return future.result()
    return answer


@pytest.fixture
def change(call: Callable[..., Any]) -> Callable[[Any, str], bool]:
    """change(player, transition): whether the node says that it was made."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    return lambda player, name: call(player, ChangeState, 'change_state', ChangeState.Request(transition=Transition(label=name))).success
