"""What each choice of mapping is worth: named settings with equal CPU time, several seeds, and what maps get with more of it.

    python -m benchmarks.mapping_ablation run choices $D/kitchen --train train --test val_near val_far --out ablation
    python -m benchmarks.mapping_ablation run minutes $D/kitchen --train train --test val_near val_far --out ablation
    python -m benchmarks.mapping_ablation report ablation [--full]

Every run is a process of its own, and its minutes are CPU minutes over THREADS: those of a machine with so many cores and nothing else to
do. Finished runs are in FOLDER/runs.jsonl at once and are not made again; all settings get their first seed before any gets a second.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsac_ros.config import LOCALIZER_GROUPS, MappingOptions, build_groups
from dsac_ros.data.opening import open_source
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.metrics import summarise_poses
from dsac_ros.evaluation.replay import ThinnedSource, choose_modality, replay_offline
from dsac_ros.localizer import Localizer
from dsac_ros.training.mapping import map_source

THREADS = 2
# Else OpenMP's threads spin while they wait, which counts as work and beside other load is most of it.
SLEEP_WHILE_WAITING = {'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '0'}
# Suite -> setting -> options of mapping.
CHOICES: dict[str, dict[str, Any]] = {
    'default': {}, 'no landmarks': {'landmarks': 0}, 'RGB only': {'rgb_only': True}, 'augmented 0': {'augmented': 0},
    'augmented 2': {'augmented': 2}, 'width 64': {'width': 64}, 'width 256': {'width': 256}, 'batch 256': {'batch': 256},
    'batch 1024': {'batch': 1024}, 'learning rate 1e-3': {'learning_rate': 1e-3}, 'learning rate 1e-2': {'learning_rate': 1e-2},
    'no cluster loss': {'cluster_weight': 0.0}, 'landmarks 2500': {'landmarks': 2500}, 'landmarks 5000': {'landmarks': 5000}}
SUITES = {
    'choices': {name: {'minutes': 2.0, **options} for name, options in CHOICES.items()},
    'minutes': {f'{minutes} min, {kind}': {'minutes': float(minutes), 'rgb_only': kind == 'RGB only'}
                for minutes in (2, 5, 10, 20) for kind in ('depth', 'RGB only')}}
# What cells alone are worth is asked whether or not their poses would be accepted.
CELLS_ALONE = {'estimator.landmarks': False, 'integrity.min_inliers': 0.0, 'integrity.min_inlier_ratio': 0.0, 'integrity.min_spread': 0.0,
               'integrity.max_position_deviation': 1e3, 'integrity.max_rotation_deviation': 10.0, 'integrity.map_margin': 1e4}
# Query -> modality and options of the localizer.
Queries = dict[str, tuple[str, dict[str, Any]]]
QUERIES: Queries = {
    'RGB': ('rgb', {}), 'RGB-D': ('rgbd', {}),
    'RGB, cells alone': ('rgb', CELLS_ALONE), 'RGB-D, cells alone': ('rgbd', CELLS_ALONE)}


@dataclass(frozen=True)
class Job:
    """One map to be made and tested. every: test on every N-th frame."""

    source: str
    train: str | None
    tests: tuple[str | None, ...]
    every: int
    setting: str
    seed: int
    options: dict[str, Any]

    @property
    def map_name(self) -> str:
        return '_'.join([Path(self.source).name, self.train or '', self.setting, str(self.seed)]).replace(' ', '-').replace(',', '')


def cpu_clock() -> float:
    return time.process_time() / THREADS


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Make the map, test it with every query, and return what runs.jsonl keeps."""
    torch.set_num_threads(THREADS)
    options = MappingOptions(**{**job.options, 'seed': job.seed})
    path = folder / 'maps' / f'{job.map_name}.dsacmap'
    begin = time.monotonic()
    source = open_source(job.source, job.train, require_poses=True, load_depth=not options.rgb_only)
    bundle = map_source(source, path, options, 'cpu', overwrite=True, quiet=True, clock=cpu_clock)
    record = {name: bundle.training[name] for name in ('frames', 'samples', 'steps', 'landmarks')}
    record |= {'cpu_s': THREADS * bundle.training['seconds'], 'wall_s': time.monotonic() - begin,
               'megabytes': sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6}
    return {'job': asdict(job), **record, 'tests': [test for split in job.tests for test in tested(job, split, path)]}


