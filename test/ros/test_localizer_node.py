"""The real node over real DDS, fed with good and bad messages, one at a time."""
from __future__ import annotations

import shutil
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402

from dsac_ros.config import LOCALIZER_GROUPS, build_groups  # noqa: E402
from dsac_ros.evaluation.replay import replay_offline  # noqa: E402
from dsac_ros.localizer import Localizer  # noqa: E402
from dsac_ros.msg import LocalizationStatus  # noqa: E402
from dsac_ros.records import Frame  # noqa: E402
from dsac_ros.ros import sensor_messages  # noqa: E402
from dsac_ros.ros.live_replay import Player  # noqa: E402
from dsac_ros.ros.localizer_node import LocalizerNode  # noqa: E402
from dsac_ros.ros.messages import matrix_from_pose  # noqa: E402
from dsac_ros.ros.running import spin  # noqa: E402
from dsac_ros.tracking.state import State  # noqa: E402
from dsac_ros.tracking.tracker import Tracker  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[1]))
import rooms  # noqa: E402

pytestmark = pytest.mark.ros
ANSWER_S = 30.0  # generous: other work shares the machine
UNSET: Any = object()


@pytest.fixture
def running(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> Callable[..., Any]:
    """running(name=value, ...): a node with these parameters, and the player that shows it frames. Every frame by itself, and one is
    enough to be published, unless said."""
    @contextmanager
    def run(**parameters: Any) -> Iterator[Player]:
        parameters = {'map': str(small_room[0]), 'depth_wait': 0.3, 'tracking.enabled': False, 'state.agreeing': 1} | parameters
        with node_in_process(domain_id, **parameters) as target, Player(target, parameters.get('modality') != 'rgb') as player:
            player.wait_until_ready()
            yield player
    return run


@pytest.fixture
def player(running: Callable[..., Any]) -> Iterator[Player]:
    with running() as player:
        yield player


@pytest.fixture
def frames(small_room: tuple[Path, list[Frame]]) -> list[Frame]:
    return small_room[1]


def show(player: Player, frame: Frame, stamp: int | None = None, info: CameraInfo | None = UNSET, image: Image = UNSET,
         depth: Image | None = UNSET) -> LocalizationStatus:
    """Send one frame, with some of its messages replaced, and wait for what the node says of it."""
    stamp = time.time_ns() if stamp is None else stamp
    player.statuses.pop(stamp, None)
    player.poses.pop(stamp, None)
    player.send(stamp, sensor_messages.camera_info_message(frame.camera) if info is UNSET else info,
                sensor_messages.colour_message(frame.image) if image is UNSET else image,
                sensor_messages.depth_message(frame.depth) if depth is UNSET else depth)
    assert player.wait_for(lambda: stamp in player.statuses, ANSWER_S), f'no status within {ANSWER_S} s'
    status = player.statuses[stamp]
    if status.accepted:
        assert player.wait_for(lambda: stamp in player.poses, ANSWER_S), 'accepted, but no pose'
    else:
        assert stamp not in player.poses
        assert status.reasons, 'refused without a reason'
    assert status.frames_received == status.frames_processed + status.frames_dropped + sum(
        count for cause, count in rejections(status).items() if cause not in NOT_OF_IMAGES)
    return status


# Causes that cost a frame its depth only.
NOT_OF_IMAGES = ('bad_depth', 'depth_size', 'empty_depth', 'depth_zero_stamp', 'depth_repeated_stamp', 'depth_out_of_order')


def rejections(status: LocalizationStatus) -> dict[str, int]:
    return dict(zip(status.rejected_causes, status.rejected_counts, strict=True))


def refused(status: LocalizationStatus, cause: str) -> bool:
    return not status.accepted and status.reasons[0].startswith(cause + ':') and rejections(status)[cause] >= 1


def show_good(player: Player, frames: list[Frame], modality: str = 'rgbd') -> LocalizationStatus:
    """The node is well: it answers a good frame and answers it rightly."""
    status = show(player, frames[0])
    assert status.accepted and status.state == LocalizationStatus.TRACKING and status.modality == modality, list(status.reasons)
    stamp = status.header.stamp.sec * 10 ** 9 + status.header.stamp.nanosec
    map_from_camera = matrix_from_pose(player.poses[stamp][0].pose.pose)
    assert np.linalg.norm((map_from_camera - frames[0].map_from_camera)[:3, 3]) < 0.2
    return status


class Shown:
    """Frames as a source."""

    map_frame = 'map'
    warnings: Counter[str] = Counter()

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)


