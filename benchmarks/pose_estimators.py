"""Our pose estimator beside OpenCV, PoseLib, pycolmap and Open3D on the same correspondences. From the repository's root:

    python -m benchmarks.pose_estimators make ../shared/data/kitchen --out sets
    python -m benchmarks.pose_estimators run sets --out results [--threads 2] [--frames 20] [--hypotheses 64,256] [--only ours,PoseLib]
    python -m benchmarks.pose_estimators predicted MAP FOLDER --split val_near --out results
    python -m benchmarks.pose_estimators report results

`run` and `predicted` add to RESULTS/records.csv, frame by frame; tables.md, summary.json and the plots are made anew from all of it.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch

from benchmarks.bounds import fit_points, position_bound
from benchmarks.ours import DEFAULT_HYPOTHESES, oracles, ours
from benchmarks.peers import Estimator, peers
from benchmarks.predictions import predicted_problems
from benchmarks.problems import NOISE_MODELS, STRIDE, Problem, ProblemSet, make_sets, spread_frames
from benchmarks.race import Heat, append_records, race, read_records, warm_up
from benchmarks.report import write_report
from dsac_ros.data.opening import open_source
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.metrics import pose_error


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; 2 when what was asked for cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except DsacError as error:
        print(f'pose_estimators: {error}', file=sys.stderr)
        return 2
    return 0


def make(options: argparse.Namespace) -> None:
    """A set of problems for each model of noise."""
    source = open_source(options.source, options.split, require_poses=True)
    for path in make_sets(source, options.out, options.frames, options.seed):
        print(path)


def run(options: argparse.Namespace) -> None:
    """The race over all sets, strides and cells of noise x outliers that were asked for."""
    _set_threads(options.threads)
    estimators = _estimators(options)
    for path in [options.sets / f'{name}.npz' for name in options.noise_models]:
        if not path.is_file():
            raise DsacError(f'{path}: missing; make it with `python -m benchmarks.pose_estimators make`')
        problems = ProblemSet(path)
        known = [f'{cm:g} cm {share:.0%}' for cm in problems.noises_cm for share in problems.outliers]
        if strange := [cell for cell in options.cells or () if cell not in known]:
            raise DsacError(f'--cells {",".join(strange)}: not in {path}; known: {", ".join(known)}')
        warm_up(problems.problem(0, 0, 0), estimators)
        for stride in options.strides:
            for noise, cm in enumerate(problems.noises_cm):
                for outlier, share in enumerate(problems.outliers):
                    cell = f'{cm:g} cm {share:.0%}'
                    if options.cells and cell not in options.cells:
                        continue
                    heat = Heat(problems.noise.name, problems.cells(stride), options.threads, cell)
                    _race(options, heat, _with_references(problems, noise, outlier, stride, options.frames), estimators)
    report(options)


def predicted(options: argparse.Namespace) -> None:
    """The race on coordinates that a map predicts."""
    _set_threads(options.threads)
    source = open_source(options.source, options.split, require_poses=True)
    frames = list(spread_frames(len(source), options.frames))
    problems = list(predicted_problems(options.map, source, frames))
    if not problems:
        raise DsacError(f'{options.source}: none of the chosen frames has a reference pose')
    estimators = _estimators(options)
    warm_up(problems[0][1], estimators)
    heat = Heat(f'{options.map.stem} on {options.source.name}', len(problems[0][1].points_N3), options.threads, options.split or 'all')
    _race(options, heat, problems, estimators)
    report(options)


def report(options: argparse.Namespace) -> None:
    """Tables and plots of what the results folder holds."""
    path = options.out / 'records.csv'
    if not path.is_file():
        raise DsacError(f'{path}: missing; `run` or `predicted` with --out {options.out} writes it')
    print(write_report(options.out, read_records(path)))


def _with_references(problems: ProblemSet, noise: int, outlier: int, stride: int,
                     frames: int) -> Iterator[tuple[int, Problem, dict[str, float]]]:
    for frame in spread_frames(len(problems), frames):
        problem = problems.problem(noise, outlier, frame, stride)
        bound = position_bound(problem, problems.noises_cm[noise] / 100, problems.noise)
        fit, _ = pose_error(*(torch.linalg.inv(torch.from_numpy(pose)).numpy() for pose in (fit_points(problem), problem.camera_from_map)))
        yield frame, problem, {'rgb': bound, 'rgb+w': bound, 'rgbd': fit}


def _race(options: argparse.Namespace, heat: Heat, problems, estimators: list[Estimator]) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    records = race(heat, problems, estimators, options.budget)
    append_records(options.out / 'records.csv', records)
    print(f'{heat.problems}, {heat.cells} cells, {heat.cell}: {len(records)} estimates', file=sys.stderr, flush=True)


def _estimators(options: argparse.Namespace) -> list[Estimator]:
    known = ours(options.hypotheses, options.device, options.compile) + oracles() + peers()
    if options.command == 'predicted':
        known = [estimator for estimator in known if not estimator.name.startswith('(')]
    chosen = [estimator for estimator in known if not options.only or any(text in estimator.name for text in options.only)]
    if not chosen:
        raise DsacError(f'--only {",".join(options.only)}: no such estimator; known: {", ".join(dict.fromkeys(e.name for e in known))}')
    return chosen


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _restart_with_threads(threads: int) -> None:
    """OpenMP and OpenBLAS, which Open3D and numpy bring, read their number of threads when they are loaded."""
    if os.environ.get('OMP_NUM_THREADS') != str(threads):
        os.environ['OMP_NUM_THREADS'] = str(threads)
        os.execv(sys.executable, [sys.executable, '-m', 'benchmarks.pose_estimators', *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='pose_estimators', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser('make', help='problem sets from frames with depth and reference poses')
    command.set_defaults(run=make)
    command.add_argument('source', type=Path, help='data folder or bag')
    command.add_argument('--split', help='part of a data folder: a name in its splits.json')
    command.add_argument('--out', type=Path, required=True, help='folder of the sets')
    command.add_argument('--frames', type=int, default=100)
    command.add_argument('--seed', type=int, default=20240607)

    command = commands.add_parser('run', help='all estimators on problem sets')
    command.set_defaults(run=run)
    command.add_argument('sets', type=Path, help='folder that make has written')
    command.add_argument('--noise-models', type=_texts, default=list(NOISE_MODELS), help=f'of {",".join(NOISE_MODELS)}')
    command.add_argument('--strides', type=_numbers, default=[STRIDE, 2 * STRIDE], help='of the cells, in pixels')
    command.add_argument('--cells', type=_texts, help='of noise and outliers, e.g. "5 cm 90%%,1 cm 20%%"; default: all')
    _add_race_arguments(command)

    command = commands.add_parser('predicted', help='all estimators on the coordinates that a map predicts')
    command.set_defaults(run=predicted)
    command.add_argument('map', type=Path, help='map bundle, a folder NAME.dsacmap')
    command.add_argument('source', type=Path, help='data folder or bag')
    command.add_argument('--split', help='part of a data folder: a name in its splits.json')
    _add_race_arguments(command)

    command = commands.add_parser('report', help='tables and plots of a results folder')
    command.set_defaults(run=report)
    command.add_argument('out', type=Path, help='results folder')
    return parser


def _add_race_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument('--out', type=Path, required=True, help='results folder; what it holds already is kept')
    command.add_argument('--threads', type=int, default=1)
    command.add_argument('--frames', type=int, default=0, help='from all over the set; 0: all')
    command.add_argument('--hypotheses', type=_numbers, default=list(DEFAULT_HYPOTHESES), help='minimal sets of ours, e.g. 64,256,1024')
    command.add_argument('--only', type=_texts, help='estimators whose name has one of these texts; default: all')
    command.add_argument('--device', default='cpu', help='of ours')
    command.add_argument('--compile', action='store_true', help='ours also as compiled programs; takes minutes for each shape of problem')
    command.add_argument('--budget', type=float, default=20.0, help='CPU seconds of an estimator in a cell, then it sees few frames')


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(',')]


def _texts(text: str) -> list[str]:
    return text.split(',')


if __name__ == '__main__':
    _restart_with_threads(getattr(_parser().parse_args(), 'threads', 1))
    sys.exit(main())
