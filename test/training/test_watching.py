"""A training and the program that watches it, through two pipes."""
from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from dsac_ros.training.watching import Piped, Progress, Wish

WAIT_S = 10.0


@pytest.fixture
def pipes() -> Iterator[tuple[Piped, TextIO, TextIO]]:
    """The training's end, and the pen and the page of who watches."""
    (words_in, words_out), (lines_in, lines_out) = os.pipe(), os.pipe()
    with open(lines_out, 'w') as lines, open(words_in) as words, open(words_out, 'w') as pen, open(lines_in) as page:
        yield Piped(words, lines), pen, page
        if not pen.closed:
            pen.close()


def say(pen: TextIO, word: str) -> None:
    print(word, file=pen, flush=True)


def until(piped: Piped, wish: Wish) -> None:
    for _ in range(1000):
        if piped(Progress('train')) == wish:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f'never {wish.name}')


def test_progress_is_a_line_of_json(pipes: tuple[Piped, TextIO, TextIO]) -> None:
    piped, _, page = pipes
    assert piped(Progress('train', 3, 10, 1.5, loss=2.0)) == Wish.GO_ON
    told = Progress(**json.loads(page.readline()))
    assert (told.stage, told.step, told.steps, told.seconds_left, told.loss) == ('train', 3, 10, 1.5, 2.0)
    assert math.isnan(told.held_out)


def test_paused_it_waits_and_resumed_it_goes_on(pipes: tuple[Piped, TextIO, TextIO]) -> None:
    piped, pen, _ = pipes
    say(pen, 'pause')
    while piped._going.is_set():
        threading.Event().wait(0.01)
    step = threading.Thread(target=piped, args=(Progress('train'),))
    step.start()
    step.join(0.3)
    assert step.is_alive()
    say(pen, 'resume')
    step.join(WAIT_S)
    assert not step.is_alive() and piped(Progress('train')) == Wish.GO_ON


@pytest.mark.parametrize('paused', [False, True])
def test_finish_and_leave_end_it_and_leave_is_the_stronger(pipes: tuple[Piped, TextIO, TextIO], paused: bool) -> None:
    piped, pen, _ = pipes
    if paused:
        say(pen, 'pause')
    say(pen, 'nonsense\nfinish')
    until(piped, Wish.FINISH)
    say(pen, 'leave\nfinish')
    until(piped, Wish.LEAVE)


def test_when_the_other_end_is_gone_it_leaves(pipes: tuple[Piped, TextIO, TextIO]) -> None:
    piped, pen, _ = pipes
    say(pen, 'pause')
    pen.close()
    until(piped, Wish.LEAVE)


def test_when_nobody_reads_it_leaves() -> None:
    (words_in, words_out), (lines_in, lines_out) = os.pipe(), os.pipe()
    os.close(lines_in)
    piped = Piped(open(words_in), open(lines_out, 'w'))
    assert piped(Progress('train')) == Wish.LEAVE
    os.close(words_out)
