"""Budgets on a clock that is set by hand."""
from __future__ import annotations

import time
from dataclasses import dataclass

from dsac_ros.training.budget import Budget


@dataclass
class Hand:
    """A clock."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_counts_down_from_where_it_begins() -> None:
    clock = Hand()
    budget = Budget(8, clock)
    assert (budget.spent(), budget.left(), budget.share(), budget.over()) == (0, 8, 0, False)
    clock.now = 106.0
    assert (budget.spent(), budget.left(), budget.share(), budget.over()) == (6, 2, 0.75, False)
    clock.now = 108.0
    assert (budget.left(), budget.share(), budget.over()) == (0, 1, True)
    clock.now = 110.0
    assert (budget.left(), budget.share(), budget.over()) == (-2, 1.25, True)


def test_a_part_begins_now_and_ends_with_the_whole() -> None:
    clock = Hand()
    budget = Budget(8, clock)
    clock.now = 105.0
    early, late = budget.part(2), budget.part(50)
    assert (early.left(), late.left(), late.spent()) == (2, 3, 0)
    clock.now = 107.5
    assert early.over() and not late.over() and not budget.over()
    clock.now = 109.0
    assert budget.part(1).over() and budget.part(1).share() >= 1


def test_nothing_is_over_at_once() -> None:
    assert Budget(0).over() and Budget(0).share() == 1 and Budget(-3).over()


def test_the_wall_clock_where_nothing_is_said() -> None:
    budget = Budget(60)
    time.sleep(0.05)
    assert 0.05 <= budget.spent() < 30 and 30 < budget.left() <= 59.95
