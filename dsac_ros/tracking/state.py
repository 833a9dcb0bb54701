"""From verdicts on single frames to what is published: silence until frames agree, and no belief in a single wild one."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from scipy.spatial.transform import Rotation

from dsac_ros.config import StateOptions
from dsac_ros.data.transforms import rigid_inverse
from dsac_ros.geometry.camera import largest_turn
from dsac_ros.records import Camera, Check, Estimate

# What two poses may differ by beside the motion: their noise, as each states it, and what it may leave out.
SIGMAS = 3.0
SLACK_M, SLACK_RAD = 0.05, 0.02
CONFIRMING = 10.0  # lost_after's between two frames of which one confirms the other without odometry: a slow camera has few
OTHER_LENS_RAD = 0.01  # between the rays of one pixel: more is another calibration, less an autofocus at work


class State(IntEnum):
    """As in dsac_ros/msg/LocalizationStatus."""

    INITIALISING = 0
    TRACKING = 1
    DEGRADED = 2
    LOST = 3


@dataclass(frozen=True)
class Decision:
    """published: the frame's pose goes out. reasons: why it does not, or what is weak about it. checks: numbers behind it."""

    state: State
    published: bool
    reasons: tuple[str, ...] = ()
    checks: tuple[Check, ...] = field(default=(), compare=False)


@dataclass(frozen=True, eq=False)
class _Fix:
    """An accepted pose with the largest standard deviation of its position and of its rotation along any axis."""

    stamp_ns: int
    map_from_camera: np.ndarray
    covariance: np.ndarray
    deviation_m: float
    deviation_rad: float
    odom_from_camera: np.ndarray | None


class StateMachine:
    """For the frames of one camera in the order of their stamps; a stamp that is not later than the one before starts anew, and a track by
    another calibration than before counts as lost.

    An accepted pose is published when the camera can have got there from the last published one, or, at the start, after that one is
    lost_after old, and where they are too far apart (a robot that was carried, a wrong pose, an odometry that jumped), when enough of the
    last frames agree. Where odometry is known of two frames it says where the camera can have got to, else the speed limits do.
    """

    def __init__(self, options: StateOptions = StateOptions()) -> None:
        self.options = options
        self.restart()

    def restart(self) -> None:
        """As if no frame had come."""
        # Of the frames before, None for one that was refused.
        self._recent: deque[_Fix | None] = deque(maxlen=self.options.agreeing + self.options.spare - 1)
        self._published: _Fix | None = None
        self._lost_ns: int | None = None  # since when the track is lost, None while it is not
        self._last_ns = 0
        self._camera: Camera | None = None

    def decide(self, estimate: Estimate, odom_from_camera: np.ndarray | None = None, camera: Camera | None = None) -> Decision:
        """What becomes of a frame that was localised; odom_from_camera and camera as in records.Frame.

        A calibration that changes may be a damaged one, and then every pose by it is wrong: frames have to agree anew.
        """
        if estimate.stamp_ns <= self._last_ns:
            self.restart()
        if another_lens(self._camera, camera):
            self._recent.clear()
            self.lose()
        self._camera = camera or self._camera
        self._last_ns = estimate.stamp_ns
        finite = np.isfinite(estimate.map_from_camera).all() and np.isfinite(estimate.covariance).all()
        if not (estimate.verdict.accepted and finite):
            self._recent.append(None)
            return Decision(self._silent(), False, estimate.verdict.reasons if finite else (*estimate.verdict.reasons, 'pose_not_finite'))
        covariance = estimate.covariance
        fix = _Fix(estimate.stamp_ns, estimate.map_from_camera, covariance, _deviation(covariance[:3, :3]), _deviation(covariance[3:, 3:]),
                   odom_from_camera)
        checks = ()
        if self._published is not None and self._by_odometry(self._published, fix):
            checks = (Check('max_odometry_chi2', odometry_chi2(self._published, fix, self.options), self.options.max_odometry_chi2),)
        count = 1 + sum(other is not None and self._vouches(other, fix) for other in self._recent)
        self._recent.append(fix)
        going_on = self._silent() == State.DEGRADED
        if count < self.options.agreeing and not (going_on and self._agree(self._published, fix)):
            reason = f'{"jump" if going_on else "unconfirmed"}: {count} of {self.options.agreeing} frames agree'
            return Decision(self._silent(), False, (reason,), checks)
        self._published, self._lost_ns = fix, None
        # Frames from before would confirm a jump: more time has passed since them, and where frames flip, some are of the other place.
        self._recent = deque([fix], self._recent.maxlen)
        weak = tuple(name for name, bad in (('weak_position', fix.deviation_m > self.options.weak_position),
                                            ('weak_rotation', fix.deviation_rad > self.options.weak_rotation)) if bad)
        return Decision(State.DEGRADED if weak else State.TRACKING, True, weak, checks)

    def refuse(self, stamp_ns: int) -> State:
        """The state after a frame that could not be localised; one without a stamp, or not in order, only counts as none."""
        if stamp_ns > self._last_ns:
            self._last_ns = stamp_ns
            self._recent.append(None)
        return self._silent()

    def lose(self) -> State:
        """The state when no frames come any more."""
        if self._published is not None and self._lost_ns is None:
            self._lost_ns = self._last_ns
        return self._silent()

    def _silent(self) -> State:
        """The state of a frame without a pose, by the time since the last one."""
        if self._published is None:
            return State.INITIALISING
        lost_ns = self._published.stamp_ns + round(1e9 * self.options.lost_after)
        if self._lost_ns is None and self._last_ns > lost_ns:
            self._lost_ns = lost_ns
        return State.DEGRADED if self._lost_ns is None else State.LOST

    def _by_odometry(self, earlier: _Fix, later: _Fix) -> bool:
        return bool(self.options.max_odometry_chi2) and earlier.odom_from_camera is not None and later.odom_from_camera is not None

    def _vouches(self, earlier: _Fix, later: _Fix) -> bool:
        """Whether a fix confirms a later one. While the track was lost the camera may have been carried, as it may have within a long
        time: of what was before only odometry knows where it can be now."""
        before_the_loss = self._silent() == State.LOST and earlier.stamp_ns <= self._lost_ns
        long_ago = later.stamp_ns - earlier.stamp_ns > CONFIRMING * 1e9 * self.options.lost_after
        return self._agree(earlier, later) and (not (before_the_loss or long_ago) or self._by_odometry(earlier, later))

    def _agree(self, earlier: _Fix, later: _Fix) -> bool:
        if self._by_odometry(earlier, later):
            return odometry_chi2(earlier, later, self.options) <= self.options.max_odometry_chi2
        # Else every place would agree with what was seen an hour ago.
        seconds = min((later.stamp_ns - earlier.stamp_ns) / 1e9, self.options.lost_after)
        moved_m = np.linalg.norm(later.map_from_camera[:3, 3] - earlier.map_from_camera[:3, 3])
        turned_rad = Rotation.from_matrix(earlier.map_from_camera[:3, :3].T @ later.map_from_camera[:3, :3]).magnitude()
        noise_m, noise_rad = np.hypot(earlier.deviation_m, later.deviation_m), np.hypot(earlier.deviation_rad, later.deviation_rad)
        return bool(moved_m <= self.options.max_speed * seconds + SIGMAS * noise_m + SLACK_M
                    and turned_rad <= self.options.max_turn * seconds + SIGMAS * noise_rad + SLACK_RAD)


