"""Data folders in (the layout of `../shared/data`, or 7-Scenes), Frames in stamp order out."""
from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import cv2
import numpy as np
import torch

from dsac_ros.data.decode import checked_camera
from dsac_ros.data.storage import readable
from dsac_ros.data.transforms import matrix_from
from dsac_ros.errors import DataError, DecodeError
from dsac_ros.geometry.se3 import nearest_rotation
from dsac_ros.records import Camera, Frame

logger = logging.getLogger(__name__)
FIRST_STAMP_NS, FRAME_NS = 1_000_000_000, 33_333_333
# The colour camera of 7-Scenes as its authors give it; used where the folder has no camera-intrinsics.txt.
SEVEN_SCENES_CAMERA = Camera(640, 480, 525.0, 525.0, 320.0, 240.0)
INTRINSICS = {'width': int, 'height': int, 'fx': float, 'fy': float, 'cx': float, 'cy': float}  # of intrinsics.json, and how they are read
DISTORTION = ('distortion_model', 'distortion')
PoseReader = Callable[[], 'np.ndarray | None']


@dataclass(frozen=True)
class Entry:
    """Where one frame's parts lie. read_pose: () -> map_from_camera or None."""

    name: str
    stamp_ns: int
    image: Path
    depth: Path | None
    read_pose: PoseReader


class FolderSource:
    """Frames of a folder with rgb/NNNNNN.jpg, [depth/NNNNNN.png], poses.txt, intrinsics.json, [splits.json]; or of 7-Scenes.

    7-Scenes: a sequence folder with frame-XXXXXX.color.png, .depth.png, .pose.txt, or a scene of seq-XX folders, where split names the
    TrainSplit.txt or TestSplit.txt to follow. Its original depth is not registered to colour: errors of centimetres until it is warped.

    Args:
        split: a name in splits.json (or train, test); None takes all frames.

    Raises DataError that names the file where one is missing or damaged. warnings: no_depth, no_pose.
    """

    map_frame = 'map'

    def __init__(self, path: str | Path, split: str | None = None, *, require_poses: bool = False, load_depth: bool = True) -> None:
        self.path, self.load_depth = Path(path), load_depth
        self.warnings: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        if not self.path.is_dir():
            raise DataError(f'{path}: no such folder')
        if (self.path / 'rgb').is_dir():
            self.camera, self._entries = _plain_camera(self.path), _plain_entries(self.path, split)
        else:
            self.camera, self._entries = _seven_scenes_camera(self.path), _seven_scenes_entries(self.path, split)
        if not self._entries:
            raise DataError(f'{path}: no frames')
        if require_poses and all(entry.read_pose() is None for entry in self._entries):
            raise DataError(f'{path}: none of {len(self)} frames has a reference pose; expected poses.txt (frame_id tx ty tz qx qy qz '
                            'qw) or .pose.txt files')

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        self.warnings.clear()
        self.details.clear()
        for entry in self._entries:
            image = _read_image(entry.image, self.camera)
            depth = None
            if self.load_depth:
                with readable(self.path):
                    depth = _read_depth(entry.depth, image.shape[:2]) if entry.depth and entry.depth.is_file() else None
                if depth is None:
                    self._warn('no_depth', f'{entry.depth or self.path / "depth"}: no depth image for some frames')
            map_from_camera = entry.read_pose()
            if map_from_camera is None:
                self._warn('no_pose', f'{self.path}: no reference pose for some frames, the first is {entry.name}')
            yield Frame(image, self.camera, entry.stamp_ns, depth, map_from_camera, entry.name)

    def _warn(self, cause: str, text: str) -> None:
        if cause not in self.details:
            self.details[cause] = text
            logger.warning('%s: %s', cause, text)
        self.warnings[cause] += 1


def is_folder_source(path: Path) -> bool:
    """Whether the folder looks like one of the two layouts."""
    return (path / 'rgb').is_dir() or any(path.glob('frame-*.color.*')) or any(path.glob('seq-*/frame-*.color.*'))