def raw(encoding: str, height: int, width: int, step: int, size: int) -> Image:
    return Image(encoding=encoding, height=height, width=width, step=step, data=array('B', bytes(size)))


def test_a_good_frame_gives_pose_status_and_counters(player: Player, frames: list[Frame]) -> None:
    status = show_good(player, frames)
    pose = next(iter(player.poses.values()))[0]
    assert pose.header == status.header and pose.header.frame_id == 'map'
    covariance = np.array(pose.pose.covariance).reshape(6, 6)
    assert np.linalg.eigvalsh(covariance).min() > 0 and np.allclose(covariance, covariance.T)
    np.testing.assert_allclose(status.position_stddev, np.sqrt(np.diagonal(covariance))[:3], rtol=1e-5)
    assert list(status.stage_names)[:2] == ['wait', 'decode'] and len(status.stage_names) == len(status.stage_times_ms) > 2
    assert 0 < status.latency_receive_ms and 0 < status.latency_stamp_ms < 1e3 * ANSWER_S
    assert status.frames_processed == status.frames_accepted == 1 and status.frames_rgb_fallback == 0


def test_tracking(running: Callable[..., Any], frames: list[Frame]) -> None:
    """The second frame of a place is tracked, and the one after a frame that shows nothing; one from before the first is not."""
    start = time.time_ns()
    with running(**{'tracking.enabled': True}) as player:
        statuses = [show(player, frame, stamp=start + milliseconds * 10 ** 6) for milliseconds, frame in (
            (0, frames[0]), (100, frames[0]), (200, black(frames[0])), (300, frames[0]), (-100, frames[0]))]
    assert [status.accepted for status in statuses] == [True, True, False, True, True]
    assert [status.tracked for status in statuses] == [False, True, False, True, False]
    assert [status.modality for status in statuses] == ['rgbd', 'rgb', 'rgb', 'rgb', 'rgbd']
    assert [status.state for status in statuses] == [getattr(LocalizationStatus, name) for name in (
        'TRACKING', 'TRACKING', 'DEGRADED', 'TRACKING', 'TRACKING')]


def test_a_damaged_sub_map_is_named_once_and_the_others_go_on(running: Callable[..., Any], tmp_path: Path) -> None:
    site = shutil.copytree(rooms.tiny_site(), tmp_path / 'site.dsacmap')
    file = site / 'experts' / 'tiny2.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    with running(map=str(site)) as player:
        statuses = [show(player, rooms.in_site(frame, 2)) for frame in rooms.tiny_frames(2)[::9]]
        assert sum(refused(status, 'damaged_sub_map') for status in statuses) == 1
        assert not any(status.accepted or status.reasons[0].startswith('internal_error') for status in statuses)
        assert any(show(player, frame).accepted for frame in rooms.tiny_frames(1)[::9])


def test_tf_carries_the_pose(running: Callable[..., Any], frames: list[Frame]) -> None:
    tf2_msgs = pytest.importorskip('tf2_msgs.msg')
    with running(map_frame='attic', tf_child_frame='eye') as player:
        heard: list[Any] = []
        player.node.create_subscription(tf2_msgs.TFMessage, '/tf', lambda message: heard.extend(message.transforms), QoSProfile(depth=100))
        assert player.wait_for(lambda: player.node.count_publishers('/tf') == 1, ANSWER_S)
        until = time.monotonic() + ANSWER_S
        while not heard and time.monotonic() < until:  # a transform that came before the match is lost
            status = show(player, frames[0])
            player.wait_for(lambda: heard, 0.5)
        pose = player.poses[max(player.poses)][0]
        assert status.accepted and heard[-1].header == pose.header and heard[-1].header.frame_id == 'attic'
        assert heard[-1].child_frame_id == 'eye' and heard[-1].transform.rotation == pose.pose.pose.orientation
        before = len(heard)
        assert not show(player, black(frames[0])).accepted
        show(player, frames[0])
        assert player.wait_for(lambda: len(heard) == before + 1, ANSWER_S), 'one transform for two frames of which one was accepted'


def test_no_tf_when_not_wanted(running: Callable[..., Any], frames: list[Frame]) -> None:
    with running(tf_mode='none') as player:
        show_good(player, frames)
        assert player.node.count_publishers('/tf') == 0


def black(frame: Frame) -> Frame:
    return Frame(np.zeros_like(frame.image), frame.camera, frame.stamp_ns, np.zeros_like(frame.depth))


