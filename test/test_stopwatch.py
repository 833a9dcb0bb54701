from __future__ import annotations

import time

import pytest

from dsac_ros.stopwatch import Stopwatch


def test_stages_are_told_apart_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 12.0, 12.25])
    monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
    watch = Stopwatch()
    for stage in ('encoder', 'estimator', 'encoder'):
        watch.lap(stage)
    assert watch.stages == {'encoder': 750.0, 'estimator': 1500.0}
