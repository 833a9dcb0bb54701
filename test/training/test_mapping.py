"""From frames to a map: end to end on a tiny room, Ctrl-C, and every mistake in the data as one error."""
from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms

from dsac_ros.config import MappingOptions
from dsac_ros.errors import ConfigError, DataError, MapError
from dsac_ros.geometry.camera import normalised
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import load_map
from dsac_ros.records import Camera, Frame
from dsac_ros.training import calibration, mapping
from dsac_ros.training.buffer import fill
from dsac_ros.training.calibration import FALLBACK_FACTORS
from dsac_ros.training.mapping import map_source, read_frames, stop_on_interrupt
from dsac_ros.training.stretches import Trust

QUICK = MappingOptions(**{**rooms.TINY, 'steps': 20})


def frames(count: int = rooms.FRAMES) -> list[Frame]:
    return list(rooms.tiny_frames()[:count])


def test_the_map_says_how_it_was_made() -> None:
    path, made = rooms.tiny_map()
    loaded = load_map(path)
    record = loaded.training
    assert record == made.training and loaded.frame_id == 'map' and loaded.entry.name == 'tiny'
    assert record['steps'] == rooms.TINY['steps'] and not record['interrupted'] and record['left_out'] == {}
    assert record['frames'] + record['held_out_frames'] == rooms.FRAMES and record['samples'] > 20_000
    assert list(record['stage_seconds']) == ['read', 'triangulate', 'merge', 'compare stretches', 'encode', 'train', 'calibrate']
    assert sum(record['stage_seconds'].values()) == pytest.approx(record['seconds'], abs=1.0)
    assert record['median_coordinate_error_m'] < 0.15 and record['options']['width'] == rooms.TINY['width']
    # centre and extent: what the camera saw, inside of the room
    points = np.concatenate([seen_points(frame) for frame in frames()])
    centre, half = np.array(loaded.entry.centre), np.array(loaded.entry.extent) / 2
    low, high = centre - half, centre + half
    np.testing.assert_allclose(low, np.quantile(points, 0.01, axis=0), atol=0.3)
    np.testing.assert_allclose(high, np.quantile(points, 0.99, axis=0), atol=0.3)


@pytest.mark.parametrize('trust', [Trust(3.25, 4.5, 0.0015), None])
def test_what_stretches_say_of_each_other_is_in_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: Trust | None) -> None:
    def told(found: Any, mapped: Any, given: Any, landmarks: Any, between: Any, *_: Any) -> Trust | None:
        assert all(points.within is not None for points in found.values()) and set(found) <= set(range(len(mapped)))
        stamps = {frame.stamp_ns for frame in mapped}
        assert given is mapped  # the poses are exact
        assert len(landmarks.cameras_F34) == len(found) and len(between) > 5 and not stamps & {frame.stamp_ns for frame in between}
        return trust

    monkeypatch.setattr(mapping, 'trust_between_stretches', told)
    options = replace(QUICK, held_out_share=0.3)
    made = map_source(rooms.ListSource(frames()), tmp_path / 'm.dsacmap', options, 'cpu', quiet=True)
    factor, growth, shift = made.covariance_factors['landmarks'], made.landmarks.growth, made.landmarks.common_shift
    if trust is None:  # the held-out frames have to do
        assert factor not in (3.25, FALLBACK_FACTORS['landmarks']) and shift == growth == 0
    else:
        assert (factor, growth, shift) == (3.25, 4.5, 0.0015)
    assert load_map(tmp_path / 'm.dsacmap').covariance_factors['landmarks'] == factor


