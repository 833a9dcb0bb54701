"""Warnings about bad input: the first of each cause in full, then a count now and then."""
from __future__ import annotations

import time
from collections.abc import Callable


class Complaints:
    """say(cause, detail) warns at once for a new cause and at most every period_s [s] for one that was seen; for one thread."""

    def __init__(self, warn: Callable[[str], object], period_s: float = 10.0) -> None:
        self._warn, self._period_s = warn, period_s
        self._next_s: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def say(self, cause: str, detail: str) -> None:
        """Warn, or count for the next warning of this cause."""
        now_s = time.monotonic()
        if now_s < self._next_s.get(cause, now_s):
            self._unsaid[cause] = self._unsaid.get(cause, 0) + 1
            return
        self._next_s[cause] = now_s + self._period_s
        more = self._unsaid.pop(cause, 0)
        self._warn(f'{cause}: {detail}' + (f' (and {more} more since the last warning)' if more else ''))
