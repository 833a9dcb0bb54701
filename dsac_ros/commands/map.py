"""Make a map bundle of bags or data folders with reference poses: `dsac-ros map BAG... --out ROOM.dsacmap`, an expert for each."""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

from dsac_ros.config import MappingOptions, SourceOptions
from dsac_ros.training.executors import EXECUTORS, workers_of
from dsac_ros.training.splitting import EXTENT_M

HELP = 'make a map from posed images, with depth or without'
FEW = 0.5  # share of the frames
HOPELESS_M = 0.3
AUTO = 'auto'
# The switches that have a place of their own on the command line; the others come as --set NAME=VALUE.
DIRECT = ('minutes', 'rgb_only', 'seed')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dsac-ros map`."""
    parser.add_argument('sources', nargs='+', metavar='source', help='bag or data folder with reference poses; several make an expert each')
    parser.add_argument('--out', required=True, help='map bundle to write: a folder, as in NAME.dsacmap')
    parser.add_argument('--overwrite', action='store_true', help='replace the map at --out')
    parser.add_argument('--extent', type=float, default=EXTENT_M, help='metres across of what a sub-map of --split auto sees')
    parser.add_argument('--executor', choices=EXECUTORS, default='local',
                        help='of several rooms: processes of this machine, or a Ray cluster')
    parser.add_argument('--workers', type=int, default=0, help='rooms that are mapped at a time; 0: one for every two processors')
    add_mapping_arguments(parser, '; auto (or NAME,auto): cut each source into overlapping sub-maps, an expert for each')


def add_mapping_arguments(parser: argparse.ArgumentParser, about_split: str = '') -> None:
    """What says how a sub-map is made, alike in every command that makes one. about_split: what else --split can be."""
    from dsac_ros.data.opening import add_source_arguments

    described = {f.name: f for f in fields(MappingOptions)}
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--minutes', type=float, default=described['minutes'].default, help=described['minutes'].metadata['help'])
    parser.add_argument('--rgb-only', action='store_true', help=described['rgb_only'].metadata['help'])
    parser.add_argument('--seed', type=int, default=0, help=described['seed'].metadata['help'])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='another option of mapping: ' + ', '.join(name for name in described if name not in DIRECT))
    add_source_arguments(parser, about_split)


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
    workers_of(options.workers)
    if len(options.sources) > 1 or is_auto(options.split)[0]:
        return map_rooms(options, mapping)
    try:
        map_room(options.sources[0], options.out, expert_name(options.out), options, mapping, options.overwrite)
    except KeyboardInterrupt:
        print('dsac-ros map: interrupted before there was anything to keep; no map was written', file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True)
class Room:
    """What a worker needs to make a sub-map. part: places of its frames in the source; None is all."""

    source: str
    part: list[int] | None
    name: str
    out: Path
    options: argparse.Namespace
    mapping: MappingOptions
    threads: int

    @property
    def note(self) -> Path:
        """The file beside the map that says what it was made of."""
        return self.out.with_suffix('.json')

    def made_of(self) -> str:
        """The recording, as it is now, and what of it is read, as JSON. Raises OSError."""
        path = Path(self.source)
        chosen = {name: getattr(self.options, name) for name in (f.name for f in fields(SourceOptions))}
        return json.dumps({'source': str(path.resolve()), 'files': fingerprint(path), 'part': self.part, **chosen})


def map_rooms(options: argparse.Namespace, mapping: MappingOptions) -> int:
    """An expert for each source, or for each part of one. A room that fails does not lose the others; rooms that are mapped already are
    not mapped again."""
    from dsac_ros.maps.bundle import check_place
    from dsac_ros.maps.editing import merge_sites
    from dsac_ros.training.executors import run_jobs

    out = Path(options.out)
    check_place(out, options.overwrite)
    work = out.with_name(out.name + '.rooms')
    workers = workers_of(options.workers)
    rooms = {room.name: room for room in rooms_of(options, mapping, work, max(1, (os.cpu_count() or 1) // workers))}
    kept = [name for name, room in rooms.items() if is_mapped(room)]
    for name in kept:
        print(f'{rooms[name].out}: mapped before, kept')

    def tell(name: str, error: str) -> None:
        if error:
            print(f'dsac-ros map: {name}: {error}', file=sys.stderr)
    failed = run_jobs(map_part, rooms, kept.__contains__, options.executor, workers, tell)
    made = [room.out for name, room in rooms.items() if name not in failed]
    if made:
        merge_sites(made, out, options.overwrite)
        shutil.rmtree(work)
        print(f'{out}: {len(made)} experts')
    else:
        with suppress(OSError):  # what an earlier call left there may be of use to the next
            work.rmdir()
        print(f'warning: {out}: no room could be mapped, so no map was written; see above why, and call again', file=sys.stderr)
    for name in failed if made else ():
        source = rooms[name].source
        cure = f'`dsac-ros maps add {out} {source}` adds it' if rooms[name].part is None else f'it was part of {source}'
        print(f'warning: {name} is not in the map; {cure}', file=sys.stderr)
    return 1 if failed else 0


def rooms_of(options: argparse.Namespace, mapping: MappingOptions, work: Path, threads: int) -> list[Room]:
    """Each source, or with --split auto each part of each. Raises DataError where the poses of sources are in different frames."""
    from dsac_ros.data.opening import source_from
    from dsac_ros.errors import ConfigError, DataError
    from dsac_ros.training.parts import parts_of

    auto, split = is_auto(options.split)
    if not options.extent > 0:
        raise ConfigError(f'--extent: expected metres above zero, found {options.extent}')
    options = argparse.Namespace(**{**vars(options), 'split': split})
    frames, parts = set(), []
    for path in options.sources:
        source = source_from(path, options, require_poses=True, load_depth=auto and not mapping.rgb_only)
        frames.add(source.map_frame)
        if len(frames) > 1:
            raise DataError(f'the poses are in different frames, {", ".join(sorted(frames))}; map each by itself, and say where they lie '
                            'with `dsac-ros maps add --site-from-map`')
        found = parts_of(source, options.extent) if auto else []
        if auto:
            print(f'{path}: {len(found)} parts of {", ".join(str(len(part)) for part in found)} frames')
        name = expert_name(path)
        # One part is the recording as it is.
        parts += [(path, part, f'{name}_{k}') for k, part in enumerate(found, 1)] if len(found) > 1 else [(path, None, name)]
    names = distinct([name for _, _, name in parts])
    return [Room(path, part, name, work / f'{name}.dsacmap', options, mapping, threads) for (path, part, _), name in zip(parts, names)]


def is_auto(split: str | None) -> tuple[bool, str | None]:
    """Whether to cut recordings into parts, and the split of a data folder: of None, NAME, `auto` or `NAME,auto`."""
    named, _, last = (split or '').rpartition(',')
    return (True, named or None) if last == AUTO else (False, split)


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of change of all files below a folder, or of the one file. Raises OSError."""
    from dsac_ros.maps.bundle import sha256

    files = sorted(file for file in path.rglob('*') if file.is_file()) if path.is_dir() else [path]
    states = [(file, file.stat()) for file in files]
    return sha256(json.dumps([(str(file.relative_to(path)), state.st_size, state.st_mtime_ns) for file, state in states]).encode())


def is_mapped(room: Room) -> bool:
    """Whether an earlier call made this sub-map of the same recording with the same options, to its end."""
    from dsac_ros.errors import MapError
    from dsac_ros.maps.bundle import load_map

    try:
        record = load_map(room.out).training if room.out.is_dir() and room.note.read_text() == room.made_of() else {}
    except (MapError, OSError, UnicodeDecodeError):
        return False
    return record.get('options') == asdict(room.mapping) and not record.get('interrupted')


def map_part(room: Room) -> None:
    """In a worker: make the sub-map."""
    import torch

    torch.set_num_threads(room.threads)
    made_of = room.made_of()
    room.note.unlink(missing_ok=True)
    map_room(room.source, str(room.out), room.name, room.options, room.mapping, room.out.is_dir(), room.part)
    room.note.write_text(made_of)


def map_room(path: str, out: str, name: str, options: argparse.Namespace, mapping: MappingOptions, overwrite: bool,
             part: list[int] | None = None) -> None:
    """Map one source, or part of it, and print how good it is. options: of add_mapping_arguments."""
    from dsac_ros.data.opening import source_from, warning_lines
    from dsac_ros.training.mapping import map_source
    from dsac_ros.training.parts import PartSource

    source = source_from(path, options, require_poses=True, load_depth=not mapping.rgb_only)
    bundle = map_source(source if part is None else PartSource(source, part), out, mapping, options.device, name, overwrite)
    for line in warning_lines(source):
        print(line)
    record = bundle.training
    print(f'{out}: {record["frames"]} frames, {record["landmarks"]} landmarks, {record["samples"]} samples, '
          f'{record["steps"]} steps in {record["seconds"]:.0f} s'
          + (' (interrupted)' if record['interrupted'] else ''))
    poses = record['poses']
    if poses.get('moved'):
        print(f'  images disagreed with the poses, or with the calibration, by {poses["given_px"]:.2f} px in the median: {poses["moved"]} '
              f'poses moved by {100 * poses["moved_m"]:.1f} cm, {poses["turned_deg"]:.2f} deg ({poses["px"]:.2f} px left; '
              '--set adjust_poses=false keeps them)')
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
    """The names, those that come again with a number that makes a name of its own."""
    found: list[str] = []
    for name in names:
        numbered = (f'{name}-{number}' for number in count(2))
        found.append(name if name not in found else next(new for new in numbered if new not in [*found, *names]))
    return found


def doubts(record: Mapping[str, Any]) -> list[str]:
    """What a user should know before trusting a map, from what it says of how it was made."""
    lines = []
    if record['frames'] < FEW * record['frames_given'] and not record['interrupted']:
        lines.append(f'the time was enough for {record["frames"]} of {record["frames_given"]} frames; '
                     'raise --minutes, or free the processor of other work')
    if record['options']['landmarks'] and record['triangulated'] < FEW * record['frames'] and not record['interrupted']:
        lines.append(f'keypoints of {record["triangulated"]} of {record["frames"]} frames could be triangulated, and it is landmarks that '
                     'make poses exact; where time was short raise --minutes, or free the processor of other work')
    errors = [kind['median_translation_m'] for kind in record['held_out'].values()]
    if errors and min(errors) > HOPELESS_M:
        lines.append(f'frames held out are off by {100 * min(errors):.0f} cm at best: this map will hardly localise anything; '
                     'map for longer, look more slowly and from more places, or check poses and calibration')
    return lines
