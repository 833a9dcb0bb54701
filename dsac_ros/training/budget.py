"""How long mapping and each of its parts may take, on one clock."""
from __future__ import annotations

import time
from typing import Callable

Clock = Callable[[], float]


class Budget:
    """Seconds from now on. The clock is that of the wall, or one that counts what the process has used (benchmarks.mapping_ablation)."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._begin = clock()

    def spent(self) -> float:
        return self.clock() - self._begin

    def left(self) -> float:
        """Negative when it is over."""
        return self.seconds - self.spent()

    def over(self) -> bool:
        return self.left() <= 0

    def share(self) -> float:
        """0 at the beginning, 1 or more when it is over."""
        return self.spent() / self.seconds if self.seconds > 0 else 1.0

    def part(self, seconds: float) -> Budget:
        """The next `seconds` on the same clock, at most what is left."""
        return Budget(min(seconds, self.left()), self.clock)
