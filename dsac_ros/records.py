"""The records that flow through the house, and nothing else.

Legend of the shape suffixes: B batch of images, E experts, K hypotheses, N correspondences (cells), H W rows and columns;
digits are literal sizes. `a_from_b` is a (4, 4) float64 rigid transform with p_a = a_from_b @ p_b. Metres, radians,
nanoseconds where a name ends in `_ns`, milliseconds in `_ms`, pixels in `_px`. Cameras are optical frames (x right, y down, z forward).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Mapping

import numpy as np

DISTORTION_MODELS = ('none', 'plumb_bob', 'rational_polynomial', 'equidistant')


@dataclass(frozen=True)
class Camera:
    """Intrinsics of an image as it lies in memory; pixel centres are integers (OpenCV).

    `distortion` holds OpenCV's coefficients of `distortion_model`: k1 k2 p1 p2 [k3 [k4 k5 k6]], or k1 k2 k3 k4 of the
    fisheye model for `equidistant`; empty for `none`.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = 'none'
    distortion: tuple[float, ...] = ()

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same view resampled to width x height: the one owner of how intrinsics scale."""
        sx, sy = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy,
                       cx=(self.cx + 0.5) * sx - 0.5, cy=(self.cy + 0.5) * sy - 0.5)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of the window whose top left pixel is (x, y)."""
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """(...,) whether pixels (..., 2) lie in the image."""
        return ((pixels > -0.5) & (pixels < [self.width - 0.5, self.height - 0.5])).all(-1)

    def matrix(self) -> np.ndarray:
        """K, (3, 3) float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Frame:
    """One view: what a reader yields and what the localizer takes.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres along the optical axis, registered to the image, 0 where there is none;
    or None.
    map_from_camera: reference pose where the source knows one. name: the source's own id of the frame. odom_from_camera: what the odometry
    says at the stamp, (4, 4), in a frame that drifts against the map; None where there is none.
    """

    image: np.ndarray
    camera: Camera
    stamp_ns: int
    depth: np.ndarray | None = None
    map_from_camera: np.ndarray | None = None
    name: str = ''
    odom_from_camera: np.ndarray | None = None


@dataclass(frozen=True)
class Guess:
    """Where the camera probably is: camera_from_map (4, 4); landmarks are looked for within radius_px (of an image 480 pixels high) of
    where it projects them, and `min_landmarks` of them (soft count) have to confirm it. expert: in which sub-map; '': the nearest."""

    camera_from_map: np.ndarray
    radius_px: float
    min_landmarks: float
    expert: str = ''


@dataclass(frozen=True)
class Check:
    """One test of a pose: the value found and its limit, under the name of the option that sets it: min_... or max_..., or map_margin."""

    name: str
    value: float
    limit: float


@dataclass(frozen=True)
class Verdict:
    """Whether a pose may be published; `reasons` names every test that failed (see tracking.integrity), checks has all that were made."""

    accepted: bool
    reasons: tuple[str, ...] = ()
    checks: tuple[Check, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Estimate:
    """What the localizer says of one frame.

    covariance: (6, 6) float64 in ROS order (x, y, z, rotation about the map's fixed x, y, z), metres and radians.
    inliers: soft count of the cells that agree with the pose; inlier_ratio: its share of the usable cells; spread: share of a 4 x 4 image
    grid that holds inlier cells. residual: robust rms residual of the inlier cells, in pixels (rgb) or metres (rgbd).
    landmarks: soft count of the keypoints that agree, 0 where the pose comes from the cells alone. stage_times_ms: stage -> milliseconds.
    tracked: landmarks around an expected pose confirmed it; the cells were not asked, their inliers are 0, spread and residual those of
    the landmarks, the modality rgb. margin: lead of the first pose over the best candidate of another place, in logarithms of the
    likelihood; infinite where there was none, or none was looked for (tracked). posterior: name of each sub-map -> its probability, '' none
    of them; empty where the map has one.
    """

    stamp_ns: int
    map_from_camera: np.ndarray
    covariance: np.ndarray
    verdict: Verdict
    modality: str
    expert: str
    inliers: float
    inlier_ratio: float
    spread: float
    residual: float
    stage_times_ms: Mapping[str, float] = field(default_factory=dict)
    landmarks: float = 0.0
    tracked: bool = False
    margin: float = math.inf
    posterior: Mapping[str, float] = field(default_factory=dict)
