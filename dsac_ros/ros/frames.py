"""Transforms out: one function that broadcasts on /tf, by tf2_ros where it is installed."""
from __future__ import annotations

from collections.abc import Callable

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile


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
