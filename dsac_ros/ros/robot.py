"""The robot that carries the camera: what TF says of it when an image is taken, and where a pose of the camera puts it (REP-105)."""
from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from dsac_ros.config import NodeOptions
from dsac_ros.data.transforms import rigid_inverse
from dsac_ros.records import Estimate
from dsac_ros.ros import messages
from dsac_ros.ros.frames import TransformListener
from dsac_ros.tracking.drift import DriftCorrection, displacement
from dsac_ros.tracking.state import moved_covariance

FROZEN_M, FROZEN_RAD = 0.1, 0.05  # motion after which no camera sees the very same pixels


@dataclass(frozen=True, eq=False)
class Placement:
    """What TF says at the stamp of an image: base_from_camera and, where there is odometry, odom_from_camera, (4, 4) or None; missing:
    the reason why one that is needed is not known, or ''."""

    base_from_camera: np.ndarray | None
    odom_from_camera: np.ndarray | None
    missing: str


class Robot:
    """For the modes map_to_odom and map_to_base, from activation to deactivation. Raises ConfigError where TF cannot be heard.

    map to base_frame is sent once for an image, with its stamp: where the robot is now is not known. map to odom_frame hardly changes, so
    it is dated ahead and sent again by a timer until the last image is too old.
    """

    def __init__(self, node: Node, options: NodeOptions, map_frame: str, send: Callable[[TransformStamped], None] | None) -> None:
        self._node, self.options, self._map_frame, self._send = node, options, map_frame, send
        self._with_odometry = options.tf_mode == 'map_to_odom'
        self._base_frame, self._odom_frame = options.frame_prefix + options.base_frame, options.frame_prefix + options.odom_frame
        self._camera_frame = options.frame_prefix + options.camera_frame if options.camera_frame else ''
        self.placement = Placement(None, None, '')  # of the newest image
        self.listener = TransformListener(node)
        self._poses = node.create_publisher(PoseWithCovarianceStamped, 'base_pose', QoSProfile(depth=10))
        self._still: tuple[Any, np.ndarray] | None = None  # bytes of the newest image, and where odometry had it when they first came
        self._drift, self._lock, self._sent_ns = DriftCorrection(options), threading.Lock(), 0
        # A steady clock: simulated time may stand still.
        self._timer = node.create_timer(1 / options.tf_rate, self._resend, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Hear and send nothing any more."""
        self._node.destroy_timer(self._timer)
        self.listener.close()
        self._node.destroy_publisher(self._poses)

    def forget(self) -> None:
        """Send nothing until the next pose."""
        with self._lock:
            self._drift.forget()
            self._sent_ns = 0
        self._still = None

    def use(self, map_frame: str) -> None:
        """Another map."""
        self.forget()
        self._map_frame = map_frame

    def look_up(self, stamp: int, image_frame: str) -> Placement:
        """Extrinsics and odometry at the stamp [ns] of an image; waits for tf_wait at the most, and only for odometry that is alive."""
        camera = self._camera_frame or image_frame
        base_from_camera = (self.listener.lookup(self._base_frame, camera, stamp, self.options.tf_wait) if camera else
                            'the image names no frame; set camera_frame')
        if isinstance(base_from_camera, str):
            placed = Placement(None, None, f'no_extrinsics: {self._base_frame} <- {camera or "?"}: {base_from_camera}')
        elif not self._with_odometry:
            placed = Placement(base_from_camera, None, '')
        else:
            odom_from_base = self.listener.lookup(self._odom_frame, self._base_frame, stamp, self.options.tf_wait)
            placed = (Placement(base_from_camera, None, f'no_odometry: {self._odom_frame} <- {self._base_frame}: {odom_from_base}')
                      if isinstance(odom_from_base, str) else Placement(base_from_camera, odom_from_base @ base_from_camera, ''))
        self.placement = placed
        return placed

    def frozen(self, data: Any, placed: Placement) -> str:
        """The reason to refuse an image with the bytes of those before although odometry says that the camera has moved, or ''."""
        odom_from_camera = placed.odom_from_camera
        if odom_from_camera is None or self._still is None or self._still[0] != data:
            self._still = None if odom_from_camera is None else (data, odom_from_camera)
            return ''
        metres, radians = displacement(self._still[1], odom_from_camera)
        return f'same image, moved by {metres:.2f} m, {radians:.2f} rad' if metres > FROZEN_M or radians > FROZEN_RAD else ''

    def publish(self, estimate: Estimate, placed: Placement) -> str:
        """Pose and transform of the robot for a published pose of its camera; the reason where not all of it could go out, or ''."""
        if placed.base_from_camera is None:
            return placed.missing
        camera_from_base = rigid_inverse(placed.base_from_camera)
        map_from_base = estimate.map_from_camera @ camera_from_base
        covariance = moved_covariance(estimate.covariance, estimate.map_from_camera[:3, :3] @ camera_from_base[:3, 3])
        self._poses.publish(messages.stamped_pose(estimate.stamp_ns, self._map_frame, map_from_base, covariance))
        if not self._with_odometry:
            self._broadcast(estimate.stamp_ns, self._base_frame, map_from_base)
            return ''
        if placed.odom_from_camera is None:
            return placed.missing
        now_ns = self._node.get_clock().now().nanoseconds
        with self._lock:
            self._drift.correct(estimate.stamp_ns, estimate.map_from_camera @ rigid_inverse(placed.odom_from_camera),
                                placed.odom_from_camera @ camera_from_base)
            if self._drift.stale(now_ns):
                return (f'tf_stale: the image is {(now_ns - estimate.stamp_ns) / 1e9:.3f} s behind the clock, tf_max_age is '
                        f'{self.options.tf_max_age} s; a bag needs --clock and use_sim_time')
        self._resend()
        return ''

    def map_from_camera(self, map_from_base: np.ndarray) -> np.ndarray | None:
        """Where the camera is when the robot is there, by the extrinsics of the newest image; None where there are none."""
        placed = self.placement
        return None if placed.base_from_camera is None else map_from_base @ placed.base_from_camera

    def findings(self) -> dict[str, object]:
        """For diagnostics."""
        sending = bool(self._sent_ns) and not self._drift.stale(self._node.get_clock().now().nanoseconds)
        return {'base_frame': self._base_frame, 'odom_frame': self._odom_frame if self._with_odometry else '', 'sending': sending,
                'bad_transforms': self.listener.bad}

    def _resend(self) -> None:
        with self._lock:
            now_ns = self._node.get_clock().now().nanoseconds
            map_from_odom = self._drift.at(now_ns)
            stamp_ns = now_ns + int(1e9 * self.options.transform_tolerance)
            # As long as a simulated clock stands still there is nothing new to send; one that was put back goes on from there.
            if map_from_odom is not None and stamp_ns != self._sent_ns:
                self._sent_ns = stamp_ns
                self._broadcast(stamp_ns, self._odom_frame, map_from_odom)

    def _broadcast(self, stamp_ns: int, child_frame: str, map_from_child: np.ndarray) -> None:
        if self._send is not None:
            self._send(messages.stamped_transform(stamp_ns, self._map_frame, child_frame, map_from_child))