def test_unsure_is_silent_and_says_lost(player: Player, frames: list[Frame]) -> None:
    start = time.time_ns()
    assert show(player, black(frames[0]), start).state == LocalizationStatus.INITIALISING
    assert show(player, frames[0], start + 10 ** 8).state == LocalizationStatus.TRACKING
    for milliseconds, state in ((1000, LocalizationStatus.DEGRADED), (1200, LocalizationStatus.LOST)):
        status = show(player, black(frames[0]), start + milliseconds * 10 ** 6)
        assert status.state == state and not status.accepted
    assert len(player.poses) == 1
    time.sleep(max(0.0, start / 1e9 + 1.3 - time.time()))  # else the next stamp would lie before the last
    show_good(player, frames)


def test_the_first_pose_waits_for_a_second_frame_that_agrees(running: Callable[..., Any], frames: list[Frame]) -> None:
    with running(**{'state.agreeing': 2}) as player:
        first = show(player, frames[0])
        assert first.state == LocalizationStatus.INITIALISING and list(first.reasons) == ['unconfirmed: 1 of 2 frames agree']
        assert not player.poses and show(player, frames[0]).state == LocalizationStatus.TRACKING


def test_one_frame_of_another_place_is_not_believed_and_a_second_is(running: Callable[..., Any], frames: list[Frame]) -> None:
    far = max(frames, key=lambda frame: np.linalg.norm((frame.map_from_camera - frames[0].map_from_camera)[:3, 3]))
    with running(**{'state.agreeing': 2, 'state.max_speed': 0.01, 'state.max_turn': 0.01, 'state.lost_after': 60.0}) as player:
        seen = [show(player, frame) for frame in (frames[0], frames[0], far, frames[0], far, far)]
        assert [status.accepted for status in seen] == [False, True, False, True, False, True], [list(s.reasons) for s in seen]
        assert seen[2].state == LocalizationStatus.DEGRADED and seen[2].reasons[0].startswith('jump')


def test_the_camera_stops_and_returns(running: Callable[..., Any], frames: list[Frame]) -> None:
    with running(**{'state.agreeing': 2}) as player:
        assert [show(player, frames[0]).accepted for _ in range(2)] == [False, True]
        start, posed = time.monotonic(), len(player.poses)
        assert player.wait_for(lambda: player.newest.state == LocalizationStatus.LOST, ANSWER_S)
        assert player.newest.reasons[0].startswith('no_images') and not player.newest.accepted and len(player.poses) == posed
        assert 0.5 < time.monotonic() - start < 5.0, 'lost_after is 1 s'
        assert not player.wait_for(lambda: player.newest.state != LocalizationStatus.LOST, 1.5)
        assert any(show(player, frames[0]).accepted for _ in range(2))


@pytest.mark.parametrize('tracking', [False, True])
def test_the_node_says_what_the_offline_replay_says(running: Callable[..., Any], small_room: tuple[Path, list[Frame]],
                                                    tracking: bool) -> None:
    """Frame by frame the same state, the same reasons and the same pose: what is evaluated is what runs."""
    path, frames = small_room
    shown = [replace(frame, stamp_ns=(1 + i) * 10 ** 9) for i, frame in enumerate(
        [frames[0], frames[1], black(frames[0]), frames[2], frames[8], frames[3], *[black(frames[0])] * 12, frames[4], frames[4]])]
    options = {'tracking.enabled': tracking, 'state.agreeing': 2, 'state.max_speed': 0.05, 'state.lost_after': 10.0}
    with running(modality='rgb', **options) as player:
        live = [(show(player, frame, frame.stamp_ns), player.poses.get(frame.stamp_ns)) for frame in shown]
    groups = build_groups(LOCALIZER_GROUPS, options)
    offline = replay_offline(Tracker(Localizer.from_map(path, 'auto', groups['estimator'], groups['integrity']), groups['tracking']),
                             Shown(shown), 'rgb', state=groups['state'])
    assert {result.state for result in offline} == {'INITIALISING', 'TRACKING', 'DEGRADED', 'LOST'}
    for (status, pose), result in zip(live, offline, strict=True):
        assert State(status.state).name == result.state and status.accepted == result.published and status.tracked == result.tracked
        assert tuple(status.reasons) == result.reasons
        assert pose is None or np.abs(matrix_from_pose(pose[0].pose.pose) - result.map_from_camera).max() < 1e-9


