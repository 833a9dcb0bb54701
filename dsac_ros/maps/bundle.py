"""The map bundle: a folder with one manifest.yaml and the tensors of its experts in safetensors files.

Nothing in it can run code: YAML by safe_load, tensors by safetensors, and every name, hash, shape and number is checked before use.
"""
from __future__ import annotations

import hashlib
import os
import reprlib
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from dsac_ros.errors import MapError
from dsac_ros.landmarks.keypoints import DIMENSIONS
from dsac_ros.landmarks.landmarks import COMPRESSED, Landmarks
from dsac_ros.networks.encoder import CHANNELS, ENCODER_ID, WEIGHTS_SHA256
from dsac_ros.networks.expert import Expert

FORMAT = 1
MAX_EXPERT_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_LANDMARKS = 200_000
COVARIANCE_KEYS = ('rgb', 'rgbd', 'landmarks')


@dataclass(frozen=True)
class ExpertEntry:
    """What the manifest says of one expert; centre and extent of its scene coordinates in metres."""

    name: str
    file: str
    sha256: str
    centre: list[float]
    extent: list[float]


@dataclass(frozen=True)
class MapBundle:
    """A map in memory. covariance_factors: what the pose comes from (rgb, rgbd, landmarks) -> factor on the inverse Hessian.
    training: how it was made, for people."""

    frame_id: str
    entry: ExpertEntry
    expert: Expert
    landmarks: Landmarks | None
    covariance_factors: dict[str, float]
    training: dict[str, Any] = field(default_factory=dict)


def save_map(path: str | Path, frame_id: str, name: str, expert: Expert, landmarks: Landmarks | None, covariance_factors: dict[str, float],
             centre: list[float], extent: list[float], training: dict[str, Any], overwrite: bool = False) -> MapBundle:
    """Write a bundle beside its place and rename it, so that a crash never leaves half a map. Raises MapError."""
    path = Path(path)
    check_place(path, overwrite)
    data = save_tensors(_compact(expert) | (landmarks.tensors() if landmarks else {}))
    entry = ExpertEntry(name, f'experts/{name}.safetensors', hashlib.sha256(data).hexdigest(), centre, extent)
    manifest = {'format': FORMAT, 'frame_id': frame_id, 'encoder': {'id': ENCODER_ID, 'sha256': WEIGHTS_SHA256},
                'experts': [asdict(entry)], 'covariance_factors': covariance_factors, 'training': training}
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error
    try:
        (temporary / 'experts').mkdir()
        (temporary / entry.file).write_bytes(data)
        (temporary / 'manifest.yaml').write_text(yaml.safe_dump(manifest, sort_keys=False))
        temporary.chmod(0o755)
        if path.exists():
            retired = temporary.with_name(temporary.name + '.old')
            os.rename(path, retired)
            try:
                os.rename(temporary, path)
            except OSError:
                os.rename(retired, path)
                raise
            shutil.rmtree(retired)
        else:
            os.rename(temporary, path)
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return MapBundle(frame_id, entry, expert, landmarks, covariance_factors, training)