def another_lens(before: Camera | None, now: Camera | None) -> bool:
    """Whether a calibration is not that of the frame before; one that is not known is none."""
    return None not in (before, now) and before != now and largest_turn(before, now) > OTHER_LENS_RAD


def odometry_chi2(earlier: _Fix, later: _Fix, options: StateOptions) -> float:
    """Squared Mahalanobis distance, 6 degrees of freedom, of the later pose from the earlier one moved on by the odometry.

    The noise of the odometry grows with the distance and the angle between the two frames: detours of a loop between them are not seen.
    """
    motion = rigid_inverse(earlier.odom_from_camera) @ later.odom_from_camera
    expected = earlier.map_from_camera @ motion
    metres, radians = np.linalg.norm(motion[:3, 3]), Rotation.from_matrix(motion[:3, :3]).magnitude()
    away = np.concatenate([later.map_from_camera[:3, 3] - expected[:3, 3],
                           Rotation.from_matrix(later.map_from_camera[:3, :3] @ expected[:3, :3].T).as_rotvec()])
    carried = moved_covariance(earlier.covariance, expected[:3, 3] - earlier.map_from_camera[:3, 3])
    position = options.odometry_position_floor ** 2 + (options.odometry_position_noise * metres) ** 2
    rotation = (options.odometry_rotation_floor ** 2 + (options.odometry_rotation_noise * radians) ** 2
                + (options.odometry_turn_noise * metres) ** 2)
    total = carried + later.covariance + np.diag([position] * 3 + [rotation] * 3)
    return float(away @ np.linalg.solve(total, away))


def moved_covariance(covariance: np.ndarray, lever: np.ndarray) -> np.ndarray:
    """(6, 6) in ROS order of a point that is rigidly `lever` (3,) away, in the same axes: its position errs with the rotation."""
    x, y, z = lever
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return jacobian @ covariance @ jacobian.T


def _deviation(covariance_33: np.ndarray) -> float:
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance_33)[-1])))
