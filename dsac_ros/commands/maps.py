"""Maps of many rooms: `dsac-ros maps add SITE BAG`, remove, info, merge, gate, verify. No other expert is retrained or written."""
from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsac_ros.commands.map import add_mapping_arguments, expert_name, map_room, mapping_options

HELP = 'add, remove, list, merge, teach and check the experts of a map'
FRAMES, HELD_OUT = 200, 0.2  # that gating is taught with
HEADER = ('expert', 'extent [m]', 'at [m]', 'size [MB]', 'frames', 'landmarks', 'held out, median')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A parser for each of the actions."""
    from dsac_ros.data.opening import add_source_arguments

    actions = parser.add_subparsers(dest='action', required=True)
    add = actions.add_parser('add', help='map a bag or data folder and add it, or add the experts of another map')
    add.add_argument('site', help='map bundle to add to; with one expert or more')
    add.add_argument('source', help='bag or data folder with reference poses, or a map bundle')
    add.add_argument('--name', help='of the new expert; default: the last part of the path')
    add.add_argument('--site-from-map', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                     help="where the frame of the new expert's poses lies in that of the site: metres and a quaternion; default: they are "
                     'one frame')
    add_mapping_arguments(add)
    remove = actions.add_parser('remove', help='remove one expert')
    remove.add_argument('site')
    remove.add_argument('name', help='as `info` lists it')
    actions.add_parser('info', help='a table of the experts').add_argument('site')
    merge = actions.add_parser('merge', help='a new map of the experts of several, all in one frame')
    merge.add_argument('sites', nargs='+', metavar='site')
    merge.add_argument('--out', required=True, help='map bundle to write')
    merge.add_argument('--overwrite', action='store_true', help='replace the map at --out')
    gate = actions.add_parser('gate', help='teach gating, end to end, to tell the sub-maps apart: a new map with other prototypes')
    gate.add_argument('site')
    gate.add_argument('sources', nargs='+', metavar='source', help='bags or data folders, poses in the frame of the site')
    gate.add_argument('--out', required=True, help='map bundle to write')
    gate.add_argument('--overwrite', action='store_true', help='replace the map at --out')
    gate.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    gate.add_argument('--frames', type=int, default=FRAMES, help='of each source that are looked at, evenly spread')
    add_source_arguments(gate)
    actions.add_parser('verify', help='check every file; exit code 1 where something is wrong').add_argument('site')


def run(options: argparse.Namespace) -> int:
    """Do the action."""
    return {'add': _add, 'remove': _remove, 'info': _info, 'merge': _merge, 'gate': _gate, 'verify': _verify}[options.action](options)


def _add(options: argparse.Namespace) -> int:
    from dsac_ros.data.opening import source_from
    from dsac_ros.data.storage import readable
    from dsac_ros.data.transforms import matrix_from
    from dsac_ros.errors import MapError
    from dsac_ros.maps.editing import add_experts, check_addable
    from dsac_ros.maps.manifest import FILE, read_manifest

    site, place = Path(options.site), options.site_from_map
    site_from_map = None if place is None else matrix_from(place[:3], place[3:])
    with readable(Path(options.source)):
        is_map = (Path(options.source) / FILE).is_file()
    if is_map:
        added = add_experts(site, Path(options.source), options.name, site_from_map)
    else:
        mapping, name = mapping_options(options), options.name or expert_name(options.source)
        manifest = check_addable(site, name, site_from_map)
        frame = source_from(options.source, options, require_poses=True, load_depth=False).map_frame
        if site_from_map is None and frame != manifest.frame_id:
            raise MapError(f'{options.source}: its poses are in frame {frame!r}, those of the site in {manifest.frame_id!r}; say where the '
                           'one lies in the other with --site-from-map')
        same_place = '' if place is None else ', with the same --site-from-map,'
        work = site.with_name(site.name + '.added')  # not where `dsac-ros map` keeps rooms, which may have one of this name
        room = work / f'{name}.dsacmap'
        try:
            map_room(options.source, str(room), name, options, mapping, overwrite=room.is_dir())
            try:
                added = add_experts(site, room, name, site_from_map)
            except MapError as error:
                raise MapError(f'{error}; the new room is kept, and `dsac-ros maps add {site} {room}`{same_place} adds it later') from error
            shutil.rmtree(room)
        finally:
            with suppress(OSError):  # a room is kept there, or another `dsac-ros maps add` is at work
                work.rmdir()
    print(f'{site}: {", ".join(added)} added, {len(read_manifest(site).entries)} experts')
    return 0


def _remove(options: argparse.Namespace) -> int:
    from dsac_ros.maps.editing import remove_expert

    remove_expert(Path(options.site), options.name)
    print(f'{options.site}: {options.name} removed')
    return 0


def _merge(options: argparse.Namespace) -> int:
    from dsac_ros.maps.editing import merge_sites

    manifest = merge_sites([Path(site) for site in options.sites], Path(options.out), options.overwrite)
    print(f'{options.out}: {len(manifest.entries)} experts')
    return 0


def _gate(options: argparse.Namespace) -> int:
    from dsac_ros.config import FinetuningOptions
    from dsac_ros.data.opening import source_from
    from dsac_ros.errors import ConfigError
    from dsac_ros.training.gating import train_gating
    from dsac_ros.training.mapping import MIN_FRAMES

    if options.frames < MIN_FRAMES:
        raise ConfigError(f'--frames: expected {MIN_FRAMES} or more of each source, found {options.frames}')
    sources = [source_from(path, options, require_poses=True, load_depth=False) for path in options.sources]
    training = FinetuningOptions(max_frames=options.frames, held_out_share=HELD_OUT)
    before, after = train_gating(options.site, sources, options.out, training, options.device, options.overwrite)
    print(f'{options.out}: {before.then(after)}')
    return 0


def _verify(options: argparse.Namespace) -> int:
    from dsac_ros.maps.editing import problems

    found = problems(Path(options.site))
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f'{options.site}: all is well')
    return 1 if found else 0


def _info(options: argparse.Namespace) -> int:
    from dsac_ros.maps.bundle import load_training
    from dsac_ros.maps.manifest import read_manifest

    site = Path(options.site)
    manifest = read_manifest(site)
    rows = [HEADER]
    for entry in manifest.entries:
        size = sum((site / file).stat().st_size for file in (entry.file, entry.gating_file) if (site / file).is_file())
        record = manifest.training or load_training(site, entry)
        rows.append((entry.name, ' x '.join(f'{v:.1f}' for v in entry.extent), ' '.join(f'{v:.2f}' for v in entry.site_from_map_44[:3, 3]),
                     f'{size / 1e6:.2f}', str(record.get('frames', '')), str(record.get('landmarks', '')), held_out(record)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f'{len(manifest.entries)} experts, poses in frame {manifest.frame_id!r}')
    return 0


def held_out(record: dict[str, Any]) -> str:
    """The errors on frames held out of mapping: 'rgb 2.1 cm 0.5 deg, ...'."""
    try:
        return ', '.join(f'{kind} {100 * each["median_translation_m"]:.1f} cm {each["median_rotation_deg"]:.2f} deg'
                         for kind, each in record.get('held_out', {}).items())
    except (AttributeError, KeyError, TypeError, ValueError):  # for people alone: nothing has checked it
        return ''
