"""Messages in, the one frame worth localising out: pairing, newest-only slot, and a count of all that was left out.

Needs no ROS (messages are duck-typed). Callbacks store and return at once; one worker takes. Every colour image ends as exactly one of
taken, dropped or refused, hence received = taken + dropped + refused images + those still waiting.
"""
from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dsac_ros.data.pairing import REORDER_NS, StampPairer

# Refusals wait for the worker here; a flood of bad messages must not grow memory. Those that fall out are still counted.
MAX_REFUSALS = 64
# Images kept while their depth may still come; those that overflow are dropped, the oldest first.
MAX_WAITING = 30
# Depth images kept for the image whose time is up while the pairing still hopes for a depth that is nearer.
MAX_DEPTHS = 4
RATE_S = 5.0
# Messages and images that Traffic is told from.
MAX_ARRIVALS, MAX_GAPS = 1000, 100
NO_IMAGES = 'no_images'
# No depth image for this long [s] means that depth has stopped: waiting for it would only delay every frame.
DEPTH_SILENT_S = 1.0


@dataclass(frozen=True)
class RawFrame:
    """A colour image message with the depth message (or None) and the newest camera_info (or None) that go with it.

    received_s: time.monotonic() when its last message came.
    """

    stamp_ns: int
    image: Any
    depth: Any | None
    received_s: float
    camera_info: Any | None = None


@dataclass(frozen=True)
class Refusal:
    """A message that will not be used. cause: short, fixed name, counted; detail: what was found, for people.

    of_image: a colour image, so that a frame is lost; a refused depth image only costs its frame the depth.
    """

    stamp_ns: int
    cause: str
    detail: str
    received_s: float
    of_image: bool = True


@dataclass(frozen=True)
class Traffic:
    """What came lately, by stream (image, camera_info and, where it is wanted, depth).

    rates_hz: over the last RATE_S. silent_s: since the last message, or since the start. paired: of the last images, whether each got its
    depth; median_gap_ms: of their stamps to the nearest depth image's, None where none came.
    """

    rates_hz: dict[str, float]
    silent_s: dict[str, float]
    counts: dict[str, int]
    paired: tuple[bool, ...]
    median_gap_ms: float | None
    unpaired_depths: int