@pytest.mark.parametrize('image', [
    raw('8UC3', 240, 320, 960, 240 * 960), raw('no_such_encoding', 240, 320, 960, 240 * 960), raw('32FC1', 240, 320, 1280, 240 * 1280),
    raw('rgb8', 240, 320, 960, 1000), raw('rgb8', 0, 0, 0, 0), raw('rgb8', 240, 320, 3, 240 * 3), raw('rgb8', 2 ** 31, 2 ** 31, 2 ** 31, 8),
    raw('', 240, 320, 960, 240 * 960)],
    ids=['ambiguous', 'unknown', 'depth_as_colour', 'cut_short', 'empty', 'step', 'huge', 'no_encoding'])
def test_bad_images_are_refused_and_counted(player: Player, frames: list[Frame], image: Image) -> None:
    assert refused(show(player, frames[0], image=image), 'bad_image')
    show_good(player, frames)


def test_an_image_that_the_network_has_no_input_for_is_refused(player: Player, frames: list[Frame]) -> None:
    rows, camera = slice(90, 154), frames[0].camera.cropped(0, 90, 320, 64)
    narrow = replace(frames[0], image=frames[0].image[rows].copy(), depth=frames[0].depth[rows].copy(), camera=camera)
    assert refused(show(player, narrow), 'bad_image')
    show_good(player, frames)


def test_an_image_of_another_size_than_camera_info(player: Player, frames: list[Frame]) -> None:
    status = show(player, frames[0], image=sensor_messages.colour_message(frames[0].image[::2, ::2]))
    assert refused(status, 'camera_info_size') and '160x120' in status.reasons[0] and '320x240' in status.reasons[0]
    show_good(player, frames)


def test_camera_info_missing_wrong_and_late(running: Callable[..., Any], frames: list[Frame]) -> None:
    with running() as player:
        assert refused(show(player, frames[0], info=None), 'no_camera_info')
        larger = sensor_messages.camera_info_message(frames[0].camera.resized(640, 480))
        assert refused(show(player, frames[0], info=larger), 'camera_info_size')
        uncalibrated = CameraInfo(width=320, height=240)
        assert refused(show(player, frames[0], info=uncalibrated), 'bad_camera_info')
        show_good(player, frames)


@pytest.mark.parametrize('depth, cause', [
    (raw('rgb8', 240, 320, 960, 240 * 960), 'bad_depth'), (raw('16UC1', 240, 320, 640, 100), 'bad_depth'),
    (raw('16UC1', 120, 160, 320, 120 * 320), 'depth_size'), (raw('16UC1', 240, 320, 640, 240 * 640), 'empty_depth')],
    ids=['colour_as_depth', 'cut_short', 'size', 'empty'])
def test_bad_depth_costs_only_the_depth(player: Player, frames: list[Frame], depth: Image, cause: str) -> None:
    status = show(player, frames[0], depth=depth)
    assert status.modality == 'rgb' and rejections(status)[cause] == 1 and status.frames_rgb_fallback == 1
    show_good(player, frames)


def float_depth(depth: np.ndarray) -> Image:
    height, width = depth.shape
    return Image(encoding='32FC1', height=height, width=width, step=4 * width, data=array('B', depth.astype('<f4').tobytes()))


def test_nan_depth(player: Player, frames: list[Frame]) -> None:
    holes = frames[0].depth.copy()
    holes[::3] = np.nan
    holes[1::3, ::5] = np.inf
    assert show(player, frames[0], depth=float_depth(holes)).modality == 'rgbd'
    status = show(player, frames[0], depth=float_depth(np.full_like(holes, np.nan)))
    assert status.modality == 'rgb' and rejections(status)['empty_depth'] == 1


def test_depth_that_does_not_come_is_not_waited_for_for_ever(player: Player, frames: list[Frame]) -> None:
    status = show(player, frames[0], depth=None)
    assert status.modality == 'rgb' and status.frames_rgb_fallback == 1
    show_good(player, frames)


def test_zero_stamp(player: Player, frames: list[Frame]) -> None:
    before = rejections(player.newest)['zero_stamp']
    assert refused(show(player, frames[0], stamp=0, depth=None), 'zero_stamp')
    assert rejections(player.newest)['zero_stamp'] == before + 1
    show_good(player, frames)


