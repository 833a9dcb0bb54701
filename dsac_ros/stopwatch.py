from __future__ import annotations

import time


class Stopwatch:
    """Milliseconds of stages; one that comes again adds up."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now
