"""Make a map bundle of a bag or data folder with reference poses: `dsac-ros map BAG --out ROOM.dsacmap`."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
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
    from dsac_ros.data.opening import add_source_arguments

    described = {f.name: f for f in fields(MappingOptions)}
    parser.add_argument('source', help='bag or data folder with reference poses')
    parser.add_argument('--out', required=True, help='map bundle to write: a folder, as in NAME.dsacmap')
    parser.add_argument('--overwrite', action='store_true', help='replace the map at --out')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--minutes', type=float, default=described['minutes'].default, help=described['minutes'].metadata['help'])
    parser.add_argument('--rgb-only', action='store_true', help=described['rgb_only'].metadata['help'])
    parser.add_argument('--seed', type=int, default=0, help=described['seed'].metadata['help'])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='another option of mapping: ' + ', '.join(name for name in described if name not in DIRECT))
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Map, and print how good the map is on frames that it never saw."""
    from dsac_ros.config import parse_settings
    from dsac_ros.data.opening import source_from, warning_lines
    from dsac_ros.errors import ConfigError
    from dsac_ros.training.mapping import map_source

    settings = parse_settings({'': MappingOptions}, options.set)
    twice = sorted(set(settings) & set(DIRECT))
    if twice:
        raise ConfigError(f'--set {twice[0]}: use --{twice[0].replace("_", "-")}')
    mapping = MappingOptions(**{**settings, 'minutes': options.minutes, 'rgb_only': options.rgb_only, 'seed': options.seed})
    source = source_from(options.source, options, require_poses=True, load_depth=not options.rgb_only)
    try:
        bundle = map_source(source, options.out, mapping, options.device, Path(options.out).name.split('.')[0] or 'room', options.overwrite)
    except KeyboardInterrupt:
        print('dsac-ros map: interrupted before there was anything to keep; no map was written', file=sys.stderr)
        return 130
    for line in warning_lines(source):
        print(line)
    record = bundle.training
    print(f'{options.out}: {record["frames"]} frames, {record["landmarks"]} landmarks, {record["samples"]} samples, '
          f'{record["steps"]} steps in {record["seconds"]:.0f} s'
          + (' (interrupted)' if record['interrupted'] else ''))
    for kind, errors in record['held_out'].items():
        print(f'  {kind}: {100 * errors["median_translation_m"]:.1f} cm, {errors["median_rotation_deg"]:.2f} deg '
              f'in the median of {errors["frames"]} frames held out')
    for line in doubts(record):
        print(f'warning: {line}', file=sys.stderr)
    return 0


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
