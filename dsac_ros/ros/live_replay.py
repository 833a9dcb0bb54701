"""A source of frames in; what the real node in its own process answers over DDS out, one FrameResult a frame."""
from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np
import psutil
import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.records import FrameResult, without_answer
from dsac_ros.msg import LocalizationStatus
from dsac_ros.records import Frame
from dsac_ros.ros import sensor_messages
from dsac_ros.ros.dds import room_for_images
from dsac_ros.ros.intake import stamp_ns
from dsac_ros.ros.messages import counters_of, matrix_from_pose, time_message
from dsac_ros.tracking.state import State

READY_S = 300.0  # importing torch, loading and warming up the map, also where others keep the machine busy
LAST_ANSWER_S = 5.0
EXIT_S = 30.0
LONGEST_GAP_S = 1.0  # sequences of one folder may lie days apart
BUFFER_BYTES = 1 << 30  # messages encoded ahead: a short source wholly, so that the player leaves the CPU to the node


def dds_environment() -> dict[str, str]:
    """Variables for this machine only, and for images that fit."""
    return {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', **room_for_images()}


@dataclass
class LiveReplay:
    """What came back. Iterating yields the results, one for each frame of the source.

    counters: of the node, for this replay, as in LocalizationStatus, and `lost`: sent, but never received.
    memory_mb: resident memory of the node, (seconds since the first frame, MB).
    """

    results: list[FrameResult]
    sent: int
    counters: dict[str, int]
    memory_mb: list[tuple[float, float]] = field(default_factory=list)

    def __iter__(self) -> Iterator[FrameResult]:
        return iter(self.results)


def replay_live(map_path: str | Path, source: FrameSource, modality: str, rate: float = 1.0, *, device: str = 'auto', threads: int = 0,
                settings: Mapping[str, Any] = MappingProxyType({}), progress: Callable[[int, int], None] | None = None) -> LiveReplay:
    """Start the localizer node, play the source to it at `rate` times its true speed, collect pose and status, and stop it with SIGINT.

    settings: further parameters of the node by their full names.
    Stamps are rewritten to the time of sending, so that latency is measured from there; results carry the source's own stamps.
    Raises DsacError where the node does not start, dies, or does not end with exit code 0.
    """
    parameters = {'map': str(Path(map_path).resolve()), 'modality': modality, 'device': device, 'threads': threads, **settings}
    with NodeProcess(parameters) as node, Player(node, modality == 'rgbd') as player:
        player.wait_until_ready()
        replay = player.play(source, modality, rate, psutil.Process(node.process.pid), progress)
        node.stop()
    return replay


class NodeProcess:
    """The localizer node in a process, namespace and DDS domain of its own; killed at the end of the `with` block if it still runs."""

    def __init__(self, parameters: dict[str, Any], domain_id: int | None = None) -> None:
        self.namespace = f'/replay_{os.getpid()}'
        # Domains above 101 use ports that Linux hands out to others.
        self.domain_id = 1 + os.getpid() % 100 if domain_id is None else domain_id
        self._parameters = parameters

    def __enter__(self) -> NodeProcess:
        self._log = tempfile.TemporaryFile('w+')
        # Where this process found dsac_ros and its messages, there the node finds them too; its own folder would hide them.
        environment = os.environ | dds_environment() | {
            'ROS_DOMAIN_ID': str(self.domain_id), 'PYTHONPATH': os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}
        arguments = [f'{name}:={value!r}' if isinstance(value, str) else f'{name}:={value}' for name, value in self._parameters.items()]
        command = [sys.executable, '-m', 'dsac_ros.ros.localizer_node', '--ros-args', '-r', f'__ns:={self.namespace}']
        command += [word for argument in arguments for word in ('-p', argument)]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd='/', env=environment)
        return self

    def check(self) -> None:
        """Raise DsacError when the node has ended."""
        if self.process.poll() is not None:
            raise DsacError(f'the localizer node ended with exit code {self.process.returncode}: {self.last_words()}')

    def last_words(self) -> str:
        """The end of what the node printed."""
        self._log.seek(0)
        return self._log.read()[-2000:].strip()

    def stop(self) -> None:
        """SIGINT; raises DsacError unless the node ends in time and with exit code 0."""
        self.check()
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            raise DsacError(f'the localizer node did not end within {EXIT_S:.0f} s of SIGINT: {self.last_words()}') from None
        if code != 0:
            raise DsacError(f'the localizer node ended with exit code {code} after SIGINT: {self.last_words()}')

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Target(Protocol):
    """A localizer node to play to; check raises when it has ended."""

    domain_id: int
    namespace: str

    def check(self) -> None: ...

    def last_words(self) -> str: ...


