"""Folders made here in both layouts, whole and damaged, and the real ones of ../shared/data."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.data.opening import open_source
from dsac_ros.errors import DataError
from dsac_ros.records import Camera

SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'data'
COLOUR = np.zeros((12, 16, 3), np.uint8)
COLOUR[..., 0] = 200  # red, in RGB
DEPTH_MM = np.arange(192, dtype=np.uint16).reshape(12, 16) * 10


def plain(path: Path, frames: tuple[str, ...] = ('000007', '000003', '000012')) -> Path:
    (path / 'rgb').mkdir(parents=True)
    (path / 'depth').mkdir()
    lines = ['# frame_id tx ty tz qx qy qz qw']
    for name in frames:
        cv2.imwrite(str(path / 'rgb' / f'{name}.jpg'), COLOUR[..., ::-1])
        cv2.imwrite(str(path / 'depth' / f'{name}.png'), DEPTH_MM)
        lines.append(f'{name} {int(name)} 2 3 0 0 0.6 0.8')
    (path / 'poses.txt').write_text('\n'.join(lines) + '\n')
    (path / 'intrinsics.json').write_bytes(intrinsics())
    (path / 'splits.json').write_text(json.dumps(dict(train=['000012', '000003'], val=['000007'])))
    return path


def intrinsics(**changed: object) -> bytes:
    return json.dumps({**dict(fx=20.0, fy=21.0, cx=7.5, cy=5.5, width=16, height=12), **changed}).encode()


def scenes(path: Path, frames: int = 3, size: tuple[int, int] = (640, 480)) -> Path:
    path.mkdir(parents=True)
    depth = np.full(size[::-1], 1500, np.uint16)
    depth[0, :2] = (0, 65535)
    for i in range(frames):
        cv2.imwrite(str(path / f'frame-{i:06d}.color.png'), np.full((size[1], size[0], 3), (0, 0, 200), np.uint8))
        cv2.imwrite(str(path / f'frame-{i:06d}.depth.png'), depth)
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler('z', 10 * i, degrees=True).as_matrix() * 1.001  # as uneven as the real files
        pose[0, 3] = i
        np.savetxt(path / f'frame-{i:06d}.pose.txt', pose)
    return path


def test_plain_folder(tmp_path: Path) -> None:
    source = open_source(plain(tmp_path / 'room'), require_poses=True)
    for _ in range(2):
        frames = list(source)
        assert [frame.name for frame in frames] == ['000003', '000007', '000012']
    assert len(source) == 3 and source.map_frame == 'map' and not source.warnings
    assert [frame.stamp_ns for frame in frames] == [1_000_000_000 + i * 33_333_333 for i in (3, 7, 12)]
    assert frames[0].camera == Camera(16, 12, 20, 21, 7.5, 5.5)
    assert np.abs(frames[0].image.astype(int) - COLOUR).max() <= 3
    np.testing.assert_allclose(frames[0].depth, DEPTH_MM / 1000, rtol=1e-6)
    # A quarter of a turn and more about z, independent of any library: cos = 1 - 2 * 0.36, sin = 2 * 0.6 * 0.8.
    np.testing.assert_allclose(frames[0].map_from_camera, [[0.28, -0.96, 0, 3], [0.96, 0.28, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(('given', 'model', 'distortion'), [
    (dict(distortion_model='plumb_bob', distortion=[0.1, -0.2, 0.001, 0.002, 0.03]), 'plumb_bob', (0.1, -0.2, 0.001, 0.002, 0.03)),
    (dict(distortion_model='fisheye', distortion=[0, 0, 0, 0]), 'equidistant', (0.0,) * 4),
    (dict(distortion_model='plumb_bob', distortion=[0] * 5), 'none', ()),
    (dict(distortion_model='none'), 'none', ()), (dict(distortion=[], distortion_model='none'), 'none', ())])
def test_a_lens_that_distorts(tmp_path: Path, given: dict, model: str, distortion: tuple[float, ...]) -> None:
    room = plain(tmp_path / 'room')
    (room / 'intrinsics.json').write_bytes(intrinsics(**given))
    assert next(iter(open_source(room))).camera == Camera(16, 12, 20, 21, 7.5, 5.5, model, distortion)


def test_splits(tmp_path: Path) -> None:
    room = plain(tmp_path / 'room')
    assert [frame.name for frame in open_source(room, split='train')] == ['000003', '000012']
    with pytest.raises(DataError, match="no split 'test'; splits.json has train, val"):
        open_source(room, split='test')
    (room / 'splits.json').unlink()
    with pytest.raises(DataError, match='splits.json: missing'):
        open_source(room, split='train')


def test_no_depth_and_no_pose_are_counted(tmp_path: Path) -> None:
    room = plain(tmp_path / 'room')
    (room / 'depth' / '000003.png').unlink()
    (room / 'poses.txt').write_text('000003 0 0 0 0 0 0 1\n')
    source = open_source(room, require_poses=True)
    assert [(frame.depth is None, frame.map_from_camera is None) for frame in source] == [(True, False), (False, True), (False, True)]
    assert source.warnings == {'no_depth': 1, 'no_pose': 2}
    source = open_source(room, load_depth=False)
    assert all(frame.depth is None for frame in source) and source.warnings == {'no_pose': 2}
    (room / 'poses.txt').unlink()
    with pytest.raises(DataError, match='none of 3 frames has a reference pose'):
        open_source(room, require_poses=True)


@pytest.mark.parametrize(('name', 'content', 'words'), [
    ('intrinsics.json', None, 'cannot be read'),
    ('intrinsics.json', b'{', 'expected JSON'),
    ('intrinsics.json', b'{"fx": 1}', 'fy'),
    ('intrinsics.json', b'{"fx": 0, "fy": 1, "cx": 1, "cy": 1, "width": 16, "height": 12}', 'positive'),
    ('intrinsics.json', intrinsics(fx=2000), 'no lens has'),
    ('intrinsics.json', intrinsics(cx=float('nan')), 'not finite'),
    ('intrinsics.json', intrinsics(width=float('inf')), 'OverflowError'),
    ('intrinsics.json', intrinsics(k1=0.1), 'distortion_model, distortion; ValueError: unknown k1'),
    ('intrinsics.json', intrinsics(distortion=[0.1] * 5), "KeyError: 'distortion_model'"),
    ('intrinsics.json', intrinsics(distortion_model='plumb_bob', distortion=[0.1] * 3), '3 distortion coefficients .* 4 or 5'),
    ('intrinsics.json', intrinsics(distortion_model='magic', distortion=[0.1]), "unknown distortion model 'magic'"),
    ('intrinsics.json', intrinsics(distortion_model='plumb_bob', distortion='strong'), 'strong'),
    ('intrinsics.json', b'{"fx": 20, "fy": 20, "cx": 1, "cy": 1, "width": 15, "height": 12}', '000003.jpg: 16 x 12 pixels.*15 x 12'),
    ('poses.txt', b'000003 1 2 3', 'poses.txt:1: expected frame_id'),
    ('poses.txt', b'\n000003 1 2 3 0 0 0 x', 'poses.txt:2'),
    ('poses.txt', b'000003 1 2 3 0 0 0 0', 'length 1'),
    ('poses.txt', b'000003 nan 2 3 0 0 0 1', 'poses.txt:1'),
    ('splits.json', b'[]', 'expected an object'),
    ('splits.json', b'{"train": ["000099"]}', '000099.jpg: missing'),
    ('rgb/000003.jpg', b'no jpeg', '000003.jpg: cannot be read'),
    ('depth/000003.png', b'no png', '000003.png: cannot be read'),
    ('depth/000003.png', cv2.imencode('.png', COLOUR)[1].tobytes(), '000003.png: uint8'),
    ('depth/000003.png', cv2.imencode('.png', DEPTH_MM[:5])[1].tobytes(), r'000003.png: .*\(5, 16\)'),
])
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    room = plain(tmp_path / 'room')
    (room / name).unlink()
    if content is not None:
        (room / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(open_source(room, split='train'))
    assert str(room) in str(caught.value) and ('.jpg' in words or Path(name).name in str(caught.value))


def test_seven_scenes_sequence(tmp_path: Path) -> None:
    source = open_source(scenes(tmp_path / 'seq-01'), require_poses=True)
    frames = list(source)
    assert len(source) == 3 and not source.warnings
    assert frames[0].camera == Camera(640, 480, 525, 525, 320, 240)
    assert (frames[0].image[0, 0] == (200, 0, 0)).all()
    np.testing.assert_allclose(frames[0].depth[0, :3], [0, 0, 1.5])
    rotation = frames[2].map_from_camera[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation, Rotation.from_euler('z', 20, degrees=True).as_matrix(), atol=1e-9)
    assert frames[2].map_from_camera[0, 3] == 2


def test_only_numbered_sequences_of_a_scene_are_read(tmp_path: Path) -> None:
    for name in ('seq-02', 'seq-01_old', 'seq-02.bak', 'seq-'):
        scenes(tmp_path / name, frames=1)
    assert [frame.name for frame in open_source(tmp_path)] == ['seq-02/frame-000000']
    (tmp_path / 'seq-02').rename(tmp_path / 'seq-02_old')
    with pytest.raises(DataError, match='seq-XX folders'):
        open_source(tmp_path)


def test_seven_scenes_with_splits_intrinsics_and_lost_frames(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        scenes(tmp_path / 'scene' / f'seq-{i:02d}', frames=2)
    (tmp_path / 'scene' / 'TrainSplit.txt').write_text('sequence3\r\nsequence1\r\n')
    (tmp_path / 'scene' / 'TestSplit.txt').write_text('sequence2\n')
    (tmp_path / 'scene' / 'camera-intrinsics.txt').write_text('585 0 321\n0 586 241\n0 0 1\n')
    (tmp_path / 'scene' / 'seq-01' / 'frame-000001.pose.txt').write_text('-1.#IND 0 0 0 ' * 4)
    source = open_source(tmp_path / 'scene', split='train')
    frames = list(source)
    assert [frame.name for frame in frames] == ['seq-01/frame-000000', 'seq-01/frame-000001', 'seq-03/frame-000000', 'seq-03/frame-000001']
    assert frames[0].camera == Camera(640, 480, 585, 586, 321, 241)
    assert [frame.map_from_camera is None for frame in frames] == [False, True, False, False] and source.warnings == {'no_pose': 1}
    assert all(a.stamp_ns < b.stamp_ns for a, b in zip(frames, frames[1:], strict=False))
    with pytest.raises(DataError, match="no split 'val'; found test, train"):
        open_source(tmp_path / 'scene', split='val')


@pytest.mark.parametrize(('name', 'text', 'words'), [
    ('frame-000001.pose.txt', '1 2 3', 'expected 4 x 4 numbers, found 3'),
    ('frame-000001.pose.txt', '2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1', 'determinant 8'),
    ('camera-intrinsics.txt', '0 0 0 0 0 0 0 0 1', 'positive focal'),
    ('camera-intrinsics.txt', 'x y z', 'expected 3 x 3'),
])
def test_bad_seven_scenes_files_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    sequence = scenes(tmp_path / 'seq-01')
    (sequence / name).write_text(text)
    with pytest.raises(DataError, match=f'{name}: .*{words}'):
        list(open_source(sequence))


def test_seven_scenes_of_another_size_need_their_own_camera(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='320 x 240 pixels, but the intrinsics are for 640 x 480'):
        list(open_source(scenes(tmp_path / 'seq-01', 1, (320, 240))))


def test_nothing_known_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no such file'):
        open_source(tmp_path / 'absent')
    (tmp_path / 'notes.txt').write_text('x')
    for path in (tmp_path, tmp_path / 'notes.txt'):
        with pytest.raises(DataError, match='metadata.yaml.*intrinsics.json.*7-Scenes'):
            open_source(path)


@pytest.mark.parametrize(('step', 'inside'), [('iterdir', '.'), ('iterdir', 'rgb'), ('is_file', 'metadata.yaml'),
                                              ('is_file', 'depth/000003.png')])
def test_what_cannot_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, inside: str) -> None:
    room, asked = plain(tmp_path / 'room'), getattr(Path, step)

    def denied(self: Path) -> Any:  # root may read everything
        if self == room / inside:
            raise PermissionError(13, 'Permission denied')
        return asked(self)

    monkeypatch.setattr(Path, step, denied)
    with pytest.raises(DataError, match=f'^{room}: cannot be read: Permission denied$'):
        list(open_source(room))


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(DataError, match='^x{300}: cannot be read: File name too long$'):
        open_source('x' * 300)


@pytest.mark.parametrize(('name', 'split', 'frames', 'valid'), [
    ('kitchen', 'val_near', 60, 0.72), ('lounge', 'val', 72, 0.65), ('bonsai', 'val', 48, None)])
def test_real_folders(name: str, split: str, frames: int, valid: float | None) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip('no ../shared/data here')
    source = open_source(SHARED / name, split, require_poses=True)
    assert len(source) == frames
    first = next(iter(source))
    assert first.image.shape == (first.camera.height, first.camera.width, 3) and first.map_from_camera is not None
    if valid is None:
        assert first.depth is None
    else:
        assert abs((first.depth > 0).mean() - valid) < 0.15 and 0.5 < np.median(first.depth[first.depth > 0]) < 5
