"""The node `localizer`: camera messages in; pose, TF and status out. Wiring only.

Callbacks store (intake), one worker thread decodes, localises and publishes; the executor never waits for the network.
"""
from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dsac_ros.config import EstimatorOptions, IntegrityOptions, NodeOptions, TrackingOptions
from dsac_ros.errors import ConfigError, DecodeError, DsacError
from dsac_ros.msg import LocalizationStatus
from dsac_ros.records import Estimate, Frame
from dsac_ros.ros import messages, parameters
from dsac_ros.ros.complaints import Complaints
from dsac_ros.ros.frames import tf_broadcaster
from dsac_ros.ros.images import colour_decoder, decode_camera, decode_depth
from dsac_ros.ros.intake import Intake, RawFrame, Refusal

JOIN_S = 5.0
WAKE_S = 0.5


class LocalizerNode(Node):
    """Loads and warms up the map, then subscribes. close() ends the worker. Raises DsacError where it cannot start.

    arguments: those of rclpy.node.Node, such as context, namespace or parameter_overrides.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__('localizer', **arguments)
        groups = parameters.declare(self, parameters.GROUPS['localizer'])
        self.options: NodeOptions = groups['']
        self._load(groups['estimator'], groups['integrity'], groups['tracking'])
        self._decode_colour = colour_decoder()
        self._complaints = Complaints(self.get_logger().warning)
        self._processed = self._accepted = 0
        self._advertise()
        self._intake = Intake(self.options.modality == 'rgbd', self.options.sync_slop, self.options.depth_wait)
        self._worker = threading.Thread(target=self._work, name='localize', daemon=True)
        self._worker.start()
        self._subscribe()
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True), post_callback=self._time_jumped)
        self.get_logger().info(f'map {self.options.map} in frame {self.map_frame}; waiting for {self._image_topic}')

    def _load(self, estimator: EstimatorOptions, integrity: IntegrityOptions, tracking: TrackingOptions) -> None:
        if not self.options.map:
            raise ConfigError('parameter map: no map given; set it to the path of a map bundle, as in -p map:=ROOM.dsacmap')
        import torch

        from dsac_ros.localizer import Localizer
        from dsac_ros.tracking.tracker import Tracker
        torch.set_num_threads(self.options.threads or max(1, (os.cpu_count() or 2) // 2))
        self._localizer = Tracker(Localizer.from_map(self.options.map, self.options.device, estimator, integrity), tracking)
        self._localizer.warm_up(None, self.options.modality)
        self.map_frame = self.options.map_frame or self._localizer.map_frame

    def _advertise(self) -> None:
        self._poses = self.create_publisher(PoseWithCovarianceStamped, 'pose', QoSProfile(depth=10))
        # Latched, so that who comes late sees at once what the node is at.
        self._statuses = self.create_publisher(
            LocalizationStatus, 'status', QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
        self._send_transform = tf_broadcaster(self) if self.options.tf_mode != 'none' else None
        self._statuses.publish(messages.status_message(0, self.map_frame, LocalizationStatus.INITIALISING, ('starting',), None, {}, False))

    def _subscribe(self) -> None:
        qos = QoSProfile(depth=self.options.queue_depth, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        intake = self._intake
        inputs = [(CameraInfo, self.options.camera_info_topic, intake.camera_info),
                  (CompressedImage if self.options.image_compressed else Image, self.options.image_topic, intake.image)]
        if self.options.modality == 'rgbd':
            inputs.append((CompressedImage if self.options.depth_compressed else Image, self.options.depth_topic, intake.depth))
        override = QoSOverridingOptions.with_default_policies()
        try:
            subscriptions = [self.create_subscription(kind, topic, callback, qos, qos_overriding_options=override)
                             for kind, topic, callback in inputs]
        except RuntimeError as error:  # what rclpy raises for a QoS override that is no policy
            raise ConfigError(str(error)) from error
        self._image_topic = subscriptions[1].topic_name

    def _time_jumped(self, _: TimeJump) -> None:
        self._intake.restart()

    def close(self) -> None:
        """Stop the worker; what it is at is finished first, within JOIN_S."""
        self._intake.close()
        self._worker.join(JOIN_S)

    def _work(self) -> None:
        while (item := self._intake.take()) is not None:
            try:
                if isinstance(item, RawFrame):
                    item = self._check_age(item)
                self._refused(item) if isinstance(item, Refusal) else self._localize(item)
            # A frame must never end the node, whatever it is that fails.
            except Exception as error:
                if not self.context.ok():
                    return
                self._complaints.say('internal_error', traceback.format_exc())
                self._refused(self._intake.refuse(item, 'internal_error', f'{type(error).__name__}: {error}'))

    def _check_age(self, raw: RawFrame) -> RawFrame | Refusal:
        age_s = self._age_s(raw.stamp_ns)
        if self.options.max_age and abs(age_s) > self.options.max_age:
            detail = f'stamp {raw.stamp_ns / 1e9:.3f} s is {age_s:.3f} s behind the clock, max_age is {self.options.max_age} s'
            return self._intake.refuse(raw, 'too_old' if age_s > 0 else 'from_the_future', detail)
        return raw

    def _localize(self, raw: RawFrame) -> None:
        picked_s = time.monotonic()
        frame = self._decode(raw)
        if isinstance(frame, Refusal):
            self._refused(frame)
            return
        decoded_s = time.monotonic()
        estimate = self._localizer.localize(frame, self.options.modality)
        self._processed += 1
        stages = {'wait': 1e3 * (picked_s - raw.received_s), 'decode': 1e3 * (decoded_s - picked_s), **estimate.stage_times_ms}
        finite = np.isfinite(estimate.map_from_camera).all() and np.isfinite(estimate.covariance).all()
        reasons = estimate.verdict.reasons if finite else (*estimate.verdict.reasons, 'pose_not_finite')
        if self._processed == 1:
            self.get_logger().info(f'first frame: {frame.camera.width}x{frame.camera.height}, '
                                   + ('with depth' if frame.depth is not None else 'without depth'))
        if estimate.verdict.accepted and finite:
            self._accepted += 1
            if self._accepted == 1:
                self.get_logger().info(f'first pose, in frame {self.map_frame}, after {self._processed} frames')
            pose = messages.pose_message(estimate, self.map_frame)
            self._poses.publish(pose)
            if self._send_transform is not None:
                self._send_transform(messages.transform_message(pose, self.options.tf_child_frame))
            self._report(raw, LocalizationStatus.TRACKING, (), estimate, stages, True)
        else:
            self._complaints.say('no_pose', f'frame refused: {", ".join(reasons) or "not_accepted"}')
            self._report(raw, self._state_without_pose(), reasons or ('not_accepted',), estimate, stages, False)

    def _decode(self, raw: RawFrame) -> Frame | Refusal:
        if raw.camera_info is None:
            return self._intake.refuse(raw, 'no_camera_info', f'no camera_info yet; is {self.options.camera_info_topic} published?')
        try:
            camera = decode_camera(raw.camera_info)
        except DecodeError as error:
            return self._intake.refuse(raw, 'bad_camera_info', str(error))
        try:
            image = self._decode_colour(raw.image)
        except DecodeError as error:
            return self._intake.refuse(raw, 'bad_image', str(error))
        height, width = image.shape[:2]
        if (camera.width, camera.height) != (width, height):
            detail = f'the image is {width}x{height}, camera_info {camera.width}x{camera.height}'
            return self._intake.refuse(raw, 'camera_info_size', detail)
        depth = self._depth_of(raw, (height, width))
        if depth is None and self.options.modality == 'rgbd':
            self._intake.fall_back()
        return Frame(image, camera, raw.stamp_ns, depth)

    def _depth_of(self, raw: RawFrame, shape: tuple[int, int]) -> np.ndarray | None:
        """The depth image, or None, counted and said, where it cannot be used: the frame then goes on in rgb."""
        if raw.depth is None:
            if self.options.modality == 'rgbd':
                self._complaints.say('no_depth', f'no depth image on {self.options.depth_topic} within {self.options.sync_slop} s of the '
                                                 'stamp of the colour image, or not in time; localising in rgb')
            return None
        try:
            depth = decode_depth(raw.depth)
        except DecodeError as error:
            self._complain('bad_depth', str(error))
            return None
        if depth.shape != shape:
            self._complain('depth_size', f'the image is {shape[1]}x{shape[0]}, depth {depth.shape[1]}x{depth.shape[0]}; '
                                         'depth has to be registered to the image')
            return None
        if not (depth > 0).any():
            self._complain('empty_depth', 'no pixel of the depth image holds a distance')
            return None
        return depth

    def _complain(self, cause: str, detail: str) -> None:
        self._intake.complain(cause)
        self._complaints.say(cause, f'{detail}; localising in rgb')

    def _refused(self, refusal: Refusal) -> None:
        self._complaints.say(refusal.cause, refusal.detail)
        if refusal.of_image:
            self._report(refusal, self._state_without_pose(), (f'{refusal.cause}: {refusal.detail}',), None, {}, False)

    def _state_without_pose(self) -> int:
        return LocalizationStatus.LOST if self._accepted else LocalizationStatus.INITIALISING

    def _age_s(self, stamp_ns: int) -> float:
        return (self.get_clock().now().nanoseconds - stamp_ns) / 1e9

    def _report(self, item: RawFrame | Refusal, state: int, reasons: Iterable[str], estimate: Estimate | None,
                stages: Mapping[str, float], accepted: bool) -> None:
        status = messages.status_message(item.stamp_ns, self.map_frame, state, reasons, estimate, stages, accepted)
        counters = self._intake.counters() | {'processed': self._processed, 'accepted': self._accepted}
        messages.fill_counters(status, counters, self._intake.rejections())
        status.latency_stamp_ms = 1e3 * self._age_s(item.stamp_ns) if item.stamp_ns > 0 else math.nan
        status.latency_receive_ms = 1e3 * (time.monotonic() - item.received_s)
        self._statuses.publish(status)


def _init(arguments: list[str] | None) -> None:
    try:
        rclpy.init(args=arguments)
    except RuntimeError as error:  # rcl's own error, for arguments or parameter files that it cannot read
        raise ConfigError(str(error)) from error


def spin(node: Node) -> None:
    """Run the node's callbacks until its context ends.

    rclpy's signal handler wakes the executor before a thread of its own ends the context. An executor that was quick to wait again would
    then sleep until the next message, so this one wakes by itself.
    """
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        while node.context.ok():
            executor.spin_once(WAKE_S)
    except ExternalShutdownException:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM (0), or say in one line why it cannot start (1)."""
    node = None
    try:
        _init(arguments)
        node = LocalizerNode()
        spin(node)
    except KeyboardInterrupt:
        pass
    except (DsacError, ParameterException, NameValidationException, InvalidQosOverridesError) as error:
        print(f'localizer: {error}', file=sys.stderr)
        return 1
    finally:
        # An impatient second Ctrl-C must not turn an orderly end into a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
