"""Stamped items of several streams in, sets of items that belong together out, in stamp order. No threads, no ROS."""
from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from typing import Any, Sequence

# A stream that goes back further than this has been restarted (a bag that loops); less is a late message.
REORDER_NS = 200_000_000


class StampPairer:
    """Joins streams by stamp; the first one leads: every set has the stamp of its leading item.

    An exact match is returned at once. A near one (within slop_ns) is returned as soon as no later message could better it, for either
    side: when the follower has gone past the leader's stamp, and the leader past the follower's. Every item is used at most once.

    Args:
        queue: items kept per stream while they wait. partial: return leading items without partners too, as sets of what there is.

    unpaired: items given up, by stream. largest_gap_ns: by stream, the largest distance of such an item to the nearest of another stream,
    which tells what slop would have been needed. late: items refused because their stamp came twice or after its turn, by stream.
    jumps: how often a stream went back in time and everything was forgotten.
    """

    def __init__(self, streams: Sequence[str], slop_ns: int, queue: int = 30, partial: bool = False) -> None:
        self.leader, *self.followers = streams
        self.slop_ns, self.queue, self.partial = slop_ns, queue, partial
        self.unpaired: Counter[str] = Counter()
        self.largest_gap_ns: dict[str, int] = {}
        self.late: Counter[str] = Counter()
        self.jumps = 0
        self.clear()

    def clear(self) -> None:
        """Forget what waits (after a time jump); the counters stay."""
        streams = (self.leader, *self.followers)
        self._stamps: dict[str, list[int]] = {name: [] for name in streams}
        self._items: dict[str, dict[int, Any]] = {name: {} for name in streams}
        self._recent: dict[str, deque[int]] = {name: deque(maxlen=self.queue) for name in streams}
        self._newest: dict[str, int] = {}
        self._decided: int | None = None

    def push(self, stream: str, stamp_ns: int, item: Any) -> list[tuple[int, dict[str, Any]]]:
        """Take one item; return the sets that it completes, oldest first, as (stamp of the leader, stream -> item)."""
        if stamp_ns < self._newest.get(stream, stamp_ns) - REORDER_NS:
            self.clear()
            self.jumps += 1
        self._newest[stream] = max(stamp_ns, self._newest.get(stream, stamp_ns))
        self._recent[stream].append(stamp_ns)
        too_late = stream == self.leader and self._decided is not None and stamp_ns <= self._decided
        if too_late or stamp_ns in self._items[stream]:
            self.late[stream] += 1
            return []
        insort(self._stamps[stream], stamp_ns)
        self._items[stream][stamp_ns] = item
        return self._drain()

    def flush(self) -> list[tuple[int, dict[str, Any]]]:
        """The end of all streams: decide on what waits with what is there."""
        self._newest = dict.fromkeys((self.leader, *self.followers), 2**63)
        sets = self._drain()
        for name in self.followers:
            self._drop(name, len(self._stamps[name]))
        self.clear()
        return sets

    def _drain(self) -> list[tuple[int, dict[str, Any]]]:
        sets = []
        while self._stamps[self.leader]:
            stamp = self._stamps[self.leader][0]
            partners = {name: self._partner(name, stamp) for name in self.followers}
            complete = all(isinstance(partner, int) for partner in partners.values())
            waiting = 'wait' in partners.values()
            if waiting and len(self._stamps[self.leader]) <= self.queue and not (None in partners.values() and not self.partial):
                break
            if complete or self.partial:
                found = {name: self._take(name, partner) for name, partner in partners.items() if isinstance(partner, int)}
                sets.append((stamp, {self.leader: self._items[self.leader][stamp], **found}))
            if complete:
                self._stamps[self.leader].pop(0)
                del self._items[self.leader][stamp]
            else:
                self._drop(self.leader, 1)
            self._decided = stamp
        for name in self.followers:
            # Later leaders are later than the last one decided, hence out of reach of these.
            floor = None if self._decided is None else self._decided - self.slop_ns
            reachable = 0 if floor is None else bisect_left(self._stamps[name], floor)
            self._drop(name, max(reachable, len(self._stamps[name]) - self.queue))
        return sets

    def _partner(self, name: str, stamp: int) -> int | str | None:
        """The follower's stamp that belongs to the leader's, 'wait' while a better one may come, None when there will be none."""
        if stamp in self._items[name]:
            return stamp
        if self._newest.get(name, stamp - 1) < stamp:
            return 'wait'
        near = [other for other in self._stamps[name] if abs(other - stamp) <= self.slop_ns]
        leaders = self._stamps[self.leader]
        for other in sorted(near, key=lambda other: (abs(other - stamp), other)):
            if other > stamp and self._newest[self.leader] < other:
                return 'wait'
            if not any(abs(other - leader) < abs(other - stamp) for leader in leaders):
                return other
        return None

    def _take(self, name: str, stamp: int) -> Any:
        """Remove a follower's item and give up those before it."""
        self._drop(name, bisect_left(self._stamps[name], stamp))
        self._stamps[name].pop(0)
        return self._items[name].pop(stamp)

    def _drop(self, name: str, count: int) -> None:
        """Give up the oldest `count` items of a stream, and note how far they were from a partner."""
        for _ in range(count):
            stamp = self._stamps[name].pop(0)
            del self._items[name][stamp]
            self.unpaired[name] += 1
            others = self.followers if name == self.leader else [self.leader]
            gaps = [min(abs(stamp - other) for other in self._recent[stream]) for stream in others if self._recent[stream]]
            if gaps:
                self.largest_gap_ns[name] = max(max(gaps), self.largest_gap_ns.get(name, 0))
