"""Where the frame of an odometry is in the map: corrected by every pose, in steps no larger than they must be, known until it is stale."""
from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from dsac_ros.config import NodeOptions
from dsac_ros.data.transforms import rigid_inverse


class DriftCorrection:
    """map_from_odom, on the clock [ns] of the stamps of the images; `options` has the times and limits."""

    def __init__(self, options: NodeOptions) -> None:
        self.options = options
        self.forget()

    def forget(self) -> None:
        """Nothing is known any more."""
        self._target: np.ndarray | None = None
        self._shown: np.ndarray | None = None
        self._odom_from_base = np.eye(4)
        self._stamp_ns = self._shown_ns = 0

    def correct(self, stamp_ns: int, map_from_odom: np.ndarray, odom_from_base: np.ndarray) -> None:
        """What an image of this stamp says."""
        self._target, self._odom_from_base, self._stamp_ns = map_from_odom, odom_from_base, stamp_ns

    def stale(self, now_ns: int) -> bool:
        """Whether the last image is too old; one that is as far ahead of the clock is no better."""
        return abs(now_ns - self._stamp_ns) > 1e9 * self.options.tf_max_age

    def at(self, now_ns: int) -> np.ndarray | None:
        """(4, 4) to send now; None before the first pose and when the last one is stale."""
        if self._target is None or self.stale(now_ns):
            self._shown = None  # who comes back after a silence need not glide there
            return None
        elapsed_s = max(0, now_ns - self._shown_ns) / 1e9
        self._shown_ns = now_ns
        if self._shown is None or not self.options.tf_smoothing or self._too_far():
            self._shown = self._target
        else:
            self._shown = between(self._shown, self._target, self._odom_from_base, 1 - math.exp(-elapsed_s / self.options.tf_smoothing))
        return self._shown

    def _too_far(self) -> bool:
        metres, radians = displacement(self._shown @ self._odom_from_base, self._target @ self._odom_from_base)
        return metres > self.options.tf_jump_distance or radians > self.options.tf_jump_angle


def displacement(a_from_b: np.ndarray, a_from_c: np.ndarray) -> tuple[float, float]:
    """Distance [m] and angle [rad] between two frames."""
    turn = Rotation.from_matrix(a_from_b[:3, :3].T @ a_from_c[:3, :3])
    return float(np.linalg.norm(a_from_c[:3, 3] - a_from_b[:3, 3])), float(turn.magnitude())


def between(start: np.ndarray, end: np.ndarray, odom_from_base: np.ndarray, share: float) -> np.ndarray:
    """map_from_odom (4, 4) a share of the way from start to end, such that the robot, and not the origin of odom, goes straight."""
    map_from_old, map_from_new = start @ odom_from_base, end @ odom_from_base
    turn = Rotation.from_matrix(map_from_new[:3, :3] @ map_from_old[:3, :3].T).as_rotvec()
    map_from_base = np.eye(4)
    map_from_base[:3, :3] = Rotation.from_rotvec(share * turn).as_matrix() @ map_from_old[:3, :3]
    map_from_base[:3, 3] = (1 - share) * map_from_old[:3, 3] + share * map_from_new[:3, 3]
    return map_from_base @ rigid_inverse(odom_from_base)
