"""Frames in, a rosbag2 folder out that `ros2 bag` plays: images, camera_info, TF and reference poses."""
from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from dsac_ros.data.decode import depth_in_mm
from dsac_ros.data.storage import standard_types
from dsac_ros.data.transforms import quat_xyzw_of
from dsac_ros.errors import DataError
from dsac_ros.records import Camera, Frame
from dsac_ros.replacing import check_replaceable, move_into_place

COLOUR_TOPIC, INFO_TOPIC = '/camera/color/image_raw', '/camera/color/camera_info'
DEPTH_TOPIC = '/camera/depth/image_raw'  # registered to colour
POSE_TOPIC = '/reference/pose'
STORAGES = {'sqlite3': StoragePlugin.SQLITE3, 'mcap': StoragePlugin.MCAP}
# OpenCV's distortion carries no coefficients for a pinhole; ROS has no name for that and writes five zeros of plumb_bob.
ROS_PINHOLE = ('plumb_bob', (0.0,) * 5)


class BagWriter:
    """Writes Frames as ROS 2 messages; the bag appears under its name when the `with` block ends well, and not at all otherwise.

    Args:
        path: the bag's folder. storage: 'sqlite3' or 'mcap'. map_frame, camera_frame: names in headers and in /tf.
        compressed: colour as JPEG (lossy) on .../compressed and depth as 16-bit PNG (lossless) on .../compressedDepth.
        overwrite: replace an existing bag (or an empty folder, and nothing else) once the new one is whole.

    Raises DataError where the target exists or cannot be written, also for want of space, or the storage is unknown.
    """

    def __init__(self, path: str | Path, storage: str = 'sqlite3', map_frame: str = 'map', camera_frame: str = 'camera_optical_frame',
                 compressed: bool = False, jpeg_quality: int = 95, overwrite: bool = False) -> None:
        if storage not in STORAGES:
            raise DataError(f'unknown bag storage {storage!r}; expected one of {", ".join(STORAGES)}')
        self.path, self.overwrite = Path(path).absolute(), overwrite
        self._check_place()
        self.map_frame, self.camera_frame = map_frame, camera_frame
        self.compressed, self.jpeg_quality, self.storage = compressed, jpeg_quality, storage
        self.frames = 0
        self._types = standard_types()
        self._connections: dict[str, object] = {}

    def __enter__(self) -> BagWriter:
        # The files in a bag are named after its folder, so the temporary one has the final name, inside a scratch folder beside the target.
        with self._writable():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f'.{self.path.name}.', dir=self.path.parent))
            try:
                self._writer = Writer(self._scratch / self.path.name, version=9, storage_plugin=STORAGES[self.storage])
                self._writer.open()
            except BaseException:
                shutil.rmtree(self._scratch, ignore_errors=True)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is not None:
                with suppress(Exception):  # on a full disk closing fails too, which would hide why
                    self._writer.abort()
                return
            with self._writable():
                self._writer.close()
                self._check_place()  # others may have written there meanwhile
                move_into_place(self._scratch / self.path.name, self.path)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _check_place(self) -> None:
        """Raise DataError unless nothing is there, or with `overwrite` what may be replaced."""
        with self._writable():
            check_replaceable(self.path)
            if not self.path.exists():
                return
            if not self.overwrite:
                raise DataError(f'{self.path} exists already; choose another name, remove it, or ask for it to be overwritten')
            if not (self.path / 'metadata.yaml').is_file() and not (self.path.is_dir() and not any(self.path.iterdir())):
                raise DataError(f'{self.path}: is no bag (it has no metadata.yaml) and is left alone; choose another name')

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """What the disk says, and sqlite of it, in one line."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DataError(f'{self.path}: cannot be written: {getattr(error, "strerror", None) or error}') from error

    def write(self, frame: Frame) -> None:
        """Colour and camera_info; depth, TF and reference pose where the frame has them. All carry the frame's stamp."""
        if frame.stamp_ns <= 0:
            raise DataError(f'frame {frame.name!r} has the stamp {frame.stamp_ns} ns; ROS takes zero for "no stamp", so it must be '
                            'positive')
        self._colour(frame)
        self._put(INFO_TOPIC, self._camera_info(frame.camera, frame.stamp_ns), frame.stamp_ns)
        if frame.depth is not None:
            self._depth(frame.depth, frame.stamp_ns)
        if frame.map_from_camera is not None:
            self._pose(frame.map_from_camera, frame.stamp_ns)
        self.frames += 1

    def _colour(self, frame: Frame) -> None:
        if self.compressed:
            _, data = cv2.imencode('.jpg', cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])
            message = self._packed('rgb8; jpeg compressed bgr8', data.ravel(), frame.stamp_ns)
            self._put(COLOUR_TOPIC + '/compressed', message, frame.stamp_ns)
        else:
            self._put(COLOUR_TOPIC, self._image(frame.image, 'rgb8', frame.stamp_ns), frame.stamp_ns)

    def _depth(self, depth: np.ndarray, stamp_ns: int) -> None:
        depth_mm = depth_in_mm(depth)
        if self.compressed:
            # compressedDepth: a header of one int32 and two float32 (used by 32FC1 only), then the PNG.
            _, png = cv2.imencode('.png', depth_mm)
            data = np.concatenate([np.zeros(12, np.uint8), png.ravel()])
            self._put(DEPTH_TOPIC + '/compressedDepth', self._packed('16UC1; compressedDepth png', data, stamp_ns), stamp_ns)
        else:
            self._put(DEPTH_TOPIC, self._image(depth_mm, '16UC1', stamp_ns), stamp_ns)

    def _pose(self, map_from_camera: np.ndarray, stamp_ns: int) -> None:
        x, y, z = (float(v) for v in map_from_camera[:3, 3])
        quat_xyzw = quat_xyzw_of(map_from_camera).tolist()
        rotation = self._new('geometry_msgs/msg/Quaternion', **dict(zip('xyzw', quat_xyzw, strict=True)))
        header = self._header(stamp_ns, self.map_frame)
        translation = self._new('geometry_msgs/msg/Vector3', x=x, y=y, z=z)
        transform = self._new('geometry_msgs/msg/Transform', translation=translation, rotation=rotation)
        stamped = self._new('geometry_msgs/msg/TransformStamped', header=header, child_frame_id=self.camera_frame, transform=transform)
        self._put('/tf', self._new('tf2_msgs/msg/TFMessage', transforms=[stamped]), stamp_ns)
        pose = self._new('geometry_msgs/msg/Pose', position=self._new('geometry_msgs/msg/Point', x=x, y=y, z=z), orientation=rotation)
        self._put(POSE_TOPIC, self._new('geometry_msgs/msg/PoseStamped', header=header, pose=pose), stamp_ns)

    def _camera_info(self, camera: Camera, stamp_ns: int) -> object:
        model, coefficients = ROS_PINHOLE if camera.distortion_model == 'none' else (camera.distortion_model, camera.distortion)
        k = camera.matrix()
        whole = self._new('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return self._new('sensor_msgs/msg/CameraInfo', header=self._header(stamp_ns), height=camera.height, width=camera.width,
                         distortion_model=model, d=np.array(coefficients, np.float64), k=k.ravel(), r=np.eye(3).ravel(),
                         p=np.hstack([k, np.zeros((3, 1))]).ravel(), binning_x=0, binning_y=0, roi=whole)

    def _image(self, pixels: np.ndarray, encoding: str, stamp_ns: int) -> object:
        data = np.ascontiguousarray(pixels)
        return self._new('sensor_msgs/msg/Image', header=self._header(stamp_ns), height=data.shape[0], width=data.shape[1],
                         encoding=encoding, is_bigendian=0, step=data.strides[0], data=data.view(np.uint8).ravel())

    def _packed(self, encoding: str, data: np.ndarray, stamp_ns: int) -> object:
        return self._new('sensor_msgs/msg/CompressedImage', header=self._header(stamp_ns), format=encoding, data=data)

    def _header(self, stamp_ns: int, frame_id: str | None = None) -> object:
        seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
        stamp = self._new('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        return self._new('std_msgs/msg/Header', stamp=stamp, frame_id=self.camera_frame if frame_id is None else frame_id)

    def _new(self, name: str, **fields: object) -> object:
        return self._types.types[name](**fields)

    def _put(self, topic: str, message: object, stamp_ns: int) -> None:
        name = message.__msgtype__
        data = self._types.serialize_cdr(message, name)
        with self._writable():
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(topic, name, typestore=self._types)
            self._writer.write(self._connections[topic], int(stamp_ns), data)
