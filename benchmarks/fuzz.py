"""Damaged messages through decoding and core of the node, damaged maps through load_map: nothing may crash, hang or be believed.

    PYTHONPATH=$PYTHONPATH:. python -P -m benchmarks.fuzz --messages 10000 --bundles 2000    # of a small synthetic room, made first
    PYTHONPATH=$PYTHONPATH:. python -P -m benchmarks.fuzz --map kitchen.dsacmap --source $D/kitchen
"""
from __future__ import annotations

import argparse
import hashlib
import json
import queue
import shutil
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
import yaml
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from benchmarks.integrity import WRONG_DEG, WRONG_M
from dsac_ros.config import MappingOptions
from dsac_ros.data.opening import open_source
from dsac_ros.data.synthetic import SyntheticSource
from dsac_ros.errors import MapError
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import load_map
from dsac_ros.records import Frame
from dsac_ros.ros import sensor_messages
from dsac_ros.ros.intake import NO_IMAGES, stamp_ns
from dsac_ros.ros.localizer_node import LocalizerNode
from dsac_ros.ros.messages import stamped_transform, time_message
from dsac_ros.tracking.drift import displacement
from dsac_ros.training.mapping import map_source

GIVE_UP_S = 60.0  # a message that takes so long is a hang, however busy the machine
START_NS = 1_700_000_000_000_000_000
STEP_NS = 300_000_000  # between images; below state.lost_after
ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'mono8', 'mono16', '8UC1', '8UC3', '16UC1', '32FC1', 'bayer_rggb8',
             'yuv422', 'nv21', '', 'ä\u2028', 'rgb8 ')
NAMES = ('map', 'odom', 'base_link', sensor_messages.CAMERA_FRAME, '/', '', 'a' * 300, 'ä b')
NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-300, 1e300, 525.0, -0.0)
SIZES = (0, 1, 2, 119, 120, 160, 161, 640, 2 ** 16, 2 ** 31, 2 ** 32 - 1)