@pytest.mark.parametrize('adjust', [True, False])
def test_a_map_is_of_the_poses_that_images_agree_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adjust: bool) -> None:
    """All of it: landmarks and what the head learns; errors are counted from the given poses."""
    rng, disturbed, seen = np.random.default_rng(0), [], {}
    for frame in frames():
        pose_44 = frame.map_from_camera.copy()
        pose_44[:3, 3] += rng.normal(scale=0.01, size=3)
        disturbed.append(replace(frame, map_from_camera=pose_44))

    def told(found: Any, mapped: Any, given: Any, *_: Any) -> None:
        seen.update(mapped=mapped, given=given)

    def filled(mapped: Any, *arguments: Any) -> Any:
        seen['learnt'] = mapped
        return fill(mapped, *arguments)

    monkeypatch.setattr(mapping, 'trust_between_stretches', told)
    monkeypatch.setattr(mapping, 'fill', filled)
    made = map_source(rooms.ListSource(disturbed), tmp_path / 'm.dsacmap', replace(QUICK, adjust_poses=adjust), 'cpu', quiet=True)
    by_stamp = {frame.stamp_ns: frame.map_from_camera for frame in disturbed}
    assert all((frame.map_from_camera == by_stamp[frame.stamp_ns]).all() for frame in seen['given'])
    assert (seen['mapped'] is seen['given']) is not adjust and seen['learnt'] is seen['mapped']
    cameras = np.stack([frame.map_from_camera[:3] for frame in seen['mapped']])
    np.testing.assert_allclose(made.landmarks.cameras_F34.numpy(), cameras[:len(made.landmarks.cameras_F34)], atol=1e-6)
    off_F3 = np.stack([frame.map_from_camera[:3, 3] for frame in seen['mapped']]) - [f.map_from_camera[:3, 3] for f in seen['given']]
    moved_m = np.median(np.linalg.norm(off_F3, axis=1))
    if adjust:
        assert made.training['poses']['moved_m'] == pytest.approx(moved_m, abs=1e-4) and moved_m > 0.003
    else:
        assert made.training['poses'] == {} and moved_m == 0


def seen_points(frame: Frame) -> np.ndarray:
    x, y = np.meshgrid(np.arange(4, 320, 8), np.arange(4, 240, 8))
    c = frame.camera
    rays = np.stack([(x - c.cx) / c.fx, (y - c.cy) / c.fy, np.ones(x.shape)], -1) * frame.depth[y, x][..., None]
    return rays.reshape(-1, 3) @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]


def test_rgb_only_map_localises(tmp_path: Path) -> None:
    """Images and poses alone, and frames without depth at all: decimetres from seconds of training."""
    blind = [replace(f, depth=None) for f in frames()]
    options = MappingOptions(**{**rooms.TINY, 'steps': 700, 'rgb_only': True})
    map_source(rooms.ListSource(blind), tmp_path / 'm.dsacmap', options, 'cpu', quiet=True)
    localizer = Localizer.from_map(tmp_path / 'm.dsacmap', 'cpu')
    errors = [np.linalg.norm(localizer.localize(f, 'rgb').map_from_camera[:3, 3] - f.map_from_camera[:3, 3]) for f in blind[::3]]
    assert np.median(errors) < 0.3, errors


def test_the_same_seed_gives_the_same_map(tmp_path: Path) -> None:
    """With the steps given instead of the time."""
    few, options = frames(12), replace(QUICK, landmarks=200)
    for name in ('a', 'b'):
        map_source(rooms.ListSource(few), tmp_path / name, options, 'cpu', quiet=True)
    files = [(tmp_path / name / 'experts' / 'room.safetensors').read_bytes() for name in ('a', 'b')]
    assert files[0] == files[1]


