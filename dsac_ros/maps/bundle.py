"""The map bundle: a folder with one manifest.yaml and the tensors of its experts in safetensors files.

Nothing in it can run code: YAML by a safe loader, tensors by safetensors, and every name, hash, shape and number is checked before use.
"""
from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from dsac_ros.errors import MapError
from dsac_ros.landmarks.keypoints import DIMENSIONS
from dsac_ros.landmarks.landmarks import COMPRESSED, Landmarks
from dsac_ros.maps.manifest import FILE, ExpertEntry, Manifest, check_name, read_manifest, read_plain, read_yaml
from dsac_ros.networks.encoder import CHANNELS, shared_encoder
from dsac_ros.networks.expert import Expert
from dsac_ros.networks.gating import DIMENSIONS as GATING_DIMENSIONS
from dsac_ros.networks.gating import Prototypes
from dsac_ros.replacing import check_replaceable, move_into_place

MAX_EXPERT_BYTES = 64 << 20
MAX_GATING_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20
MAX_LANDMARKS = 200_000
MAX_VIEWS = 100_000  # that landmarks were mapped from


@dataclass(frozen=True)
class MapBundle:
    """One sub-map in memory, in its own frame. frame_id: of the whole map. prototypes: None where it cannot be told from others.
    training: how it was made, for people."""

    frame_id: str
    entry: ExpertEntry
    expert: Expert
    landmarks: Landmarks | None
    prototypes: Prototypes | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def covariance_factors(self) -> dict[str, float]:
        return self.entry.covariance_factors


def save_map(path: str | Path, frame_id: str, name: str, expert: Expert, landmarks: Landmarks | None, covariance_factors: dict[str, float],
             centre: list[float], extent: list[float], training: dict[str, Any], overwrite: bool = False,
             prototypes: Prototypes | None = None) -> MapBundle:
    """Write a map of one expert. Raises MapError."""
    data = save_tensors(_compact(expert) | (landmarks.tensors() if landmarks else {}))
    entry = ExpertEntry(check_name(name), f'experts/{name}.safetensors', sha256(data), centre, extent, covariance_factors)
    files = {entry.file: data, entry.training_file: yaml.safe_dump(training, sort_keys=False).encode()}
    if prototypes is not None:
        gating = save_tensors(prototypes.tensors())
        entry = replace(entry, gating_sha256=sha256(gating))
        files[entry.gating_file] = gating
    write_bundle(Path(path), Manifest(frame_id, (entry,)), files, overwrite)
    return MapBundle(frame_id, entry, expert, landmarks, prototypes, training)


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes | Path], overwrite: bool = False) -> None:
    """Write a bundle beside its place and rename it, so that a crash never leaves half a map. Raises MapError.

    Args:
        files: name in the bundle -> what is in it, or a file to copy.
    """
    check_place(path, overwrite)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error
    try:
        for name, data in {**files, FILE: manifest.text().encode()}.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            with (temporary / name).open('wb') as file:
                file.write(data if isinstance(data, bytes) else read_plain(data, MAX_EXPERT_BYTES))
                file.flush()
                os.fsync(file.fileno())  # an old map is removed below, and a power cut must not leave neither
        temporary.chmod(0o755)
        move_into_place(temporary, path)
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: Path, overwrite: bool) -> None:
    """Raise MapError where save_map could not write, before the minutes of work and not after."""
    try:
        check_replaceable(path)
        if path.exists() and not (overwrite and (path / FILE).is_file()):
            raise MapError(f'{path}: exists already{"" if not overwrite else " and is no map"}; choose another --out'
                           f'{" or --overwrite" if not overwrite else ""}')
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error


def load_map(path: str | Path, name: str | None = None) -> MapBundle:
    """Read and check one sub-map: the only one, or the one of that name. Raises MapError that names the file and what is wrong with it."""
    path = Path(path)
    manifest = read_manifest(path)
    if name is None and len(manifest.entries) > 1:
        raise MapError(f'{path}: a map of {len(manifest.entries)} experts, expected one; `dsac-ros maps info` lists them')
    entry = manifest.entries[0 if name is None else manifest.index(name)]
    loaded = load_expert(path, manifest.frame_id, entry)
    return replace(loaded, prototypes=load_prototypes(path, entry) if entry.gating_sha256 else None,
                   training=manifest.training or load_training(path, entry))


def load_expert(path: Path, frame_id: str, entry: ExpertEntry) -> MapBundle:
    """Head and landmarks of one expert. Raises MapError."""
    tensors = tensors_of(path / entry.file, checked_bytes(path / entry.file, entry.sha256, MAX_EXPERT_BYTES))
    landmarks = {name: tensors.pop(name) for name in list(tensors) if name.startswith('landmarks.')}
    file = path / entry.file
    return MapBundle(frame_id, entry, _build(file, tensors), _landmarks(file, landmarks) if landmarks else None)


