"""Estimates to ROS messages, and poses back from them."""
from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, TransformStamped
from std_msgs.msg import Header

from dsac_ros.data.transforms import matrix_from, quat_xyzw_of
from dsac_ros.msg import LocalizationStatus
from dsac_ros.records import Estimate
from dsac_ros.tracking.state import Decision

MIN_PROBABILITY = 1e-3  # of a sub-map that the status names


def time_message(stamp_ns: int) -> Time:
    """Nanoseconds to a stamp; what does not fit into one (a fuzzed header) becomes zero."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec) if 0 <= sec < 2 ** 31 else Time()


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """geometry_msgs/Pose to (4, 4) float64."""
    position, q = pose.position, pose.orientation
    return matrix_from(np.array([position.x, position.y, position.z]), np.array([q.x, q.y, q.z, q.w]))


def pose_message(estimate: Estimate, map_frame: str) -> PoseWithCovarianceStamped:
    """The camera's pose in the map frame, with the image's stamp."""
    message = PoseWithCovarianceStamped(header=Header(stamp=time_message(estimate.stamp_ns), frame_id=map_frame))
    pose = message.pose.pose
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in estimate.map_from_camera[:3, 3])
    q = pose.orientation
    q.x, q.y, q.z, q.w = quat_xyzw_of(estimate.map_from_camera).tolist()
    message.pose.covariance = np.ascontiguousarray(estimate.covariance, np.float64).reshape(36)
    return message


def transform_message(pose: PoseWithCovarianceStamped, child_frame: str) -> TransformStamped:
    """The same pose as a transform from the map frame to child_frame."""
    message = TransformStamped(header=pose.header, child_frame_id=child_frame)
    position, translation = pose.pose.pose.position, message.transform.translation
    translation.x, translation.y, translation.z = position.x, position.y, position.z
    message.transform.rotation = pose.pose.pose.orientation
    return message


def status_message(stamp_ns: int, map_frame: str, decision: Decision, estimate: Estimate | None = None,
                   stage_times_ms: Mapping[str, float] = MappingProxyType({})) -> LocalizationStatus:
    """What became of one frame. estimate is None where the frame was refused before it was localised."""
    message = LocalizationStatus(header=Header(stamp=time_message(stamp_ns), frame_id=map_frame), state=int(decision.state),
                                 accepted=decision.published)
    message.reasons = list(decision.reasons)
    message.stage_names = [str(name) for name in stage_times_ms]
    message.stage_times_ms = [float(value) for value in stage_times_ms.values()]
    nan3 = np.full(3, math.nan, np.float32)
    if estimate is None:
        message.inliers = message.inlier_ratio = message.spread = message.residual = message.landmarks = math.nan
        message.position_stddev = message.rotation_stddev = nan3
        return message
    message.modality, message.expert = estimate.modality, estimate.expert
    likely = sorted(((p, name) for name, p in estimate.posterior.items() if p > MIN_PROBABILITY), reverse=True)
    message.experts, message.posterior = [name for _, name in likely], [p for p, _ in likely]
    message.inliers, message.inlier_ratio = float(estimate.inliers), float(estimate.inlier_ratio)
    message.spread, message.residual = float(estimate.spread), float(estimate.residual)
    message.landmarks, message.tracked = float(estimate.landmarks), estimate.tracked
    stddev = np.sqrt(np.maximum(np.diagonal(estimate.covariance), 0.0)).astype(np.float32)
    message.position_stddev, message.rotation_stddev = stddev[:3], stddev[3:]
    return message


def fill_counters(message: LocalizationStatus, counters: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    """Set the frames_... fields and the refusals by cause."""
    for name, value in counters.items():
        setattr(message, f'frames_{name}', value)
    message.rejected_causes = list(rejected)
    message.rejected_counts = list(rejected.values())


def counters_of(message: Any) -> dict[str, int]:
    """The counters of a status message as one mapping: received, processed, ..., rejected.<cause>."""
    names = [name[len('frames_'):] for name in message.get_fields_and_field_types() if name.startswith('frames_')]
    out = {name: int(getattr(message, f'frames_{name}')) for name in names}
    return out | {f'rejected.{cause}': int(n) for cause, n in zip(message.rejected_causes, message.rejected_counts)}
