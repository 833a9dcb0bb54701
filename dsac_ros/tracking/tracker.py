"""From frame to frame: the poses before, moved on by odometry or else as before, say about where the camera is, and the landmarks around
there say it exactly.

That costs half of a full search, which comes first, every so often, and at once when the landmarks do not confirm the guess.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from dsac_ros.config import GatingOptions, TrackingOptions
from dsac_ros.records import Camera, Estimate, Frame, Guess, Verdict
from dsac_ros.tracking.state import another_lens

if TYPE_CHECKING:
    from dsac_ros.localizer import Localizer

MAX_REFUSED = 2  # in a row: after more of them a guess is rarely confirmed, and costs time when there is least of it
TOLD_WIDENING = 2.0  # people point at a place less well than the last frame does
UNSETTLED = 0.5  # probability that a frame is of any sub-map, after one that was refused
# Of a search that is refused for these nothing may go on: tracked frames are not asked, and would be accepted.
UNASKED = frozenset(('focal_length', 'landmarks_disagree'))
MAX_STEPS = 3.0  # further ahead than this many times the last interval, the last motion says nothing


@dataclass(frozen=True)
class Belief:
    """What the last full search said of the sub-maps, and whether its pose was accepted."""

    stamp_ns: int
    posterior: Mapping[str, float]
    verdict: Verdict


@dataclass(frozen=True)
class Anchor:
    """An accepted frame that odometry goes on from."""

    stamp_ns: int
    camera_from_map: np.ndarray
    odom_from_camera: np.ndarray


class Tracker:
    """A Localizer for the frames of one camera, in the order of their stamps; a stamp that is not later than the one before starts anew."""

    def __init__(self, localizer: Localizer, options: TrackingOptions = TrackingOptions(), gating: GatingOptions = GatingOptions()) -> None:
        self.localizer, self.options, self.gating = localizer, options, gating
        self.forget()

    @property
    def map_frame(self) -> str:
        return self.localizer.map_frame

    def warm_up(self, camera: Camera | None, modality: str) -> None:
        """As Localizer.warm_up; knows nothing of blank frames afterwards."""
        self.localizer.warm_up(camera, modality)

    def forget(self) -> None:
        """Expect nothing of the next frame: it is searched in full."""
        self._poses: list[tuple[int, np.ndarray]] = []  # stamps and camera_from_map of the last two accepted frames
        self._anchor: Anchor | None = None  # the last of them, where it has odometry
        self._since_search = self._refused = 0
        self._landmarks_then = 0.0
        self._told: Guess | None = None
        self._expert = ''  # of the last accepted frame
        self._camera: Camera | None = None
        self._belief: Belief | None = None

    def expect(self, map_from_camera: np.ndarray) -> None:
        """Somebody knows about where the camera is, (4, 4): the next frame looks there first."""
        self._told = Guess(np.linalg.inv(map_from_camera), TOLD_WIDENING * self.options.radius_px, self.options.min_landmarks)

    def localize(self, frame: Frame, modality: str) -> Estimate:
        """As Localizer.localize, with what the frames before say."""
        if another_lens(self._camera, frame.camera):
            self._go_on_from_nothing()
        self._camera = frame.camera
        by_odometry = self._by_odometry(frame)
        guess, self._told = self._told or (self._guess(frame.stamp_ns, by_odometry) if self.options.enabled else None), None
        prior = self._prior(frame.stamp_ns, by_odometry) if self.options.enabled else None
        estimate = self.localizer.localize(frame, modality, guess, prior)
        if estimate.posterior and not estimate.tracked:
            self._belief = Belief(frame.stamp_ns, estimate.posterior, estimate.verdict)
        self._since_search = self._since_search + 1 if estimate.tracked else 0
        if estimate.tracked and not self._landmarks_then:  # somebody has said where: the first search comes next
            self._since_search = self.options.search_every
        self._refused = 0 if estimate.verdict.accepted else self._refused + 1
        if estimate.verdict.accepted:
            if not estimate.tracked:
                self._landmarks_then = estimate.landmarks
            self._expert = estimate.expert
            camera_from_map, odom_from_camera = np.linalg.inv(estimate.map_from_camera), frame.odom_from_camera
            self._poses = [*self._poses[-1:], (frame.stamp_ns, camera_from_map)]
            self._anchor = None if odom_from_camera is None else Anchor(frame.stamp_ns, camera_from_map, odom_from_camera)
        elif UNASKED.intersection(estimate.verdict.reasons):
            self._go_on_from_nothing()
        return estimate

    def _go_on_from_nothing(self) -> None:
        """Of accepted frames; what is known of the sub-maps stays."""
        self._poses, self._anchor, self._told = [], None, None

    def _guess(self, stamp_ns: int, by_odometry: np.ndarray | None) -> Guess | None:
        options = self.options
        if self._poses and not 0 < stamp_ns - self._poses[-1][0] <= 1e9 * options.max_gap:
            self._poses = []
        if not self._poses or self._since_search >= options.search_every or self._refused > MAX_REFUSED:
            return None
        (earlier_ns, earlier_44), (later_ns, later_44) = self._poses[0], self._poses[-1]
        if by_odometry is not None:
            expected_44 = by_odometry
        elif earlier_ns == later_ns:
            expected_44 = later_44
        else:
            expected_44 = extrapolate(earlier_44, later_44, (stamp_ns - later_ns) / (later_ns - earlier_ns))
        return Guess(expected_44, options.radius_px, max(options.min_landmarks, options.keep_share * self._landmarks_then),
                     self._expert)

    def _by_odometry(self, frame: Frame) -> np.ndarray | None:
        """camera_from_map where odometry has gone to since the last accepted frame; None where either has none."""
        if self._anchor is not None and frame.stamp_ns <= self._anchor.stamp_ns:
            self._anchor = None
        if self._anchor is None or frame.odom_from_camera is None:
            return None
        return np.linalg.inv(frame.odom_from_camera) @ self._anchor.odom_from_camera @ self._anchor.camera_from_map

    def _prior(self, stamp_ns: int, by_odometry: np.ndarray | None) -> dict[str, float] | None:
        """Of the sub-maps, from what the frame before was of, and from where odometry has gone to since the last accepted one; None where
        neither says anything.

        Every frame that is refused may be one that odometry knows nothing of (a robot that was carried away): it leaks each time, and says
        less and less, until all sub-maps are asked again.
        """
        before = self._before(stamp_ns)
        near = {} if by_odometry is None else self.localizer.near(np.linalg.inv(by_odometry)[:3, 3])
        if not near:
            return before
        before, far = before or dict.fromkeys(near, 1.0), 1 - (1 - self.gating.leak) ** (1 + self._refused)
        weights = {name: before[name] * (1.0 if is_near else far) for name, is_near in near.items()}
        whole = sum(weights.values())
        return {name: weight / whole for name, weight in weights.items()}

    def _before(self, stamp_ns: int) -> dict[str, float] | None:
        """What the frame before says; None where that is nothing: at the start, after a gap, for a lost track."""
        belief = self._belief
        if belief is None or not 0 < stamp_ns - belief.stamp_ns <= 1e9 * self.options.max_gap:
            self._belief = None
            return None
        settled = belief.verdict.accepted or belief.verdict.reasons == ('ambiguous_place',)
        if not settled and self._refused > MAX_REFUSED:
            return None
        return spread(belief.posterior, self.gating.leak if settled else UNSETTLED)


def extrapolate(earlier_44: np.ndarray, later_44: np.ndarray, steps: float) -> np.ndarray:
    """The pose camera_from_map (4, 4) after `steps` further intervals of the same motion (constant velocity in the frame of the camera)."""
    steps = min(steps, MAX_STEPS)
    motion = later_44 @ np.linalg.inv(earlier_44)
    ahead = np.eye(4)
    ahead[:3, :3] = Rotation.from_rotvec(steps * Rotation.from_matrix(motion[:3, :3]).as_rotvec()).as_matrix()
    ahead[:3, 3] = steps * motion[:3, 3]
    return ahead @ later_44


def spread(posterior: Mapping[str, float], leak: float) -> dict[str, float]:
    """The sub-maps of the next frame: those of this one, but any with a probability of `leak`, or where this one was of none of them."""
    experts = {name: probability for name, probability in posterior.items() if name}
    known = sum(experts.values())
    return {name: (1 - leak) * probability + (1 - (1 - leak) * known) / len(experts) for name, probability in experts.items()}