def load_prototypes(path: Path, entry: ExpertEntry) -> Prototypes:
    """What images are compared with. Raises MapError."""
    file = path / entry.gating_file
    tensors = tensors_of(file, checked_bytes(file, entry.gating_sha256, MAX_GATING_BYTES))
    try:
        found = Prototypes.from_tensors(tensors)
        good = found.descriptors_MD.ndim == 2 and len(found.descriptors_MD) > 0 and bool(found.descriptors_MD.isfinite().all())
        size = found.descriptors_MD.shape[-1]
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise MapError(f'{file}: no prototypes: {" ".join(str(error).split()):.200}') from error
    if not good or set(tensors) != set(found.tensors()):
        raise MapError(f'{file}: expected finite prototypes, found tensors {", ".join(sorted(tensors)):.200}')
    if size != GATING_DIMENSIONS:
        raise MapError(f'{file}: expected descriptors of {GATING_DIMENSIONS} numbers, found {size}')
    return found


def load_training(path: Path, entry: ExpertEntry) -> dict[str, Any]:
    """How an expert was made; empty where that was not kept."""
    return read_yaml(path / entry.training_file, MAX_RECORD_BYTES) if (path / entry.training_file).exists() else {}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checked_bytes(file: Path, expected: str, most: int) -> bytes:
    """A file of at most so many bytes, with that hash. Raises MapError.

    Not memory-mapped: whoever checks the hash has read it all.
    """
    try:
        data = read_plain(file, most)
    except FileNotFoundError as error:
        raise MapError(f'{file}: cannot be read: {error.strerror}; the map is incomplete, copy it again') from error
    found = sha256(data)
    if found != expected:
        raise MapError(f'{file}: sha256 is {found[:12]}..., the manifest says {expected[:12]}...; the file is damaged, copy the map again')
    return data


def tensors_of(file: Path, data: bytes) -> dict[str, torch.Tensor]:
    """Raises MapError."""
    try:
        return load_tensors(data)
    except Exception as error:  # safetensors raises its own class, ValueError or struct errors by the kind of damage
        raise MapError(f'{file}: no safetensors file: {error}') from error


def _build(file: Path, tensors: dict[str, torch.Tensor]) -> Expert:
    try:
        channels, width, clusters = tensors['feature_mean'].shape[0], tensors['first.bias'].shape[0], tensors['centres'].shape[0]
    except (KeyError, IndexError) as error:
        raise MapError(f'{file}: tensors of an expert are missing: found {", ".join(sorted(tensors))[:200]}') from error
    if channels != CHANNELS or not 0 < width <= 4096 or not 0 < clusters <= 4096:
        raise MapError(f'{file}: expected {CHANNELS} channels, width and clusters up to 4096; found {channels}, {width}, {clusters}')
    with torch.device('meta'):  # a file of some kilobytes may claim sizes that take hundreds of megabytes
        expert = Expert(channels, width, clusters)
    if any(name.startswith('last_stage.') for name in tensors):
        expert.last_stage = shared_encoder('cpu').own_last_stage()
    expected = {name: tuple(value.shape) for name, value in expert.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise MapError(f'{file}: tensor {wrong[0]}: expected shape {expected.get(wrong[0])}, found {found.get(wrong[0])}')
    if not all(value.dtype in (torch.float16, torch.float32) and value.isfinite().all() for value in tensors.values()):
        raise MapError(f'{file}: expected finite numbers in float16 or float32')
    expert.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return expert.eval().requires_grad_(False)


def _landmarks(file: Path, tensors: dict[str, torch.Tensor]) -> Landmarks:
    # Maps of before December 2026 lack some.
    tensors = {'landmarks.common_shift': torch.zeros(()), 'landmarks.growth': torch.zeros(()), 'landmarks.cameras': torch.zeros(0, 3, 4),
               **tensors}
    points = tensors.get('landmarks.points')
    count = len(points) if points is not None and points.ndim else 0
    cameras = len(tensors['landmarks.cameras']) if tensors['landmarks.cameras'].ndim else 0
    if not 0 < count <= MAX_LANDMARKS:
        raise MapError(f'{file}: expected 1 to {MAX_LANDMARKS} landmarks, found {count}')
    expected = {'landmarks.points': ((count, 3), torch.float32), 'landmarks.views': ((count, 3), torch.float16),
                'landmarks.descriptors': ((count, COMPRESSED), torch.int8), 'landmarks.basis': ((DIMENSIONS, COMPRESSED), torch.float32),
                'landmarks.cameras': ((cameras, 3, 4), torch.float32), 'landmarks.common_shift': ((), torch.float32),
                'landmarks.growth': ((), torch.float32)}
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise MapError(f'{file}: tensor {wrong[0]}: expected {expected.get(wrong[0])}, found {found.get(wrong[0])}')
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise MapError(f'{file}: tensor {name}: expected finite numbers')
    if cameras > MAX_VIEWS:
        raise MapError(f'{file}: tensor landmarks.cameras: expected at most {MAX_VIEWS} views, found {cameras}')
    if tensors['landmarks.growth'] < 0:
        raise MapError(f'{file}: tensor landmarks.growth: expected 0 or more, found {tensors["landmarks.growth"].item():g}')
    return Landmarks.from_tensors(tensors)


def _compact(expert: Expert) -> dict[str, torch.Tensor]:
    """Weights as float16 (their rounding is far below the noise of training) where they fit, buffers, which hold metres, as float32."""
    whole = {name for name, _ in expert.named_buffers()}
    whole |= {name for name, value in expert.named_parameters() if value.abs().max() > torch.finfo(torch.float16).max}
    return {name: (value.float() if name in whole else value.half()).cpu().contiguous() for name, value in expert.state_dict().items()}
