"""Transforms of a robot over real DDS: composed at the stamp of the image, dated ahead, sent again, not for ever; two robots; base_pose."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
pytest.importorskip('tf2_msgs.msg')
import rclpy  # noqa: E402
from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402

from dsac_ros.config import NodeOptions  # noqa: E402
from dsac_ros.errors import ConfigError  # noqa: E402
from dsac_ros.msg import LocalizationStatus  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import sensor_messages  # noqa: E402
from dsac_ros.ros.frames import check_frames  # noqa: E402
from dsac_ros.ros.intake import stamp_ns  # noqa: E402
from dsac_ros.ros.live_replay import Player  # noqa: E402
from dsac_ros.ros.messages import matrix_from_pose, stamped_pose  # noqa: E402
from dsac_ros.ros.robot import Placement, Robot  # noqa: E402

sys.path.append(str(Path(__file__).parents[1]))
from robots import BASE_FROM_CAMERA, CAMERA_FRAME, RobotTf, matrix_of  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 60.0
# Others use the machine too.
PATIENT = {'tf_wait': 1.0, 'tf_max_age': 60.0, 'state.agreeing': 1, 'state.lost_after': 60.0, 'modality': 'rgb'}


@pytest.fixture
def frames(small_room: tuple[Path, list[Frame]]) -> list[Frame]:
    return small_room[1]


@pytest.fixture
def running(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> Callable[..., Any]:
    @contextmanager
    def run(namespace: str = '', **parameters: Any) -> Iterator[Player]:
        target = node_in_process(domain_id, namespace, **({'map': str(small_room[0])} | PATIENT | parameters))
        with target, Player(target, False) as player:
            player.target = target
            player.wait_until_ready()
            yield player
            target.check()
    return run


def show(player: Player, frame: Frame, prefix: str = '') -> tuple[int, LocalizationStatus]:
    stamp = time.time_ns()
    pixels = frame.image.copy()
    pixels[0, 0] = stamp // 1000 % 256  # no two images of a camera are the same
    image = sensor_messages.colour_message(pixels)
    image.header.frame_id = prefix + CAMERA_FRAME
    player.send(stamp, sensor_messages.camera_info_message(frame.camera), image)
    assert player.wait_for(lambda: stamp in player.statuses, ANSWER_S), 'no status'
    status = player.statuses[stamp]
    assert not status.accepted or player.wait_for(lambda: stamp in player.poses, ANSWER_S)
    return stamp, status


def show_until_well(player: Player, frame: Frame, prefix: str = '') -> int:
    """Until TF has found its way; the stamp of the frame."""
    until = time.monotonic() + ANSWER_S
    while time.monotonic() < until:
        stamp, status = show(player, frame, prefix)
        if status.accepted and not status.reasons:
            return stamp
    raise AssertionError(list(status.reasons))


def wait(condition: Callable[[], Any], seconds: float = ANSWER_S) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(condition())


def sends(robot: RobotTf, map_from_odom: np.ndarray) -> bool:
    return bool(robot.map_to('odom')) and np.allclose(matrix_of(robot.map_to('odom')[-1]), map_from_odom, atol=1e-5)


def test_map_to_odom(running: Callable[..., Any], frames: list[Frame]) -> None:
    """A robot that drives at half a metre a second: odometry of another moment than the image's would be centimetres off."""
    options = {'transform_tolerance': 0.3, 'tf_rate': 50.0, 'tf_max_age': 2.0, 'state.max_odometry_chi2': 0.0}
    with (running(tf_mode='map_to_odom', **options) as player,
          RobotTf(player, frames[0].map_from_camera, velocity=(0.5, 0.0, 0.0)) as robot):
        assert not robot.heard, 'something was sent before the first pose'
        stamp = show_until_well(player, frames[0])
        map_from_camera = matrix_from_pose(player.poses[stamp][0].pose.pose)
        expected = map_from_camera @ np.linalg.inv(robot.odom_from_base(stamp) @ BASE_FROM_CAMERA)
        assert wait(lambda: sends(robot, expected)), 'not composed at the stamp of the image'
        count = len(robot.heard)
        assert wait(lambda: len(robot.heard) >= count + 5, 1.5), 'not sent again'
        sent = robot.heard[count:]
        stamps = [stamp_ns(transform.header) for _, transform in sent]
        assert stamps == sorted(set(stamps)), 'stamps have to move on'
        assert all(0.0 < 1e-9 * at_ns - heard_s <= 0.3 for at_ns, (heard_s, _) in zip(stamps, sent)), 'dated ahead, by the tolerance'
        assert all(np.allclose(matrix_of(transform), expected, atol=1e-5) for _, transform in sent)
        time.sleep(max(0.0, stamp / 1e9 + 2.5 - time.time()))
        count = len(robot.heard)
        time.sleep(0.5)
        assert len(robot.heard) == count, 'old news told for ever'
        assert max(stamp_ns(transform.header) for _, transform in robot.heard) <= stamp + 2.3e9 + 1e8
        show_until_well(player, frames[0])
        assert wait(lambda: len(robot.heard) > count)


