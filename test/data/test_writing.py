"""What BagWriter writes, read back by our reader and, field by field, by rosbags."""
from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader

from dsac_ros.data.bags import BagSource
from dsac_ros.data.transforms import matrix_from
from dsac_ros.data.writing import BagWriter
from dsac_ros.errors import DataError
from dsac_ros.records import Camera, Frame

RNG = np.random.default_rng(5)
CAMERA = Camera(16, 12, 20.5, 21.5, 7.25, 5.75, 'rational_polynomial', tuple(0.01 * i for i in range(8)))


def frames(count: int = 4) -> list[Frame]:
    made = []
    for i in range(count):
        depth = RNG.integers(0, 9000, (12, 16)).astype(np.float32) / 1000
        pose = matrix_from(RNG.normal(size=3), RNG.normal(size=4))
        image = np.kron(RNG.integers(0, 256, (3, 4, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        made.append(Frame(image, CAMERA, 1_700_000_000_123_456_789 + i * 33_333_333, depth, pose, f'f{i}'))
    return made


def write(path: Path, made: list[Frame], **options: object) -> Path:
    with BagWriter(path, **options) as writer:
        for frame in made:
            writer.write(frame)
    return path


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('compressed', [False, True])
def test_frames_come_back(tmp_path: Path, storage: str, compressed: bool) -> None:
    made = frames()
    source = BagSource(write(tmp_path / 'sub' / 'bag', made, storage=storage, compressed=compressed, map_frame='attic'), require_poses=True)
    read = list(source)
    assert len(read) == len(made) and source.map_frame == 'attic' and not source.warnings
    for before, after in zip(made, read, strict=True):
        assert after.stamp_ns == before.stamp_ns and after.camera == before.camera
        np.testing.assert_allclose(after.map_from_camera, before.map_from_camera, atol=1e-12)
        np.testing.assert_allclose(after.depth, before.depth, atol=1e-6)
        if not compressed:
            np.testing.assert_array_equal(after.image, before.image)
        else:
            assert np.abs(after.image.astype(int) - before.image).mean() < 16  # JPEG of blocks of 4 x 4 in random colours


@pytest.mark.parametrize('model', ['none', 'plumb_bob', 'equidistant'])
def test_cameras_come_back(tmp_path: Path, model: str) -> None:
    coefficients = {'none': (), 'plumb_bob': (0.1, -0.2, 0.001, 0.002, 0.03), 'equidistant': (0.1, 0.2, 0.3, 0.4)}[model]
    camera = replace(CAMERA, distortion_model=model, distortion=coefficients)
    write(tmp_path / 'bag', [replace(frames(1)[0], camera=camera)])
    assert next(iter(BagSource(tmp_path / 'bag'))).camera == camera


def test_depth_that_no_millimetre_can_hold_becomes_none(tmp_path: Path) -> None:
    depth = np.zeros((12, 16), np.float32)
    depth[0, :7] = (np.nan, np.inf, -1, 70.0, 65.534, 0.0004, 1.2346)
    write(tmp_path / 'bag', [replace(frames(1)[0], depth=depth)])
    read = next(iter(BagSource(tmp_path / 'bag'))).depth
    np.testing.assert_allclose(read[0, :7], [0, 0, 0, 0, 65.534, 0, 1.235], rtol=1e-6)


def test_parts_may_be_absent(tmp_path: Path) -> None:
    write(tmp_path / 'bag', [replace(frame, depth=None, map_from_camera=None) for frame in frames(2)])
    source = BagSource(tmp_path / 'bag')
    assert [(frame.depth, frame.map_from_camera) for frame in source] == [(None, None)] * 2
    assert source.warnings == {'no_depth': 2, 'no_pose': 2}


def test_messages_as_ros_users_expect_them(tmp_path: Path) -> None:
    made = frames(1)[0]
    bag = write(tmp_path / 'bag', [made])
    with AnyReader([bag]) as reader:  # checks definitions against type hashes
        messages = {c.topic: (time_ns, reader.deserialize(data, c.msgtype)) for c, time_ns, data in reader.messages()}
    assert set(messages) == {'/camera/color/image_raw', '/camera/color/camera_info', '/camera/depth/image_raw', '/tf', '/reference/pose'}
    assert {time_ns for time_ns, _ in messages.values()} == {made.stamp_ns}
    colour, depth = messages['/camera/color/image_raw'][1], messages['/camera/depth/image_raw'][1]
    assert (colour.encoding, colour.step, depth.encoding, depth.step) == ('rgb8', 48, '16UC1', 32)
    assert colour.header.frame_id == depth.header.frame_id == 'camera_optical_frame'
    info = messages['/camera/color/camera_info'][1]
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
    pose, (transform,) = messages['/reference/pose'][1], messages['/tf'][1].transforms
    assert pose.header.frame_id == transform.header.frame_id == 'map' and transform.child_frame_id == 'camera_optical_frame'
    assert (pose.pose.position.x, pose.pose.orientation.w) == (transform.transform.translation.x, transform.transform.rotation.w)
    about = yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert (about['version'], about['message_count'], about['starting_time']['nanoseconds_since_epoch']) == (9, 5, made.stamp_ns)
    assert all(topic['topic_metadata']['type_description_hash'].startswith('RIHS01_') for topic in about['topics_with_message_count'])
    assert all((bag / name).is_file() for name in about['relative_file_paths'])


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), BagWriter(tmp_path / 'bag') as writer:
            writer.write(frames(1)[0])
            raise error
        assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_kept_until_the_new_one_is_whole(tmp_path: Path) -> None:
    bag = write(tmp_path / 'bag', frames(2))
    with pytest.raises(DataError, match='exists already'):
        BagWriter(bag)
    with pytest.raises(ZeroDivisionError), BagWriter(bag, overwrite=True) as writer:
        writer.write(frames(1)[0])
        1 / 0  # noqa: B018
    assert len(list(BagSource(bag))) == 2
    write(bag, frames(3), overwrite=True)
    assert len(list(BagSource(bag))) == 3 and list(tmp_path.iterdir()) == [bag]


@pytest.mark.parametrize('fails', [OSError('busy'), KeyboardInterrupt()])
def test_a_move_that_fails_leaves_the_old_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: BaseException) -> None:
    bag, rename = write(tmp_path / 'bag', frames(2)), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == bag and '.old.' not in self.parent.name:  # the new one
            raise fails
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', refuse)
    with pytest.raises((DataError, KeyboardInterrupt)):
        write(bag, frames(3), overwrite=True)
    assert len(list(BagSource(bag))) == 2 and list(tmp_path.iterdir()) == [bag]


def test_only_a_bag_or_an_empty_folder_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'all.tex').write_text('years of work')
    (tmp_path / 'file').write_text('some more')
    for name in ('thesis', 'file'):
        with pytest.raises(DataError, match=f'{name}: is no bag .* is left alone'):
            BagWriter(tmp_path / name, overwrite=True)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to(write(tmp_path / 'bag', frames(1)))
    for name in ('empty', 'link'):
        assert len(list(BagSource(write(tmp_path / name, frames(2), overwrite=True)))) == 2
    assert len(list(BagSource(tmp_path / 'bag'))) == 1 and not (tmp_path / 'link').is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {'thesis', 'file', 'empty', 'link', 'bag'}


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    for place in (Path('/proc/a/b'), tmp_path / 'file' / 'bag', tmp_path / ('x' * 300), Path.cwd()):
        with pytest.raises(DataError, match=f'{place}: cannot be written: '):
            write(place, frames(1), overwrite=True)


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_a_full_disk_is_said_so_and_leaves_the_old_bag(tmp_path: Path, storage: str) -> None:
    bag = write(tmp_path / 'bag', frames(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(DataError, match='bag: cannot be written: '):
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try:
            write(bag, frames(400), storage=storage, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(BagSource(bag))) == 1 and list(tmp_path.iterdir()) == [bag]


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown bag storage 'rosbag1'; expected one of sqlite3, mcap"):
        BagWriter(tmp_path / 'bag', storage='rosbag1')
    with pytest.raises(DataError, match='stamp 0 ns'), BagWriter(tmp_path / 'bag') as writer:
        writer.write(replace(frames(1)[0], stamp_ns=0))