def test_a_bag_that_loops(player: Player, frames: list[Frame]) -> None:
    start = 1_600_000_000 * 10 ** 9
    for _ in range(3):
        for k in range(3):
            status = show(player, frames[0], stamp=start + k * 10 ** 9)
            assert status.accepted and status.modality == 'rgbd', list(status.reasons)
    assert status.frames_processed == 9 and status.frames_dropped == 0


def test_repeated_stamp(player: Player, frames: list[Frame]) -> None:
    stamp = time.time_ns()
    assert show(player, frames[0], stamp=stamp).accepted
    assert refused(show(player, frames[0], stamp=stamp), 'repeated_stamp')
    show_good(player, frames)


@pytest.mark.parametrize(('step_ns', 'image', 'reason', 'state'), [
    (0, None, 'repeated_stamp', LocalizationStatus.LOST), (10 ** 4, Image(), 'bad_image', LocalizationStatus.DEGRADED)])
def test_how_long_ago_the_pose_was_is_told_by_stamps_where_they_tell_time(running: Callable[..., Any], frames: list[Frame], step_ns: int,
                                                                          image: Image | None, reason: str, state: int) -> None:
    """Images that come for twice lost_after and are refused: a camera whose stamps stand still, and a bag played at a fraction of its
    pace, where no time has passed to lose anything."""
    with running(**{'modality': 'rgb', 'state.lost_after': 0.5}) as player:
        stamp, until = time.time_ns(), time.monotonic() + 1.0
        colour = sensor_messages.colour_message(frames[0].image)
        status = show(player, frames[0], stamp, depth=None)
        assert status.accepted
        while time.monotonic() < until or status.accepted:
            stamp += step_ns
            status = show(player, frames[0], stamp, image=colour if image is None else image, depth=None)
        assert refused(status, reason) and status.state == state


def test_max_age(running: Callable[..., Any], frames: list[Frame]) -> None:
    """Stamps that are no time at all: the track of the frames before goes on."""
    with running(max_age=20.0, **{'state.agreeing': 2}) as player:
        assert refused(show(player, frames[0], stamp=time.time_ns() - 60 * 10 ** 9), 'too_old')
        show(player, frames[0])
        show_good(player, frames)
        assert refused(show(player, frames[0], stamp=time.time_ns() + 60 * 10 ** 9), 'from_the_future')
        show_good(player, frames)


def test_a_burst_is_dropped_down_to_the_newest(running: Callable[..., Any], frames: list[Frame]) -> None:
    with running(modality='rgb', queue_depth=50) as player:
        before = player.newest.frames_received
        info, image = sensor_messages.camera_info_message(frames[0].camera), sensor_messages.colour_message(frames[0].image)
        for _ in range(20):
            player.send(stamp := time.time_ns(), info, image)
        assert player.wait_for(lambda: stamp in player.statuses, ANSWER_S)
        status = player.statuses[stamp]
        assert status.accepted and status.frames_dropped > 0
        assert status.frames_received - before == status.frames_processed + status.frames_dropped


def test_random_bytes_never_end_the_node(player: Player, frames: list[Frame]) -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        encoding = str(rng.choice(['rgb8', 'bgr8', 'mono8', 'mono16', 'bayer_rggb8', 'yuv422', '16UC1', '\x00', 'rgb8 ']))
        height, width, step = (int(v) for v in rng.integers(0, 400, 3))
        size = int(rng.choice([0, 1, step * height, step * height + 1]))
        image = Image(encoding=encoding, height=height, width=width, step=step, is_bigendian=int(rng.integers(0, 256)),
                      data=array('B', rng.bytes(size)))
        assert not show(player, frames[0], image=image).accepted
    show_good(player, frames)