@dataclass
class Findings:
    """What came of the damaged input: outcomes by their reason; faults, which should be none; seconds that each took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def print(self, what: str) -> None:
        worst = sorted(self.seconds)[-3:]
        print(f'{len(self.seconds)} {what}: {len(self.faults)} faults; median {1e3 * np.median(self.seconds):.1f} ms, 99 % within '
              f'{1e3 * np.percentile(self.seconds, 99):.0f} ms, longest {", ".join(f"{1e3 * s:.0f}" for s in worst[::-1])} ms')
        print('  ' + ', '.join(f'{name} {count}' for name, count in self.outcomes.most_common()))
        for fault in self.faults[:10]:
            print(f'  FAULT {fault}')


class Messages:
    """The real node without its middleware: messages go into the callbacks that the executor would call."""

    def __init__(self, map_path: Path, frames: list[Frame], seed: int) -> None:
        self.frames, self._rng = frames, np.random.default_rng(seed)
        self._context = Context()
        rclpy.init(context=self._context, domain_id=77)
        values = {'map': str(map_path), 'tf_mode': 'map_to_odom', 'tf_wait': 0.0, 'depth_wait': 0.0}
        self.node = LocalizerNode(context=self._context,
                                  parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
        if not self.node.start():
            raise MapError(f'{map_path}: the node does not start')
        self._said: queue.Queue[Any] = queue.Queue()
        self._poses: list[Any] = []
        self.node.outlets.status = self._said.put
        self.node.outlets.pose = lambda estimate, _: self._poses.append(estimate)
        self._stamp_ns = START_NS
        self._hear([stamped_transform(0, 'base_link', sensor_messages.CAMERA_FRAME, np.eye(4))], True)

    def close(self) -> None:
        self.node.end()
        self._context.try_shutdown()

    def run(self, count: int) -> Findings:
        found = Findings()
        for k in range(count):
            kind = ('transform', 'camera_info', 'image', 'depth')[int(self._rng.choice(4, p=[0.4, 0.2, 0.3, 0.1]))]
            start_s = time.perf_counter()
            try:
                getattr(self, f'_{kind}')(found)
            except Exception as error:  # the executor would have met it
                found.faults.append(f'message {k}, {kind}: {type(error).__name__}: {error}')
            found.seconds.append(time.perf_counter() - start_s)
            if k % 100 == 99 and not self._is_well():
                found.faults.append(f'after message {k} good frames are no longer answered')
        return found

    def show(self, frame: Frame) -> bool:
        """A good frame; whether its pose was published."""
        return self._show(frame, {}, Findings())

    def _is_well(self) -> bool:
        """Good frames are answered: two have to agree, and one may be held back after a jump."""
        return any(self.show(self._frame()) for _ in range(6))

    def _transform(self, found: Findings) -> None:
        rng = self._rng
        rng, message = self._rng, TransformStamped()
        message = stamped_transform(0, str(rng.choice(NAMES[:4])), str(rng.choice(NAMES[:4])), np.eye(4))
        message.header.stamp = time_message(self._stamp_ns + int(rng.integers(-10 ** 9, 10 ** 9)))
        for _ in range(rng.integers(1, 4)):
            part = rng.integers(5)
            if part == 0:
                setattr(message.transform.rotation, str(rng.choice(list('xyzw'))), float(rng.choice(NUMBERS)))
            elif part == 1:
                setattr(message.transform.translation, str(rng.choice(list('xyz'))), float(rng.choice(NUMBERS)))
            elif part == 2:
                message.child_frame_id = str(rng.choice(NAMES))
            elif part == 3:
                message.header.frame_id = str(rng.choice(NAMES))
            else:
                message.header.stamp.sec, message.header.stamp.nanosec = int(rng.integers(-2 ** 31, 2 ** 31)), int(rng.integers(0, 2 ** 32))
        self._hear([message], bool(rng.integers(2)))
        missing = self.node.robot.look_up(self._stamp_ns, sensor_messages.CAMERA_FRAME).missing
        found.outcomes[f'transform: {missing.partition(":")[0] or "taken"}'] += 1

    def _camera_info(self, found: Findings) -> None:
        frame, rng = self._frame(), self._rng
        info = sensor_messages.camera_info_message(frame.camera)
        for _ in range(rng.integers(1, 3)):
            part = rng.integers(5)
            if part == 0:
                info.k[rng.integers(9)] = rng.choice(NUMBERS)
            elif part == 1:
                info.d = [float(value) for value in rng.choice(NUMBERS, rng.integers(0, 15))]
            elif part == 2:
                info.distortion_model = str(rng.choice(['equidistant', 'plumb_bob', 'rational_polynomial', 'fisheye', 'none', '', 'ä']))
            elif part == 3:
                info.width, info.height = (int(value) for value in rng.choice(SIZES, 2))
            else:
                info.binning_x, info.roi.width, info.roi.x_offset = (int(value) for value in rng.choice(SIZES, 3))
        self._show(frame, {'info': info}, found)

    def _image(self, found: Findings) -> None:
        frame = self._frame()
        image = self._damaged(sensor_messages.colour_message(frame.image))
        self._show(frame, {'image': image}, found)

    def _depth(self, found: Findings) -> None:
        frame = self._frame()
        self._show(frame, {'depth': self._damaged(sensor_messages.depth_message(frame.depth))}, found)

    def _damaged(self, message: Image) -> Image:
        rng = self._rng
        for _ in range(rng.integers(1, 3)):
            part = rng.integers(7)
            if part == 0:
                message.encoding = str(rng.choice(ENCODINGS))
            elif part == 1:
                setattr(message, str(rng.choice(['height', 'width', 'step'])), int(rng.choice(SIZES)))
            elif part == 2:
                message.data = message.data[:int(rng.integers(0, len(message.data) + 1))]
            elif part == 3:
                message.data = message.data + array('B', rng.bytes(int(rng.integers(1, 5000))))
            elif part == 4:  # a stripe of noise, or all of it
                start, end = sorted(rng.integers(0, len(message.data) + 1, 2))
                message.data[int(start):int(end)] = array('B', rng.bytes(int(end - start)))
            elif part == 5:
                message.header.stamp.sec, message.header.stamp.nanosec = int(rng.integers(-2 ** 31, 2 ** 31)), int(rng.integers(0, 2 ** 32))
            else:
                message.header.frame_id, message.is_bigendian = str(rng.choice(NAMES)), int(rng.integers(256))
        return message

    def _frame(self) -> Frame:
        return self.frames[int(self._rng.integers(len(self.frames)))]

    def _hear(self, transforms: list[TransformStamped], static: bool) -> None:
        self.node.robot.listener.hear(SimpleNamespace(transforms=transforms), static)

    def _show(self, frame: Frame, damaged: dict[str, Any], found: Findings) -> bool:
        """One frame with some of its messages damaged; whether a pose was published. What it says is judged."""
        self._stamp_ns += STEP_NS
        self._hear([stamped_transform(self._stamp_ns, 'odom', 'base_link', frame.map_from_camera)], False)
        info = damaged.get('info', sensor_messages.camera_info_message(frame.camera))
        image = damaged.get('image', sensor_messages.colour_message(frame.image))
        depth = damaged.get('depth', sensor_messages.depth_message(frame.depth) if frame.depth is not None else None)
        for message in (info, image, depth):
            if message is not None and message.header.stamp.sec == 0 and message.header.stamp.nanosec == 0:
                message.header.stamp = time_message(self._stamp_ns)
        self._poses.clear()
        self.node.intake.camera_info(info)
        if depth is not None:
            self.node.intake.depth(depth)
        self.node.intake.image(image)
        expected = time_message(stamp_ns(image.header))
        while True:  # between them it says that images have stopped, on a slow machine
            try:
                status = self._said.get(timeout=GIVE_UP_S)
            except queue.Empty:
                found.faults.append(f'nothing said of a frame within {GIVE_UP_S} s')
                return False
            reason = status.reasons[0].partition(':')[0] if status.reasons else 'published'
            if status.header.stamp == expected and reason != NO_IMAGES:
                break
        found.outcomes[f'{"".join(damaged) or "good"}: {reason}'] += 1
        if reason == 'internal_error':
            found.faults.append(status.reasons[0])
        for estimate in self._poses:
            if estimate.stamp_ns != stamp_ns(image.header):
                found.outcomes['pose of another stamp'] += 1
                continue
            metres, radians = displacement(frame.map_from_camera, estimate.map_from_camera)
            if metres > WRONG_M or np.degrees(radians) > WRONG_DEG:
                found.faults.append(f'a pose that is {metres:.2f} m, {np.degrees(radians):.1f} deg off was published: {"".join(damaged)}')
        return bool(self._poses)


def fuzz_bundles(map_path: Path, frame: Frame, count: int, seed: int) -> Findings:
    """Damaged copies of a map through load_map: MapError, or a map that a frame can be shown to."""
    rng, found = np.random.default_rng(seed), Findings()
    with tempfile.TemporaryDirectory(prefix='fuzz_') as folder:
        trap = Path(folder) / 'code_has_run'
        for k in range(count):
            path = Path(folder) / 'damaged.dsacmap'
            shutil.copytree(map_path, path)
            what = _damage(path, rng, trap)
            start_s = time.perf_counter()
            try:
                bundle = load_map(path)
                found.outcomes[f'{what}: loaded'] += 1
            except MapError as error:
                bundle = None
                found.outcomes[f'{what}: refused'] += 1
                if str(path) not in str(error):
                    found.faults.append(f'bundle {k}, {what}: an error that names no file: {error}')
            except Exception as error:
                bundle = None
                found.faults.append(f'bundle {k}, {what}: {type(error).__name__}: {error}')
            found.seconds.append(time.perf_counter() - start_s)
            if bundle is not None and k % 10 == 0:
                try:
                    Localizer(bundle, 'cpu').localize(frame, 'rgb')
                except Exception as error:
                    found.faults.append(f'bundle {k}, {what}: loads, but a frame raises {type(error).__name__}: {error}')
            shutil.rmtree(path)
        if trap.exists():
            found.faults.append('a map has run code')
    return found


def _damage(path: Path, rng: np.random.Generator, trap: Path) -> str:
    """Change one thing in the map; its kind."""
    manifest, expert = path / 'manifest.yaml', next((path / 'experts').iterdir())
    kind = str(rng.choice(['manifest bytes', 'manifest value', 'manifest code', 'tensor bytes', 'tensor bytes, hash mended',
                           'tensor header, hash mended']))
    values = yaml.safe_load(manifest.read_text())
    data = bytearray(expert.read_bytes())
    if kind == 'manifest bytes':
        manifest.write_bytes(_scrambled(bytearray(manifest.read_bytes()), rng))
    elif kind == 'manifest value':
        place: Any = values
        while isinstance(place, (dict, list)) and len(place):
            holder, key = place, list(place)[rng.integers(len(place))] if isinstance(place, dict) else int(rng.integers(len(place)))
            place = holder[key]
            if rng.random() < 0.3:
                break
        holder[key] = [None, -1, 2 ** 70, 'x' * 100, [], {}, float('nan'), '../../etc/passwd', True, {'a': [1]}][rng.integers(10)]
        manifest.write_text(yaml.safe_dump(values))
    elif kind == 'manifest code':
        tag = str(rng.choice(['!!python/object/apply:os.system', '!!python/object/apply:subprocess.getoutput']))
        manifest.write_text(manifest.read_text() + f'\nmore: {tag} ["touch {trap}"]\n')
    else:
        if kind == 'tensor header, hash mended':
            length = int.from_bytes(data[:8], 'little')
            header = json.loads(data[8:8 + length])
            name = list(header)[rng.integers(len(header))]
            part = str(rng.choice(['shape', 'dtype', 'data_offsets', 'name']))
            if part == 'name':
                header['renamed'] = header.pop(name)
            elif isinstance(header[name], dict):
                header[name][part] = {'shape': [int(n) for n in rng.integers(-1, 2 ** 40, rng.integers(0, 4))], 'dtype': str(rng.choice(
                    ['F64', 'BOOL', 'I8', 'Q'])), 'data_offsets': [int(n) for n in rng.integers(0, 2 ** 40, 2)]}[part]
            text = json.dumps(header).encode()
            data = bytearray(len(text).to_bytes(8, 'little') + text + data[8 + length:])
        else:
            data = bytearray(_scrambled(data, rng))
        expert.write_bytes(data)
        if 'mended' in kind:
            values['experts'][0]['sha256'] = hashlib.sha256(data).hexdigest()
            manifest.write_text(yaml.safe_dump(values))
    return kind


def _scrambled(data: bytearray, rng: np.random.Generator) -> bytes:
    """Flipped, cut out, doubled or cut off."""
    for _ in range(rng.integers(1, 8)):
        at, part = int(rng.integers(max(1, len(data)))), rng.integers(4)
        if part == 0 and data:
            data[at] ^= 1 << int(rng.integers(8))
        elif part == 1:
            del data[at:at + int(rng.integers(1, 40))]
        elif part == 2:
            data[at:at] = data[at:at + 20]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def small_room(folder: Path) -> tuple[Path, list[Frame]]:
    """A map of a synthetic room, and frames of it."""
    source = SyntheticSource(room_seed=3, trajectory_seed=1, frames=20, width=320, height=240, texels_per_metre=150.0)
    path = folder / 'room.dsacmap'
    map_source(source, path, MappingOptions(minutes=1.0, steps=250, augmented=0, capacity=24_000, held_out_share=0.1), 'cpu', quiet=True)
    return path, list(source)[::2]


def fuzz_messages(map_path: Path, frames: list[Frame], count: int, seed: int) -> Findings:
    """Damaged Image, CameraInfo and TF messages, one at a time; every hundred of them good frames have to be answered."""
    messages = Messages(map_path, frames, seed)
    try:
        return messages.run(count)
    finally:
        messages.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.fuzz', description=__doc__.splitlines()[0])
    parser.add_argument('--map', type=Path)
    parser.add_argument('--source', type=Path, help='a bag or a data folder with reference poses, of the place of the map')
    parser.add_argument('--messages', type=int, default=10_000)
    parser.add_argument('--bundles', type=int, default=2_000)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.map is None:
            path, frames = small_room(Path(folder))
        else:
            path, frames = options.map, [frame for frame in islice(open_source(options.source, None, require_poses=True), 20)]
        found = [fuzz_messages(path, frames, options.messages, options.seed), fuzz_bundles(path, frames[0], options.bundles, options.seed)]
    for each, what in zip(found, ('messages', 'maps')):
        each.print(what)
    return int(any(each.faults for each in found))


if __name__ == '__main__':
    sys.exit(main())
