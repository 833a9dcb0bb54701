"""A path in, an open rosbags reader out; whatever a damaged file makes the parsers raise becomes one DataError that names the bag."""
from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Iterator

from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from dsac_ros.errors import DataError

ADVICE = 'run `ros2 bag reindex` on it, or copy it again'


@cache
def standard_types() -> Typestore:
    """The standard messages as Jazzy defines them; the same on the wire since Foxy. Kept, as making (de)serialisers takes 0.2 s."""
    return get_typestore(Stores.ROS2_JAZZY)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system says where it does not let us look at a path becomes one DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from error


def _storage_path(path: Path) -> Path:
    """The folder, or its only file where metadata.yaml is missing (a recorder that was killed writes none)."""
    if not path.is_dir() or (path / 'metadata.yaml').is_file():
        return path
    files = _storage_files(path)
    if len(files) != 1:
        raise DataError(f'{path}: no metadata.yaml and {len(files)} storage files; {ADVICE}')
    return files[0]


def _storage_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix in ('.db3', '.mcap')]


def _check_length(file: Path, bag: Path) -> None:
    """Raise DataError where an sqlite3 file is shorter than its header says: sqlite itself reads what is missing as zeros."""
    with readable(file), file.open('rb') as stream:
        header = stream.read(100)
    if header[:16] != b'SQLite format 3\0' or header[24:28] != header[92:96]:
        return  # no database, which the reader will say; or written by a program too old to keep the length
    page = int.from_bytes(header[16:18], 'big')
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], 'big')
    if file.stat().st_size < expected:
        raise DataError(f'{bag}: {file.name} has {file.stat().st_size} bytes of {expected}: it was cut short; {ADVICE}')


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """An open reader; whatever a damaged file makes the parsers raise becomes one DataError."""
    with readable(path):
        if not path.exists():
            raise DataError(f'{path}: no such bag')
        storage = _storage_path(path)
        files = _storage_files(storage) if storage.is_dir() else [storage]
    for file in files:
        _check_length(file, path)
    try:
        reader = Reader(storage)
        reader.open()
    except Exception as error:  # sqlite, struct, zstd, yaml, assertion: a cut file can raise nearly anything
        raise DataError(f'{path}: cannot be read as a rosbag2 ({_said(error)}); was it cut short? {ADVICE}') from error
    try:
        yield reader
    finally:
        reader.close()


def guarded(messages: Iterator[Any], path: Path) -> Iterator[Any]:
    """The same items; see opened for the errors."""
    read = 0
    while True:
        try:
            item = next(messages, None)
        except Exception as error:
            raise DataError(f'{path}: damaged after {read} messages ({_said(error)}); was it cut short? {ADVICE}') from error
        if item is None:
            return
        read += 1
        yield item


def _said(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.rstrip(': ')
