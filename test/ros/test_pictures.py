"""What RViz gets of a real node over DDS: only while somebody listens, and true of the frame that was shown."""
from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
from nav_msgs.msg import Path as PathMessage  # noqa: E402
from rclpy.qos import QoSDurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from dsac_ros.maps.bundle import load_map  # noqa: E402
from dsac_ros.maps.site import open_site  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import pictures, sensor_messages  # noqa: E402
from dsac_ros.ros.live_replay import Player  # noqa: E402
from dsac_ros.ros.messages import matrix_from_pose  # noqa: E402
from dsac_ros.viewing import shapes, support  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[1]))
import rooms  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 30.0
KINDS = {'frustum': Marker, 'path': PathMessage, 'inliers': PointCloud2, 'experts': MarkerArray, 'debug_image': Image,
         'map_points': PointCloud2}


class Eyes:
    """Subscribes to pictures of the node that the player plays to; got(name) waits for the next message."""

    def __init__(self, player: Player) -> None:
        self._node, self._news = player.node, threading.Condition()
        self.seen: dict[str, list[Any]] = {name: [] for name in KINDS}

    def open(self, name: str) -> None:
        latched = QoSProfile(depth=5, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(KINDS[name], f'localizer/{name}', lambda message: self._take(name, message),
                                       latched if name == 'map_points' else 5)

    def _take(self, name: str, message: Any) -> None:
        with self._news:
            self.seen[name].append(message)
            self._news.notify_all()

    def got(self, name: str, condition: Callable[[Any], bool] = lambda _: True, do: Callable[[], Any] = lambda: None) -> Any:
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            do()
            with self._news:
                self._news.wait(0.2)
            found = [message for message in self.seen[name] if condition(message)]
            if found:
                return found[-1]
        raise AssertionError(f'nothing on {name}')


@pytest.fixture
def running(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> Callable[..., Any]:
    @contextmanager
    def run(**parameters: Any) -> Iterator[tuple[Player, Eyes]]:
        target = node_in_process(domain_id, **({'map': str(small_room[0]), 'modality': 'rgb', 'state.agreeing': 1} | parameters))
        with target, Player(target, False) as player:
            player.wait_until_ready()
            yield player, Eyes(player)
    return run


def show(player: Player, frame: Frame) -> int:
    stamp = time.time_ns()
    player.send(stamp, sensor_messages.camera_info_message(frame.camera), sensor_messages.colour_message(frame.image))
    assert player.wait_for(lambda: stamp in player.statuses, ANSWER_S)
    return stamp


def rows(cloud: PointCloud2) -> np.ndarray:
    return np.frombuffer(cloud.data, '<f4').reshape(cloud.width, -1)


def stamp_of(message: Any) -> int:
    return message.header.stamp.sec * 10 ** 9 + message.header.stamp.nanosec


def test_nothing_is_drawn_for_nobody(running: Any, small_room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where it is done; then somebody looks, and it is done."""
    counts = {'support_of': 0, 'extents': 0}
    for module, name in ((support, 'support_of'), (shapes, 'extents')):
        def counted(*arguments: Any, real: Any = getattr(module, name), name: str = name) -> Any:
            counts[name] += 1
            return real(*arguments)
        monkeypatch.setattr(module, name, counted)
    with running() as (player, eyes):
        for frame in small_room[1][:3]:
            show(player, frame)
        assert counts == {'support_of': 0, 'extents': 0}
        for name in ('debug_image', 'inliers', 'experts'):
            eyes.open(name)
        for name in ('debug_image', 'inliers', 'experts'):
            eyes.got(name, do=lambda: show(player, small_room[1][0]))
        images = len(eyes.seen['debug_image'])
        assert counts['extents'] >= 1 and counts['support_of'] >= 1
        begin = time.monotonic()
        for _ in range(5):
            show(player, small_room[1][0])
        most = images + 2 + (time.monotonic() - begin) / pictures.PERIOD_S
        assert len(eyes.seen['debug_image']) <= most, 'images at the rate of the frames'


def test_camera_path_and_inliers_are_those_of_the_pose(running: Any, small_room: Any) -> None:
    with running(map_frame='place') as (player, eyes):
        for name in KINDS:
            eyes.open(name)
        frame = small_room[1][0]
        marker = eyes.got('frustum', do=lambda: show(player, frame))
        pose = player.poses[stamp_of(marker)][0]
        assert marker.header.frame_id == 'place' and marker.pose == pose.pose.pose
        assert len(marker.points) == 16 and marker.type == Marker.LINE_LIST and marker.lifetime.sec == 2
        assert marker.color.g > marker.color.r or marker.color.g > 0.7, 'green, or yellow where weak'
        path = eyes.got('path', lambda m: len(m.poses) >= 3, lambda: show(player, frame))
        assert path.poses[-1].pose == player.poses[stamp_of(path)][0].pose.pose
        assert [stamp_of(p) for p in path.poses] == sorted(stamp_of(p) for p in path.poses)
        cloud = eyes.got('inliers', do=lambda: show(player, frame))
        table = rows(cloud)
        assert [field.name for field in cloud.fields] == ['x', 'y', 'z', 'rgb', 'residual_px'] and len(table) >= 10
        # Every one of them is seen by the camera at its pose, and lies in the map.
        camera_from_map = np.linalg.inv(matrix_from_pose(player.poses[stamp_of(cloud)][0].pose.pose))
        local = (camera_from_map @ np.c_[table[:, :3], np.ones(len(table))].T)[:3]
        u, v = frame.camera.fx * local[0] / local[2] + frame.camera.cx, frame.camera.fy * local[1] / local[2] + frame.camera.cy
        assert (local[2] > 0).all() and ((u > -8) & (u < frame.camera.width + 8) & (v > -8) & (v < frame.camera.height + 8)).all()
        assert (table[:, 4] >= 0).all() and np.median(table[:, 4]) < 3
        image = eyes.got('debug_image', do=lambda: show(player, frame))
        drawn = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        changed = (drawn != frame.image).any(-1).mean()
        assert drawn.shape == frame.image.shape and 0.001 < changed < 0.4
        bundle = load_map(small_room[0])
        boxes = [m for m in eyes.got('experts').markers if m.ns == 'extent']
        assert len(boxes) == 1
        entry = bundle.entry
        np.testing.assert_allclose([boxes[0].pose.position.x, boxes[0].scale.y], [entry.centre[0], entry.extent[1]], rtol=1e-6)
        labels = [m.text for m in eyes.seen['experts'][-1].markers if m.ns == 'name']
        assert labels == [f'{entry.name} 100 %']


def test_the_map_is_latched_and_changes_with_it(running: Any, small_room: Any, call: Any, tmp_path: Path) -> None:
    """Who comes late gets it without any frame; another map replaces it."""
    from dsac_ros.srv import LoadMap
    points = load_map(small_room[0]).landmarks.points_L3.numpy()
    with running() as (player, eyes):
        eyes.open('map_points')
        cloud = eyes.got('map_points')
        np.testing.assert_array_equal(rows(cloud), points)
        assert cloud.header.frame_id == 'map' and cloud.is_dense and len(cloud.data) == cloud.row_step
        answer = call(player, LoadMap, 'load_map', LoadMap.Request(path=str(small_room[0])))
        assert answer.success
        eyes.got('map_points', lambda m: len(eyes.seen['map_points']) == 2, lambda: show(player, small_room[1][0]))


def test_a_damaged_sub_map_is_missing_among_the_points_of_the_map(running: Callable[..., Any], tmp_path: Path,
                                                                  capfd: pytest.CaptureFixture[str]) -> None:
    site = shutil.copytree(rooms.tiny_site(), tmp_path / 'site.dsacmap')
    whole = [len(shapes.mapped_points(open_site(site), index)) for index in range(2)]
    file = site / 'experts' / 'tiny2.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    with running(map=str(site)) as (_, eyes):
        eyes.open('map_points')
        assert eyes.got('map_points').width == whole[0] > 0
    said = capfd.readouterr().err
    assert said.count('~/map_points lacks a sub-map') == 1 and 'tiny2' in said



def test_a_refused_frame_has_an_image_and_no_camera(running: Any, small_room: Any) -> None:
    with running(**{'integrity.max_position_deviation': 1e-6}) as (player, eyes):
        for name in ('debug_image', 'frustum', 'inliers', 'path'):
            eyes.open(name)
        eyes.got('debug_image', do=lambda: show(player, small_room[1][0]))
        assert not eyes.seen['frustum'] and not eyes.seen['inliers'] and not eyes.seen['path']


def test_what_cannot_be_drawn_changes_no_answer(running: Any, small_room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError
    monkeypatch.setattr(shapes, 'with_support', broken)
    with running() as (player, eyes):
        eyes.open('debug_image')
        for number, frame in enumerate(small_room[1][:4], 1):
            status = player.statuses[show(player, frame)]
            assert status.frames_processed == number and set(status.rejected_causes) == {'zero_stamp'}, 'of the player alone'