def test_a_clock_that_was_put_back(domain_id: int) -> None:
    """By NTP, not by a simulation: of that rclpy says nothing. One that stands still has nothing new."""
    context, sent, now_ns = Context(), [], [100 * 10 ** 9]
    rclpy.init(context=context, domain_id=domain_id)
    node = Node('robot', context=context)
    node.get_clock = lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=now_ns[0]))
    robot = Robot(node, NodeOptions(tf_mode='map_to_odom', transform_tolerance=0.1), 'map', sent.append)
    try:
        for second, count in ((100, 1), (100, 1), (101, 2), (40, 3), (41, 4)):
            now_ns[0] = second * 10 ** 9
            estimate = SimpleNamespace(stamp_ns=now_ns[0], map_from_camera=np.eye(4), covariance=np.eye(6))
            assert robot.publish(estimate, Placement(np.eye(4), np.eye(4), '')) == '' and len(sent) == count
            assert stamp_ns(sent[-1].header) == now_ns[0] + 10 ** 8 and robot.findings()['sending']
    finally:
        robot.close()
        node.destroy_node()
        context.try_shutdown()


def test_activated_again_there_is_one_broadcaster(running: Callable[..., Any], change: Callable[..., bool]) -> None:
    with running(tf_mode='map_to_base') as player:
        assert wait(lambda: player.node.count_publishers('/tf') == 1)
        for _ in range(2):
            assert change(player, 'deactivate') and change(player, 'activate')
        time.sleep(0.5)
        assert player.node.count_publishers('/tf') == 1


@pytest.mark.parametrize(('mode', 'frames', 'said'), [
    ('map_to_odom', {}, 'odom_frame is the same'), ('map_to_base', {'base_frame': '/odom'}, 'base_frame is the same'),
    ('map_to_camera', {'tf_child_frame': 'odom'}, 'tf_child_frame is the same'), ('map_to_base', {'base_frame': ''}, 'base_frame is empty'),
    ('map_to_odom', {'frame_prefix': 'one/'}, ''), ('map_to_camera', {}, ''), ('none', {'tf_child_frame': 'odom'}, '')])
def test_frames_that_tf_could_not_tell_apart(mode: str, frames: dict[str, str], said: str) -> None:
    """A map of the poses of an odometry is in the frame of that one."""
    options = NodeOptions(tf_mode=mode, **frames)
    if not said:
        return check_frames(options, 'odom')
    with pytest.raises(ConfigError, match=said):
        check_frames(options, 'odom')


def test_map_to_base_and_its_pose(running: Callable[..., Any], frames: list[Frame], capfd: pytest.CaptureFixture[str]) -> None:
    with running(tf_mode='map_to_base') as player, RobotTf(player, frames[0].map_from_camera, odometry=False) as robot:
        poses: list[PoseWithCovarianceStamped] = []
        player.node.create_subscription(PoseWithCovarianceStamped, 'base_pose', poses.append, QoSProfile(depth=10))
        until = time.monotonic() + ANSWER_S
        while not (poses and robot.heard) and time.monotonic() < until:
            stamp = show_until_well(player, frames[0])
            wait(lambda: poses and robot.heard, 0.5)
        assert wait(lambda: stamp_ns(poses[-1].header) == stamp and stamp_ns(robot.map_to('base_link')[-1].header) == stamp)
        camera = player.poses[stamp][0].pose
        expected = matrix_from_pose(camera.pose) @ np.linalg.inv(BASE_FROM_CAMERA)
        np.testing.assert_allclose(matrix_from_pose(poses[-1].pose.pose), expected, atol=1e-9)
        np.testing.assert_allclose(matrix_of(robot.map_to('base_link')[-1]), expected, atol=1e-9)
        assert not robot.map_to('odom')
        of_camera, of_base = (np.array(pose.covariance).reshape(6, 6) for pose in (camera, poses[-1].pose))
        np.testing.assert_allclose(of_base[3:, 3:], of_camera[3:, 3:], atol=1e-12)
        assert np.linalg.eigvalsh(of_base).min() > 0 and not np.allclose(of_base[:3, :3], of_camera[:3, :3], rtol=1e-3)
        # People point at where the robot is: that place is looked at, and found.
        publisher = player.node.create_publisher(PoseWithCovarianceStamped, 'initialpose', 1)
        assert wait(publisher.get_subscription_count)
        publisher.publish(stamped_pose(0, 'map', expected, np.eye(6)))
        heard = ''
        until = time.monotonic() + ANSWER_S
        while 'initialpose' not in heard and time.monotonic() < until:
            time.sleep(0.05)
            heard += capfd.readouterr().err
        assert 'initialpose taken' in heard and show(player, frames[0])[1].tracked


def test_two_robots_with_prefixes_on_one_tree(running: Callable[..., Any], frames: list[Frame]) -> None:
    """Each corrects its own odometry, by its own extrinsics, in the one map, over one /tf."""
    with (running('/one', tf_mode='map_to_odom', frame_prefix='one/') as first, running('/two', tf_mode='map_to_odom', frame_prefix='two/')
          as second, RobotTf(first, frames[0].map_from_camera, 'one/') as one, RobotTf(second, frames[3].map_from_camera, 'two/') as two):
        for player, robot, frame in ((first, one, frames[0]), (second, two, frames[3])):
            stamp = show_until_well(player, frame, robot.prefix)
            expected = matrix_from_pose(player.poses[stamp][0].pose.pose) @ np.linalg.inv(robot.odom_from_base(stamp) @ BASE_FROM_CAMERA)
            assert wait(partial(sends, robot, expected))
        assert {transform.child_frame_id for _, transform in one.heard + two.heard} == {'one/odom', 'two/odom'}
        assert not second.poses.keys() & first.poses.keys()
