"""A small run of the fuzzer finds nothing, and one over a node and a map that are faulty does."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
pytest.importorskip('tf2_msgs.msg')

from benchmarks import fuzz, soak  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402

sys.path.append(str(Path(__file__).parents[1]))
from nodes import small_room  # noqa: E402, F401

pytestmark = pytest.mark.ros


def test_damaged_messages_and_maps_are_refused(small_room: tuple[Path, list[Frame]]) -> None:  # noqa: F811
    path, frames = small_room
    found = [fuzz.fuzz_messages(path, frames, 120, seed=1), fuzz.fuzz_bundles(path, frames[0], 40, seed=1)]
    assert not any(each.faults for each in found), [each.faults for each in found]
    assert len(found[0].seconds) == 120 and {'image: bad_image', 'info: bad_camera_info'} <= found[0].outcomes.keys()
    assert any(name.endswith('refused') for name in found[1].outcomes)


def test_the_fuzzer_sees_faults(small_room: tuple[Path, list[Frame]], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def crash(path: Path) -> Any:
        raise KeyError('experts')
    monkeypatch.setattr(fuzz, 'load_map', crash)
    assert any('KeyError' in fault for fault in fuzz.fuzz_bundles(small_room[0], small_room[1][0], 3, seed=1).faults)


def test_soak_tells_growth_from_noise() -> None:
    def parts(growth: float) -> list[soak.Part]:
        return [soak.Part(1000 * k, 0, 500.0 + growth * k + (-1) ** k, 30, 9, 100.0, 150.0) for k in range(1, 21)]
    for growth in (0.0, 3.0):
        gradient, error = soak.slope(parts(growth))
        assert abs(gradient - growth) < 3 * error < 2.0


def test_soak_over_dds_sees_the_node_and_its_answers(small_room: tuple[Path, list[Frame]]) -> None:  # noqa: F811
    path, frames = small_room
    with soak.node_over_dds(path) as (show, process):
        parts = list(soak.soak(show, process, frames[:1], 40, 600.0))
        assert 'dsac_ros.ros.localizer_node' in process.cmdline()
    assert [part.frames for part in parts] == list(range(2, 41, 2)) and sum(part.without_pose for part in parts) <= 4
    assert all(part.memory_mb > 100 and part.threads > 1 for part in parts)
