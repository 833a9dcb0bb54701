"""End-to-end training against as many minutes of more mapping, and learned guidance against even draws.

    python -m benchmarks.end_to_end run $D/kitchen --train train --test val_near val_far --out ends
    python -m benchmarks.end_to_end report ends [--full]

A map of 5 minutes; one of 15; and the first one trained end to end for 10, for RGB and for RGB-D. Minutes are CPU minutes over THREADS
(benchmarks.mapping_ablation); those of training end to end come without the encoding of its views and the calibration, a minute or so
that `report --full` has among its CPU seconds. Runs are kept and not made again. The maps are asked by their cells alone, which is what is
trained, with 64 and with 256 minimal sets a frame, drawn by guidance or evenly.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.mapping_ablation import (
    CELLS_ALONE,
    THREADS,
    Job,
    Queries,
    add_commands,
    asked_for,
    cpu_clock,
    read_runs,
    report,
    run_settings,
    tested,
)
from benchmarks.mapping_ablation import run_job as map_job
from dsac_ros.config import FinetuningOptions, parse_settings
from dsac_ros.data.opening import open_source
from dsac_ros.errors import ConfigError
from dsac_ros.training.finetuning import finetune

FIRST = 'mapping'
# Setting -> options of mapping, or under 'finetune' those of the training that starts from the map of FIRST.
SETTINGS: dict[str, dict[str, Any]] = {
    FIRST: {'minutes': 5.0}, 'more mapping': {'minutes': 15.0},
    'end to end, RGB': {'finetune': {'modality': 'rgb', 'minutes': 10.0}},
    'end to end, RGB-D': {'finetune': {'modality': 'rgbd', 'minutes': 10.0}},
    'end to end, RGB, even draws': {'finetune': {'modality': 'rgb', 'minutes': 10.0, 'guidance': False}},
    'end to end, RGB-D, even draws': {'finetune': {'modality': 'rgbd', 'minutes': 10.0, 'guidance': False}}}
QUERIES: Queries = {
    f'{kind}, {sets} sets{draws}': (modality, {**CELLS_ALONE, f'estimator.hypotheses_{modality}': sets, 'estimator.uniform_share': share})
    for kind, modality in (('RGB', 'rgb'), ('RGB-D', 'rgbd')) for sets in (64, 256) for draws, share in (('', 0.1), (', even draws', 1.0))}


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Make the map, test it with every query, and return what runs.jsonl keeps. Raises ConfigError where its first map is missing."""
    if 'finetune' not in job.options:
        record = map_job(replace(job, tests=()), folder)
    else:
        record = finetune_job(job, folder)
    path = folder / 'maps' / f'{job.map_name}.dsacmap'
    return {**record, 'job': asdict(job), 'tests': [test for split in job.tests for test in tested(job, split, path, QUERIES)]}


def finetune_job(job: Job, folder: Path) -> dict[str, Any]:
    """Train the map of FIRST of the same seed."""
    torch.set_num_threads(THREADS)
    maps, begin = folder / 'maps', time.monotonic()
    first = maps / f'{replace(job, setting=FIRST).map_name}.dsacmap'
    if not first.exists():
        raise ConfigError(f'{first}: missing; run the setting {FIRST!r} first')
    options = FinetuningOptions(**job.options['finetune'], seed=job.seed)
    path = maps / f'{job.map_name}.dsacmap'
    source = open_source(job.source, job.train, require_poses=True, load_depth=not options.rgb_only)
    made = finetune(first, [source], path, options, 'cpu', overwrite=True, quiet=True, clock=cpu_clock).training['finetuned']
    return {**{name: made[name] for name in ('frames', 'steps', 'best_step', 'held_out_loss')}, 'cpu_s': THREADS * made['seconds'],
            'wall_s': time.monotonic() - begin, 'megabytes': sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) / 1e6}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.end_to_end', description=__doc__.splitlines()[0])
    add_commands(parser).add_argument('--set', action='append', default=[], metavar='NAME=VALUE', help='option of the training end to end')
    options = parser.parse_args(arguments)
    if options.command == 'report':
        print(report(read_runs(options.folder), options.full))
        return 0
    chosen = asked_for(parser, options.only, SETTINGS)
    return run_settings(options, dict(changed(name, values, options.set) for name, values in chosen.items()), run_job)


def changed(name: str, options: dict[str, Any], texts: list[str]) -> tuple[str, dict[str, Any]]:
    """A setting with what --set says of its training end to end, under a name that tells it. Raises ConfigError."""
    if 'finetune' not in options:
        return name, options
    return ', '.join([name, *texts]), {'finetune': {**options['finetune'], **parse_settings({'': FinetuningOptions}, texts)}}


if __name__ == '__main__':
    sys.exit(main())
