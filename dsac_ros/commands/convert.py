"""Turn a bag, a data folder or a 7-Scenes folder into a rosbag2 with colour, depth, camera_info, TF and reference poses."""
from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from dsac_ros.data.opening import add_source_arguments, source_from, warning_lines
from dsac_ros.data.writing import STORAGES, BagWriter
from dsac_ros.errors import DataError

HELP = 'turn any readable data into a rosbag2'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dsac-ros convert`."""
    parser.add_argument('source', help='rosbag2 (folder, .db3 or .mcap), data folder or 7-Scenes folder')
    parser.add_argument('--out', required=True, help='folder of the bag to write')
    parser.add_argument('--storage', choices=tuple(STORAGES), default='sqlite3', help='storage of the bag')
    parser.add_argument('--compressed', action='store_true', help='colour as JPEG (lossy), depth as PNG (lossless)')
    parser.add_argument('--rgb-only', action='store_true', help='leave depth out')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing bag')
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, then say what was written and what was left out. Raises DataError."""
    read, written_to = Path(options.source).resolve(), Path(options.out).resolve()
    if written_to == read or written_to in read.parents:
        # Even where all goes well: what a bag holds besides, other topics and the rest of TF, is not written again.
        raise DataError(f'--out {options.out}: the source {options.source} is there, which would be lost; choose another --out')
    source = source_from(options.source, options, load_depth=not options.rgb_only)
    written: Counter[str] = Counter()
    stamps: tuple[int, int] | None = None
    with BagWriter(options.out, options.storage, source.map_frame, compressed=options.compressed, overwrite=options.overwrite) as writer:
        for frame in source:
            writer.write(frame)
            written['depth images'] += frame.depth is not None
            written['reference poses'] += frame.map_from_camera is not None
            stamps = (stamps[0] if stamps else frame.stamp_ns, frame.stamp_ns)
        if stamps is None:
            raise DataError(f'{options.source}: no frames, so nothing was written')
    parts = ', '.join(f'{count} {what}' for what, count in written.items())
    print(f'{options.out}: {writer.frames} frames over {(stamps[1] - stamps[0]) / 1e9:.1f} s, {parts}, map frame {source.map_frame!r}')
    for line in warning_lines(source):
        print(f'warning: {line}')
    return 0
