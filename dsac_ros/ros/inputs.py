"""Messages in: the subscriptions of an active node, and why nothing comes on one of them."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dsac_ros.config import NodeOptions
from dsac_ros.errors import ConfigError
from dsac_ros.ros.intake import Intake


class Inputs:
    """Subscribes; close() ends that. Raises ConfigError for a topic name or a QoS override that is none."""

    def __init__(self, node: Node, options: NodeOptions, intake: Intake, initial_pose: Callable[[PoseWithCovarianceStamped], None]) -> None:
        self._node = node
        self._clashes: dict[str, str] = {}  # stream -> policy that a publisher's QoS does not fit in
        self.streams: dict[str, Subscription] = {}

        def qos() -> QoSProfile:  # one for each: rclpy writes the overrides of a topic into it
            return QoSProfile(depth=options.queue_depth, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        try:
            self._listen('camera_info', CameraInfo, options.camera_info_topic, intake.camera_info, qos())
            self._listen('image', CompressedImage if options.image_compressed else Image, options.image_topic, intake.image, qos())
            if options.modality == 'rgbd':
                self._listen('depth', CompressedImage if options.depth_compressed else Image, options.depth_topic, intake.depth, qos())
            self._listen('initialpose', PoseWithCovarianceStamped, 'initialpose', initial_pose, QoSProfile(depth=1))
        # The first is what rclpy raises for a QoS override that is no policy.
        except (RuntimeError, ParameterException, NameValidationException, InvalidQosOverridesError) as error:
            self.close()
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        """Hear nothing any more."""
        for subscription in self.streams.values():
            self._node.destroy_subscription(subscription)
        self.streams = {}

    def publishers(self, stream: str) -> int:
        """How many publishers the topic has, whether or not they can be heard."""
        return len(self._node.get_publishers_info_by_topic(self.streams[stream].topic_name))

    def why_silent(self, stream: str) -> str:
        """The cause that the graph and the middleware tell of, where no message comes."""
        subscription = self.streams[stream]
        topic, wanted = subscription.topic_name, _type_name(subscription.msg_type)
        infos = self._node.get_publishers_info_by_topic(topic)
        if not infos:
            return f'no publisher on {topic}'
        if all(info.topic_type != wanted for info in infos):
            return f'{topic} is published as {infos[0].topic_type}, expected {wanted}'
        policy = self._clashes.get(stream)
        if policy is None:
            return f'{topic} has {len(infos)} publisher(s), but no message comes'
        offered = ', '.join(f'{info.node_name} offers {_value(info.qos_profile, policy)}' for info in infos)
        return f'QoS of {topic} does not fit in {policy}: {offered}, asked for is {_value(subscription.qos_profile, policy)}'

    def _listen(self, stream: str, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        self.streams[stream] = self._node.create_subscription(
            kind, topic, callback, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=partial(self._clash, stream)))

    def _clash(self, stream: str, event: QoSRequestedIncompatibleQoSInfo) -> None:
        self._clashes[stream] = qos_policy_name_from_kind(event.last_policy_kind)
        self._node.get_logger().warning(self.why_silent(stream))


def _type_name(kind: Any) -> str:
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


def _value(profile: QoSProfile, policy: str) -> str:
    return getattr(getattr(profile, policy.lower(), None), 'name', policy)