def tested(job: Job, split: str | None, path: Path, queries: Queries = QUERIES) -> Iterator[dict[str, Any]]:
    """The metrics of one split for each query that it and the map allow."""
    path_and_split = (split, None) if split and Path(split).exists() else (job.source, split)
    for query, (modality, settings) in queries.items():
        source = ThinnedSource(open_source(*path_and_split, require_poses=True, load_depth=modality == 'rgbd'), job.every)
        groups = build_groups(LOCALIZER_GROUPS, settings)
        localizer = Localizer.from_map(path, 'cpu', groups['estimator'], groups['integrity'])
        without = localizer.choice.sub_maps.get(0).bundle.landmarks is None and groups['estimator'].landmarks
        if not without and (modality == 'rgb' or choose_modality(source, 'auto') == 'rgbd'):
            yield {'split': split, 'query': query, **summarise_poses(replay_offline(localizer, source, modality))}


def run(jobs: Sequence[Job], folder: Path, work: Callable[[Job, Path], dict[str, Any]] = run_job) -> int:
    """Do what is not done yet; returns the number of jobs that failed."""
    failed = 0
    for number, job in enumerate(jobs, 1):
        if any(record['job'] == json.loads(json.dumps(asdict(job))) for record in read_runs(folder)):
            continue
        print(f'{number} of {len(jobs)}: {job.map_name}', flush=True)
        try:
            with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                record = pool.submit(work, job, folder).result()
        except DsacError as error:
            print(f'mapping_ablation: {job.map_name}: {error}', file=sys.stderr)
            failed += 1
            continue
        with (folder / 'runs.jsonl').open('a') as file:
            file.write(json.dumps(record) + '\n')
    return failed


def read_runs(folder: Path) -> list[dict[str, Any]]:
    path = folder / 'runs.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(runs: Sequence[dict[str, Any]], full: bool) -> str:
    """Tables in Markdown: one for each source and split with all queries beside each other, or in full one for each of these as well."""
    parts = []
    for source in dict.fromkeys(Path(record['job']['source']).name for record in runs):
        mine = [record for record in runs if Path(record['job']['source']).name == source]
        for split in dict.fromkeys(test['split'] for record in mine for test in record['tests']):
            queries = list(dict.fromkeys(test['query'] for record in mine for test in record['tests'] if test['split'] == split))
            if full:
                parts += [f'`{source}` `{split}`, {query}\n\n{full_table(mine, split, query)}' for query in queries]
            else:
                parts.append(f'`{source}` `{split}`: median, within 5 cm 5 deg, within 2 cm 2 deg\n\n{short_table(mine, split, queries)}')
    return '\n'.join(parts)


def short_table(runs: Sequence[dict[str, Any]], split: str | None, queries: Sequence[str]) -> str:
    lines = [f'| setting | seeds | steps | {" | ".join(queries)} |', '|---' * (3 + len(queries)) + '|']
    for setting, chosen in by_setting(runs):
        entries = []
        for query in queries:
            tests = tests_of(chosen, split, query)
            shares = [f'{percent(tests, name)} %' for name in ('within_5cm_5deg', 'within_2cm_2deg') if tests]
            entries.append(', '.join([f'{centimetres(tests)} cm', *shares]) if tests else '')
        steps = spread([record['steps'] for record in chosen], '.0f')
        lines.append(f'| {setting} | {len(chosen)} | {steps} | {" | ".join(entries)} |')
    return '\n'.join(lines) + '\n'


def full_table(runs: Sequence[dict[str, Any]], split: str | None, query: str) -> str:
    lines = ['| setting | seeds | CPU s | MB | median cm | deg | % in 5 cm 5 deg | 2 cm 2 deg | 1 cm 1 deg | answered | false accepts |',
             '|---' * 11 + '|']
    for setting, chosen in by_setting(runs):
        tests = tests_of(chosen, split, query)
        if tests:
            degrees = spread([number(test['median_rotation_deg']) for test in tests], '.2f')
            shares = [percent(tests, name) for name in ('within_5cm_5deg', 'within_2cm_2deg', 'within_1cm_1deg', 'availability')]
            counts = spread([test['false_accept_count'] for test in tests], '.0f')
            made = [spread([record['cpu_s'] for record in chosen], '.0f'), spread([record['megabytes'] for record in chosen], '.1f')]
            lines.append(f'| {" | ".join([setting, str(len(chosen)), *made, centimetres(tests), degrees, *shares, counts])} |')
    return '\n'.join(lines) + '\n'


