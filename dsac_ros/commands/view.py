"""Look at a map, its poses and what speaks for them in the viewer Rerun: frames localised now, or an evaluation done before. No ROS."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsac_ros.config import LOCALIZER_GROUPS, build_groups, parse_settings
from dsac_ros.data.opening import add_source_arguments, source_from
from dsac_ros.data.storage import readable
from dsac_ros.errors import DataError, DsacError, MapError
from dsac_ros.evaluation.replay import ThinnedSource, choose_modality, replay
from dsac_ros.evaluation.tables import read_per_frame
from dsac_ros.progress import progress_bar

HELP = 'look at a map and its poses in Rerun, without ROS'
ENDING, MAGIC = '.rrd', b'RRF'  # of Rerun's files; a digit of the version follows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MAP SOURCE or RESULTS, and where the recording goes."""
    parser.add_argument('what', type=Path, metavar='MAP|RESULTS', help='map bundle (with SOURCE), or results folder of `dsac-ros evaluate`')
    parser.add_argument('source', nargs='?', metavar='SOURCE', help='bag or data folder with the frames to localise in the map')
    parser.add_argument('--out', type=Path, default=None, metavar='FILE.rrd', help='write a recording; without it the viewer opens')
    parser.add_argument('--overwrite', action='store_true', help='replace the file')
    parser.add_argument('--modality', choices=('auto', 'rgb', 'rgbd'), default='auto', help='what the localizer may see')
    parser.add_argument('--device', default='auto', help='where the network runs: auto, cpu, cuda or cuda:N')
    parser.add_argument('--every', type=int, default=1, help='only every k-th frame')
    parser.add_argument('--frames', type=int, default=0, help='at most so many frames; 0: all')
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE', help='parameter of the node, as in evaluate --set')
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Record; 0 when all is written."""
    if options.every < 1 or options.frames < 0:
        raise DsacError(f'--every {options.every} --frames {options.frames}: expected at least 1 and 0')
    if options.out is not None:
        _check_place(options.out, options.overwrite)
    with readable(options.what):
        is_results = (options.what / 'summary.json').is_file()
    frames = (_look_back if is_results else _look)(options)
    if options.out is not None:
        print(f'{frames} frames: {options.out.resolve()}, to be opened by: rerun {options.out}')
    return 0


def _check_place(out: Path, overwrite: bool) -> None:
    """Raise DataError unless a recording may be written to `out`: it ends in .rrd, and is absent or an older recording with `overwrite`."""
    if out.suffix != ENDING:
        raise DataError(f'{out}: is no name of a recording; choose an --out that ends in {ENDING}')
    try:
        if not out.exists():
            return
        if not overwrite:
            raise DataError(f'{out}: exists already; choose another --out or --overwrite')
        with out.open('rb') as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f'{out}: cannot be written: {error.strerror}; choose another --out') from error
    if begins != MAGIC:
        raise DataError(f'{out}: is no recording of Rerun and is left alone; choose another --out')


def _look(options: argparse.Namespace) -> int:
    """Localise now."""
    from dsac_ros.localizer import Localizer
    from dsac_ros.tracking.tracker import Tracker
    from dsac_ros.viewing.recording import Recording
    from dsac_ros.viewing.shapes import map_view
    from dsac_ros.viewing.support import support_of
    if options.source is None:
        raise DataError(f'{options.what}: is no results folder (no summary.json); for a map name a SOURCE of frames too')
    groups = build_groups(LOCALIZER_GROUPS, parse_settings(LOCALIZER_GROUPS, options.set))
    source = ThinnedSource(source_from(options.source, options, load_depth=options.modality != 'rgb'), options.every, options.frames)
    localizer = Localizer.from_map(options.what, options.device, groups['estimator'], groups['integrity'], groups['gating'])
    modality = choose_modality(source, options.modality)
    count = 0
    with Recording(options.out) as recording:
        recording.show_map(map_view(localizer.choice.site))
        replayed = replay(Tracker(localizer, groups['tracking'], groups['gating']), source, modality, groups['state'])
        for each in progress_bar('frames', len(source), iterable=replayed):
            support = None if each.estimate is None else support_of(localizer, each.frame, each.estimate)
            recording.show(each.result, each.frame, support)
            count += 1
    return count


def _look_back(options: argparse.Namespace) -> int:
    """What an evaluation wrote; the map too, where it is still at its place."""
    from dsac_ros.maps.site import open_site
    from dsac_ros.viewing.recording import Recording
    from dsac_ros.viewing.shapes import map_view
    results = read_per_frame(options.what / 'per_frame.csv')[::options.every][:options.frames or None]
    with Recording(options.out) as recording:
        try:
            described = json.loads((options.what / 'summary.json').read_text())['run']
            recording.show_map(map_view(open_site(described['map_path'])))
        except (MapError, OSError, ValueError, KeyError, TypeError) as error:
            print(f'dsac-ros view: the map is not shown: {error}')
        for result in results:
            recording.show(result)
    return len(results)