def check_place(path: Path, overwrite: bool) -> None:
    """Raise MapError where save_map could not write, before the minutes of work and not after."""
    if path.exists() and not (overwrite and (path / 'manifest.yaml').is_file()):
        raise MapError(f'{path}: exists already{"" if not overwrite else " and is no map"}; choose another --out'
                       f'{" or --overwrite" if not overwrite else ""}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise MapError(f'{path}: cannot be written: {error.strerror}') from error


def load_map(path: str | Path) -> MapBundle:
    """Read and check a bundle. Raises MapError that names the file and what is wrong with it."""
    path = Path(path)
    manifest_path = path / 'manifest.yaml'
    manifest = _read_manifest(manifest_path)
    if manifest.get('format') != FORMAT:
        raise MapError(f'{manifest_path}: map format {_brief(manifest.get("format"))}, expected {FORMAT}; make the map again with this '
                       'version')
    encoder = manifest.get('encoder')
    if not isinstance(encoder, dict) or (encoder.get('id'), encoder.get('sha256')) != (ENCODER_ID, WEIGHTS_SHA256):
        raise MapError(f'{manifest_path}: made with encoder {_brief(encoder)}, this version has {ENCODER_ID!r}; make the map again')
    frame_id = manifest.get('frame_id')
    if not isinstance(frame_id, str) or not frame_id:
        raise MapError(f'{manifest_path}: frame_id: expected a name, found {_brief(frame_id)}')
    experts = manifest.get('experts')
    if not isinstance(experts, list) or len(experts) != 1:
        raise MapError(f'{manifest_path}: experts: expected a list of one, found {_brief(experts)}')
    entry = _entry(manifest_path, experts[0])
    factors = manifest.get('covariance_factors')
    if not isinstance(factors, dict) or set(factors) != set(COVARIANCE_KEYS) or not all(
            isinstance(v, float) and 0 < v < 1e9 for v in factors.values()):
        raise MapError(f'{manifest_path}: covariance_factors: expected positive numbers for {", ".join(COVARIANCE_KEYS)}, '
                       f'found {_brief(factors)}')
    training = manifest.get('training')
    tensors = _load_tensors(path, entry)
    landmarks = {name: tensors.pop(name) for name in list(tensors) if name.startswith('landmarks.')}
    file = path / entry.file
    return MapBundle(frame_id, entry, _build(file, tensors), _landmarks(file, landmarks) if landmarks else None, factors,
                     training if isinstance(training, dict) else {})


def _brief(value: Any) -> str:
    # Not repr: nested aliases of a few lines of YAML write out to gigabytes.
    return f'{reprlib.repr(value):.80}'


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MapError(f'{path.parent}: no map: manifest.yaml is missing; expected a folder made by `dsac-ros map`')
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise MapError(f'{path}: {path.stat().st_size} bytes, expected at most {MAX_MANIFEST_BYTES}')
        manifest = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2020-13-45
        raise MapError(f'{path}: cannot be read: {" ".join(str(error).split()):.200}') from error
    if not isinstance(manifest, dict):
        raise MapError(f'{path}: expected a mapping, found {type(manifest).__name__}')
    return manifest


def _entry(path: Path, values: Any) -> ExpertEntry:
    names = [f.name for f in fields(ExpertEntry)]
    if not isinstance(values, dict) or sorted(map(str, values)) != sorted(names):
        raise MapError(f'{path}: expert: expected {", ".join(names)}, found {_brief(values)}')
    for name in ('name', 'file', 'sha256'):
        if not isinstance(values[name], str):
            raise MapError(f'{path}: expert {name}: expected text, found {_brief(values[name])}')
    for name in ('centre', 'extent'):
        numbers = values[name]
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(v, float) and abs(v) < 1e9 for v in numbers):
            raise MapError(f'{path}: expert {name}: expected three numbers, found {_brief(numbers)}')
    parts = Path(values['file']).parts
    # A manifest from a stranger must not make us read files elsewhere.
    if Path(values['file']).is_absolute() or '..' in parts or len(parts) != 2 or parts[0] != 'experts' or not values['file'].isprintable():
        raise MapError(f'{path}: expert file {_brief(values["file"])}: expected experts/NAME.safetensors')
    return ExpertEntry(**values)


def _load_tensors(path: Path, entry: ExpertEntry) -> dict[str, torch.Tensor]:
    file = path / entry.file
    try:
        size = file.stat().st_size
        if size > MAX_EXPERT_BYTES:
            raise MapError(f'{file}: {size} bytes, expected at most {MAX_EXPERT_BYTES}')
        data = file.read_bytes()
    except OSError as error:
        raise MapError(f'{file}: cannot be read: {error.strerror}; the map is incomplete, copy it again') from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise MapError(f'{file}: sha256 is {found[:12]}..., the manifest says {entry.sha256[:12]}...; '
                       'the file is damaged, copy the map again')
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
    expert = Expert(channels, width, clusters)
    expected = {name: tuple(value.shape) for name, value in expert.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise MapError(f'{file}: tensor {wrong[0]}: expected shape {expected.get(wrong[0])}, found {found.get(wrong[0])}')
    if not all(value.dtype in (torch.float16, torch.float32) and value.isfinite().all() for value in tensors.values()):
        raise MapError(f'{file}: expected finite numbers in float16 or float32')
    expert.load_state_dict({name: value.float() for name, value in tensors.items()})
    return expert.eval().requires_grad_(False)


def _landmarks(file: Path, tensors: dict[str, torch.Tensor]) -> Landmarks:
    tensors = {'landmarks.common_shift': torch.zeros(()), **tensors}  # which maps of before November 2026 lack
    points = tensors.get('landmarks.points')
    count = len(points) if points is not None and points.ndim else 0
    if not 0 < count <= MAX_LANDMARKS:
        raise MapError(f'{file}: expected 1 to {MAX_LANDMARKS} landmarks, found {count}')
    expected = {'landmarks.points': ((count, 3), torch.float32), 'landmarks.views': ((count, 3), torch.float16),
                'landmarks.descriptors': ((count, COMPRESSED), torch.int8), 'landmarks.basis': ((DIMENSIONS, COMPRESSED), torch.float32),
                'landmarks.common_shift': ((), torch.float32)}
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise MapError(f'{file}: tensor {wrong[0]}: expected {expected.get(wrong[0])}, found {found.get(wrong[0])}')
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise MapError(f'{file}: tensor {name}: expected finite numbers')
    return Landmarks.from_tensors(tensors)


def _compact(expert: Expert) -> dict[str, torch.Tensor]:
    """Weights as float16 (their rounding is far below the noise of training), buffers, which hold metres, as float32."""
    buffers = {name for name, _ in expert.named_buffers()}
    return {name: (value.float() if name in buffers else value.half()).cpu().contiguous() for name, value in expert.state_dict().items()}