def test_minutes_are_those_of_the_clock(tmp_path: Path) -> None:
    """A clock that hardly moves until training and then by a second when it is read: 300 s, less what calibration may take."""
    now, tick, original = 0.0, 1e-6, mapping.train_head

    def clock() -> float:
        nonlocal now
        now += tick
        return now

    def train(*arguments: object, **named: object) -> object:
        nonlocal tick
        tick = 1.0
        return original(*arguments, **named)

    options = MappingOptions(**{**rooms.TINY, 'steps': 0, 'minutes': 5.0, 'landmarks': 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, 'train_head', train)
        record = map_source(rooms.ListSource(frames(14)), tmp_path / 'm.dsacmap', options, 'cpu', quiet=True, clock=clock).training
    reserve = 0.5 * record['held_out_frames'] + 2
    assert 300 - reserve - 2 <= record['steps'] <= 300 - reserve
    assert 300 - reserve <= record['seconds'] <= 300 + 3 * calibration.MIN_FRAMES


def test_interrupt_keeps_the_map(tmp_path: Path) -> None:
    """SIGINT once the head trains, with time for hours left: a usable map within moments."""
    options = MappingOptions(**{**rooms.TINY, 'steps': 0, 'minutes': 60.0, 'encoding_share': 0.05})
    original, begun = mapping.train_head, threading.Event()

    def train(*arguments: object, **named: object) -> object:
        begun.set()
        return original(*arguments, **named)

    def interrupt() -> None:
        begun.wait(200)
        time.sleep(2.0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, 'train_head', train)
        thread.start()
        bundle = map_source(rooms.ListSource(frames(14)), tmp_path / 'm.dsacmap', options, 'cpu', quiet=True)
        thread.join()
    assert bundle.training['interrupted'] and bundle.training['steps'] > 0
    loaded = Localizer.from_map(tmp_path / 'm.dsacmap', 'cpu')
    assert np.isfinite(loaded.localize(frames()[0], 'rgbd').map_from_camera).all()
    assert [p.name for p in tmp_path.iterdir()] == ['m.dsacmap']


def test_stop_on_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
    assert signal.getsignal(signal.SIGINT) is before
    answers = []

    def elsewhere() -> None:
        with stop_on_interrupt() as never:
            answers.append(never())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False]


def inverted(frame: Frame) -> Frame:
    return replace(frame, map_from_camera=np.linalg.inv(frame.map_from_camera))


@pytest.mark.parametrize(('change', 'words'), [
    (lambda f: replace(f, map_from_camera=None), ('0 usable frames', 'no_pose: 36', 'the-bag')),
    (lambda f: replace(f, depth=None), ('0 usable frames', 'no_depth: 36', '--rgb-only')),
    (lambda f: replace(f, depth=np.zeros_like(f.depth)), ('no_depth: 36',)),
    (inverted, ('inverted', 'the-bag')),
    (lambda f: replace(f, depth=f.depth * 1000), ('units', 'the-bag')),
], ids=['no poses', 'no depth', 'empty depth', 'inverted poses', 'millimetres'])
def test_wrong_data_is_a_data_error(tmp_path: Path, change: object, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        map_source(rooms.ListSource([change(f) for f in frames()]), tmp_path / 'm.dsacmap', QUICK, 'cpu', quiet=True)
    for word in words:
        assert word in str(caught.value), caught.value
    assert not (tmp_path / 'm.dsacmap').exists()


def test_too_few_frames_are_counted_with_what_the_reader_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'9 usable frames, at least 10.*truncated: 3'):
        map_source(rooms.ListSource(frames(9), truncated=3), tmp_path / 'm', QUICK, 'cpu', quiet=True)
    with pytest.raises(DataError, match='0 usable frames'):
        map_source(rooms.ListSource([]), tmp_path / 'm', QUICK, 'cpu', quiet=True)


def test_a_frame_without_depth_is_left_out_once_and_the_reader_says_why(tmp_path: Path) -> None:
    source = rooms.ListSource([replace(frame, depth=None) for frame in frames(24)], no_depth=24)
    source.details = {'no_depth': '12.0 ms apart, 10 ms are allowed (--slop)'}
    with pytest.raises(DataError, match=r'left out: no_depth: 24\).*; 24 x no_depth: 12.0 ms apart, 10 ms are allowed \(--slop\)$'):
        map_source(source, tmp_path / 'm', QUICK, 'cpu', quiet=True)


def test_a_camera_that_stands_still_cannot_map_from_rgb(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='camera hardly move'):
        map_source(rooms.ListSource([replace(frames()[0], depth=None)] * 12), tmp_path / 'm',
                   replace(QUICK, rgb_only=True), 'cpu', quiet=True)


class Unread(rooms.ListSource):
    def __iter__(self) -> object:
        raise AssertionError('read before the place was checked')


def test_a_bad_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'file').write_text('x')
    for name, overwrite in (('thesis', False), ('thesis', True), ('file', True), ('file/m', False)):
        place = tmp_path / name
        with pytest.raises(MapError, match=place.name):
            map_source(Unread(frames(12)), place, QUICK, 'cpu', overwrite=overwrite, quiet=True)
    with pytest.raises(ConfigError, match='banana'):
        map_source(Unread(frames(12)), tmp_path / 'm', QUICK, 'banana', quiet=True)


