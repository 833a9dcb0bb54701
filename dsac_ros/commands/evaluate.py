"""Evaluate a map on a bag or data folder: every frame offline, or the real node live; writes a results folder with a report."""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import torch

from dsac_ros.data.source import FrameSource
from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.evaluation.options import EvaluationOptions
from dsac_ros.evaluation.page import summary_rows
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.replay import ThinnedSource, choose_modality, replay_offline
from dsac_ros.evaluation.report import check_place, describe_run, write_results

HELP = 'measure a map on a bag or data folder, offline or live, and write a report'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MAP SOURCE, where the results go, and one flag for each evaluation option."""
    parser.add_argument('map', type=Path, metavar='MAP', help='map bundle, a folder NAME.dsacmap')
    parser.add_argument('source', metavar='SOURCE', help='bag or data folder with the frames to localise')
    parser.add_argument('--out', type=Path, default=None, metavar='RESULTS', help='results folder; None: results/MAP_SOURCE_SPLIT_MODALITY')
    parser.add_argument('--overwrite', action='store_true', help='replace older results in the results folder')
    for f in fields(EvaluationOptions):
        if isinstance(f.default, bool):
            parser.add_argument(f'--{f.name}', action='store_true', help=f.metadata['help'])
        else:
            parser.add_argument(f'--{f.name}', type=type(f.default), default=f.default, choices=f.metadata['choices'] or None,
                                help=f.metadata['help'])


def run(options: argparse.Namespace) -> int:
    """Replay, write, print; 0 when the results are written, whatever they say."""
    chosen = EvaluationOptions(**{f.name: getattr(options, f.name) for f in fields(EvaluationOptions)})
    device = _device(chosen.device)
    if chosen.live:
        _require_ros()
    if options.out is not None:
        check_place(options.out, options.overwrite)  # before the minutes of work, not after
    source: FrameSource = ThinnedSource(_open(options.source, chosen), chosen.every, chosen.frames)
    modality = choose_modality(source, chosen.modality)
    folder = options.out or Path('results') / _default_name(options.map, options.source, chosen, modality)
    check_place(folder, options.overwrite)
    results = _replay(options.map, source, modality, chosen, device)
    described = describe_run(options.map, options.source, modality, device, asdict(chosen), source.warnings)
    summary = write_results(folder, results, described, options.overwrite)
    _print_table(summary_rows(summary), source.warnings)
    print(f'report: {(folder / "report.html").resolve()}')
    return 0


def _open(path: str, chosen: EvaluationOptions) -> FrameSource:
    from dsac_ros.data.opening import open_source
    return open_source(path, split=chosen.split or None, require_poses=False, load_depth=chosen.modality != 'rgb')


def _replay(map_path: Path, source: FrameSource, modality: str, chosen: EvaluationOptions, device: str) -> list[FrameResult]:
    if chosen.live:
        live_replay = importlib.import_module('dsac_ros.ros.live_replay')
        return list(live_replay.replay_live(map_path, source, modality, rate=chosen.rate))
    from dsac_ros.localizer import Localizer
    localizer = Localizer.from_map(map_path, device=device)
    if source.map_frame and localizer.map_frame != source.map_frame:
        print(f'dsac-ros evaluate: the reference poses are in frame {source.map_frame!r}, the map is {localizer.map_frame!r}; '
              'errors are right only where the two coincide', file=sys.stderr)
    return replay_offline(localizer, source, modality, _progress if sys.stderr.isatty() else None)


def _require_ros() -> None:
    if importlib.util.find_spec('rclpy') is None:
        raise DsacError('--live runs the ROS 2 node, but rclpy cannot be imported; source a ROS 2 setup file or use the venv that '
                        'make test sets up, or leave --live away')


def _device(wanted: str) -> str:
    """'auto' resolved; a GPU that is not there is refused before any work."""
    if wanted == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        kind = ''
    if kind not in ('cpu', 'cuda'):
        raise ConfigError(f'--device: expected auto, cpu, cuda or cuda:N, found {wanted!r}')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(f'--device {wanted}: torch sees no CUDA device; use --device cpu')
    return wanted


def _default_name(map_path: Path, source: str, chosen: EvaluationOptions, modality: str) -> str:
    parts = [map_path.resolve().stem, Path(source).resolve().stem, chosen.split.replace('/', '-'), modality, 'live' if chosen.live else '']
    return '_'.join(part for part in parts if part)


def _progress(done: int, total: int) -> None:
    print(f'\r{done} of {total} frames', end='\n' if done >= total else '', file=sys.stderr, flush=True)


def _print_table(rows: list[tuple[str, str]], warnings: Counter[str]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f'{label:<{width}}  {value}')
    for cause, count in sorted(warnings.items()):
        print(f'{"left out":<{width}}  {count}: {cause}')
