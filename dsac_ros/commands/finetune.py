"""Train a map end to end, through the RANSAC, on recordings with poses: `dsac-ros finetune ROOM.dsacmap BAG --out BETTER.dsacmap`."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from dsac_ros.config import FinetunerOptions, FinetuningOptions

HELP = 'train a map end to end, through the RANSAC'
# The switches that have a place of their own on the command line; the others come as --set NAME=VALUE.
DIRECT = ('modality', 'expert', 'minutes', 'iterations', 'seed')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dsac-ros finetune`."""
    from dsac_ros.data.opening import add_source_arguments

    described = {f.name: f for f in fields(FinetuningOptions)}
    parser.add_argument('map', help='map bundle to start from; it stays as it is')
    parser.add_argument('sources', nargs='+', metavar='source',
                        help='bags or data folders, poses in the frame of the map; of one camera, but for places shown to gating alone')
    parser.add_argument('--out', required=True, help='map bundle to write; OUT.finetuning beside it holds checkpoint, log and plot')
    parser.add_argument('--overwrite', action='store_true', help='replace the map at --out, and forget an interrupted training')
    parser.add_argument('--resume', action='store_true', help='go on with an interrupted training, with the same options')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 leaves it to torch')
    parser.add_argument('--nice', type=int, default=0, help='how much to stand back behind other processes, 0 to 19')
    parser.add_argument('--piped', action='store_true', help='for programs: progress as lines of JSON on stdout, and pause, resume, finish '
                        'and leave from stdin, whose end counts as leave; goes on with an interrupted training by itself')
    for name in DIRECT:
        default, about = described[name].default, described[name].metadata
        parser.add_argument(f'--{name}', type=type(default), default=default, choices=about['choices'] or None, help=about['help'])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='another option of the training: ' + ', '.join(name for name in described if name not in DIRECT))
    add_source_arguments(parser)


def stand_back(nice: int) -> None:
    """Behind other processes. Linux shares the CPU out among sessions (terminals, services) first, whatever the niceness of a process
    in one of them: a session of our own stands back as a whole (autogroup in sched(7))."""
    now = os.nice(nice)
    if nice and os.getsid(0) == os.getpid():
        with suppress(OSError):  # other kernels, or switched off
            Path('/proc/self/autogroup').write_text(str(now))


def run(options: argparse.Namespace) -> int:
    """Train, and print how good the map is on frames that were held out."""
    FinetunerOptions(threads=options.threads, nice=options.nice)  # refuses what is out of range
    stand_back(options.nice)  # before torch has threads, which take it over
    import cv2
    import torch

    from dsac_ros.config import parse_settings
    from dsac_ros.data.opening import source_from, warning_lines
    from dsac_ros.errors import ConfigError
    from dsac_ros.training.finetuning import finetune
    from dsac_ros.training.gating import Lesson
    from dsac_ros.training.mapping import stop_on_interrupt
    from dsac_ros.training.state import checkpoint_of
    from dsac_ros.training.watching import Piped, Progress, Wish, unwatched

    settings = parse_settings({'': FinetuningOptions}, options.set)
    twice = sorted(set(settings) & set(DIRECT))
    if twice:
        raise ConfigError(f'--set {twice[0]}: use --{twice[0]}')
    training = FinetuningOptions(**settings, **{name: getattr(options, name) for name in DIRECT})
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    listener = Piped() if options.piped else unwatched
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    # Depth also where it is not trained with: what poses with depth are worth afterwards is measured, too.
    sources = [source_from(path, options, require_poses=True) for path in options.sources]
    with stop_on_interrupt() as stopped:
        def watch(progress: Progress) -> Wish:
            return Wish.LEAVE if terminated else Wish.FINISH if stopped() else listener(progress)

        resume = options.resume or (options.piped and checkpoint_of(Path(options.out)).is_file())
        bundle = finetune(options.map, sources, options.out, training, options.device, options.overwrite, resume, watch, options.piped)
    if bundle is None:  # the first of several processes says the rest
        return 0
    for source in sources:
        for line in warning_lines(source):
            print(line)
    record = bundle.training['finetuned']
    print(f'{options.out}: {record["steps"]} steps in {record["seconds"]:.0f} s on {record["frames"]} frames; the best state is that of '
          f'step {record["best_step"]}, held-out pose loss {record["held_out_loss"]:.2f}')
    for kind, errors in record['held_out'].items():
        print(f'  {kind}: {100 * errors["median_translation_m"]:.1f} cm, {errors["median_rotation_deg"]:.2f} deg '
              f'in the median of {errors["frames"]} frames held out')
    if training.gating:
        before, after = (Lesson(**bundle.training['gated'][when]) for when in ('before', 'after'))
        print(f'  gating: {before.then(after)}')
    if not record['best_step']:
        print('warning: no state was better than the map that it started from, which is what was written; '
              'train for longer, with another learning rate, or leave the map as it is', file=sys.stderr)
    print(f'log and plot: {Path(options.out)}.finetuning')
    return 0
