"""The thread between messages in and pose out: decodes, localises, and says of every frame what became of it."""
from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from rclpy.node import Node

from dsac_ros.config import NodeOptions, StateOptions
from dsac_ros.errors import DecodeError, MapError
from dsac_ros.msg import LocalizationStatus
from dsac_ros.records import Estimate, Frame
from dsac_ros.ros import messages
from dsac_ros.ros.complaints import Complaints
from dsac_ros.ros.images import colour_decoder, decode_camera, decode_depth
from dsac_ros.ros.intake import NO_IMAGES, Intake, RawFrame, Refusal
from dsac_ros.ros.outlets import Outlets
from dsac_ros.ros.robot import Placement, Robot
from dsac_ros.tracking.state import Decision, State, StateMachine
from dsac_ros.tracking.tracker import Tracker

MAX_STATUSES = 100
# Of refused images whose stamps do not tell how long ago the last pose was.
NO_TIME = ('zero_stamp', 'repeated_stamp', 'out_of_order', 'too_old', 'from_the_future')


class Worker:
    """Takes from the intake until close(), after which nothing is published any more.

    rectified: of the images, as in decode_camera.
    """

    def __init__(self, node: Node, options: NodeOptions, state: StateOptions, intake: Intake, tracker: Tracker,
                 outlets: Outlets, robot: Robot | None, rectified: bool) -> None:
        self._node, self.options, self._intake, self._tracker, self._outlets, self._robot = node, options, intake, tracker, outlets, robot
        self.enabled, self._rectified = True, rectified
        self._machine = StateMachine(state)
        self._decode_colour = colour_decoder()
        self._complaints = Complaints(node.get_logger().warning)
        self._processed = self._accepted = 0
        self._statuses: deque[LocalizationStatus] = deque(maxlen=MAX_STATUSES)
        self._posed_s: float | None = None
        self._begun_s: float | None = None
        self._closed = False
        outlets.pictures.use(tracker, self.map_frame)
        self._thread = threading.Thread(target=self._work, name='localize', daemon=True)
        self._thread.start()

    @property
    def map_frame(self) -> str:
        return self.options.map_frame or self._tracker.map_frame

    def recent(self) -> list[LocalizationStatus]:
        """The last statuses, oldest first."""
        return list(self._statuses.copy())

    def seconds_since_pose(self) -> float | None:
        """Since the last published pose; None before the first."""
        return None if self._posed_s is None else time.monotonic() - self._posed_s

    def seconds_at_work(self) -> float:
        """On the frame that it is at, or on what is done before it (another map), 0 while it waits for one."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else time.monotonic() - begun_s

    def between_frames(self, action: Callable[[], None]) -> None:
        """Have the thread do this before its next frame, at once where none has come."""
        self._intake.between_frames(action)

    def restart(self) -> None:
        """Between frames: forget what the frames before say."""
        self._tracker.forget()
        self._machine.restart()
        if self._robot is not None:
            self._robot.forget()

    def expect(self, map_from_camera: np.ndarray) -> None:
        """Between frames: the next frame is looked for around this pose, (4, 4), and everywhere where it is not there."""
        self.restart()
        self._tracker.expect(map_from_camera)

    def use(self, tracker: Tracker) -> None:
        """Between frames: another map."""
        self._tracker = tracker
        self.restart()
        if self._robot is not None:
            self._robot.use(self.map_frame)
        self._outlets.pictures.use(tracker, self.map_frame)

    def judge_by(self, state: StateOptions) -> None:
        """Between frames: other thresholds."""
        self._machine.options = state

    def close(self, timeout_s: float) -> bool:
        """End the thread; what it is at is finished first. False where that takes longer than the timeout."""
        self._closed = True
        self._intake.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._intake.take(self._machine.options.lost_after)) is not None:
            self._begun_s = time.monotonic()
            self._do(item) if callable(item) else self._look_at(item)
            self._begun_s = None

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        # As with frames: whatever it is that fails.
        except Exception:
            if self._node.context.ok():
                self._complaints.say('internal_error', traceback.format_exc())

    def _look_at(self, item: RawFrame | Refusal) -> None:
        try:
            if isinstance(item, RawFrame):
                item = self._check(item)
            self._refused(item) if isinstance(item, Refusal) else self._localize(item)
        except MapError as error:
            self._complaints.say('damaged_sub_map', str(error))
            self._refused(self._intake.refuse(item, 'damaged_sub_map', str(error)))
        except DecodeError as error:  # of a shape that the network has no input for
            self._refused(self._intake.refuse(item, 'bad_image', str(error)))
        # A frame must never end the node, whatever it is that fails.
        except Exception as error:
            if self._node.context.ok():
                self._complaints.say('internal_error', traceback.format_exc())
                self._refused(self._intake.refuse(item, 'internal_error', f'{type(error).__name__}: {error}'))

    def _check(self, raw: RawFrame) -> RawFrame | Refusal:
        if not self.enabled:
            return self._intake.refuse(raw, 'disabled', 'switched off by ~/enable')
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
        placed = Placement(None, None, '') if self._robot is None else self._robot.look_up(raw.stamp_ns, raw.image.header.frame_id)
        if self._robot is not None and (detail := self._robot.frozen(raw.image.data, placed)):
            self._refused(self._intake.refuse(raw, 'frozen_image', detail))
            return
        frame = replace(frame, odom_from_camera=placed.odom_from_camera)
        decoded_s = time.monotonic()
        estimate = self._tracker.localize(frame, self.options.modality)
        self._processed += 1
        stages = {'wait': 1e3 * (picked_s - raw.received_s), 'decode': 1e3 * (decoded_s - picked_s), **estimate.stage_times_ms}
        decision = self._machine.decide(estimate, placed.odom_from_camera, frame.camera)
        if self._processed == 1:
            self._node.get_logger().info(f'first frame: {frame.camera.width}x{frame.camera.height}, '
                                         + ('with depth' if frame.depth is not None else 'without depth'))
        if decision.published:
            self._accepted += 1
            if self._accepted == 1:
                self._node.get_logger().info(f'first pose, in frame {self.map_frame}, after {self._processed} frames')
            self._posed_s = time.monotonic()
            if not self._closed:
                self._outlets.pose(estimate, self.map_frame)
                if self._robot is not None and (reason := self._robot.publish(estimate, placed)):
                    self._complaints.say(reason.partition(':')[0], reason)
                    decision = replace(decision, state=State.DEGRADED, reasons=(*decision.reasons, reason))
        else:
            self._complaints.say('no_pose', f'frame refused: {", ".join(decision.reasons)}')
        self._report(raw, decision, estimate, stages)
        self._show(frame, estimate, decision)

    def _show(self, frame: Frame, estimate: Estimate, decision: Decision) -> None:
        try:
            if not self._closed:
                self._outlets.pictures.show(frame, estimate, decision)
        # The frame has been answered; that it cannot be drawn changes nothing of it.
        except Exception:
            if self._node.context.ok():
                self._complaints.say('no_picture', traceback.format_exc())

    def _decode(self, raw: RawFrame) -> Frame | Refusal:
        if raw.camera_info is None:
            return self._intake.refuse(raw, 'no_camera_info', f'no camera_info yet; is {self.options.camera_info_topic} published?')
        try:
            camera = decode_camera(raw.camera_info, self._rectified)
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
        if refusal.cause != 'disabled':
            self._complaints.say(refusal.cause, refusal.detail)
        if refusal.cause == NO_IMAGES:
            self._report(refusal, Decision(self._machine.lose(), False, (f'{refusal.cause}: {refusal.detail}',)))
        if refusal.of_image:
            timeless = refusal.cause in NO_TIME
            state = self._machine.refuse(0 if timeless else refusal.stamp_ns)
            if timeless and (self.seconds_since_pose() or 0.0) > self._machine.options.lost_after:
                state = self._machine.lose()
            self._report(refusal, Decision(state, False, (f'{refusal.cause}: {refusal.detail}',)))

    def _age_s(self, stamp_ns: int) -> float:
        return (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e9

    def _report(self, item: RawFrame | Refusal, decision: Decision, estimate: Estimate | None = None,
                stages: Mapping[str, float] = MappingProxyType({})) -> None:
        status = messages.status_message(item.stamp_ns, self.map_frame, decision, estimate, stages)
        counters = self._intake.counters() | {'processed': self._processed, 'accepted': self._accepted}
        messages.fill_counters(status, counters, self._intake.rejections())
        status.latency_stamp_ms = 1e3 * self._age_s(item.stamp_ns) if item.stamp_ns > 0 else math.nan
        status.latency_receive_ms = 1e3 * (time.monotonic() - item.received_s)
        self._statuses.append(status)
        if not self._closed:
            self._outlets.status(status)
