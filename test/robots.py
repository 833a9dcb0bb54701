"""The TF of a robot that carries the camera: extrinsics, an odometry that moves steadily, and an ear for what the localizer sends."""
from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage

from dsac_ros.data.transforms import matrix_from, rigid_inverse
from dsac_ros.ros.messages import stamped_transform

CAMERA_FRAME = 'camera_optical_frame'
PERIOD_S = 0.04


def rigid(rotation: list[float], translation: list[float]) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = Rotation.from_rotvec(rotation).as_matrix(), translation
    return out


# A camera that looks ahead from a robot 30 cm below, in no special direction; and where the odometry began.
BASE_FROM_CAMERA = rigid([-1.2, 1.25, -1.19], [0.2, 0.03, 0.3])
ODOM_FROM_MAP = rigid([0.0, 0.0, 0.8], [2.0, -1.0, 0.0])


class RobotTf:
    """Publishes while inside of `with`. Its camera is at map_from_camera at the start; it drives with `velocity`."""

    def __init__(self, player: Any, map_from_camera: np.ndarray, prefix: str = '', velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
                 extrinsics: bool = True, odometry: bool = True) -> None:
        self._node, self.prefix, self._velocity = player.node, prefix, np.array(velocity)
        self.map_from_camera, self.odom_from_map = map_from_camera, ODOM_FROM_MAP
        self.odometry = odometry
        self._offset, self._start_ns, self._lock = np.zeros(3), time.time_ns(), threading.Lock()
        self.remember()
        self._tf = self._node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))
        self._static = self._node.create_publisher(
            TFMessage, '/tf_static', QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
        self.heard: list[tuple[float, Any]] = []  # time.time() and transform, those of the localizer alone
        self._ear = self._node.create_subscription(TFMessage, '/tf', self._hear, QoSProfile(depth=100))
        self._ended = threading.Event()
        if extrinsics:
            self.publish_extrinsics()

    def __enter__(self) -> RobotTf:
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        for publisher in (self._tf, self._static):
            self._node.destroy_publisher(publisher)
        self._node.destroy_subscription(self._ear)

    def publish_extrinsics(self) -> None:
        self.publish_static(stamped_transform(0, self.prefix + 'base_link', self.prefix + CAMERA_FRAME, BASE_FROM_CAMERA))

    def publish_static(self, transform: Any) -> None:
        self._static.publish(TFMessage(transforms=[transform]))

    def move(self, map_from_camera: np.ndarray | None = None, odom_from_map: np.ndarray | None = None, odometry_knows: bool = True) -> None:
        """To another place at once: with the odometry, or carried while it stands still; or the odometry alone."""
        if map_from_camera is not None and not odometry_knows:
            odom_from_map = self.odom_from_map @ self.map_from_camera @ rigid_inverse(map_from_camera)
        with self._lock:
            self.map_from_camera = self.map_from_camera if map_from_camera is None else map_from_camera
            self.odom_from_map = self.odom_from_map if odom_from_map is None else odom_from_map
        self.remember(anew=False)

    def drive(self, velocity: tuple[float, float, float]) -> None:
        """Odometry that moves like this from now on, whatever the camera sees."""
        with self._lock:
            now_ns = time.time_ns()
            self._offset = self._offset + self._velocity * (now_ns - self._start_ns) / 1e9
            self._velocity, self._start_ns = np.array(velocity), now_ns

    def remember(self, anew: bool = True) -> None:
        """The place where the robot is: map_from_base and odom_from_base."""
        place = self.map_from_camera @ rigid_inverse(BASE_FROM_CAMERA), self.odom_from_map @ self.map_from_camera @ rigid_inverse(
            BASE_FROM_CAMERA)
        self.places = [place] if anew else [*self.places, place]

    def odom_from_base(self, stamp_ns: int) -> np.ndarray:
        with self._lock:
            out = self.odom_from_map @ self.map_from_camera @ rigid_inverse(BASE_FROM_CAMERA)
            out[:3, 3] += self._offset + self._velocity * (stamp_ns - self._start_ns) / 1e9
        return out

    def map_to(self, frame: str) -> list[Any]:
        """Transforms heard from the map to this frame."""
        return [transform for _, transform in self.heard if transform.child_frame_id == self.prefix + frame]

    def _publish(self) -> None:
        while not self._ended.wait(PERIOD_S):
            if self.odometry:
                now_ns = time.time_ns()
                self._tf.publish(TFMessage(transforms=[
                    stamped_transform(now_ns, self.prefix + 'odom', self.prefix + 'base_link', self.odom_from_base(now_ns))]))

    def _hear(self, message: TFMessage) -> None:
        self.heard += [(time.time(), transform) for transform in message.transforms if transform.header.frame_id == 'map']


def matrix_of(transform: Any) -> np.ndarray:
    t, q = transform.transform.translation, transform.transform.rotation
    return matrix_from(np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w]))