def stamp_ns(header: Any) -> int:
    """The stamp of a message header in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


class Intake:
    """Thread-safe: image(), depth() and camera_info() from the executor, take() from one worker."""

    def __init__(self, with_depth: bool, slop_s: float, depth_wait_s: float) -> None:
        self._with_depth, self._depth_wait_s = with_depth, depth_wait_s
        self._slop_ns = int(slop_s * 1e9)
        self._pairer = StampPairer(('image', 'depth'), self._slop_ns, MAX_WAITING)
        self._changed = threading.Condition()
        self._ready: RawFrame | None = None
        self._waiting: deque[tuple[int, Any, float]] = deque()  # images whose depth may still come: stamp, message, received
        self._depths: deque[tuple[int, Any]] = deque(maxlen=MAX_DEPTHS)
        self._refusals: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        self._actions: deque[Callable[[], None]] = deque()
        self._camera_info: Any | None = None
        self._last_ns: dict[str, int] = {}
        self._depth_seen_s = float('inf')  # the first image sets it: a depth camera gets its time to start too
        self._start_s = time.monotonic()
        self._arrivals: dict[str, deque[float]] = {
            name: deque(maxlen=MAX_ARRIVALS) for name in ('image', 'camera_info', *(['depth'] if with_depth else []))}
        self._counts: Counter[str] = Counter()
        self._depth_stamps: deque[int] = deque(maxlen=MAX_WAITING)
        self._gaps: deque[tuple[bool, int | None]] = deque(maxlen=MAX_GAPS)  # of images: paired, distance to the nearest depth [ns]
        self._image_seen_s: float | None = None  # None: nobody has to be told of their silence
        self._closed = False
        self.received = self.dropped = self.rgb_fallback = self.restarts = 0
        self.rejected: Counter[str] = Counter()

    def image(self, message: Any) -> None:
        """Store a colour image."""
        now_s, stamp = time.monotonic(), stamp_ns(message.header)
        with self._changed:
            self.received += 1
            self._arrived('image', now_s)
            self._image_seen_s = now_s
            if not self._check_stamp('image', stamp, now_s):
                return
            if not self._with_depth:
                self._offer(RawFrame(stamp, message, None, now_s))
                return
            if self._depth_seen_s == float('inf'):
                self._depth_seen_s = now_s
            self._waiting.append((stamp, message, now_s))
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._pair('image', stamp, message, now_s)
            self._changed.notify()  # the worker has a new deadline to wait for

    def depth(self, message: Any) -> None:
        """Store a depth image."""
        now_s, stamp = time.monotonic(), stamp_ns(message.header)
        with self._changed:
            self._depth_seen_s = now_s
            self._arrived('depth', now_s)
            if self._check_stamp('depth', stamp, now_s):
                self._depths.append((stamp, message))
                self._depth_stamps.append(stamp)
                self._pair('depth', stamp, message, now_s)

    def camera_info(self, message: Any) -> None:
        """Keep the newest intrinsics."""
        with self._changed:
            self._arrived('camera_info', time.monotonic())
            self._camera_info = message

    def refuse(self, raw: RawFrame, cause: str, detail: str) -> Refusal:
        """Count a frame that the worker found unusable."""
        with self._changed:
            self.rejected[cause] += 1
        return Refusal(raw.stamp_ns, cause, detail, raw.received_s)

    def complain(self, cause: str) -> None:
        """Count something bad that did not cost the frame, such as a damaged depth image."""
        with self._changed:
            self.rejected[cause] += 1

    def fall_back(self) -> None:
        """Count a frame that goes on without its depth."""
        with self._changed:
            self.rgb_fallback += 1

    def counters(self) -> dict[str, int]:
        """Images received, dropped and taken without depth so far."""
        with self._changed:
            return {'received': self.received, 'dropped': self.dropped, 'rgb_fallback': self.rgb_fallback}

    def rejections(self) -> dict[str, int]:
        """What was refused so far, by cause."""
        with self._changed:
            return dict(self.rejected)

    def traffic(self) -> Traffic:
        """What came lately."""
        with self._changed:
            now_s = time.monotonic()
            since_s = min(RATE_S, max(now_s - self._start_s, 1e-3))
            gaps = sorted(gap for _, gap in self._gaps if gap is not None)
            return Traffic({name: sum(now_s - at_s <= RATE_S for at_s in arrivals) / since_s for name, arrivals in self._arrivals.items()},
                           {name: now_s - (arrivals[-1] if arrivals else self._start_s) for name, arrivals in self._arrivals.items()},
                           {name: self._counts[name] for name in self._arrivals}, tuple(paired for paired, _ in self._gaps),
                           gaps[len(gaps) // 2] / 1e6 if gaps else None, self._pairer.unpaired['depth'])

    def restart(self) -> None:
        """Forget what waits: time went back (a bag that loops, simulated time that was reset)."""
        with self._changed:
            self._restart()

    def between_frames(self, action: Callable[[], None]) -> None:
        """Have the worker do this before it looks at another frame."""
        with self._changed:
            self._actions.append(action)
            self._changed.notify()

    def close(self) -> None:
        """Let take() return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, idle_s: float | None = None) -> RawFrame | Refusal | Callable[[], None] | None:
        """Wait for the next thing to do between frames, the next refusal or the newest frame; None once closed. When images stop for
        idle_s, that is a refusal of none, once."""
        with self._changed:
            while not self._closed:
                if self._actions:
                    return self._actions.popleft()
                if self._refusals:
                    return self._refusals.popleft()
                now_s = time.monotonic()
                self._expire(now_s)
                if self._ready is not None:
                    frame, self._ready = self._ready, None
                    return replace(frame, camera_info=self._camera_info)
                idle_at_s = None if idle_s is None or self._image_seen_s is None else self._image_seen_s + idle_s
                if idle_at_s is not None and idle_at_s <= now_s and not self._waiting:
                    self._image_seen_s = None
                    return Refusal(0, NO_IMAGES, f'no colour image for {idle_s} s', now_s, of_image=False)
                until_s = self._deadline_s() if self._waiting else idle_at_s
                self._changed.wait(None if until_s is None else until_s - now_s)
            return None

    def _arrived(self, stream: str, now_s: float) -> None:
        self._arrivals[stream].append(now_s)
        self._counts[stream] += 1

    def _check_stamp(self, stream: str, stamp: int, now_s: float) -> bool:
        last = self._last_ns.get(stream)
        if stamp <= 0:
            self._refuse(stream, stamp, 'zero_stamp', 'the header has no stamp', now_s)
            return False
        if last is not None and stamp == last:
            self._refuse(stream, stamp, 'repeated_stamp', f'stamp {stamp} ns came twice', now_s)
            return False
        if last is not None and stamp < last - REORDER_NS:
            self._restart()
        elif last is not None and stamp < last:
            self._refuse(stream, stamp, 'out_of_order', f'{(last - stamp) / 1e6:.1f} ms before the stamp that came last', now_s)
            return False
        self._last_ns[stream] = stamp
        return True

    def _refuse(self, stream: str, stamp: int, cause: str, detail: str, now_s: float) -> None:
        cause = cause if stream == 'image' else f'{stream}_{cause}'
        self.rejected[cause] += 1
        self._refusals.append(Refusal(stamp, cause, detail, now_s, stream == 'image'))
        self._changed.notify()

    def _restart(self) -> None:
        self.restarts += 1
        self.dropped += len(self._waiting) + (self._ready is not None)
        self._pairer.clear()
        self._waiting.clear()
        self._depths.clear()
        self._depth_stamps.clear()
        self._ready = None
        self._last_ns.clear()  # so that the other stream's step back is no second restart

    def _pair(self, stream: str, stamp: int, message: Any, now_s: float) -> None:
        for _, pair in self._pairer.push(stream, stamp, message):
            image_ns = stamp_ns(pair['image'].header)
            # An image that was localised without its depth, or given up for a newer one, is not localised again.
            if any(waiting_ns == image_ns for waiting_ns, _, _ in self._waiting):
                self._offer(RawFrame(image_ns, pair['image'], pair['depth'], now_s))

    def _offer(self, frame: RawFrame) -> None:
        """Put a frame into the slot; what it overtakes is dropped."""
        if self._with_depth:
            stamps = [stamp_ns(frame.depth.header)] if frame.depth is not None else self._depth_stamps
            self._gaps.append((frame.depth is not None, min((abs(stamp - frame.stamp_ns) for stamp in stamps), default=None)))
        while self._waiting and self._waiting[0][0] <= frame.stamp_ns:
            self.dropped += self._waiting.popleft()[0] != frame.stamp_ns
        self.dropped += self._ready is not None
        self._ready = frame
        self._changed.notify()

    def _deadline_s(self) -> float:
        received_s = self._waiting[0][2]
        return min(received_s + self._depth_wait_s, max(received_s, self._depth_seen_s + DEPTH_SILENT_S))

    def _expire(self, now_s: float) -> None:
        """Images whose depth did not come in time go on without it, the newest of them at last; what waits is newer than what is ready."""
        while self._waiting and self._deadline_s() <= now_s:
            stamp, message, received_s = self._waiting[0]
            near = min(self._depths, key=lambda depth: abs(depth[0] - stamp), default=None)
            depth = near[1] if near is not None and abs(near[0] - stamp) <= self._slop_ns else None
            self._offer(RawFrame(stamp, message, depth, received_s))
