"""Evaluate a map on a bag or data folder: every frame offline, or the real node live; writes a results folder with a report."""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dsac_ros.config import LOCALIZER_GROUPS, build_groups, parse_settings
from dsac_ros.data.opening import add_source_arguments, source_from, warning_lines
from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.options import EvaluationOptions
from dsac_ros.evaluation.page import summary_rows
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.replay import ThinnedSource, choose_modality, no_frames, replay_offline
from dsac_ros.evaluation.report import check_place, describe_run, write_results
from dsac_ros.maps.manifest import read_manifest
from dsac_ros.progress import progress_bar

Replayed = tuple[list[FrameResult], dict[str, Any]]  # the results, and what else was seen, for `run` of summary.json
NOT_OPTIONS = ('run', 'command', 'map', 'source', 'out', 'overwrite')  # the rest of the namespace is stored as run
HELP = 'measure a map on a bag or data folder, offline or live, and write a report'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MAP SOURCE, where the results go, and one flag for each evaluation option."""
    parser.add_argument('map', type=Path, metavar='MAP', help='map bundle, a folder NAME.dsacmap')
    parser.add_argument('source', metavar='SOURCE', help='bag or data folder with the frames to localise')
    parser.add_argument('--out', type=Path, default=None, metavar='RESULTS',
                        help='results folder; results/MAP_SOURCE_SPLIT_MODALITY where none is given')
    parser.add_argument('--overwrite', action='store_true', help='replace older results in the results folder')
    for f in fields(EvaluationOptions):
        if isinstance(f.default, bool):
            parser.add_argument(f'--{f.name}', action='store_true', help=f.metadata['help'])
        else:
            parser.add_argument(f'--{f.name}', type=type(f.default), default=f.default, choices=f.metadata['choices'] or None,
                                help=f.metadata['help'])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='parameter of the node (config/localize.yaml lists them), as in estimator.landmarks=false; '
                        'tracking.enabled=false localises every frame by itself')
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Replay, write, print; 0 when the results are written, whatever they say."""
    from dsac_ros.localizer import resolve_device
    chosen = EvaluationOptions(**{f.name: getattr(options, f.name) for f in fields(EvaluationOptions)})
    settings = parse_settings(LOCALIZER_GROUPS, options.set)
    device = str(resolve_device(chosen.device))  # one that is not there is refused before any work
    if chosen.live:
        _require_ros()
    if options.out is not None:
        check_place(options.out, options.overwrite)  # before the minutes of work, not after
    whole = source_from(options.source, options, load_depth=chosen.modality != 'rgb')
    source: FrameSource = ThinnedSource(whole, chosen.every, chosen.frames)
    modality = choose_modality(source, chosen.modality)
    folder = options.out or Path('results') / _default_name(options.map, options.source, options.split, modality, chosen.live)
    check_place(folder, options.overwrite)
    map_frame = read_manifest(options.map).frame_id
    if source.map_frame and map_frame != source.map_frame:
        print(f'dsac-ros evaluate: the reference poses are in frame {source.map_frame!r}, the map is {map_frame!r}; '
              'errors are right only where the two coincide', file=sys.stderr)
    results, observed = (_replay_live if chosen.live else _replay_offline)(options.map, source, modality, chosen, device, settings)
    as_run = {name: value for name, value in vars(options).items() if name not in NOT_OPTIONS and value is not None}
    described = describe_run(options.map, options.source, modality, device, as_run, source.warnings)
    summary = write_results(folder, results, {**described, **observed}, options.overwrite)
    _print_table(summary_rows(summary), warning_lines(whole))
    print(f'report: {(folder / "report.html").resolve()}')
    return 0


def _replay_live(map_path: Path, source: FrameSource, modality: str, chosen: EvaluationOptions, device: str,
                 settings: dict[str, Any]) -> Replayed:
    try:
        live_replay = importlib.import_module('dsac_ros.ros.live_replay')
    except ImportError as error:
        raise DsacError(f'--live runs the ROS 2 node, which cannot be imported ({error}); build the package with colcon and source '
                        'install/setup.bash, or leave --live away') from error
    with progress_bar('frames', len(source)) as shown:
        replay = live_replay.replay_live(map_path, source, modality, rate=chosen.rate, device=device, settings=settings,
                                         progress=lambda done, total: shown.update())
    if not replay.results:
        raise no_frames(source)
    memory = [round(megabytes, 1) for _, megabytes in replay.memory_mb]
    seen = {'first': memory[0], 'last': memory[-1], 'highest': max(memory)} if memory else {}
    return replay.results, {'node_counters': dict(replay.counters), 'node_memory_mb': seen}


def _replay_offline(map_path: Path, source: FrameSource, modality: str, chosen: EvaluationOptions, device: str,
                    settings: dict[str, Any]) -> Replayed:
    from dsac_ros.localizer import Localizer
    from dsac_ros.tracking.tracker import Tracker
    groups = build_groups(LOCALIZER_GROUPS, settings)
    inner = Localizer.from_map(map_path, device, groups['estimator'], groups['integrity'], groups['gating'])
    localizer = Tracker(inner, groups['tracking'], groups['gating'])
    with progress_bar('frames', len(source)) as shown:
        return replay_offline(localizer, source, modality, lambda done, total: shown.update(), groups['state']), {}


def _require_ros() -> None:
    if importlib.util.find_spec('rclpy') is None:
        raise DsacError('--live runs the ROS 2 node, but rclpy cannot be imported; source a ROS 2 setup file or use the venv that '
                        'make test sets up, or leave --live away')


def _default_name(map_path: Path, source: str, split: str | None, modality: str, live: bool) -> str:
    parts = [map_path.resolve().stem, Path(source).resolve().stem, (split or '').replace('/', '-'), modality, 'live' if live else '']
    return '_'.join(part for part in parts if part)


def _print_table(rows: list[tuple[str, str]], left_out: list[str]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f'{label:<{width}}  {value}')
    for line in left_out:
        print(f'{"warning":<{width}}  {line}')
