"""A rosbag2 (sqlite3 or mcap) in, Frames in stamp order out, with depth by stamp and reference poses from TF or a pose topic."""
from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import cv2
import numpy as np
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError

from dsac_ros.config import SourceOptions
from dsac_ros.data import topics as t
from dsac_ros.data.decode import decode_camera, decode_colour, decode_depth, is_rectified
from dsac_ros.data.pairing import StampPairer
from dsac_ros.data.storage import guarded, opened, standard_types
from dsac_ros.data.topics import BagTopics
from dsac_ros.data.transforms import Trajectory, TransformTree, matrix_from
from dsac_ros.errors import DataError, DecodeError
from dsac_ros.records import Camera, Frame

logger = logging.getLogger(__name__)
PoseAt = Callable[[int], 'np.ndarray | None']
SLOP_MS = SourceOptions.slop


@dataclass(frozen=True)
class BagContents:
    """What the first pass over a bag finds."""

    colour: str
    depth: str | None
    info: str
    frames: int
    camera: Camera
    map_frame: str
    pose_origin: str
    pose_at: PoseAt | None


class BagSource:
    """Frames of a rosbag2 folder, or of one .db3 or .mcap file.

    The messages are the standard ones, read with Jazzy's definitions, so foreign types beside them in the bag do no harm. A first pass
    reads the small messages (camera_info, TF, poses), then every iteration reads the images lazily.

    Reference poses: `topics.pose`, else the TF chain from the root (or `topics.map_frame`) to the camera's frame_id where something in it
    moves, else the only pose topic. Poses of a topic have to be in `topics.map_frame` where that is given. An Odometry's child frame is
    linked to the camera by /tf_static; where that has no link, the pose is taken for the camera's own (optical frame) and counted as
    'assumed_camera_pose'. PoseStamped and PoseWithCovarianceStamped are always the camera's own.

    slop_ms: the largest difference of the stamps of a colour and a depth image that are one frame.

    warnings: no_depth, no_pose, undecodable, zero_stamp, camera_size, depth_size, depth_frame, assumed_camera_pose, time_jump,
    out_of_order, missing_messages; `details` has the first occurrence of each in words, with its topic.
    """

    def __init__(self, path: str | Path, topics: BagTopics | None = None, *, require_poses: bool = False, load_depth: bool = True,
                 slop_ms: float = SLOP_MS, max_pose_gap_s: float = 0.5) -> None:
        self.path, self.topics, self.require_poses = Path(path), topics or BagTopics(), require_poses
        self.load_depth, self.slop_ns, self.max_pose_gap_ns = load_depth, int(slop_ms * 1e6), int(max_pose_gap_s * 1e9)
        self.warnings: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self._types = standard_types()
        self.contents = self._survey()
        self._first_pass = Counter(self.warnings), dict(self.details)
        self.map_frame = self.contents.map_frame
        if require_poses and self.contents.pose_at is None:
            raise DataError(f'{self.path}: no reference poses. Looked for a TF chain that moves and ends in {self._camera_frame!r}, and '
                            'for a topic of '
                            f'{", ".join(t.POSES)}; name one with --pose-topic, or the frames with --map-frame and --camera-frame')

    def __len__(self) -> int:
        return self.contents.frames

    def __iter__(self) -> Iterator[Frame]:
        counted, self.details = self._first_pass[0], dict(self._first_pass[1])
        self.warnings.clear()
        self.warnings.update(counted)
        frames = posed = 0
        for stamp, found in self._paired():
            frame = self._frame(stamp, found)
            if frame is not None:
                frames, posed = frames + 1, posed + (frame.map_from_camera is not None)
                yield frame
        if not frames:
            raise DataError(f'{self.path}: not one of {len(self)} images on {self.contents.colour} could be used: '
                            f'{"; ".join(self.details.values()) or "no message could be read"}')
        if self.require_poses and not posed:
            raise DataError(f'{self.path}: none of {frames} images has a reference pose at its stamp, though there are poses from '
                            f'{self.contents.pose_origin}: do their stamps come from the same clock, and often enough?')

    # First pass

    def _survey(self) -> BagContents:
        with opened(self.path) as reader:
            types = {connection.topic: connection.msgtype for connection in reader.connections}
            counts = Counter[str]()
            for connection in reader.connections:
                counts[connection.topic] += connection.msgcount
            if not reader.message_count:
                raise DataError(f'{self.path}: the bag is empty (0 messages; its topics: {t.listing(types)})')
            with _named(self.path):
                colour = t.colour_topic(types, self.topics.colour)
                depth = t.depth_topic(types, self.topics.depth) if self.load_depth else None
                info = t.info_topic(types, self.topics.info, colour)
            for topic in (colour, info):
                if not counts[topic]:
                    raise DataError(f'{self.path}: the topic {topic} has no messages; the bag has {dict(counts)}')
            self._rectified = is_rectified(colour)
            camera, frame_id = self._first_camera(reader, info)
            self._camera_frame = (self.topics.camera_frame or frame_id).lstrip('/')
            tree = self._transforms(reader)
            with _named(self.path):
                map_frame, origin, pose_at = self._pose_source(reader, types, tree)
        return BagContents(colour, depth, info, counts[colour], camera, map_frame, origin, pose_at)

    def _first_camera(self, reader: Reader, info: str) -> tuple[Camera, str]:
        for _, _, message in self._messages(reader, [info]):
            try:
                return decode_camera(message, self._rectified), message.header.frame_id
            except DecodeError as error:
                self._warn('undecodable', f'{info}: {error}')
        raise DataError(f'{self.path}: no usable message on {info}: {self.details["undecodable"]}')

    def _transforms(self, reader: Reader) -> TransformTree:
        tree = TransformTree(self.max_pose_gap_ns)
        names = [c.topic for c in reader.connections if c.msgtype in t.TRANSFORMS]
        for topic, _, message in self._messages(reader, names):
            for each in message.transforms:
                move, turn = each.transform.translation, each.transform.rotation
                try:
                    parent_from_child = matrix_from([move.x, move.y, move.z], [turn.x, turn.y, turn.z, turn.w])
                except DataError as error:
                    self._warn('undecodable', f'{topic}: {error}')
                    continue
                tree.add(each.header.frame_id, each.child_frame_id, _stamp(each), parent_from_child, topic.endswith('tf_static'))
        return tree

    def _pose_source(self, reader: Reader, types: dict[str, str], tree: TransformTree) -> tuple[str, str, PoseAt | None]:
        """(map frame, where poses come from, function of the stamp)."""
        camera, asked = self._camera_frame, (self.topics.map_frame or '').lstrip('/')
        if self.topics.pose is None:
            chain = tree.chain(camera)
            root = asked or chain[-1]
            if asked and tree.frames and root not in tree.frames:
                raise DataError(f'the map frame {root!r} is not in /tf; it has {", ".join(tree.frames)}')
            if root in chain and tree.moves(camera, root):
                return root, f'/tf {" <- ".join(reversed(chain[:chain.index(root) + 1]))}', lambda stamp: tree.lookup(root, camera, stamp)
        topic = t.pose_topic(types, self.topics.pose)
        if topic is None:
            if asked and tree.frames and asked not in chain:
                raise DataError(f'no poses in the map frame {asked!r}: in /tf the camera is in {" <- ".join(reversed(chain))}; name one of '
                                'these with --map-frame, or leave it out')
            return asked or 'map', 'none', None
        map_from_child, parent, child = self._read_poses(reader, topic)
        if asked and parent and asked != parent:
            raise DataError(f'no poses in the map frame {asked!r}: those of {topic} are in {parent!r}; leave --map-frame out, or name '
                            f'{parent!r}')
        child_from_camera = np.eye(4)
        if child and child != camera:
            link = tree.lookup(child, camera, 0)
            if link is None:
                self._warn('assumed_camera_pose',
                           f'{topic}: no static transform from {child!r} to {camera!r}; its poses are taken for the camera\'s own')
            else:
                child_from_camera = link

        def pose_at(stamp: int) -> np.ndarray | None:
            pose = map_from_child.at(stamp)
            return None if pose is None else pose @ child_from_camera
        return parent or asked or 'map', topic, pose_at

    def _read_poses(self, reader: Reader, topic: str) -> tuple[Trajectory, str, str]:
        """(map_from_child, map frame, child frame or '') of a pose or odometry topic."""
        map_from_child, parent, child = Trajectory(self.max_pose_gap_ns), '', ''
        for _, _, message in self._messages(reader, [topic]):
            pose = message.pose if hasattr(message.pose, 'position') else message.pose.pose
            at, turn = pose.position, pose.orientation
            try:
                map_from_child.add(_stamp(message), matrix_from([at.x, at.y, at.z], [turn.x, turn.y, turn.z, turn.w]))
            except DataError as error:
                self._warn('undecodable', f'{topic}: {error}')
                continue
            parent, child = message.header.frame_id.lstrip('/'), getattr(message, 'child_frame_id', '').lstrip('/')
        if not len(map_from_child):
            raise DataError(f'no usable pose on {topic}: {self.details.get("undecodable", "it has no messages")}')
        return map_from_child, parent, child

    # Second pass

    def _paired(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(stamp, {'colour': (message, camera), 'depth': message or absent}) in stamp order."""
        contents = self.contents
        pairer = StampPairer(['colour', *(['depth'] if contents.depth else [])], self.slop_ns, partial=True)
        camera, read = contents.camera, 0
        with opened(self.path) as reader:
            wanted = [topic for topic in (contents.colour, contents.depth, contents.info) if topic]
            expected = sum(c.msgcount for c in reader.connections if c.topic in wanted)
            for topic, _, message in self._messages(reader, wanted):
                read += 1
                if topic == contents.info:
                    try:
                        camera = decode_camera(message, self._rectified)
                    except DecodeError as error:
                        self._warn('undecodable', f'{topic}: {error}')
                    continue
                stamp = _stamp(message)
                if stamp == 0:
                    self._warn('zero_stamp', f'{topic}: header.stamp is zero, so neither depth nor pose can be found for it')
                elif topic == contents.colour:
                    yield from pairer.push('colour', stamp, (message, camera))
                else:
                    yield from pairer.push('depth', stamp, message)
            yield from pairer.flush()
        if pairer.late['colour']:
            self._warn('out_of_order', f'{contents.colour}: stamps that repeat or run backwards a little', pairer.late['colour'])
        if pairer.jumps:
            self._warn('time_jump', f'{contents.colour}: stamps run backwards {pairer.jumps} times', pairer.jumps)
        if read + self.warnings['undecodable'] < expected:
            self._warn('missing_messages', f'{self.path}: {expected} messages announced, {read} found', expected - read)
        if self.warnings['no_depth'] and 'colour' in pairer.largest_gap_ns:
            gap_ms = pairer.largest_gap_ns['colour'] / 1e6
            self.details['no_depth'] += f'; the stamps are up to {gap_ms:.1f} ms apart, {self.slop_ns / 1e6:g} ms are allowed (--slop)'

    def _frame(self, stamp: int, found: dict[str, Any]) -> Frame | None:
        """Decode one set; None and a warning where there is no image."""
        contents = self.contents
        message, camera = found['colour']
        try:
            image = decode_colour(message)
        except DecodeError as error:
            self._warn('undecodable', f'{contents.colour}: {error}')
            return None
        if image.shape[:2] != (camera.height, camera.width):
            self._warn('camera_size', f'{contents.colour}: images of {image.shape[1]} x {image.shape[0]}, but {contents.info} describes '
                       f'{camera.width} x {camera.height}')
            return None
        depth = self._depth(found['depth'], message, image.shape[:2]) if 'depth' in found else None
        if depth is None and self.load_depth:
            self._warn('no_depth', f'no depth for some images of {contents.colour} on {contents.depth or "any topic"}')
        map_from_camera = contents.pose_at(stamp) if contents.pose_at else None
        if map_from_camera is None:
            self._warn('no_pose', f'no reference pose at the stamp of some images (poses from: {contents.pose_origin})')
        return Frame(image, camera, stamp, depth, map_from_camera, name=str(stamp))

    def _depth(self, message: Any, colour: Any, shape: tuple[int, int]) -> np.ndarray | None:
        topic = self.contents.depth
        try:
            depth = decode_depth(message)
        except DecodeError as error:
            self._warn('undecodable', f'{topic}: {error}')
            return None
        check_depth_unit(depth, getattr(message, 'encoding', '') or message.format.partition(';')[0], f'{self.path}: {topic}')
        if message.header.frame_id != colour.header.frame_id:
            self._warn('depth_frame', f'{topic} is in the frame {message.header.frame_id!r}, colour in {colour.header.frame_id!r}: it '
                       'has to '
                       'be registered to colour; switch on the driver\'s aligned or registered depth')
        if depth.shape != shape:
            if depth.shape[0] * shape[1] != depth.shape[1] * shape[0]:
                self._warn('depth_size',
                           f'{topic}: depth of {depth.shape[1]} x {depth.shape[0]} cannot lie over images of {shape[1]} x {shape[0]}')
                return None
            depth = cv2.resize(depth, shape[::-1], interpolation=cv2.INTER_NEAREST)
        return depth

    # Plumbing

    def _messages(self, reader: Reader, names: list[str]) -> Iterator[tuple[str, int, Any]]:
        """(topic, time of recording, message) of the named topics; what is no such message is counted."""
        connections = [c for c in reader.connections if c.topic in names]
        if not connections:
            return
        for connection, time_ns, data in guarded(reader.messages(connections), self.path):
            try:
                yield connection.topic, time_ns, self._types.deserialize_cdr(data, connection.msgtype)
            except SerdeError as error:
                self._warn('undecodable', f'{connection.topic}: {error}')

    def _warn(self, cause: str, text: str, count: int = 1) -> None:
        if cause not in self.details:
            self.details[cause] = text
            logger.warning('%s: %s', cause, text)
        self.warnings[cause] += count


def check_depth_unit(depth: np.ndarray, encoding: str, where: str) -> None:
    """Raise DataError where the depths (metres as decoded) can only be in another unit than the encoding says."""
    valid = depth[depth > 0]
    if valid.size < 0.01 * depth.size:
        return
    median = float(np.median(valid))
    if encoding.strip() == '32FC1' and median > 100:
        raise DataError(f'{where}: 32FC1 depth has to be in metres, but its median is {median:.0f}: these are millimetres; divide by '
                        '1000, or publish 16UC1')
    if encoding.strip() in ('16UC1', 'mono16') and median < 0.05:
        raise DataError(f'{where}: 16UC1 depth has to be in millimetres, but its median is {median * 1000:.0f} mm: these are metres or '
                        'another '
                        'unit; publish 32FC1 in metres, or millimetres')


def _stamp(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the bag's name before an error about its topics."""
    try:
        yield
    except DataError as error:
        raise DataError(f'{path}: {error}') from None