@pytest.mark.parametrize('share', [0.01, 0.06, 0.1, 0.3])
def test_of_every_recording_three_blocks_are_held_out(share: float) -> None:
    for count in range(mapping.MIN_FRAMES, 200):
        held = np.array(mapping.held_out(count, share))
        blocks = np.flatnonzero(np.diff(held.astype(int)) == 1)
        wanted = max(1, round(share * count / 3))
        assert len(blocks) == 3 and abs(int(held.sum()) - 3 * wanted) <= 3, (count, held)


def test_held_out_frames_are_blocks_that_training_never_sees() -> None:
    stub = [replace(frames(1)[0], stamp_ns=i) for i in range(200)]
    training, held_out, left_out = read_frames(rooms.ListSource(stub), MappingOptions())
    train, held = ({f.stamp_ns for f in part} for part in (training, held_out))
    assert not train & held and len(train | held) == 200 and not left_out
    assert 0.04 * 200 <= len(held) <= 0.09 * 200
    ends = sum(stamp + 1 not in held for stamp in held)
    assert 2 <= ends <= 4  # runs, not single frames between twins


def test_large_images_are_made_smaller_and_show_the_same() -> None:
    """A slope of depth, and an image of it, look along the same rays before and after."""
    camera = Camera(1920, 1080, 1400.0, 1390.0, 950.0, 545.0)
    rows, columns = np.indices((1080, 1920), np.float32)
    depth, image = 1 + columns / 1920 + rows / 1080, np.stack([columns / 8, rows / 8, 0 * rows], -1).astype(np.uint8)
    frame = mapping.shrunk(Frame(image, camera, 0, depth), 600)
    assert frame.image.shape == (600, 1067, 3) and frame.depth.shape == (600, 1067)
    assert (frame.camera.width, frame.camera.height) == (1067, 600)
    pixels = np.array([[0, 0], [500, 300], [1066, 599], [100, 550]])
    x, y = ((normalised(frame.camera, pixels.astype(float)) * [1400, 1390]) + [950, 545]).T
    np.testing.assert_allclose(frame.depth[pixels[:, 1], pixels[:, 0]], 1 + x / 1920 + y / 1080, atol=0.6 / 1080 + 0.6 / 1920)
    np.testing.assert_allclose(frame.image[pixels[:, 1], pixels[:, 0], :2], np.stack([x, y], 1) / 8, atol=1.0)
    posed = replace(frame, image=image, depth=depth, camera=camera, map_from_camera=np.eye(4))
    assert {each.image.shape for each in read_frames(rooms.ListSource([posed] * 12), QUICK)[0]} == {(600, 1067, 3)}
    small = Frame(image[:480, :640], replace(camera, width=640, height=480), 0)
    assert mapping.shrunk(small, 600) is small
    tall = mapping.shrunk(Frame(image.swapaxes(0, 1).copy(), Camera(1080, 1920, 1400.0, 1400.0, 540.0, 960.0), 0), 600)
    assert tall.image.shape == (1067, 600, 3) and tall.depth is None


def test_long_recordings_are_thinned_evenly() -> None:
    stub = [replace(frames(1)[0], stamp_ns=i) for i in range(205)]
    training, held_out, _ = read_frames(rooms.ListSource(stub), MappingOptions(max_frames=50))
    stamps = sorted(f.stamp_ns for f in training + held_out)
    assert len(stamps) <= 50 and set(np.diff(stamps)) == {5}


def test_dark_recordings_are_mapped_by_daylight(tmp_path: Path) -> None:
    dark = [replace(frame, image=frame.image // 12) for frame in frames(24)]
    made = map_source(rooms.ListSource(dark), tmp_path / 'm.dsacmap', QUICK, 'cpu', quiet=True)
    assert len(made.landmarks.points_L3) > 100
    estimate = Localizer.from_map(tmp_path / 'm.dsacmap', 'cpu').localize(frames(24)[5], 'rgb')
    assert estimate.landmarks > 20, 'and recognised by day'
