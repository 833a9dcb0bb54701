"""What RViz shows of a localizer: computed and published only while somebody subscribes, after the frame is answered."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cache

import numpy as np
from nav_msgs.msg import Path
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from dsac_ros.errors import MapError
from dsac_ros.records import Estimate, Frame
from dsac_ros.ros.messages import time_message
from dsac_ros.ros.sensor_messages import colour_message
from dsac_ros.tracking.state import Decision
from dsac_ros.tracking.tracker import Tracker

PATH_POSES = 500
PERIOD_S = 0.5  # of what takes milliseconds: path, inliers, experts and image


class Pictures:
    """The publishers, as long as the node lives. Called by the worker's thread, for the points of the map by the executor too.

    What draws imports torch, which an unconfigured node has no need of; hence the imports in the functions.
    """

    def __init__(self, node: Node) -> None:
        self._path: deque[tuple[int, np.ndarray]] = deque(maxlen=PATH_POSES)
        self._tracker: Tracker | None = None
        self._warn = node.get_logger().warning
        self._map_frame = ''
        self._map_sent = False
        self._due_s: dict[str, float] = {}
        self._frustum = node.create_publisher(Marker, '~/frustum', QoSProfile(depth=1))
        self._paths = node.create_publisher(Path, '~/path', QoSProfile(depth=1))
        self._inliers = node.create_publisher(PointCloud2, '~/inliers', QoSProfile(depth=1))
        self._experts = node.create_publisher(MarkerArray, '~/experts', QoSProfile(depth=1))
        self._images = node.create_publisher(Image, '~/debug_image', QoSProfile(depth=1))
        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._map_points = node.create_publisher(PointCloud2, '~/map_points', latched,
                                                 event_callbacks=PublisherEventCallbacks(matched=lambda _: self._show_map()))

    def use(self, tracker: Tracker, map_frame: str) -> None:
        """Show this map from now on."""
        self._tracker, self._map_frame, self._map_sent = tracker, map_frame, False
        self._path.clear()
        self._show_map()

    def forget(self) -> None:
        """No map any more: its memory is to be free."""
        self._tracker = None

    def show(self, frame: Frame, estimate: Estimate, decision: Decision) -> None:
        """Of the frame that was localised last."""
        from dsac_ros.ros import drawings
        from dsac_ros.viewing import shapes
        from dsac_ros.viewing.support import support_of
        localizer = self._tracker.localizer
        header = Header(stamp=time_message(estimate.stamp_ns), frame_id=self._map_frame)
        support = cache(lambda: support_of(localizer, frame, estimate))  # found once for both
        self._now_and_then(self._experts, lambda: drawings.expert_markers(
            header, shapes.extents(localizer.choice.site), estimate.posterior or {estimate.expert: 1.0}))
        self._now_and_then(self._images, lambda: colour_message(shapes.with_support(
            frame.image, support(), shapes.caption(support(), decision.state.name, decision.reasons)), estimate.stamp_ns))
        if not decision.published:
            return
        self._path.append((estimate.stamp_ns, estimate.map_from_camera))
        if _wanted(self._frustum):
            self._frustum.publish(drawings.frustum_marker(header, frame.camera, estimate, decision))
        self._now_and_then(self._paths, lambda: drawings.path_message(header, self._path))
        self._now_and_then(self._inliers, lambda: drawings.inlier_cloud(header, support(), frame.camera))

    def _now_and_then(self, publisher: Publisher, message: Callable[[], object]) -> None:
        now_s = time.monotonic()
        if _wanted(publisher) and now_s >= self._due_s.get(publisher.topic_name, 0.0):
            self._due_s[publisher.topic_name] = now_s + PERIOD_S
            publisher.publish(message())

    def _show_map(self) -> None:
        if self._tracker is None or self._map_sent or not _wanted(self._map_points):
            return
        from dsac_ros.ros import drawings
        from dsac_ros.viewing import shapes
        self._map_sent = True
        site, points = self._tracker.localizer.choice.site, [np.zeros((0, 3))]
        for index in range(len(site.entries)):
            try:
                points.append(shapes.mapped_points(site, index))
            # It is not shown, and the frames that need it will tell of it; the others are as good as ever.
            except MapError as error:
                self._warn(f'~/map_points lacks a sub-map: {error}')
        cloud = np.concatenate(points).astype('<f4')
        self._map_points.publish(drawings.cloud(Header(frame_id=self._map_frame), cloud, ('x', 'y', 'z')))


def _wanted(publisher: Publisher) -> bool:
    return publisher.get_subscription_count() > 0
