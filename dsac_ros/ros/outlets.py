"""What the localizer tells: pose, TF of the camera, status, and pictures for who looks; robot.py has the TF of a robot."""
from __future__ import annotations

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from dsac_ros.config import NodeOptions
from dsac_ros.msg import LocalizationStatus
from dsac_ros.records import Estimate
from dsac_ros.ros import messages
from dsac_ros.ros.frames import tf_broadcaster
from dsac_ros.ros.pictures import Pictures
from dsac_ros.tracking.state import Decision, State


class Outlets:
    """The publishers, which live as long as the node."""

    def __init__(self, node: Node, options: NodeOptions) -> None:
        self.newest = ''  # the last of the news
        self._child_frame = options.frame_prefix + options.tf_child_frame
        self._poses = node.create_publisher(PoseWithCovarianceStamped, 'pose', QoSProfile(depth=10))
        # Latched, so that who comes late sees at once what the node is at.
        self._statuses = node.create_publisher(
            LocalizationStatus, 'status', QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
        self.pictures = Pictures(node)
        # One for all activations: what tf2_ros makes for it cannot be destroyed.
        self.send_transform = None if options.tf_mode == 'none' else tf_broadcaster(node)
        self._of_camera = options.tf_mode == 'map_to_camera'

    def pose(self, estimate: Estimate, map_frame: str) -> None:
        """Publish an accepted pose, and with map_to_camera the transform."""
        message = messages.pose_message(estimate, map_frame)
        self._poses.publish(message)
        if self._of_camera and self.send_transform is not None:
            self.send_transform(messages.transform_message(message, self._child_frame))

    def status(self, message: LocalizationStatus) -> None:
        """Publish what became of a frame."""
        self._statuses.publish(message)

    def news(self, reason: str, map_frame: str = '') -> None:
        """Publish a status that is of no frame: what the node is at."""
        self.newest = reason
        self.status(messages.status_message(0, map_frame, Decision(State.INITIALISING, False, (reason,))))