def _stamp(frame_id: str) -> int:
    """Frames carry no time: a camera of 30 Hz is assumed, from one second on, as zero means "no stamp" to ROS."""
    return FIRST_STAMP_NS + int(frame_id) * FRAME_NS


# The layout of ../shared/data

def _plain_camera(path: Path) -> Camera:
    file = path / 'intrinsics.json'
    try:
        values = json.loads(_text(file))
        if unknown := sorted({*values} - {*INTRINSICS, *DISTORTION}):
            raise ValueError(f'unknown {", ".join(unknown)}')
        width, height, fx, fy, cx, cy = (convert(values[key]) for key, convert in INTRINSICS.items())
        distortion = np.array(values.get('distortion', []), np.float64).ravel()
        model = values['distortion_model'] if distortion.size else values.get('distortion_model', 'none')
        return checked_camera(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), str(model), distortion, str(file))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f'{file}: expected JSON with {", ".join(INTRINSICS)} and perhaps {", ".join(DISTORTION)}; '
                        f'{type(error).__name__}: {error}') from error
    except DecodeError as error:
        raise DataError(str(error)) from error


def _plain_entries(path: Path, split: str | None) -> list[Entry]:
    images = {file.stem: file for file in sorted((path / 'rgb').iterdir()) if file.suffix.lower() in ('.jpg', '.jpeg', '.png')}
    names = sorted(images) if split is None else _split_names(path, split)
    if bad := [name for name in names if not name.isdigit()]:
        raise DataError(f'{path}: frame names have to be numbers, found {bad[0]!r}')
    if missing := [name for name in names if name not in images]:
        raise DataError(f'{path / "rgb" / missing[0]}.jpg: missing, though the split {split!r} of splits.json names it ({len(missing)} '
                        'in all)')
    poses = _plain_poses(path / 'poses.txt')
    return [Entry(name, _stamp(name), images[name], path / 'depth' / f'{name}.png' if (path / 'depth').is_dir() else None,
                  lambda name=name: poses.get(name)) for name in sorted(names, key=int)]


def _split_names(path: Path, split: str) -> list[str]:
    file = path / 'splits.json'
    if not file.is_file():
        raise DataError(f'{file}: missing, so there is no split {split!r}; leave --split out to take all frames')
    try:
        splits = json.loads(_text(file))
    except ValueError as error:
        raise DataError(f'{file}: not JSON: {error}') from error
    if not isinstance(splits, dict) or not all(isinstance(names, list) for names in splits.values()):
        raise DataError(f'{file}: expected an object of lists of frame names')
    if split not in splits:
        raise DataError(f'{path}: no split {split!r}; splits.json has {", ".join(splits)}')
    return [str(name) for name in splits[split]]


def _plain_poses(file: Path) -> dict[str, np.ndarray]:
    """poses.txt -> frame name -> map_from_camera; none where the file is absent."""
    poses: dict[str, np.ndarray] = {}
    if not file.is_file():
        return poses
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue
        name, *values = line.split()
        try:
            numbers = np.array(values, np.float64)
            if len(numbers) != 7 or abs(np.linalg.norm(numbers[3:]) - 1) > 0.01:
                raise ValueError('expected frame_id tx ty tz qx qy qz qw with a quaternion of length 1')
            poses[name] = matrix_from(numbers[:3], numbers[3:])
        except (ValueError, DataError) as error:
            raise DataError(f'{file}:{number}: {error}') from None
    return poses


# 7-Scenes

