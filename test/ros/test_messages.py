"""Estimates to messages and back."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('dsac_ros.msg', reason='the messages are not built; see make test')
from scipy.spatial.transform import Rotation  # noqa: E402

from dsac_ros.data.decode import decode_camera, decode_colour, decode_depth  # noqa: E402
from dsac_ros.msg import LocalizationStatus  # noqa: E402
from dsac_ros.records import Camera, Estimate, Verdict  # noqa: E402
from dsac_ros.ros import messages, sensor_messages  # noqa: E402
from dsac_ros.tracking.state import Decision, State  # noqa: E402

pytestmark = pytest.mark.ros


def estimate() -> Estimate:
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = Rotation.from_rotvec([0.3, -2.0, 1.1]).as_matrix()
    map_from_camera[:3, 3] = 1.5, -2.25, 0.125
    half = np.random.default_rng(3).normal(size=(6, 6)) * 0.01
    return Estimate(1_700_000_000_123_456_789, map_from_camera, half @ half.T, Verdict(True), 'rgbd', 'kitchen', 812.5, 0.75, 0.5, 0.0125,
                    {'encoder': 12.5, 'refine': 3.25})


def test_pose_message() -> None:
    message = messages.pose_message(estimate(), 'attic')
    assert message.header.frame_id == 'attic'
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    np.testing.assert_allclose(messages.matrix_from_pose(message.pose.pose), estimate().map_from_camera, atol=1e-12)
    np.testing.assert_array_equal(np.array(message.pose.covariance).reshape(6, 6), estimate().covariance)


def test_transform_is_the_pose() -> None:
    pose = messages.pose_message(estimate(), 'map')
    transform = messages.transform_message(pose, 'camera')
    assert (transform.header, transform.child_frame_id) == (pose.header, 'camera')
    assert transform.transform.rotation == pose.pose.pose.orientation
    t, p = transform.transform.translation, pose.pose.pose.position
    assert (t.x, t.y, t.z) == (p.x, p.y, p.z)


def test_status_message() -> None:
    status = messages.status_message(5, 'map', Decision(State.TRACKING, True), estimate(), {'wait': 1.0, 'encoder': 12.5})
    assert (status.modality, status.expert, status.accepted) == ('rgbd', 'kitchen', True)
    assert list(status.stage_names) == ['wait', 'encoder'] and list(status.stage_times_ms) == [1.0, 12.5]
    stddev = np.sqrt(np.diagonal(estimate().covariance))
    np.testing.assert_allclose([*status.position_stddev, *status.rotation_stddev], stddev, rtol=1e-6)


def test_status_names_the_likely_sub_maps() -> None:
    unsure = replace(estimate(), posterior={'hall': 0.25, 'lab': 0.7, 'attic': 1e-5, '': 0.04999})
    status = messages.status_message(5, 'map', Decision(State.TRACKING, True), unsure)
    assert list(status.experts) == ['lab', 'hall', ''] and list(status.posterior) == pytest.approx([0.7, 0.25, 0.04999])
    assert not messages.status_message(5, 'map', Decision(State.TRACKING, True), estimate()).experts


def test_the_states_of_the_message_are_those_of_the_machine() -> None:
    assert all(getattr(LocalizationStatus, state.name) == state for state in State)


def test_status_of_a_refused_frame_has_no_evidence() -> None:
    status = messages.status_message(5, 'map', Decision(State.LOST, False, ('bad_image: x',)))
    assert not status.accepted and list(status.reasons) == ['bad_image: x'] and status.modality == ''
    assert all(math.isnan(value) for value in (status.inliers, status.residual, *status.position_stddev, *status.rotation_stddev))


def test_counters_round_trip() -> None:
    status = LocalizationStatus()
    messages.fill_counters(status, {'received': 7, 'processed': 5, 'accepted': 4, 'dropped': 1, 'rgb_fallback': 2}, {'bad_image': 1})
    assert messages.counters_of(status) == {'received': 7, 'processed': 5, 'accepted': 4, 'dropped': 1, 'rgb_fallback': 2,
                                            'rejected.bad_image': 1}


@pytest.mark.parametrize('stamp', [-1, 2 ** 63 - 1])
def test_a_stamp_that_no_message_holds_becomes_zero(stamp: int) -> None:
    assert messages.time_message(stamp) == messages.time_message(0)


def test_sensor_messages_decode_to_what_went_in() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    depth = rng.uniform(0.3, 9.0, (6, 10)).astype(np.float32)
    depth[0, :4] = 0.0, np.nan, -1.0, 70.0
    camera = Camera(10, 6, 8.0, 8.5, 4.5, 2.5, 'rational_polynomial', tuple(np.linspace(0.01, 0.08, 8)))
    np.testing.assert_array_equal(decode_colour(sensor_messages.colour_message(image)), image)
    decoded = decode_depth(sensor_messages.depth_message(depth))
    assert not decoded[0, :4].any()
    np.testing.assert_allclose(decoded[1:], depth[1:], atol=5.1e-4)
    assert decode_camera(sensor_messages.camera_info_message(camera)) == camera
    assert decode_camera(sensor_messages.camera_info_message(Camera(10, 6, 8.0, 8.5, 4.5, 2.5))).distortion_model == 'none'
