"""Bags made here message by message (storages, encodings, pose sources, damage), and the foreign ones of ../shared/data/bags."""
from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from dsac_ros.data.bags import BagSource
from dsac_ros.data.opening import add_source_arguments, open_source, source_from, warning_lines
from dsac_ros.data.topics import BagTopics
from dsac_ros.data.transforms import matrix_from, quat_xyzw_of, rigid_inverse
from dsac_ros.errors import ConfigError, DataError
from dsac_ros.records import Camera

SHARED_BAGS = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'bags'
TYPES = get_typestore(Stores.ROS2_JAZZY)
COLOUR, DEPTH, INFO = '/camera/color/image_raw', '/camera/depth/image_raw', '/camera/color/camera_info'
WIDTH, HEIGHT, STEP_NS, START_NS = 16, 12, 100_000_000, 5_000_000_000
OPTICAL = 'camera_optical_frame'


def new(name: str, **fields: Any) -> Any:
    package, kind = name.split('/')
    return TYPES.types[f'{package}/msg/{kind}'](**fields)


def header(stamp: int, frame: str = OPTICAL) -> Any:
    return new('std_msgs/Header', stamp=new('builtin_interfaces/Time', sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id=frame)


def image(stamp: int, pixels: np.ndarray, encoding: str, frame: str = OPTICAL) -> Any:
    data = np.ascontiguousarray(pixels)
    return new('sensor_msgs/Image', header=header(stamp, frame), height=data.shape[0], width=data.shape[1], encoding=encoding,
               is_bigendian=0, step=data.strides[0], data=data.view(np.uint8).ravel())


def colour(stamp: int, **options: Any) -> Any:
    return image(stamp, np.full((HEIGHT, WIDTH, 3), (stamp // STEP_NS) % 256, np.uint8), 'rgb8', **options)


def depth_mm(stamp: int, value: int = 1500, **options: Any) -> Any:
    return image(stamp, np.full((HEIGHT, WIDTH), value, np.uint16), '16UC1', **options)


def info(stamp: int, width: int = WIDTH, frame: str = OPTICAL, fx: float = 20.0) -> Any:
    roi = new('sensor_msgs/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    k = np.array([fx, 0, 7.5, 0, fx, 5.5, 0, 0, 1])
    return new('sensor_msgs/CameraInfo', header=header(stamp, frame), height=HEIGHT, width=width, distortion_model='plumb_bob',
               d=np.zeros(5), k=k, r=np.eye(3).ravel(), p=np.zeros(12), binning_x=0, binning_y=0, roi=roi)


def pose_of(a_from_b: np.ndarray) -> Any:
    at = new('geometry_msgs/Point', **dict(zip('xyz', a_from_b[:3, 3].tolist(), strict=True)))
    turn = new('geometry_msgs/Quaternion', **dict(zip('xyzw', quat_xyzw_of(a_from_b).tolist(), strict=True)))
    return new('geometry_msgs/Pose', position=at, orientation=turn)


def tf(stamp: int, parent: str, child: str, parent_from_child: np.ndarray) -> Any:
    pose = pose_of(parent_from_child)
    move = new('geometry_msgs/Vector3', x=pose.position.x, y=pose.position.y, z=pose.position.z)
    transform = new('geometry_msgs/Transform', translation=move, rotation=pose.orientation)
    stamped = new('geometry_msgs/TransformStamped', header=header(stamp, parent), child_frame_id=child, transform=transform)
    return new('tf2_msgs/TFMessage', transforms=[stamped])


def odometry(stamp: int, child: str, odom_from_child: np.ndarray) -> Any:
    with_covariance = new('geometry_msgs/PoseWithCovariance', pose=pose_of(odom_from_child), covariance=np.zeros(36))
    zero = new('geometry_msgs/Vector3', x=0.0, y=0.0, z=0.0)
    twist = new('geometry_msgs/TwistWithCovariance', twist=new('geometry_msgs/Twist', linear=zero, angular=zero), covariance=np.zeros(36))
    return new('nav_msgs/Odometry', header=header(stamp, 'odom'), child_frame_id=child, pose=with_covariance, twist=twist)


def along(stamp: float) -> np.ndarray:
    """A made-up motion: map_from_<something> (4, 4) at a stamp, one metre and half a radian a second."""
    seconds = (stamp - START_NS) / 1e9
    return matrix_from([seconds, 0.5, -seconds], Rotation.from_rotvec([0, 0.5 * seconds, 0]).as_quat())


def save(path: Path, messages: list[tuple[str, int, Any]], storage: str = 'sqlite3', version: int = 9,
         compression: CompressionMode | None = None) -> Path:
    """Write (topic, time of recording, message) or (topic, time, (type, bytes))."""
    writer = Writer(path, version=version, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time_ns, message in messages:
            name, data = message if isinstance(message, tuple) else (message.__msgtype__, TYPES.serialize_cdr(message, message.__msgtype__))
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=TYPES)
            writer.write(connections[topic], time_ns, data)
    return path


def recording(frames: int = 6, *, poses: bool = True, make_depth: Callable[[int], Any] = depth_mm,
              **names: str) -> list[tuple[str, int, Any]]:
    messages = []
    for i in range(frames):
        stamp = START_NS + i * STEP_NS
        messages += [(names.get('info', INFO), stamp, info(stamp)), (names.get('colour', COLOUR), stamp, colour(stamp))]
        messages.append((names.get('depth', DEPTH), stamp, make_depth(stamp)))
        if poses:
            messages.append(('/tf', stamp, tf(stamp, 'map', OPTICAL, along(stamp))))
    return messages


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('version', [8, 9])
@pytest.mark.parametrize('compression', [None, CompressionMode.MESSAGE, CompressionMode.FILE])
def test_frames_of_every_storage(tmp_path: Path, storage: str, version: int, compression: CompressionMode | None) -> None:
    source = open_source(save(tmp_path / 'room.bag', recording(), storage, version, compression), require_poses=True)
    assert source.map_frame == 'map' and len(source) == 6
    for _ in range(2):
        frames = list(source)
        assert [frame.stamp_ns for frame in frames] == [START_NS + i * STEP_NS for i in range(6)]
        assert not source.warnings
    for frame in frames:
        assert frame.camera == Camera(WIDTH, HEIGHT, 20, 20, 7.5, 5.5)
        assert (frame.image == (frame.stamp_ns // STEP_NS) % 256).all()
        np.testing.assert_allclose(frame.depth, 1.5)
        np.testing.assert_allclose(frame.map_from_camera, along(frame.stamp_ns), atol=1e-9)


@pytest.mark.parametrize('version', [4, 5])
def test_old_metadata(tmp_path: Path, version: int) -> None:
    bag = save(tmp_path / 'bag', recording(), version=8)
    file = bag / 'metadata.yaml'
    content = yaml.safe_load(file.read_text())
    about = content['rosbag2_bagfile_information']
    about['version'] = version
    for key in ('custom_data', 'ros_distro') + (('files',) if version == 4 else ()):
        del about[key]
    for topic in about['topics_with_message_count']:
        del topic['topic_metadata']['type_description_hash']
        topic['topic_metadata']['offered_qos_profiles'] = ''
    file.write_text(yaml.safe_dump(content))
    assert len(list(open_source(bag))) == 6


def test_a_storage_file_alone_and_a_folder_without_metadata(tmp_path: Path) -> None:
    bag = save(tmp_path / 'bag', recording(), 'mcap')
    (bag / 'metadata.yaml').unlink()
    assert len(list(open_source(bag))) == len(list(open_source(bag / 'bag.mcap'))) == 6


def test_foreign_types_beside_do_no_harm(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg('float64[] levels\nstring note', 'my_robot/msg/Battery'))
    writer = Writer(tmp_path / 'bag', version=9)
    with writer:
        battery = writer.add_connection('/battery', 'my_robot/msg/Battery', typestore=store)
        full = store.types['my_robot/msg/Battery'](levels=np.ones(3), note='x')
        writer.write(battery, START_NS, store.serialize_cdr(full, 'my_robot/msg/Battery'))
        connections = {}
        for topic, time_ns, message in recording():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=TYPES)
            writer.write(connections[topic], time_ns, TYPES.serialize_cdr(message, message.__msgtype__))
    assert len(list(open_source(tmp_path / 'bag'))) == 6


# Poses

def test_poses_through_a_tf_chain_between_its_samples(tmp_path: Path) -> None:
    base_from_camera = matrix_from([0.1, 0.2, 0.3], Rotation.from_euler('xyz', [-90, 0, -90], degrees=True).as_quat())
    map_from_odom = matrix_from([5, 0, 0], Rotation.from_euler('z', 30, degrees=True).as_quat())
    messages = recording(poses=False) + [('/tf_static', START_NS, tf(0, 'base_link', OPTICAL, base_from_camera))]
    messages += [('/tf', START_NS, tf(START_NS + i * STEP_NS, 'map', 'odom', map_from_odom)) for i in (-1, 10)]
    # odom -> base at 4 Hz, off the image stamps: nothing is right without interpolation.
    for stamp in range(START_NS - 130_000_000, START_NS + 8 * STEP_NS, 250_000_000):
        messages.append(('/tf', stamp, tf(stamp, 'odom', 'base_link', along(stamp))))
    source = BagSource(save(tmp_path / 'bag', messages), require_poses=True, max_pose_gap_s=2.0)
    assert source.map_frame == 'map'
    frames = list(source)
    assert not source.warnings
    for frame in frames:
        expected = map_from_odom @ along(frame.stamp_ns) @ base_from_camera
        np.testing.assert_allclose(frame.map_from_camera, expected, atol=1e-9)
    in_odom = next(iter(BagSource(tmp_path / 'bag', BagTopics(map_frame='odom'))))
    np.testing.assert_allclose(in_odom.map_from_camera, along(in_odom.stamp_ns) @ base_from_camera, atol=1e-9)


@pytest.mark.parametrize('linked', [True, False])
def test_poses_from_odometry(tmp_path: Path, linked: bool) -> None:
    base_from_camera = matrix_from([0.1, 0.2, 0.3], Rotation.from_euler('xyz', [-90, 0, -90], degrees=True).as_quat())
    stamps = [START_NS + i * STEP_NS for i in range(6)]
    messages = recording(poses=False) + [('/odom', stamp, odometry(stamp, 'base_link', along(stamp))) for stamp in stamps]
    if linked:  # in two steps, and one of them the other way round
        base_from_mast = matrix_from([0, 0, 1], [0, 0, 0, 1])
        messages += [('/tf_static', 0, tf(0, 'mast', 'base_link', rigid_inverse(base_from_mast))),
                     ('/tf_static', 0, tf(0, 'mast', OPTICAL, rigid_inverse(base_from_mast) @ base_from_camera))]
    source = open_source(save(tmp_path / 'bag', messages), require_poses=True)
    assert source.map_frame == 'odom'
    for frame in source:
        np.testing.assert_allclose(frame.map_from_camera, along(frame.stamp_ns) @ (base_from_camera if linked else np.eye(4)), atol=1e-9)
    assert source.warnings == ({} if linked else {'assumed_camera_pose': 1})
    if not linked:
        assert "/odom: no static transform from 'base_link' to 'camera_optical_frame'" in warning_lines(source)[0]


@pytest.mark.parametrize('covariance', [True, False])
def test_poses_from_a_pose_topic(tmp_path: Path, covariance: bool) -> None:
    def stamped(stamp: int) -> Any:
        if covariance:
            inner = new('geometry_msgs/PoseWithCovariance', pose=pose_of(along(stamp)), covariance=np.zeros(36))
            return new('geometry_msgs/PoseWithCovarianceStamped', header=header(stamp, 'world'), pose=inner)
        return new('geometry_msgs/PoseStamped', header=header(stamp, 'world'), pose=pose_of(along(stamp)))
    stamps = [START_NS + i * STEP_NS for i in range(4)]
    messages = recording(poses=False) + [('/truth', stamp, stamped(stamp)) for stamp in stamps]
    source = open_source(save(tmp_path / 'bag', messages), require_poses=True)
    assert source.map_frame == 'world'
    frames = list(source)
    for frame in frames[:4]:
        np.testing.assert_allclose(frame.map_from_camera, along(frame.stamp_ns), atol=1e-9)
    assert [frame.map_from_camera for frame in frames[4:]] == [None, None] and source.warnings == {'no_pose': 2}
    assert '/truth' in warning_lines(source)[0]


def test_the_map_frame_asked_for_is_that_of_the_poses(tmp_path: Path) -> None:
    def in_frame(name: str) -> list[tuple[str, int, Any]]:
        stamps = [START_NS + i * STEP_NS for i in range(6)]
        return [('/truth', stamp, new('geometry_msgs/PoseStamped', header=header(stamp, name), pose=pose_of(along(stamp))))
                for stamp in stamps]
    named = save(tmp_path / 'named', recording() + in_frame('world'))  # and TF from map to the camera
    for pose, asked, expected in ((None, None, 'map'), (None, 'map', 'map'), ('/truth', None, 'world'), ('/truth', '/world', 'world')):
        assert open_source(named, topics=BagTopics(pose=pose, map_frame=asked)).map_frame == expected
    with pytest.raises(DataError, match="named: no poses in the map frame 'map': those of /truth are in 'world'"):
        open_source(named, topics=BagTopics(pose='/truth', map_frame='map'))
    beside = [('/tf', START_NS, tf(START_NS, 'map', 'lamp', np.eye(4)))]
    with pytest.raises(DataError, match="'lamp': those of /truth are in 'world'"):
        open_source(save(tmp_path / 'both', recording() + beside + in_frame('world')), topics=BagTopics(map_frame='lamp'))
    with pytest.raises(DataError, match=f"'lamp': in /tf the camera is in map <- {OPTICAL}"):
        open_source(save(tmp_path / 'beside', recording() + beside), topics=BagTopics(map_frame='lamp'))
    unnamed = save(tmp_path / 'unnamed', recording(poses=False) + in_frame(''))
    assert open_source(unnamed, topics=BagTopics(map_frame='attic')).map_frame == 'attic' and open_source(unnamed).map_frame == 'map'


def test_no_pose_in_a_long_gap(tmp_path: Path) -> None:
    messages = [m for m in recording(12) if not (m[0] == '/tf' and START_NS < m[1] < START_NS + 11 * STEP_NS)]
    source = open_source(save(tmp_path / 'bag', messages))
    assert [frame.map_from_camera is None for frame in source] == [False] + [True] * 10 + [False]
    assert source.warnings == {'no_pose': 10}


def test_no_pose_source_at_all(tmp_path: Path) -> None:
    bag = save(tmp_path / 'bag', recording(poses=False))
    with pytest.raises(DataError, match='no reference poses.*camera_optical_frame.*Odometry'):
        open_source(bag, require_poses=True)
    source = open_source(bag)
    assert [frame.map_from_camera for frame in source] == [None] * 6 and source.warnings == {'no_pose': 6}


# Topics

def test_topics_are_found_among_others(tmp_path: Path) -> None:
    messages = recording(colour='/front/rgb/image_raw', depth='/front/aligned_depth_to_color/image_raw', info='/front/rgb/camera_info')
    messages += [('/front/infra1/image_raw', START_NS, colour(START_NS)), ('/front/depth/image_raw', START_NS, depth_mm(START_NS, 9000)),
                 ('/front/depth/camera_info', START_NS, info(START_NS, fx=99.0))]
    frames = list(open_source(save(tmp_path / 'bag', messages)))
    assert len(frames) == 6 and frames[0].camera.fx == 20.0
    np.testing.assert_allclose(frames[0].depth, 1.5)


def test_two_cameras_have_to_be_chosen_from(tmp_path: Path) -> None:
    messages = recording(colour='/left/image_raw', info='/left/camera_info')
    messages += [('/right/image_raw', START_NS, colour(START_NS)), ('/right/camera_info', START_NS, info(START_NS, fx=30.0))]
    bag = save(tmp_path / 'bag', messages)
    with pytest.raises(DataError, match='/left/image_raw, /right/image_raw.*--colour-topic'):
        open_source(bag)
    assert next(iter(open_source(bag, topics=BagTopics(colour='/right/image_raw')))).camera.fx == 30.0


@pytest.mark.parametrize(('topics', 'words'), [
    (BagTopics(colour='/wrong'), ['/wrong', COLOUR]),
    (BagTopics(colour=INFO), [INFO, 'CameraInfo', 'Image']),
    (BagTopics(depth='/wrong'), ['depth topic /wrong']),
    (BagTopics(info=COLOUR), ['camera_info topic', COLOUR]),
    (BagTopics(pose='/tf'), ['pose topic /tf', 'Odometry']),
    (BagTopics(map_frame='attic'), ['attic', 'map', '/tf']),
])
def test_wrong_topics_are_named(tmp_path: Path, topics: BagTopics, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_source(save(tmp_path / 'bag', recording()), topics=topics)
    assert all(word in str(caught.value) for word in [str(tmp_path), *words]), str(caught.value)


def test_missing_topics_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no topic with colour images.*camera_info'):
        open_source(save(tmp_path / 'a', [m for m in recording() if m[0] != COLOUR]))
    with pytest.raises(DataError, match=f'no camera_info for {COLOUR}.*{INFO}'):
        open_source(save(tmp_path / 'b', [m for m in recording() if m[0] != INFO]))


def test_the_newest_camera_info_counts(tmp_path: Path) -> None:
    messages = []
    for i in range(4):
        stamp = START_NS + i * STEP_NS
        messages += [(INFO, stamp, info(stamp, fx=20.0 + i)), (COLOUR, stamp + 1, colour(stamp))]
    assert [frame.camera.fx for frame in open_source(save(tmp_path / 'bag', messages))] == [20.0, 21.0, 22.0, 23.0]


# What is left out, and counted

def test_frames_without_depth(tmp_path: Path) -> None:
    stamps = [START_NS + i * STEP_NS for i in range(6)]
    messages = [m for m in recording() if not (m[0] == DEPTH and m[1] in stamps[2:4])]
    source = open_source(save(tmp_path / 'bag', messages))
    assert [frame.depth is None for frame in source] == [False, False, True, True, False, False]
    assert source.warnings == {'no_depth': 2} and DEPTH in warning_lines(source)[0]
    without = open_source(tmp_path / 'bag', load_depth=False)
    assert all(frame.depth is None for frame in without) and not without.warnings


def test_stamps_that_do_not_pair_tell_the_gap(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / 'bag', recording(make_depth=lambda stamp: depth_mm(stamp + 37_000_000))))
    assert all(frame.depth is None for frame in source)
    assert source.warnings == {'no_depth': 6} and '37.0 ms apart, 10 ms are allowed (--slop)' in warning_lines(source)[0]


def test_slop_of_the_command_line(tmp_path: Path) -> None:
    bag = save(tmp_path / 'bag', recording(make_depth=lambda stamp: depth_mm(stamp + 37_000_000)))
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    for slop, paired in (('37', True), ('36.9', False)):
        assert [frame.depth is not None for frame in source_from(bag, parser.parse_args(['--slop', slop]))] == [paired] * 6
    for slop in ('-1', 'nan', 'inf'):
        with pytest.raises(ConfigError, match=f'slop: expected 0 to 1000 ms, found {slop}'):
            source_from(bag, parser.parse_args(['--slop', slop]))


def test_bad_messages_are_counted_and_named(tmp_path: Path) -> None:
    messages = recording(8)
    picks = [i for i, m in enumerate(messages) if m[0] == COLOUR]
    messages[picks[1]] = (COLOUR, messages[picks[1]][1], image(START_NS + STEP_NS, np.zeros((HEIGHT, WIDTH, 3), np.uint8), 'h264'))
    messages[picks[2]] = (COLOUR, messages[picks[2]][1], ('sensor_msgs/msg/Image', b'\0\1\0\0\1'))
    messages[picks[3]] = (COLOUR, messages[picks[3]][1], colour(0))
    messages[picks[4]] = (COLOUR, messages[picks[4]][1], image(START_NS + 4 * STEP_NS, np.zeros((6, 8, 3), np.uint8), 'rgb8'))
    source = open_source(save(tmp_path / 'bag', messages))
    frames = list(source)
    assert [(frame.stamp_ns - START_NS) // STEP_NS for frame in frames] == [0, 5, 6, 7]
    assert source.warnings == {'undecodable': 2, 'zero_stamp': 1, 'camera_size': 1}
    assert all(COLOUR in line for line in warning_lines(source)), warning_lines(source)


def test_not_one_usable_image_is_an_error_with_reasons(tmp_path: Path) -> None:
    messages = [(topic, time_ns, colour(0) if topic == COLOUR else message) for topic, time_ns, message in recording()]
    with pytest.raises(DataError, match=f'not one of 6 images on {COLOUR}.*header.stamp is zero'):
        list(open_source(save(tmp_path / 'bag', messages)))


def test_depth_of_another_frame_or_size(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / 'a', recording(make_depth=lambda stamp: depth_mm(stamp, frame='depth_optical'))))
    list(source)
    assert source.warnings == {'depth_frame': 6} and 'depth_optical' in warning_lines(source)[0]
    half = np.arange(48, dtype=np.uint16).reshape(6, 8) + 1000
    small = next(iter(open_source(save(tmp_path / 'b', recording(make_depth=lambda stamp: image(stamp, half, '16UC1'))))))
    np.testing.assert_allclose(small.depth, np.kron(half, np.ones((2, 2))) / 1000, rtol=1e-6)
    source = open_source(save(tmp_path / 'c', recording(make_depth=lambda stamp: image(stamp, half[:, :5], '16UC1'))))
    assert all(frame.depth is None for frame in source)
    assert source.warnings == {'depth_size': 6, 'no_depth': 6}


def test_units_of_depth(tmp_path: Path) -> None:
    def metres(value: float) -> Callable[[int], Any]:
        return lambda stamp: image(stamp, np.full((HEIGHT, WIDTH), value, np.float32), '32FC1')
    np.testing.assert_allclose(next(iter(open_source(save(tmp_path / 'a', recording(make_depth=metres(1.5)))))).depth, 1.5)
    with pytest.raises(DataError, match=f'{DEPTH}: 32FC1 depth has to be in metres.*1500'):
        list(open_source(save(tmp_path / 'b', recording(make_depth=metres(1500.0)))))
    with pytest.raises(DataError, match=f'{DEPTH}: 16UC1 depth has to be in millimetres.*2 mm'):
        list(open_source(save(tmp_path / 'c', recording(make_depth=lambda stamp: depth_mm(stamp, 2)))))


def test_stamps_that_run_backwards_are_counted(tmp_path: Path) -> None:
    late = [(topic, time_ns + 10**10, message) for topic, time_ns, message in recording()]
    source = open_source(save(tmp_path / 'bag', recording() + late))
    assert len(list(source)) >= 11 and source.warnings['time_jump'] >= 1


def test_images_out_of_order_are_counted(tmp_path: Path) -> None:
    messages = recording(8)
    picks = [i for i, m in enumerate(messages) if m[0] == COLOUR]
    messages[picks[3]], messages[picks[5]] = messages[picks[5]], messages[picks[3]]
    again = messages[picks[6]]
    messages.insert(picks[7], again)
    # In a bag, messages lie in the order of their recording.
    messages = [(topic, START_NS + i, message) for i, (topic, _, message) in enumerate(messages)]
    source = open_source(save(tmp_path / 'bag', messages))
    stamps = [frame.stamp_ns for frame in source]
    assert stamps == sorted(set(stamps)) and len(stamps) + source.warnings['out_of_order'] == 9 and len(stamps) >= 7


def test_poses_of_another_clock_are_an_error(tmp_path: Path) -> None:
    messages = recording(poses=False) + [('/tf', START_NS + i, tf(10**18 + i * STEP_NS, 'map', OPTICAL, along(START_NS))) for i in range(6)]
    source = open_source(save(tmp_path / 'bag', messages), require_poses=True)
    with pytest.raises(DataError, match='none of 6 images has a reference pose at its stamp.*/tf map <- camera_optical_frame'):
        list(source)
    assert len(list(open_source(tmp_path / 'bag'))) == 6


def test_a_loop_in_tf_is_an_error(tmp_path: Path) -> None:
    pairs = (('a', OPTICAL), (OPTICAL, 'a'))
    messages = recording(poses=False) + [('/tf', START_NS, tf(START_NS, parent, child, np.eye(4))) for parent, child in pairs]
    with pytest.raises(DataError, match=f"{tmp_path / 'bag'}: /tf: .*loops"):
        open_source(save(tmp_path / 'bag', messages))


# Damage

def test_empty_bag(tmp_path: Path) -> None:
    with Writer(tmp_path / 'bag', version=9) as writer:
        writer.add_connection(COLOUR, 'sensor_msgs/msg/Image', typestore=TYPES)
    assert 'nanoseconds_since_epoch: 9223372036854775807' in (tmp_path / 'bag' / 'metadata.yaml').read_text()
    with pytest.raises(DataError, match=f'the bag is empty.*{COLOUR}'):
        open_source(tmp_path / 'bag')


def test_a_topic_without_messages(tmp_path: Path) -> None:
    messages = [m for m in recording() if m[0] != COLOUR]
    with Writer(tmp_path / 'bag', version=9) as writer:
        connections = {COLOUR: writer.add_connection(COLOUR, 'sensor_msgs/msg/Image', typestore=TYPES)}
        for topic, time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=TYPES)
            writer.write(connections[topic], time_ns, TYPES.serialize_cdr(message, message.__msgtype__))
    with pytest.raises(DataError, match=f'the topic {COLOUR} has no messages'):
        open_source(tmp_path / 'bag')


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('metadata', [True, False])
def test_a_bag_cut_short_is_one_error_that_names_it(tmp_path: Path, storage: str, share: float, metadata: bool) -> None:
    bag = save(tmp_path / 'bag', recording(30), storage)
    file = next(file for file in bag.iterdir() if file.suffix in ('.db3', '.mcap'))
    content = file.read_bytes()
    file.write_bytes(content[:int(share * len(content))])
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    with pytest.raises(DataError, match=f'{bag}: .*(cut short|empty|cannot be read)'):
        list(open_source(bag))


@pytest.mark.parametrize('name', ['bag.db3', 'bag.mcap'])
@pytest.mark.parametrize('metadata', [True, False])
def test_a_storage_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, metadata: bool) -> None:
    bag = save(tmp_path / 'bag', recording(), 'mcap' if name.endswith('mcap') else 'sqlite3')
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    path_open = Path.open

    def denied(self: Path, *arguments: Any, **options: Any) -> Any:  # root may read everything
        if self.name == name:
            raise PermissionError(13, 'Permission denied')
        return path_open(self, *arguments, **options)

    monkeypatch.setattr(Path, 'open', denied)
    for path in (bag, bag / name):
        with pytest.raises(DataError, match=f'^{bag / name}: cannot be read: Permission denied$'):
            open_source(path)


def test_messages_that_metadata_promises_but_the_file_lacks(tmp_path: Path) -> None:
    bag = save(tmp_path / 'bag', recording(6))
    shutil.copy(bag / 'metadata.yaml', tmp_path / 'metadata.yaml')
    shorter = save(tmp_path / 'shorter' / 'bag', recording(4))
    shutil.copy(tmp_path / 'metadata.yaml', shorter / 'metadata.yaml')
    source = open_source(shorter)
    assert len(list(source)) == 4 and source.warnings == {'missing_messages': 6}


@pytest.mark.parametrize('text', ['', '{', 'rosbag2_bagfile_information: 3', 'rosbag2_bagfile_information: {version: 99}'])
def test_bad_metadata(tmp_path: Path, text: str) -> None:
    bag = save(tmp_path / 'bag', recording())
    (bag / 'metadata.yaml').write_text(text)
    with pytest.raises(DataError, match='cannot be read as a rosbag2'):
        open_source(bag)


@pytest.mark.parametrize('name', ['day_time', 'diagnostics', 'images', 'multi_topic', 'range', 'test'])
def test_foreign_bags_have_no_camera(name: str) -> None:
    if not (SHARED_BAGS / name).is_dir():
        pytest.skip('no ../shared/data/bags here')
    with pytest.raises(DataError, match='no camera_info for /image' if name == 'images' else 'no topic with colour images'):
        open_source(SHARED_BAGS / name)


def test_foreign_images_with_a_camera_info_of_ours(tmp_path: Path) -> None:
    """The one foreign bag with images (2 x 2, version 5, QoS ""), its messages beside a camera_info: other people's bytes are read."""
    if not (SHARED_BAGS / 'images').is_dir():
        pytest.skip('no ../shared/data/bags here')
    from rosbags.rosbag2 import Reader
    with Reader(SHARED_BAGS / 'images') as reader:
        raw = [('/image', time_ns, ('sensor_msgs/msg/Image', bytes(data))) for _, time_ns, data in reader.messages()]
    first = TYPES.deserialize_cdr(raw[0][2][1], 'sensor_msgs/msg/Image')
    about = info(1, width=2)
    about.height = 2
    about.k = np.array([20.0, 0, 0.5, 0, 20.0, 0.5, 0, 0, 1])
    source = open_source(save(tmp_path / 'bag', [('/camera_info', 0, about), *raw]))
    try:
        frames = list(source)
    except DataError as error:
        assert 'header.stamp is zero' in str(error) or first.encoding in str(error)
    else:
        assert frames[0].image.shape == (2, 2, 3)