class Player:
    """A camera for one localizer node, and the ear that hears what it says. Works in a context of its own."""

    def __init__(self, target: Target, with_depth: bool) -> None:
        self._target, self._with_depth = target, with_depth
        self.poses: dict[int, tuple[PoseWithCovarianceStamped, float]] = {}  # stamp sent -> pose, latency [ms]
        self.statuses: dict[int, LocalizationStatus] = {}
        self.newest: LocalizationStatus | None = None
        self._heard = threading.Condition()

    def __enter__(self) -> Player:
        self._context = Context()
        added = dds_environment()
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            rclpy.init(context=self._context, domain_id=self._target.domain_id)
            self.node = Node('player', namespace=self._target.namespace, context=self._context, start_parameter_services=False)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        qos = QoSProfile(depth=2, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        self.info = self.node.create_publisher(CameraInfo, 'camera_info', qos)
        self.image = self.node.create_publisher(Image, 'image', qos)
        self.depth = self.node.create_publisher(Image, 'depth', qos)
        self.node.create_subscription(PoseWithCovarianceStamped, 'pose', self._on_pose, QoSProfile(depth=100))
        self.node.create_subscription(LocalizationStatus, 'status', self._on_status, QoSProfile(depth=100))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name='listen', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.shutdown()
        self._thread.join(EXIT_S)
        self.node.destroy_node()
        self._context.try_shutdown()

    def wait_until_ready(self) -> None:
        """Return when images and depth reach the node and its status reaches us.

        Probes carry no stamp: the node refuses and counts them, and nothing else of it changes.
        """
        needed = {'zero_stamp', 'depth_zero_stamp'} if self._with_depth else {'zero_stamp'}
        probe = sensor_messages.colour_message(np.zeros((1, 1, 3), np.uint8))
        until_s = time.monotonic() + READY_S
        while self.newest is None or not needed <= set(self.newest.rejected_causes) or self.node.count_publishers('pose') == 0:
            self._target.check()
            if time.monotonic() > until_s:
                raise DsacError(f'the localizer node is not ready after {READY_S:.0f} s: {self._target.last_words()}')
            self.depth.publish(probe)
            self.image.publish(probe)
            with self._heard:
                self._heard.wait(0.2)

    def wait_for(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Until the condition, looked at whenever a message comes, holds; False when the time is up."""
        with self._heard:
            return bool(self._heard.wait_for(condition, timeout_s))

    def play(self, source: FrameSource, modality: str, rate: float, process: psutil.Process,
             progress: Callable[[int, int], None] | None = None) -> LiveReplay:
        """Send every frame when its time has come, then wait for the last answer. process: whose memory to watch."""
        before = counters_of(self.newest)
        sent: dict[int, Frame] = {}
        memory: list[tuple[float, float]] = []
        due_s = start_s = time.monotonic()
        last_ns: int | None = None
        stamp = 0
        for frame, info, image, depth in _encoded(source, self._with_depth):
            if last_ns is None:
                due_s = start_s = time.monotonic()  # encoding ahead takes its time
            else:
                due_s += min((frame.stamp_ns - last_ns) / 1e9, LONGEST_GAP_S) / rate
            last_ns = frame.stamp_ns
            if (wait_s := due_s - time.monotonic()) > 0:
                time.sleep(wait_s)
            self._target.check()
            stamp = max(time.time_ns(), stamp + 1)
            sent[stamp] = frame
            self.send(stamp, info, image, depth)
            now_s = time.monotonic() - start_s
            if not memory or now_s - memory[-1][0] > 1.0:
                memory.append((now_s, process.memory_info().rss / 1e6))
            if progress is not None:
                progress(len(sent), len(source))
        self._wait_for(stamp)
        self._target.check()
        after = counters_of(self.newest)
        counters = {name: count - before.get(name, 0) for name, count in after.items()}
        counters['received'] -= counters.pop('rejected.zero_stamp', 0)  # probes that came late
        counters.pop('rejected.depth_zero_stamp', 0)
        counters |= {'lost': len(sent) - counters['received']}
        missing = 'no_message' if counters['lost'] > 0 else 'dropped'
        return LiveReplay([self._result(stamp, frame, modality, missing) for stamp, frame in sent.items()], len(sent), counters, memory)

    def send(self, stamp: int, info: CameraInfo | None = None, image: Image | None = None, depth: Image | None = None) -> None:
        """Publish what is given with this stamp [ns]."""
        for publisher, message in ((self.info, info), (self.depth, depth), (self.image, image)):
            if message is not None:
                message.header.stamp = time_message(stamp)
                publisher.publish(message)

    def _wait_for(self, stamp: int) -> None:
        """Until the status of the last frame is there, or the time for it is up (the frame was lost or dropped)."""
        self.wait_for(lambda: not stamp or stamp in self.statuses and (not self.statuses[stamp].accepted or stamp in self.poses),
                      LAST_ANSWER_S)

    def _result(self, stamp: int, frame: Frame, modality: str, missing: str) -> FrameResult:
        status = self.statuses.get(stamp)
        if status is None:
            return without_answer(frame, modality, missing)
        pose, latency_ms = self.poses.get(stamp, (None, None))
        reasons = tuple(status.reasons) if pose is not None or not status.accepted else ('no_message',)
        evidence = {}
        if status.modality:
            evidence = {name: float(getattr(status, name)) for name in ('inliers', 'inlier_ratio', 'spread', 'residual', 'landmarks')}
            evidence['tracked'] = status.tracked
        return FrameResult(
            frame.stamp_ns, frame.name, pose is not None, status.modality or modality,
            None if pose is None else matrix_from_pose(pose.pose.pose),
            None if pose is None else np.array(pose.pose.covariance).reshape(6, 6),
            frame.map_from_camera, State(status.state).name, reasons, status.expert, latency_ms=latency_ms, published=pose is not None,
            stage_times_ms=dict(zip(status.stage_names, map(float, status.stage_times_ms))), **evidence)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        now_ns, stamp = time.time_ns(), stamp_ns(message.header)
        with self._heard:
            self.poses[stamp] = message, (now_ns - stamp) / 1e6
            self._heard.notify_all()

    def _on_status(self, message: LocalizationStatus) -> None:
        with self._heard:
            self.newest = message
            self.statuses[stamp_ns(message.header)] = message
            self._heard.notify_all()


def _encoded(source: FrameSource, with_depth: bool) -> Iterator[tuple[Frame, CameraInfo, Image, Image | None]]:
    """The source's frames as messages, encoded ahead by a thread up to BUFFER_BYTES; starts when all are there or the buffer is full."""
    done, full, given_up = object(), threading.Event(), threading.Event()
    ahead: queue.Queue[Any] = queue.Queue()
    held = threading.Semaphore(0)
    size = 0

    def encode() -> None:
        nonlocal size
        try:
            for frame in source:
                depth = sensor_messages.depth_message(frame.depth) if with_depth and frame.depth is not None else None
                image = sensor_messages.colour_message(frame.image)
                size += len(image.data) + (0 if depth is None else len(depth.data))
                ahead.put((Frame(np.empty((0, 0, 3), np.uint8), frame.camera, frame.stamp_ns, None, frame.map_from_camera, frame.name),
                           sensor_messages.camera_info_message(frame.camera), image, depth))
                if size > BUFFER_BYTES:
                    full.set()
                    held.acquire()
                if given_up.is_set():
                    return
            ahead.put(done)
        except Exception as error:  # raised again where the frames are read
            ahead.put(error)
        finally:
            full.set()

    threading.Thread(target=encode, name='encode', daemon=True).start()
    try:
        full.wait()
        while (item := ahead.get()) is not done:
            if isinstance(item, Exception):
                raise item
            yield item
            held.release()
    finally:
        given_up.set()
        held.release()
