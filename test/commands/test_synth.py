"""dsac-ros synth: the bag holds what the source yields, and a user's mistake costs one line."""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from dsac_ros.commands import synth
from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.errors import DataError


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return synth.run(parser.parse_args(['--width', '96', '--height', '72', '--frames', '3', '--texels-per-metre', '30', *arguments]))


def test_bag_holds_the_frames_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run('--out', str(tmp_path / 'bag'), '--trajectory', '2', '--rate', '5') == 0
    assert '3 frames of 96 x 72' in capsys.readouterr().out
    expected = list(SyntheticSource(1, 2, 3, 96, 72, 5.0, sensor=SensorOptions(), texels_per_metre=30.0))
    images, depths, poses, infos = [], [], [], []
    with AnyReader([tmp_path / 'bag'], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        for connection, _, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            if connection.msgtype == 'sensor_msgs/msg/Image':
                (images if message.encoding == 'rgb8' else depths).append(message)
            elif connection.msgtype == 'geometry_msgs/msg/PoseStamped':
                poses.append(message)
            elif connection.msgtype == 'sensor_msgs/msg/CameraInfo':
                infos.append(message)
    assert len(images) == len(depths) == len(poses) == len(infos) == 3
    for frame, image, depth, pose, info in zip(expected, images, depths, poses, infos):
        assert image.header.stamp.sec * 10 ** 9 + image.header.stamp.nanosec == frame.stamp_ns
        assert np.array_equal(image.data.reshape(72, 96, 3), frame.image)
        # depth travels in whole millimetres
        assert np.abs(depth.data.view('<u2').reshape(72, 96) / 1000 - frame.depth).max() < 5.1e-4
        position = pose.pose.position
        np.testing.assert_allclose([position.x, position.y, position.z], frame.map_from_camera[:3, 3], atol=1e-12)
        assert (info.k[0], info.k[2]) == (frame.camera.fx, frame.camera.cx)


def test_an_existing_bag_is_kept(tmp_path: Path) -> None:
    (tmp_path / 'bag').mkdir()
    with pytest.raises(DataError):
        run('--out', str(tmp_path / 'bag'))
