"""Make a map bundle of bags or data folders with reference poses: `dsac-ros map BAG... --out ROOM.dsacmap`, an expert for each."""
from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dsac_ros.config import MappingOptions

HELP = 'make a map from posed images, with depth or without'
FEW = 0.5  # share of the frames
HOPELESS_M = 0.3
# The switches that have a place of their own on the command line; the others come as --set NAME=VALUE.
DIRECT = ('minutes', 'rgb_only', 'seed')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dsac-ros map`."""
    parser.add_argument('sources', nargs='+', metavar='source', help='bag or data folder with reference poses; several make an expert each')
    parser.add_argument('--out', required=True, help='map bundle to write: a folder, as in NAME.dsacmap')
    parser.add_argument('--overwrite', action='store_true', help='replace the map at --out')
    add_mapping_arguments(parser)


def add_mapping_arguments(parser: argparse.ArgumentParser) -> None:
    """What says how a sub-map is made, alike in every command that makes one."""
    from dsac_ros.data.opening import add_source_arguments

    described = {f.name: f for f in fields(MappingOptions)}
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--minutes', type=float, default=described['minutes'].default, help=described['minutes'].metadata['help'])
    parser.add_argument('--rgb-only', action='store_true', help=described['rgb_only'].metadata['help'])
    parser.add_argument('--seed', type=int, default=0, help=described['seed'].metadata['help'])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='another option of mapping: ' + ', '.join(name for name in described if name not in DIRECT))
    add_source_arguments(parser)


def mapping_options(options: argparse.Namespace) -> MappingOptions:
    """Of the arguments of add_mapping_arguments. Raises ConfigError."""
    from dsac_ros.config import parse_settings
    from dsac_ros.errors import ConfigError

    settings = parse_settings({'': MappingOptions}, options.set)
    twice = sorted(set(settings) & set(DIRECT))
    if twice:
        raise ConfigError(f'--set {twice[0]}: use --{twice[0].replace("_", "-")}')
    return MappingOptions(**{**settings, 'minutes': options.minutes, 'rgb_only': options.rgb_only, 'seed': options.seed})


def run(options: argparse.Namespace) -> int:
    """Map, and print how good the map is on frames that it never saw."""
    mapping = mapping_options(options)
    if len(options.sources) > 1:
        return map_rooms(options, mapping)
    try:
        map_room(options.sources[0], options.out, expert_name(options.out), options, mapping, options.overwrite)
    except KeyboardInterrupt:
        print('dsac-ros map: interrupted before there was anything to keep; no map was written', file=sys.stderr)
        return 130
    return 0


def map_rooms(options: argparse.Namespace, mapping: MappingOptions) -> int:
    """An expert for each source. A room that fails does not lose the others; rooms that are mapped already are not mapped again."""
    from dsac_ros.data.opening import source_from
    from dsac_ros.errors import DataError, DsacError
    from dsac_ros.maps.bundle import check_place, load_map
    from dsac_ros.maps.editing import merge_sites

    out = Path(options.out)
    check_place(out, options.overwrite)
    names = distinct([expert_name(path) for path in options.sources])
    frames = {source_from(path, options, require_poses=True, load_depth=False).map_frame for path in options.sources}
    if len(frames) > 1:
        raise DataError(f'the poses are in different frames, {", ".join(sorted(frames))}; map each by itself, and say where they lie with '
                        '`dsac-ros maps add --site-from-map`')
    work = out.with_name(out.name + '.rooms')
    rooms, failed = [], []
    for path, name in zip(options.sources, names):
        room = work / f'{name}.dsacmap'
        try:
            if room.is_dir() and load_map(room).training.get('options') == asdict(mapping):
                print(f'{room}: mapped before, kept')
            else:
                map_room(path, str(room), name, options, mapping, overwrite=room.is_dir())
            rooms.append(room)
        except DsacError as error:
            print(f'dsac-ros map: {path}: {error}', file=sys.stderr)
            failed.append(path)
    if rooms:
        merge_sites(rooms, out, options.overwrite)
        shutil.rmtree(work)
        print(f'{out}: {len(rooms)} experts')
    for path in failed:
        print(f'warning: {path} is not in the map; `dsac-ros maps add {out} {path}` adds it', file=sys.stderr)
    return 1 if failed else 0


def map_room(path: str, out: str, name: str, options: argparse.Namespace, mapping: MappingOptions, overwrite: bool) -> None:
    """Map one source and print how good it is. options: of add_mapping_arguments."""
    from dsac_ros.data.opening import source_from, warning_lines
    from dsac_ros.training.mapping import map_source

    source = source_from(path, options, require_poses=True, load_depth=not mapping.rgb_only)
    bundle = map_source(source, out, mapping, options.device, name, overwrite)
    for line in warning_lines(source):
        print(line)
    record = bundle.training
    print(f'{out}: {record["frames"]} frames, {record["landmarks"]} landmarks, {record["samples"]} samples, '
          f'{record["steps"]} steps in {record["seconds"]:.0f} s'
          + (' (interrupted)' if record['interrupted'] else ''))
    for kind, errors in record['held_out'].items():
        print(f'  {kind}: {100 * errors["median_translation_m"]:.1f} cm, {errors["median_rotation_deg"]:.2f} deg '
              f'in the median of {errors["frames"]} frames held out')
    for line in doubts(record):
        print(f'warning: {line}', file=sys.stderr)


def expert_name(path: str | Path) -> str:
    """What an expert is called after the last part of a path."""
    kept = ''.join(c if c.isalnum() or c in '_-' else '_' for c in Path(path).resolve().name.split('.')[0]).strip('_-')
    return kept[:60] or 'room'


def distinct(names: list[str]) -> list[str]:
    """The names, those that come again with a number."""
    return [name if name not in names[:i] else f'{name}-{names[:i + 1].count(name)}' for i, name in enumerate(names)]


def doubts(record: Mapping[str, Any]) -> list[str]:
    """What a user should know before trusting a map, from what its manifest says of how it was made."""
    lines = []
    if record['frames'] < FEW * record['frames_given'] and not record['interrupted']:
        lines.append(f'the time was enough for {record["frames"]} of {record["frames_given"]} frames; '
                     'raise --minutes, or free the processor of other work')
    errors = [kind['median_translation_m'] for kind in record['held_out'].values()]
    if errors and min(errors) > HOPELESS_M:
        lines.append(f'frames held out are off by {100 * min(errors):.0f} cm at best: this map will hardly localise anything; '
                     'map for longer, look more slowly and from more places, or check poses and calibration')
    return lines
