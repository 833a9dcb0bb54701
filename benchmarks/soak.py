"""Frames through the core of the node for hours: does memory grow, do threads or handles pile up, does it become slow?

    PYTHONPATH=$PYTHONPATH:. python -P -m benchmarks.soak --frames 100000 --plot soak.png     # of a small synthetic room, made first
    PYTHONPATH=$PYTHONPATH:. python -P -m benchmarks.soak --dds --minutes 20 --plot dds.png   # a node of its own, over DDS
"""
from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import torch
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from benchmarks.fuzz import Messages, small_room
from dsac_ros.records import Frame
from dsac_ros.ros import sensor_messages
from dsac_ros.ros.live_replay import NodeProcess, Player
from dsac_ros.ros.messages import stamped_transform

PARTS = 20  # of the run, each of which has one row
ANSWER_S = 5.0
RATE_HZ = 10.0  # over DDS
Shown = Callable[[Frame], float]  # shows a frame; ms until its pose was published, NaN where none was


@dataclass(frozen=True)
class Part:
    """Of one part of the run: frames so far, those of it without a pose, resident memory, handles and threads at its end, latency."""

    frames: int
    without_pose: int
    memory_mb: float
    handles: int
    threads: int
    p50_ms: float
    p99_ms: float


@contextmanager
def core_of_the_node(map_path: Path, frames: list[Frame]) -> Iterator[tuple[Shown, psutil.Process]]:
    """Intake, decoding, tracker, state machine and TF in this process, without middleware."""
    messages = Messages(map_path, frames, seed=0)

    def show(frame: Frame) -> float:
        before_s = time.perf_counter()
        published = messages.show(frame)
        return 1e3 * (time.perf_counter() - before_s) if published else np.nan
    try:
        yield show, psutil.Process()
    finally:
        messages.close()


@contextmanager
def node_over_dds(map_path: Path) -> Iterator[tuple[Shown, psutil.Process]]:
    """The node in a process of its own, with a camera of RATE_HZ and an odometry that knows where the camera is."""
    parameters = {'map': str(map_path), 'modality': 'rgbd', 'tf_mode': 'map_to_odom', 'threads': 1}
    with NodeProcess(parameters) as node, Player(node, True) as player:
        static = player.node.create_publisher(TFMessage, '/tf_static',
                                              QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
        tf = player.node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))
        static.publish(TFMessage(transforms=[stamped_transform(0, 'base_link', sensor_messages.CAMERA_FRAME, np.eye(4))]))
        player.wait_until_ready()
        due_s = time.monotonic()

        def show(frame: Frame) -> float:
            nonlocal due_s
            due_s = max(due_s + 1 / RATE_HZ, time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))
            node.check()
            stamp = time.time_ns()
            tf.publish(TFMessage(transforms=[stamped_transform(stamp, 'odom', 'base_link', frame.map_from_camera)]))
            player.send(stamp, sensor_messages.camera_info_message(frame.camera), sensor_messages.colour_message(frame.image),
                        sensor_messages.depth_message(frame.depth))

            def answered() -> bool:
                return stamp in player.statuses and (not player.statuses[stamp].accepted or stamp in player.poses)
            player.wait_for(answered, ANSWER_S)
            player.statuses.pop(stamp, None)
            return player.poses.pop(stamp, (None, np.nan))[1]
        yield show, psutil.Process(node.process.pid)
        node.stop()


def soak(show: Shown, process: psutil.Process, frames: list[Frame], number: int, seconds: float) -> Iterator[Part]:
    """Good frames until so many are done or the time is up."""
    done, latencies = 0, []
    start_s, each = time.monotonic(), max(1, number // PARTS)
    part_s = seconds / PARTS
    for k, frame in zip(range(1, number + 1), cycle(frames)):
        latencies.append(show(frame))
        elapsed_s = time.monotonic() - start_s
        if len(latencies) == each or elapsed_s > part_s * (done + 1):
            gc.collect()
            p50_ms, p99_ms = np.nanpercentile(latencies, [50, 99])
            yield Part(k, int(np.isnan(latencies).sum()), process.memory_info().rss / 1e6, process.num_fds(), process.num_threads(),
                       float(p50_ms), float(p99_ms))
            done, latencies = done + 1, []
        if elapsed_s > seconds:
            return


def slope(parts: list[Part]) -> tuple[float, float]:
    """Memory per 1000 frames over the second half of the run, when all pools are full, and its standard error [MB]."""
    late = parts[len(parts) // 2:]
    x, y = np.array([part.frames for part in late]) / 1e3, np.array([part.memory_mb for part in late])
    gradient, offset = np.polyfit(x, y, 1)
    residual = y - gradient * x - offset
    return float(gradient), float(np.sqrt(residual @ residual / max(1, len(x) - 2) / ((x - x.mean()) @ (x - x.mean()))))


def plot(parts: list[Part], path: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(8, 5), constrained_layout=True)
    frames = [part.frames for part in parts]
    above.plot(frames, [part.memory_mb for part in parts], marker='.')
    above.set_ylabel('resident memory [MB]')
    below.plot(frames, [part.p99_ms for part in parts], marker='.', label='99 %')
    below.plot(frames, [part.p50_ms for part in parts], marker='.', label='median')
    below.set_ylabel('time of a frame [ms]')
    below.set_xlabel('frames')
    below.set_ylim(bottom=0)
    below.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.soak', description=__doc__.splitlines()[0])
    parser.add_argument('--frames', type=int, default=100_000)
    parser.add_argument('--minutes', type=float, default=1e6, help='stop after this time')
    parser.add_argument('--dds', action='store_true', help=f'a node in a process of its own, over DDS, {RATE_HZ:g} frames/s')
    parser.add_argument('--plot', type=Path, help='PNG to draw')
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path, frames = small_room(Path(folder))
        parts = []
        print(f'{"frames":>8} {"no pose":>8} {"memory MB":>10} {"handles":>8} {"threads":>8} {"median ms":>10} {"99 % ms":>8}')
        with node_over_dds(path) if options.dds else core_of_the_node(path, frames) as (show, process):
            try:
                for part in soak(show, process, frames, options.frames, 60 * options.minutes):
                    parts.append(part)
                    print(f'{part.frames:8} {part.without_pose:8} {part.memory_mb:10.1f} {part.handles:8} {part.threads:8} '
                          f'{part.p50_ms:10.1f} {part.p99_ms:8.1f}', flush=True)
            except KeyboardInterrupt:
                pass  # what was seen so far is what there is to tell
    if len(parts) < 4:
        print('too few parts for a slope')
        return 1
    gradient, error = slope(parts)
    print(f'memory: {gradient:+.2f} +- {error:.2f} MB per 1000 frames over the second half; torch {torch.__version__}, '
          f'{torch.get_num_threads()} threads')
    if options.plot:
        plot(parts, options.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
