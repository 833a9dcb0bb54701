"""Frames through the core of the node for hours: does memory grow, do threads or handles pile up, does it become slow?

    PYTHONPATH=$PYTHONPATH:. python -P -m benchmarks.soak --frames 100000 --plot soak.png     # of a small synthetic room, made first
"""
from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.fuzz import Messages, small_room

PARTS = 20  # of the run, each of which has one row


@dataclass(frozen=True)
class Part:
    """Of one part of the run: frames so far, resident memory, handles and threads at its end, latency of its frames."""

    frames: int
    memory_mb: float
    handles: int
    threads: int
    p50_ms: float
    p99_ms: float


def soak(messages: Messages, frames: int, seconds: float) -> Iterator[Part]:
    """Good frames through intake, decoding, tracker, state machine and TF until so many are done or the time is up."""
    process, done, latencies = psutil.Process(), 0, []
    start_s, each = time.monotonic(), max(1, frames // PARTS)
    part_s = seconds / PARTS
    for k, frame in zip(range(1, frames + 1), cycle(messages.frames)):
        before_s = time.perf_counter()
        messages.show(frame)
        latencies.append(1e3 * (time.perf_counter() - before_s))
        elapsed_s = time.monotonic() - start_s
        if len(latencies) == each or elapsed_s > part_s * (done + 1):
            gc.collect()
            yield Part(k, process.memory_info().rss / 1e6, process.num_fds(), process.num_threads(),
                       float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99)))
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
    parser.add_argument('--plot', type=Path, help='PNG to draw')
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path, frames = small_room(Path(folder))
        messages = Messages(path, frames, seed=0)
        parts = []
        print(f'{"frames":>8} {"memory MB":>10} {"handles":>8} {"threads":>8} {"median ms":>10} {"99 % ms":>8}')
        try:
            for part in soak(messages, options.frames, 60 * options.minutes):
                parts.append(part)
                print(f'{part.frames:8} {part.memory_mb:10.1f} {part.handles:8} {part.threads:8} {part.p50_ms:10.1f} {part.p99_ms:8.1f}',
                      flush=True)
        except KeyboardInterrupt:
            pass  # what was seen so far is what there is to tell
        finally:
            messages.close()
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
