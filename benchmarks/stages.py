"""Where the time goes: a frame by stage for each way that frames are localised, and mapping beside what the processor can do.

    python -m benchmarks.stages frames kitchen.dsacmap $D/kitchen --split val_near
    python -m benchmarks.stages mapping kitchen.dsacmap
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsac_ros.config import MappingOptions, TrackingOptions
from dsac_ros.data.opening import open_source
from dsac_ros.errors import DsacError, MapError
from dsac_ros.evaluation.replay import ThinnedSource
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import load_map
from dsac_ros.networks.encoder import CHANNELS, SHORT_SIDE, shared_encoder
from dsac_ros.records import Estimate, Frame
from dsac_ros.tracking.tracker import Tracker
from dsac_ros.training.budget import Budget
from dsac_ros.training.buffer import Buffer
from dsac_ros.training.head import batch_loss, new_expert, train_head

# Setting -> modality, with tracking.
SETTINGS = {'RGB, searched': ('rgb', False), 'RGB-D, searched': ('rgbd', False), 'tracked': ('rgb', True)}
IMAGE = (SHORT_SIDE, SHORT_SIDE * 4 // 3)  # rows and columns of a 4:3 image in the encoder
MATRIX = 1536  # large enough for the processor's best
SAMPLES = 200_000  # of the buffer: 300 MB, much more than any cache
STEPS = 40
ROUNDS = 7


def timed_frames(localizer: Localizer, frames: Iterable[Frame]) -> dict[str, list[Estimate]]:
    """Every frame in each setting in turn; of the tracker the frames that it did track."""
    trackers = {name: Tracker(localizer, TrackingOptions(enabled=tracking)) for name, (_, tracking) in SETTINGS.items()}
    found: dict[str, list[Estimate]] = {name: [] for name in SETTINGS}
    for number, frame in enumerate(frames):
        if not number:
            localizer.warm_up(frame.camera, 'rgbd' if frame.depth is not None else 'rgb')
        for name, (modality, tracking) in SETTINGS.items():
            if modality == 'rgb' or frame.depth is not None:
                estimate = trackers[name].localize(frame, modality)
                found[name] += [estimate] if estimate.tracked == tracking else []
    return found


def frame_table(found: dict[str, list[Estimate]]) -> str:
    """Median milliseconds of each stage, and of the whole the 95th percentile as well."""
    stages = list(dict.fromkeys(stage for estimates in found.values() for e in estimates for stage in e.stage_times_ms))
    lines = [f'| | frames | whole, p50 | p95 | {" | ".join(stages)} |', '|---' * (4 + len(stages)) + '|']
    for name, estimates in found.items():
        if estimates:
            whole = np.percentile([sum(e.stage_times_ms.values()) for e in estimates], [50, 95])
            times = [[e.stage_times_ms[stage] for e in estimates if stage in e.stage_times_ms] for stage in stages]
            entries = [f'{np.median(ms):.1f}' if ms else '' for ms in times]
            lines.append(f'| {" | ".join([name, str(len(estimates)), *(f"{ms:.0f}" for ms in whole), *entries])} |')
    return '\n'.join(lines)


def stage_table(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    lines = ['| stage | seconds | share |', '|---|---|---|']
    return '\n'.join(lines + [f'| {stage} | {value:.1f} | {100 * value / whole:.0f} % |' for stage, value in seconds.items()])


def flops(work: Callable[[], object]) -> int:
    """Of the matrix products and convolutions in it; a multiplication with its addition is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def rates(width: int, batch: int) -> dict[str, float]:
    """Medians of FLOP per CPU second of one thread, taken in turn: a large product of matrices, the encoder on one image, and steps of
    training a head. So measured, other load on the machine hardly matters."""
    torch.set_num_threads(1)
    matrix, image = torch.randn(MATRIX, MATRIX), torch.zeros(1, 3, *IMAGE, dtype=torch.uint8)
    encoder, buffer = shared_encoder('cpu'), random_buffer(SAMPLES)
    options = MappingOptions(width=width, batch=batch, steps=STEPS)
    expert, rows = new_expert(buffer, width), torch.arange(batch)

    def encode() -> None:
        with torch.no_grad():
            encoder(image)

    def train(steps: int) -> None:
        train_head(buffer, MappingOptions(width=width, batch=batch, steps=steps), Budget(3600), lambda: False, quiet=True)

    work = {'product': (lambda: matrix @ matrix, flops(lambda: matrix @ matrix)), 'encoder': (encode, flops(encode))}
    step_flops = flops(lambda: batch_loss(expert, buffer, rows, 0.5, options)[0].backward())
    measured: dict[str, list[float]] = {name: [] for name in (*work, 'training')}
    for _ in range(ROUNDS):
        for name, (call, count) in work.items():
            measured[name].append(count / seconds(call))
        # What a head costs before its first step is in both.
        measured['training'].append(STEPS * step_flops / (seconds(lambda: train(STEPS + 1)) - seconds(lambda: train(1))))
    return {name: float(np.median(values)) for name, values in measured.items()}


def random_buffer(samples: int) -> Buffer:
    points = torch.rand(samples, 3) * 4
    return Buffer(torch.randn(samples, CHANNELS).half(), points, points[:, :2], torch.zeros(samples, dtype=torch.long), torch.eye(4)[None],
                  300.0, torch.zeros(1, CHANNELS))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def print_mapping(path: Path) -> None:
    training = load_map(path).training
    if 'stage_seconds' not in training:
        raise MapError(f'{path}: does not say how long the stages of mapping took; make it again')
    options = training['options']
    print(f'{path.name}: {training["frames"]} frames, {training["steps"]} steps\n\n{stage_table(training["stage_seconds"])}\n')
    found = rates(options['width'], options['batch'])
    peak = found['product']
    print(f'product of two {MATRIX} x {MATRIX} matrices: {peak / 1e9:.0f} GFLOP in a CPU second; of that '
          + ', '.join(f'{name} {100 * rate / peak:.0f} %' for name, rate in found.items() if name != 'product'))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.stages', description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='what', required=True)
    frames = commands.add_parser('frames', help='median milliseconds of each stage of a frame')
    frames.add_argument('map', type=Path)
    frames.add_argument('source', type=Path, help='a bag or a data folder')
    frames.add_argument('--split', help='part of a data folder')
    frames.add_argument('--every', type=int, default=1, help='take every N-th frame; few are tracked where they are far apart')
    mapping = commands.add_parser('mapping', help='what the stages took when the map was made, and the share of peak that they reach now')
    mapping.add_argument('map', type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.what == 'mapping':
            print_mapping(options.map)
        else:
            source = ThinnedSource(open_source(options.source, options.split), options.every)
            print(frame_table(timed_frames(Localizer.from_map(options.map, 'cpu'), source)))
    except DsacError as error:
        print(f'stages: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
