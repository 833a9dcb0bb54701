"""Transforms out and in: a function that broadcasts on /tf, and what is heard there and on /tf_static."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from dsac_ros.config import NodeOptions
from dsac_ros.data.transforms import TransformTree, matrix_from
from dsac_ros.errors import ConfigError, DataError
from dsac_ros.ros.intake import stamp_ns

KEEP_NS = 10_000_000_000  # as tf2
FARTHEST_M = 1e8
SILENT_S = 0.5  # without a moving transform nobody waits for the next


def tf_broadcaster(node: Node) -> Callable[[TransformStamped], None] | None:
    """A function that sends one transform; None, with one warning, where not even tf2_msgs is installed."""
    try:
        from tf2_ros import TransformBroadcaster
        return TransformBroadcaster(node).sendTransform
    except ImportError:
        pass
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError:
        node.get_logger().warning('neither tf2_ros nor tf2_msgs is installed: no TF is published, only pose and status')
        return None
    publisher = node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))  # what tf2_ros's broadcaster uses
    return lambda transform: publisher.publish(TFMessage(transforms=[transform]))


def check_frames(options: NodeOptions, map_frame: str) -> None:
    """Raise ConfigError where TF could not tell the frame of the map from another one that tf_mode needs, or that one has no name."""
    needed = {'map_to_camera': ('tf_child_frame',), 'map_to_base': ('base_frame',), 'map_to_odom': ('base_frame', 'odom_frame'), 'none': ()}
    for name in needed[options.tf_mode]:
        frame = getattr(options, name)
        if not frame.strip('/'):
            raise ConfigError(f'{name} is empty; tf_mode {options.tf_mode} needs the name of that frame')
        if (options.frame_prefix + frame).lstrip('/') == map_frame.lstrip('/'):
            raise ConfigError(f'the map is in frame {map_frame!r}, and {name} is the same; set map_frame to another name, such as map '
                              '(a map made by the poses of an odometry is in the frame of that one)')


class TransformListener:
    """The TF tree of the last seconds: heard by the executor, looked up by the worker. Raises ConfigError where there is no tf2_msgs.

    Not tf2_ros: its buffer cannot wait in a thread without a second executor, and the wheels have none (docs/architecture.md, section 7).
    """

    def __init__(self, node: Node) -> None:
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            raise ConfigError('this tf_mode needs tf2_msgs, which is not installed') from error
        self._node = node
        self._tree = TransformTree(keep_ns=KEEP_NS)
        self._changed = threading.Condition()
        self._moved_s = -SILENT_S
        self.bad = 0  # transforms that were none
        latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions = [
            node.create_subscription(TFMessage, '/tf', lambda message: self.hear(message, False), QoSProfile(depth=100)),
            node.create_subscription(TFMessage, '/tf_static', lambda message: self.hear(message, True), latched)]

    def close(self) -> None:
        """Hear nothing any more."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def hear(self, message: Any, static: bool) -> None:
        """Take a tf2_msgs/TFMessage."""
        with self._changed:
            for transform in message.transforms:
                parent, child = transform.header.frame_id, transform.child_frame_id
                t, q = transform.transform.translation, transform.transform.rotation
                try:
                    if not parent.strip('/') or not child.strip('/') or parent.lstrip('/') == child.lstrip('/'):
                        raise DataError(f'a transform from {child!r} to {parent!r} is none')
                    if max(abs(t.x), abs(t.y), abs(t.z)) > FARTHEST_M:
                        raise DataError(f'{child!r} is further from {parent!r} than any place on earth')
                    matrix = matrix_from(np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w]))
                except DataError:
                    self.bad += 1
                    continue
                self._tree.add(parent, child, stamp_ns(transform.header), matrix, static)
            self._moved_s = self._moved_s if static else time.monotonic()
            self._changed.notify_all()

    def lookup(self, target: str, source: str, stamp: int, wait_s: float = 0.0) -> np.ndarray | str:
        """target_from_source (4, 4) at the stamp [ns]; what is missing, in words, where it does not come within wait_s."""
        until_s = time.monotonic() + wait_s
        with self._changed:
            try:
                while (found := self._tree.lookup(target, source, stamp)) is None:
                    now_s = time.monotonic()
                    if now_s >= until_s or now_s - self._moved_s > SILENT_S:
                        return self._tree.why_not(target, source, stamp)
                    self._changed.wait(until_s - now_s)
                return found
            except DataError as error:  # frames that are each other's parents
                return str(error)
