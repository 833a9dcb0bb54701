"""A path in, the FrameSource that reads it out; the options of the commands that read data."""
from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from dsac_ros.config import SourceOptions
from dsac_ros.data.bags import SLOP_MS, BagSource
from dsac_ros.data.folders import FolderSource, is_folder_source
from dsac_ros.data.source import FrameSource
from dsac_ros.data.storage import readable
from dsac_ros.data.topics import BagTopics
from dsac_ros.errors import DataError

__all__ = ['BagTopics', 'add_source_arguments', 'open_source', 'source_from', 'warning_lines']
STORAGE_ENDS = ('.db3', '.mcap', '.zstd')


def open_source(path: str | Path, split: str | None = None, require_poses: bool = False, load_depth: bool = True,
                topics: BagTopics | None = None, slop_ms: float = SLOP_MS) -> FrameSource:
    """The reader for a rosbag2 (folder, .db3, .mcap), a data folder or a 7-Scenes folder.

    Args:
        split: which part of a data folder (a name in its splits.json). require_poses: raise where there is no reference pose at all.
        load_depth: False leaves depth unread. topics: for bags whose topics cannot be told by type and name.
        slop_ms: of bags, the largest difference of the stamps of a colour and a depth image that are one frame.

    Raises DataError where nothing known is found, or it cannot be read.
    """
    path = Path(path)
    with readable(path):
        if not path.exists():
            raise DataError(f'{path}: no such file or folder')
        is_bag = path.suffix in STORAGE_ENDS if path.is_file() else (path / 'metadata.yaml').is_file() or any(
            file.suffix in STORAGE_ENDS for file in path.iterdir())
        if is_bag:
            if split is not None:
                raise DataError(f'{path}: a bag has no splits; leave --split {split} out')
            return BagSource(path, topics, require_poses=require_poses, load_depth=load_depth, slop_ms=slop_ms)
        if path.is_dir() and is_folder_source(path):
            return FolderSource(path, split, require_poses=require_poses, load_depth=load_depth)
    raise DataError(f'{path}: no data found; looked for a rosbag2 (metadata.yaml, *.db3, *.mcap), for rgb/ with intrinsics.json, and for '
                    '7-Scenes '
                    '(frame-XXXXXX.color.png, seq-XX/)')


def add_source_arguments(parser: argparse.ArgumentParser, about_split: str = '') -> None:
    """The options that say what of a source is read, alike in every command. about_split: what else --split can be."""
    topics = parser.add_argument_group('topics of a bag (found by type and name where not given)')
    for f in fields(SourceOptions):
        group, flag = parser if f.name in ('split', 'slop') else topics, '--' + f.name.replace('_', '-')
        if isinstance(f.default, float):
            group.add_argument(flag, type=float, default=f.default, metavar=f.metadata['unit'].upper(), help=f.metadata['help'])
        else:
            group.add_argument(flag, help=f.metadata['help'] + (about_split if f.name == 'split' else ''))


def source_from(path: str | Path, options: argparse.Namespace, require_poses: bool = False, load_depth: bool = True) -> FrameSource:
    """open_source with the options of add_source_arguments. Raises ConfigError too."""
    SourceOptions(slop=options.slop)
    topics = BagTopics(options.colour_topic, options.depth_topic, options.info_topic, options.pose_topic,
                       options.camera_frame, options.map_frame)
    return open_source(path, options.split, require_poses, load_depth, topics, options.slop)


def warning_lines(source: Any) -> list[str]:
    """What a source left out, one line per cause with the count and the first case in words."""
    details = getattr(source, 'details', {})
    return [f'{count} x {cause}' + (f': {details[cause]}' if cause in details else '')
            for cause, count in sorted(source.warnings.items()) if count]
