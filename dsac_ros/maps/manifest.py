"""The manifest of a map: frame, encoder, and what it says of each expert. Every value is checked, since maps come from strangers.

It is parsed whenever a map is opened, and YAML is slow: of an expert it has what is needed before the expert is, and nothing for people.
"""
from __future__ import annotations

import fcntl
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dsac_ros.errors import MapError
from dsac_ros.networks.encoder import ENCODER_ID, WEIGHTS_SHA256

FILE = 'manifest.yaml'
FORMAT = 2  # 1, until November 2026, had one expert, with its factors and its training beside the list
MAX_MANIFEST_BYTES = 1 << 20
MAX_EXPERTS = 1000
MAX_NAME = 80
COVARIANCE_KEYS = ('rgb', 'rgbd', 'landmarks')
RIGID = 1e-5  # what a rotation may be off by
Rows = list[list[float]]


def identity() -> Rows:
    """Of a sub-map whose own frame is that of the site."""
    return np.eye(4)[:3].tolist()


@dataclass(frozen=True)
class ExpertEntry:
    """What the manifest says of one expert.

    centre, extent: of its scene coordinates [m], in the frame of the sub-map. covariance_factors: what a pose comes from (rgb, rgbd,
    landmarks) -> factor on the inverse Hessian. site_from_map: three rows of a rigid transform, from the frame of the sub-map to that of
    the map. gating_sha256: of gating_file, '' where there is none.
    """

    name: str
    file: str
    sha256: str
    centre: list[float]
    extent: list[float]
    covariance_factors: dict[str, float]
    gating_sha256: str = ''
    site_from_map: Rows = field(default_factory=identity)

    @property
    def gating_file(self) -> str:
        """The prototypes that an image is compared with."""
        return f'gating/{Path(self.file).name}'

    @property
    def training_file(self) -> str:
        """How it was made, for people."""
        return str(Path(self.file).with_suffix('.yaml'))

    @property
    def site_from_map_44(self) -> np.ndarray:
        return np.vstack([self.site_from_map, [0.0, 0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Manifest:
    """frame_id: that poses are published in. training: of a map of format 1."""

    frame_id: str
    entries: tuple[ExpertEntry, ...]
    training: dict[str, Any] = field(default_factory=dict)

    def index(self, name: str) -> int:
        """Raises MapError where no expert is called that."""
        names = [entry.name for entry in self.entries]
        if name not in names:
            raise MapError(f'no expert {name!r}; there are {", ".join(names)}')
        return names.index(name)

    def text(self) -> str:
        """The file."""
        values = {'format': FORMAT, 'frame_id': self.frame_id, 'encoder': {'id': ENCODER_ID, 'sha256': WEIGHTS_SHA256},
                  'experts': [{name: value for name, value in asdict(entry).items()
                               if name != 'site_from_map' or value != identity()} for entry in self.entries]}
        return yaml.safe_dump(values, sort_keys=False)


def read_manifest(path: Path) -> Manifest:
    """Of the map at `path`. Raises MapError that names the file and what is wrong with it."""
    file = path / FILE
    values = read_yaml(file, MAX_MANIFEST_BYTES)
    if type(values.get('format')) is not int or values['format'] not in (1, FORMAT):
        raise MapError(f'{file}: map format {brief(values.get("format"))}, expected {FORMAT}; make the map again with this version')
    encoder = values.get('encoder')
    if not isinstance(encoder, dict) or (encoder.get('id'), encoder.get('sha256')) != (ENCODER_ID, WEIGHTS_SHA256):
        raise MapError(f'{file}: made with encoder {brief(encoder)}, this version has {ENCODER_ID!r}; make the map again')
    frame_id = values.get('frame_id')
    if not isinstance(frame_id, str) or not frame_id or not frame_id.isprintable():
        raise MapError(f'{file}: frame_id: expected a name, found {brief(frame_id)}')
    experts, training = values.get('experts'), {}
    if not isinstance(experts, list) or not 0 < len(experts) <= MAX_EXPERTS:
        raise MapError(f'{file}: experts: expected a list of 1 to {MAX_EXPERTS}, found {brief(experts)}')
    if values['format'] == 1:
        experts = [{**experts[0], 'covariance_factors': values.get('covariance_factors')} if isinstance(experts[0], dict) else experts[0]]
        training = values.get('training')
    entries = tuple(_entry(file, expert) for expert in experts)
    for name in ('name', 'file'):
        seen = [getattr(entry, name) for entry in entries]
        if len(set(seen)) < len(seen):
            raise MapError(f'{file}: two experts have the same {name}')
    return Manifest(frame_id, entries, training if isinstance(training, dict) else {})


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest of a map: whoever reads sees the old one or the new one. Raises MapError."""
    draft = path / f'.{FILE}.{os.getpid()}'
    try:
        with draft.open('w') as file:
            file.write(manifest.text())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path / FILE)
    except OSError as error:
        raise MapError(f'{path / FILE}: cannot be written: {error.strerror}') from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def changing(path: Path) -> Iterator[Manifest]:
    """The manifest of a map that nobody else changes meanwhile. Raises MapError where somebody does."""
    read_manifest(path)
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MapError(f'{path}: another process is changing this map; try again when it is done') from error
        yield read_manifest(path)
    finally:
        os.close(folder)


def check_name(name: str) -> str:
    """A name that may become a file. Raises MapError."""
    if not 0 < len(name) <= MAX_NAME or not name[0].isalnum() or not all(c.isalnum() or c in '._- ' for c in name):
        raise MapError(f'expert name {name!r:.100}: expected up to {MAX_NAME} letters, digits, dots, dashes or underscores')
    return name


def placed(entry: ExpertEntry, site_from_map_44: np.ndarray) -> ExpertEntry:
    """The entry at another place of the site. Raises MapError for what is no rigid transform."""
    moved = replace(entry, site_from_map=np.asarray(site_from_map_44, np.float64)[:3].tolist())
    _check_rigid(f'{entry.name}', moved.site_from_map)
    return moved


def brief(value: Any) -> str:
    """What was found, in a few words."""
    try:
        return f'{reprlib.repr(value):.80}'  # not repr: nested aliases of a few lines of YAML write out to gigabytes
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__


def read_plain(path: Path, most: int) -> bytes:
    """What is in a file, at most so many bytes. Raises MapError; FileNotFoundError.

    Of a stranger's map a link could lead to files of ours, and a device or a pipe never ends.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise MapError(f'{path}: expected a plain file, found a link, a folder or a device')
        with path.open('rb') as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MapError(f'{path}: cannot be read: {error.strerror}') from error
    if len(data) > most:
        raise MapError(f'{path}: expected at most {most} bytes, found more')
    return data


class PlainLoader(yaml.SafeLoader):
    """Without merge keys (<<), with which a few lines become gigabytes while they are read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing: the key is then one of no known type, which is an error."""


def read_yaml(path: Path, most: int) -> dict[str, Any]:
    """A mapping of at most so many bytes. Raises MapError."""
    try:
        data = read_plain(path, most)
    except FileNotFoundError as error:
        raise MapError(f'{path.parent}: no map: {path.name} is missing; expected a folder made by `dsac-ros map`') from error
    try:
        values = PlainLoader(data.decode()).get_single_data()  # the loader in C is faster, and deep nesting ends the process
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2020-13-45
        raise MapError(f'{path}: cannot be read: {" ".join(str(error).split()):.200}') from error
    if not isinstance(values, dict):
        raise MapError(f'{path}: expected a mapping, found {type(values).__name__}')
    return values


def _entry(path: Path, values: Any) -> ExpertEntry:
    required = {f.name for f in fields(ExpertEntry)[:6]}
    optional = {'gating_sha256': '', 'site_from_map': identity()}
    if not isinstance(values, dict) or not required <= set(values) <= required | set(optional):
        raise MapError(f'{path}: expert: expected {", ".join(sorted(required))}, found {brief(values)}')
    values = optional | values
    for name in ('name', 'file', 'sha256', 'gating_sha256'):
        if not isinstance(values[name], str):
            raise MapError(f'{path}: expert {name}: expected text, found {brief(values[name])}')
    for name in ('centre', 'extent'):
        if not _numbers(values[name], 3):
            raise MapError(f'{path}: expert {name}: expected three numbers, found {brief(values[name])}')
    try:
        check_name(values['name'])
    except MapError as error:
        raise MapError(f'{path}: {error}') from error
    factors = values['covariance_factors']
    if not isinstance(factors, dict) or set(factors) != set(COVARIANCE_KEYS) or not all(
            isinstance(v, float) and 0 < v < 1e9 for v in factors.values()):
        raise MapError(f'{path}: covariance_factors: expected positive numbers for {", ".join(COVARIANCE_KEYS)}, found {brief(factors)}')
    parts = Path(values['file']).parts
    # A manifest from a stranger must not make us read files elsewhere.
    if Path(values['file']).is_absolute() or '..' in parts or len(parts) != 2 or parts[0] != 'experts' or not values['file'].isprintable():
        raise MapError(f'{path}: expert file {brief(values["file"])}: expected experts/NAME.safetensors')
    _check_rigid(f'{path}', values['site_from_map'])
    return ExpertEntry(**values)


def _numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(isinstance(v, float) and abs(v) < 1e9 for v in values)


def _check_rigid(where: str, rows: Any) -> None:
    good = isinstance(rows, list) and len(rows) == 3 and all(_numbers(row, 4) for row in rows)
    if good:
        rotation = np.array(rows)[:, :3]
        good = np.abs(rotation @ rotation.T - np.eye(3)).max() < RIGID and np.linalg.det(rotation) > 0
    if not good:
        raise MapError(f'{where}: site_from_map: expected three rows of a rotation and a translation, found {brief(rows)}')