def by_setting(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for setting in dict.fromkeys(record['job']['setting'] for record in runs):
        yield setting, [record for record in runs if record['job']['setting'] == setting]


def tests_of(runs: Sequence[dict[str, Any]], split: str | None, query: str) -> list[dict[str, Any]]:
    return [test for record in runs for test in record['tests'] if (test['split'], test['query']) == (split, query)]


def centimetres(tests: Sequence[dict[str, Any]]) -> str:
    return spread([100 * number(test['median_translation_m']) for test in tests], '.2f')


def percent(tests: Sequence[dict[str, Any]], name: str) -> str:
    return spread([100 * test[name] for test in tests], '.0f')


def number(value: float | None) -> float:
    """The metrics say None for infinite."""
    return float('inf') if value is None else value


def spread(values: Sequence[float], form: str) -> str:
    """Median over the seeds and, where they differ, the smallest and the largest."""
    middle, low, high = (format(value, form) for value in (np.median(values), min(values), max(values)))
    return middle if low == high else f'{middle} ({low}..{high})'


def add_commands(parser: argparse.ArgumentParser, suites: Iterable[str] = ()) -> argparse.ArgumentParser:
    """`run`, of one of the suites where there are any, and `report`; the parser of `run`, for more options."""
    commands = parser.add_subparsers(dest='command', required=True)
    runner = commands.add_parser('run', help='make and test maps')
    if suites:
        runner.add_argument('suite', choices=suites)
    runner.add_argument('source', help='a bag or a data folder with reference poses')
    runner.add_argument('--train', help='split that maps are made of')
    runner.add_argument('--test', nargs='+', default=[None], help='splits that they are tested on, or other bags')
    runner.add_argument('--every', type=int, default=1, help='test on every N-th frame')
    runner.add_argument('--seeds', type=int, default=3)
    runner.add_argument('--only', help='settings to run, joined by |; default: all')
    runner.add_argument('--out', type=Path, required=True, metavar='FOLDER')
    reporter = commands.add_parser('report', help='print what the runs so far gave')
    reporter.add_argument('folder', type=Path)
    reporter.add_argument('--full', action='store_true', help='all metrics of each query')
    return runner


def asked_for(parser: argparse.ArgumentParser, only: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that --only names."""
    chosen = only.split('|') if only else list(settings)
    unknown = [name for name in chosen if name not in settings]
    if unknown:
        parser.error(f'--only: no setting {unknown[0]!r}; known: {"|".join(settings)}')
    return {name: settings[name] for name in chosen}


def run_settings(options: argparse.Namespace, settings: dict[str, dict[str, Any]], work: Callable[[Job, Path], dict[str, Any]]) -> int:
    """Every setting with each of the seeds; the exit code."""
    os.environ.update(SLEEP_WHILE_WAITING)
    (options.out / 'maps').mkdir(parents=True, exist_ok=True)
    jobs = [Job(options.source, options.train, tuple(options.test), options.every, name, seed, values)
            for seed in range(options.seeds) for name, values in settings.items()]
    return 1 if run(jobs, options.out, work) else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.mapping_ablation', description=__doc__.splitlines()[0])
    add_commands(parser, SUITES).add_argument('--minutes', type=float, help='instead of those of the suite')
    options = parser.parse_args(arguments)
    if options.command == 'report':
        print(report(read_runs(options.folder), options.full))
        return 0
    settings = asked_for(parser, options.only, SUITES[options.suite])
    if options.minutes is not None:
        settings = {f'{name}, {options.minutes:g} min': {**values, 'minutes': options.minutes} for name, values in settings.items()}
    return run_settings(options, settings, run_job)


if __name__ == '__main__':
    sys.exit(main())
