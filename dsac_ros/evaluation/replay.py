"""Offline replay: every frame of a source through the very Tracker and StateMachine that the node runs, in order, one result a frame.

No middleware, no clock and no drops: the same map, source and options give the same poses, bit for bit, on one machine.
"""
from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Callable, Iterator, Protocol

from dsac_ros.config import StateOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DataError, DecodeError
from dsac_ros.evaluation.records import FrameResult, from_estimate, without_answer
from dsac_ros.records import Camera, Estimate, Frame
from dsac_ros.tracking.state import StateMachine


class FrameLocalizer(Protocol):
    """The part of dsac_ros.localizer.Localizer that a replay needs."""

    def localize(self, frame: Frame, modality: str) -> Estimate: ...

    def warm_up(self, camera: Camera, modality: str) -> None: ...


@dataclass(frozen=True, eq=False)
class Replayed:
    """A frame, what the localizer says of it (None: it does not take images of that shape), and its result."""

    frame: Frame
    estimate: Estimate | None
    result: FrameResult


class ThinnedSource:
    """Every k-th frame of a source, and at most `limit` of those (0: all); itself a FrameSource."""

    def __init__(self, source: FrameSource, every: int = 1, limit: int = 0) -> None:
        self.source, self.every, self.limit = source, every, limit

    @property
    def map_frame(self) -> str:
        return self.source.map_frame

    @property
    def warnings(self) -> Counter[str]:
        return self.source.warnings

    def __len__(self) -> int:
        kept = -(-len(self.source) // self.every)
        return min(kept, self.limit) if self.limit else kept

    def __iter__(self) -> Iterator[Frame]:
        return islice(self.source, 0, (self.limit - 1) * self.every + 1 if self.limit else None, self.every)


def replay_offline(localizer: FrameLocalizer, source: FrameSource, modality: str, progress: Callable[[int, int], None] | None = None,
                   state: StateOptions = StateOptions()) -> list[FrameResult]:
    """Localise every frame of the source.

    Args: modality 'rgb' or 'rgbd'; progress(done, of at most) is called after each frame. Raises DataError when the source
    yields no frame. An answer is a pose that its verdict accepts; what the node would publish of these is told beside it. A frame of
    a shape that the localizer does not take is a result without an answer; one without depth is left to the localizer, as in the node.
    What the source leaves out, such as images that cannot be decoded, is no frame: source.warnings counts it.
    """
    results = []
    for replayed in replay(localizer, source, modality, state):
        results.append(replayed.result)
        if progress:
            progress(len(results), len(source))
    if not results:
        raise no_frames(source)
    return results


def replay(localizer: FrameLocalizer, source: FrameSource, modality: str, state: StateOptions = StateOptions()) -> Iterator[Replayed]:
    """The same, one frame at a time, with the frame itself."""
    machine = StateMachine(state)
    warm: set[Camera] = set()
    for frame in source:
        try:
            if frame.camera not in warm:
                # Else the first frame would pay for compilation and memory, which the node pays when it is configured.
                localizer.warm_up(frame.camera, modality)
                warm.add(frame.camera)
            replayed = _localise(localizer, machine, frame, modality)
        except DecodeError as error:
            state = machine.refuse(frame.stamp_ns).name
            replayed = Replayed(frame, None, without_answer(frame, modality, f'bad_frame: {error}', state=state))
        yield replayed


def no_frames(source: FrameSource) -> DataError:
    """The error for a source that yields nothing."""
    left_out = ', '.join(f'{cause}: {count}' for cause, count in source.warnings.items())
    return DataError(f'the source yields no frame{f" (left out: {left_out})" if left_out else ""}; check the split and the topics')


def choose_modality(source: FrameSource, wanted: str) -> str:
    """'rgb' or 'rgbd': as wanted, or for 'auto' by whether the first frame has depth."""
    if wanted != 'auto':
        return wanted
    first = next(iter(source), None)
    return 'rgbd' if first is not None and first.depth is not None else 'rgb'


def _localise(localizer: FrameLocalizer, machine: StateMachine, frame: Frame, modality: str) -> Replayed:
    start = time.perf_counter()
    estimate = localizer.localize(frame, modality)
    taken_ms = (time.perf_counter() - start) * 1e3
    decision = machine.decide(estimate, frame.odom_from_camera, frame.camera)
    return Replayed(frame, estimate, from_estimate(frame, estimate, decision, taken_ms))
