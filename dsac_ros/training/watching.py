"""What a long training tells whoever watches it, and what it is told in return."""
from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import TextIO


class Wish(IntEnum):
    """GO_ON; FINISH: as if the time were up, keeping the best state; LEAVE: write a checkpoint and end, to be resumed."""

    GO_ON = 0
    FINISH = 1
    LEAVE = 2


@dataclass(frozen=True)
class Progress:
    """stage: read, encode, train or calibrate; step of steps in it. Losses in degrees plus centimetres: loss that of the training views
    since the last look at the held-out frames, held_out_* at that look (medians of the cells' poses). NaN where not known."""

    stage: str
    step: int = 0
    steps: int = 0
    seconds_left: float = math.nan
    loss: float = math.nan
    entropy_bits: float = math.nan
    held_out: float = math.nan
    held_out_cm: float = math.nan
    held_out_deg: float = math.nan
    best_loss: float = math.nan
    best_step: int = 0


Watch = Callable[[Progress], Wish]  # asked after each view and each step; may wait


def unwatched(progress: Progress) -> Wish:
    """Nobody looks."""
    return Wish.GO_ON


class Piped:
    """Progress as lines of JSON on one pipe, wishes as words on another: pause, resume, finish, leave. Its end is taken for leave, so
    that a training never outlives the program that it was started by."""

    def __init__(self, words: TextIO = sys.stdin, lines: TextIO = sys.stdout) -> None:
        self._lines, self._wish = lines, Wish.GO_ON
        self._going = threading.Event()
        self._going.set()
        threading.Thread(target=self._listen, args=(words,), name='wishes', daemon=True).start()

    def __call__(self, progress: Progress) -> Wish:
        """Tell, wait while paused, and answer what is wished."""
        try:
            print(json.dumps(asdict(progress)), file=self._lines, flush=True)
        except BrokenPipeError:
            self._end(Wish.LEAVE)
        self._going.wait()
        return self._wish

    def _listen(self, words: TextIO) -> None:
        for word in map(str.strip, words):
            if word == 'pause':
                self._going.clear()
            elif word == 'resume':
                self._going.set()
            elif word in ('finish', 'leave'):
                self._end(Wish[word.upper()])
        self._end(Wish.LEAVE)

    def _end(self, wish: Wish) -> None:
        self._wish = max(self._wish, wish)
        self._going.set()
