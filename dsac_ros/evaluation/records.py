"""What a replay says of one frame, offline or live: the only thing that metrics and reports read."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

import numpy as np

from dsac_ros.records import Estimate, Frame
from dsac_ros.tracking.state import Decision


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame of the source and what became of it. Every frame has one, a dropped frame too; what the source's reader leaves out is none.

    answered: a pose was accepted (offline: verdict; live: published). Only then does the estimate count as an answer.
    map_from_camera, covariance: the estimate, (4, 4) and (6, 6) in ROS order [m, rad], or None; kept for a rejected frame as evidence.
    reference: true map_from_camera (4, 4), None where the source knows none; such frames count in availability only.
    state: of tracking.state after this frame. published: whether it lets the pose out (live: the same as answered), None where nothing is
    known. reasons: why a pose is not published: failed tests, what tracking.state says, or 'dropped', 'no_message'.
    residual: pixels (rgb) or metres (rgbd). latency_ms: time in the localizer (offline), or from image sent to pose received (live).
    """

    stamp_ns: int
    name: str
    answered: bool
    modality: str
    map_from_camera: np.ndarray | None = None
    covariance: np.ndarray | None = None
    reference: np.ndarray | None = None
    state: str = ''
    reasons: tuple[str, ...] = ()
    expert: str = ''
    inliers: float | None = None
    inlier_ratio: float | None = None
    spread: float | None = None
    residual: float | None = None
    landmarks: float | None = None
    tracked: bool | None = None
    latency_ms: float | None = None
    published: bool | None = None
    stage_times_ms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answered and self.map_from_camera is None:
            raise ValueError(f'frame {self.name or self.stamp_ns}: answered without a pose')


def from_estimate(frame: Frame, estimate: Estimate, decision: Decision, latency_ms: float | None) -> FrameResult:
    """The result of a frame that went through the localizer; a pose that is not finite is no answer, whatever the verdict says."""
    finite = bool(np.isfinite(estimate.map_from_camera).all())
    return FrameResult(
        frame.stamp_ns, frame.name, estimate.verdict.accepted and finite, estimate.modality,
        estimate.map_from_camera if finite else None, estimate.covariance if finite else None, frame.map_from_camera, decision.state.name,
        decision.reasons, estimate.expert, inliers=float(estimate.inliers), inlier_ratio=float(estimate.inlier_ratio),
        spread=float(estimate.spread), residual=float(estimate.residual), landmarks=float(estimate.landmarks), tracked=estimate.tracked,
        latency_ms=latency_ms, published=decision.published, stage_times_ms=dict(estimate.stage_times_ms))


def without_answer(frame: Frame, modality: str, *reasons: str, state: str = '') -> FrameResult:
    """The result of a frame that got no estimate: dropped, no message, or of a bad shape; `reasons` says which."""
    return FrameResult(frame.stamp_ns, frame.name, False, modality, reference=frame.map_from_camera, state=state, reasons=reasons)
