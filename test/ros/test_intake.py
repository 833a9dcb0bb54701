"""Pairing, newest-only slot and counters, with plain objects for messages: Intake needs no ROS."""
from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from dsac_ros.ros.intake import DEPTH_SILENT_S, Intake, RawFrame, Refusal

MS = 1_000_000


def message(stamp_ms: float) -> SimpleNamespace:
    ns = int(stamp_ms * MS)
    return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=ns // 10 ** 9, nanosec=ns % 10 ** 9)), ns=ns)


def intake(with_depth: bool = True, slop_s: float = 0.005, depth_wait_s: float = 0.05) -> Intake:
    return Intake(with_depth, slop_s, depth_wait_s)


def drain(box: Intake) -> list[RawFrame | Refusal]:
    """All that can be taken now or once the waiting time is over."""
    out: list[RawFrame | Refusal] = []
    thread = threading.Thread(target=lambda: [out.append(item) for item in iter(box.take, None)])
    thread.start()
    until = time.monotonic() + 2.0
    while (box._waiting or box._ready or box._refusals) and time.monotonic() < until:
        time.sleep(0.005)
    box.close()
    thread.join(2.0)
    assert not thread.is_alive()
    return out


def test_rgb_hands_out_the_newest_only() -> None:
    box = intake(with_depth=False)
    for stamp in (100, 200, 300):
        box.image(message(stamp))
    assert [item.stamp_ns for item in drain(box)] == [300 * MS]
    assert box.counters() == {'received': 3, 'dropped': 2, 'rgb_fallback': 0}


def test_what_is_to_be_done_between_frames_waits_for_no_frame() -> None:
    """In the order in which it was asked for, before refusals and frames; who waits for a frame is woken."""
    box, done = intake(with_depth=False), []
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(box.take()))
    thread.start()
    time.sleep(0.05)
    box.between_frames(lambda: done.append('first'))
    thread.join(2.0)
    taken[0]()
    box.image(message(100))
    box.image(message(0))
    box.between_frames(lambda: done.append('second'))
    box.between_frames(lambda: done.append('third'))
    for _ in range(2):
        box.take()()
    assert done == ['first', 'second', 'third']
    assert [type(item) for item in drain(box)] == [Refusal, RawFrame]


@pytest.mark.parametrize('depth_first', [True, False])
@pytest.mark.parametrize('offset_ms', [0, 3, -3])
def test_pairs_within_slop(depth_first: bool, offset_ms: float) -> None:
    box = intake()
    image, depth = message(100), message(100 + offset_ms)
    for store, item in ((box.depth, depth), (box.image, image)) if depth_first else ((box.image, image), (box.depth, depth)):
        store(item)
    (frame,) = drain(box)
    assert frame.image is image and frame.depth is depth


def test_image_without_depth_goes_on_alone_after_the_wait() -> None:
    box = intake(depth_wait_s=0.05)
    begin = time.monotonic()
    box.image(message(100))
    box.depth(message(180))  # depth lives, but this one is of another moment
    frame = box.take()
    assert isinstance(frame, RawFrame) and frame.depth is None
    assert 0.04 <= time.monotonic() - begin < 1.0


def test_late_depth_does_not_answer_twice() -> None:
    box = intake(depth_wait_s=0.01)
    box.image(message(100))
    assert box.take().depth is None
    box.depth(message(100))
    assert drain(box) == []


def test_no_wait_once_depth_is_silent() -> None:
    box = intake(depth_wait_s=5.0)
    box.image(message(100))
    box.depth(message(100))
    assert box.take().depth is not None
    box._depth_seen_s -= DEPTH_SILENT_S
    begin = time.monotonic()
    box.image(message(200))
    assert box.take().depth is None
    assert time.monotonic() - begin < 0.5


def test_a_steady_stream_without_depth_does_not_starve() -> None:
    box = intake(depth_wait_s=0.05)
    box._depth_seen_s = float('inf')
    taken: list[RawFrame] = []
    thread = threading.Thread(target=lambda: [taken.append(item) for item in iter(box.take, None)])
    thread.start()
    for k in range(1, 31):  # each image comes before the wait of the one before is over
        box.depth(message(k * 20 + 10))
        box.image(message(k * 20))
        time.sleep(0.01)
    box.close()
    thread.join(2.0)
    assert len(taken) > 5


def test_every_image_is_accounted_for() -> None:
    box = intake(depth_wait_s=0.01)
    stamps = [0, 100, 100, 200, 300, 290, 5000, 100, 200]
    for stamp in stamps:
        box.image(message(stamp))
        if stamp % 200 == 0:
            box.depth(message(stamp))
    items = drain(box)
    frames = [item for item in items if isinstance(item, RawFrame)]
    refused = [item for item in items if isinstance(item, Refusal) and item.of_image]
    assert box.received == len(stamps) == len(frames) + len(refused) + box.dropped
    assert box.rejections() == {'zero_stamp': 1, 'depth_zero_stamp': 1, 'repeated_stamp': 1, 'out_of_order': 1}
    assert [frame.stamp_ns for frame in frames][-1] == 200 * MS


def test_a_loop_forgets_what_waited() -> None:
    box = intake(depth_wait_s=0.01)
    for stamp in (10_000, 10_100):
        box.image(message(stamp))
        box.depth(message(stamp))
    for stamp in (1_000, 1_100):
        box.depth(message(stamp))
        box.image(message(stamp))
    frames = drain(box)
    assert [frame.stamp_ns for frame in frames] == [1_100 * MS] and frames[0].depth.ns == 1_100 * MS
    assert box.restarts == 1


def test_floods_do_not_grow_memory() -> None:
    box = intake(depth_wait_s=5.0)
    for k in range(1000):
        box.image(message(0))
        box.image(message(1000 + k))
        box.depth(message(100_000 + 10 * k))
    assert len(box._refusals) <= 64 and len(box._waiting) <= 30 and len(box._depths) <= 4
    assert box.rejections()['zero_stamp'] == 1000


def test_newest_camera_info_goes_with_the_frame() -> None:
    box = intake(with_depth=False)
    box.image(message(100))
    assert box.take().camera_info is None
    box.camera_info('old')
    box.image(message(200))
    box.camera_info('new')
    assert box.take().camera_info == 'new'


def test_silence_is_told_once_and_again_after_the_next_image() -> None:
    box = intake(with_depth=False)
    never: list[object] = []
    thread = threading.Thread(target=lambda: never.append(box.take(0.02)))
    thread.start()
    time.sleep(0.2)
    assert not never, 'before the first image nobody has stopped'
    for stamp in (100, 200):
        box.image(message(stamp))
        thread.join(2.0)
        frame = never.pop() if never else box.take(0.02)
        assert frame.stamp_ns == stamp * MS
        begin = time.monotonic()
        silence = box.take(0.05)
        assert isinstance(silence, Refusal) and silence.cause == 'no_images' and not silence.of_image
        assert time.monotonic() - begin < 1.0
    box.close()
    assert box.take(0.02) is None and not box.rejections()