@pytest.mark.parametrize('cut', [False, True])
def test_compressed(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any, cut: bool) -> None:
    frame, qos = small_room[1][0], QoSProfile(depth=2, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    target = node_in_process(domain_id, map=str(small_room[0]), image_compressed=True, depth_compressed=True,
                             image_topic='jpeg', depth_topic='png', **{'state.agreeing': 1})
    with target, Player(target, True) as player:
        colour, depth = (player.node.create_publisher(CompressedImage, topic, qos) for topic in ('jpeg', 'png'))
        jpeg = cv2.imencode('.jpg', frame.image[..., ::-1])[1].tobytes()
        png = cv2.imencode('.png', np.rint(frame.depth * 1000).astype(np.uint16))[1].tobytes()
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:  # until the topics have found each other
            stamp = time.time_ns()
            player.send(stamp, sensor_messages.camera_info_message(frame.camera))
            for publisher, data, kind in ((depth, png, '16UC1; compressedDepth'), (colour, jpeg[:50] if cut else jpeg, 'jpeg')):
                message = CompressedImage(format=kind, data=array('B', data))
                message.header.stamp = sensor_messages.time_message(stamp)
                publisher.publish(message)
            if player.wait_for(lambda stamp=stamp: stamp in player.statuses, 1.0) and (cut or player.statuses[stamp].modality == 'rgbd'):
                break
        assert player.statuses[stamp].accepted is not cut, list(player.statuses[stamp].reasons)
        assert not cut or refused(player.statuses[stamp], 'bad_image')


@pytest.mark.parametrize('name, remap, rectified', [('image_rect', '', True), ('image', 'image:=/camera/image_rect', True),
                                                    ('image_rect', 'image_rect:=/camera/image', False)])
def test_rectified_images_are_not_undistorted_again(domain_id: int, small_room: tuple[Path, list[Frame]], name: str, remap: str,
                                                    rectified: bool) -> None:
    """They come with the camera_info of the raw images: P counts where the topic, after remaps, says so, as in the offline replay."""
    path, [frame, *_] = small_room
    context, seen = Context(), []
    rclpy.init(context=context, domain_id=domain_id)
    remaps = ['--ros-args', '-r', remap] if remap else []
    node = LocalizerNode(context=context, cli_args=remaps, parameter_overrides=[
        rclpy.Parameter(key, value=value) for key, value in {'map': str(path), 'modality': 'rgb', 'image_topic': name}.items()])
    assert node.start()
    node.tracker.localize = lambda frame, _: seen.append(frame.camera) or 1 / 0
    info = sensor_messages.camera_info_message(frame.camera)
    info.d = [0.3, -0.1, 0.0, 0.0, 0.0]
    node.intake.camera_info(info)
    node.intake.image(sensor_messages.colour_message(frame.image, time.time_ns()))
    until = time.monotonic() + ANSWER_S
    while not seen and time.monotonic() < until:
        time.sleep(0.01)
    assert node.end()
    context.try_shutdown()
    assert [camera.distortion for camera in seen] == [() if rectified else tuple(info.d)]


def test_who_comes_late_sees_the_first_status(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> None:
    with node_in_process(domain_id, map=str(small_room[0])) as target, Player(target, False) as player:
        heard: list[LocalizationStatus] = []
        latched = QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        player.node.create_subscription(LocalizationStatus, 'status', heard.append, latched)
        until = time.monotonic() + ANSWER_S
        while not heard and time.monotonic() < until:
            player.wait_for(lambda: heard, 0.2)
        assert heard[0].state == LocalizationStatus.INITIALISING and not heard[0].accepted


def test_spinning_ends_with_the_context_though_nothing_wakes_it(domain_id: int) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    node = rclpy.create_node('quiet', context=context)
    thread = threading.Thread(target=spin, args=(node, SingleThreadedExecutor(context=context)), daemon=True)
    thread.start()
    time.sleep(1.0)
    with context.handle:
        context.handle.shutdown()  # as the signal handler's thread does; Context.shutdown would wake the executor too
    thread.join(10.0)
    assert not thread.is_alive()
    node.destroy_node()


def test_what_a_callback_raises_ends_nothing(domain_id: int, capfd: pytest.CaptureFixture[str]) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    node = rclpy.create_node('clumsy', context=context)
    calls: list[float] = []

    def fail() -> None:
        calls.append(time.monotonic())
        raise RuntimeError('stumbled')
    node.create_timer(0.02, fail)
    thread = threading.Thread(target=spin, args=(node, SingleThreadedExecutor(context=context)), daemon=True)
    thread.start()
    until = time.monotonic() + ANSWER_S
    while len(calls) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    with context.handle:
        context.handle.shutdown()
    thread.join(10.0)
    assert len(calls) >= 5 and not thread.is_alive()
    assert capfd.readouterr().err.count('RuntimeError: stumbled') == 1, 'said once, in full'
    node.destroy_node()


def test_two_robots_do_not_hear_each_other(domain_id: int, small_room: tuple[Path, list[Frame]], node_in_process: Any) -> None:
    one, two = (node_in_process(domain_id, map=str(small_room[0]), **{'state.agreeing': 1}) for _ in range(2))
    with one, two, Player(one, True) as first, Player(two, True) as second:
        first.wait_until_ready()
        second.wait_until_ready()
        show_good(first, small_room[1])
        assert not second.poses