def _seven_scenes_camera(path: Path) -> Camera:
    for file in (path / 'camera-intrinsics.txt', path.parent / 'camera-intrinsics.txt'):
        if file.is_file():
            k = _matrix(file, 3)
            if not (np.isfinite(k).all() and k[0, 0] > 0 and k[1, 1] > 0):
                raise DataError(f'{file}: expected a finite 3 x 3 matrix with positive focal lengths')
            # The file knows no size; the principal point is that of 640 x 480, and _read_image checks every image against it.
            return Camera(640, 480, float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
    return SEVEN_SCENES_CAMERA


def _seven_scenes_entries(path: Path, split: str | None) -> list[Entry]:
    sequences = [path] if any(path.glob('frame-*.color.*')) else [
        folder for folder in sorted(path.glob('seq-*')) if folder.is_dir() and folder.name.removeprefix('seq-').isdecimal()]
    if not sequences:
        raise DataError(f'{path}: neither rgb/ nor frame-XXXXXX.color.png nor seq-XX folders')
    if split is not None:
        sequences = _seven_scenes_split(path, split, sequences)
    entries = []
    for sequence in sequences:
        # Frame numbers start anew in every sequence; 100,000 numbers apart, the stamps stay in order.
        offset = 0 if sequence == path else 100_000 * int(sequence.name.removeprefix('seq-'))
        for image in sorted(sequence.glob('frame-*.color.*')):
            number = image.name[len('frame-'):].partition('.')[0]
            if not number.isdigit():
                raise DataError(f'{image}: expected frame-XXXXXX.color.png')
            stem = f'frame-{number}'
            name = stem if sequence == path else f'{sequence.name}/{stem}'
            pose = sequence / f'{stem}.pose.txt'
            entries.append(Entry(name, _stamp(str(offset + int(number))), image, sequence / f'{stem}.depth.png',
                                 lambda pose=pose: _seven_scenes_pose(pose)))
    return entries


def _seven_scenes_split(path: Path, split: str, sequences: list[Path]) -> list[Path]:
    known = sorted(file.name[:-len('Split.txt')].lower() for file in path.glob('*Split.txt'))
    if split not in known:
        raise DataError(f'{path}: no split {split!r}; found {", ".join(known) or "no TrainSplit.txt or TestSplit.txt"}')
    file = path / f'{split.capitalize()}Split.txt'
    wanted = [f'seq-{int("".join(filter(str.isdigit, line)) or 0):02d}' for line in _text(file).splitlines() if line.strip()]
    names = {sequence.name: sequence for sequence in sequences}
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f'{path / missing[0]}: missing, though {file.name} names it')
    return [names[name] for name in sorted(wanted)]


def _seven_scenes_pose(file: Path) -> np.ndarray | None:
    """map_from_camera of a .pose.txt; None where it is absent or tracking was lost (not finite)."""
    if not file.is_file():
        return None
    pose = _matrix(file, 4)
    if not np.isfinite(pose).all():
        return None
    if abs(np.linalg.det(pose[:3, :3]) - 1) > 0.05:
        raise DataError(f'{file}: the rotation has the determinant {np.linalg.det(pose[:3, :3]):.3f}, expected 1')
    pose[:3, :3] = nearest_rotation(torch.from_numpy(pose[:3, :3])).numpy()
    pose[3] = (0, 0, 0, 1)
    return pose


# Files

def _text(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{file}: cannot be read: {error}') from error


def _matrix(file: Path, size: int) -> np.ndarray:
    """A square matrix from a text file, (size, size) float64; Windows' "-1.#IND" is NaN."""
    words = ['nan' if '#' in word else word for word in _text(file).split()]
    try:
        return np.array(words, np.float64).reshape(size, size)
    except ValueError:
        raise DataError(f'{file}: expected {size} x {size} numbers, found {len(words)} words') from None


def _read_image(file: Path, camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the camera's size; EXIF must not turn it away from its intrinsics."""
    image = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DataError(f'{file}: cannot be read as an image')
    if image.shape[:2] != (camera.height, camera.width):
        raise DataError(f'{file}: {image.shape[1]} x {image.shape[0]} pixels, but the intrinsics are for {camera.width} x {camera.height}')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read_depth(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 metres from 16-bit mm; 0 and 65535 (7-Scenes' mark) are none."""
    depth = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if depth is None:
        raise DataError(f'{file}: cannot be read as an image')
    if depth.dtype != np.uint16 or depth.shape != shape:
        raise DataError(f'{file}: {depth.dtype} of shape {depth.shape}; expected one channel of uint16 millimetres of shape {shape}')
    return np.where(depth == 65535, 0, depth).astype(np.float32) * np.float32(0.001)
