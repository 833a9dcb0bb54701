"""Inverted poses and mixed units are told from right ones, on a scene with known geometry and on the real rooms."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.data.checks import check_consistency
from dsac_ros.data.opening import open_source
from dsac_ros.data.transforms import matrix_from, rigid_inverse
from dsac_ros.errors import DataError
from dsac_ros.records import Camera, Frame

SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'data'
CAMERA = Camera(160, 120, 140.0, 140.0, 79.5, 59.5)
# Seen through a strong lens, the test must still hold: points are warped with the distortion.
LENS = replace(CAMERA, distortion_model='plumb_bob', distortion=(-0.2, 0.05, 0.001, -0.001, 0.0))
PICTURE = cv2.GaussianBlur(np.random.default_rng(7).integers(0, 256, (600, 600), np.uint8), (0, 0), 2.0)
PICTURE = cv2.normalize(PICTURE, None, 0, 255, cv2.NORM_MINMAX)


def room(map_from_camera: np.ndarray, camera: Camera) -> Frame:
    """A corner of three textured walls, x = 3, y = 1.5, z = 4 (metres, map frame), by casting rays through every pixel."""
    v, u = np.mgrid[:camera.height, :camera.width]
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    coefficients = np.array(camera.distortion) if camera.distortion else None
    plane = cv2.undistortPoints(pixels, camera.matrix(), coefficients).reshape(-1, 2)
    rays = np.column_stack([plane, np.ones(len(plane))]) @ map_from_camera[:3, :3].T
    with np.errstate(divide='ignore'):
        reach = (np.array([3.0, 1.5, 4.0]) - map_from_camera[:3, 3]) / rays
    reach[reach <= 0] = np.inf
    wall, depth = reach.argmin(1), reach.min(1)
    points = map_from_camera[:3, 3] + rays * depth[:, None]
    axes = np.array([[1, 2], [0, 2], [0, 1]])[wall]
    across = np.take_along_axis(points, axes, 1) * 60 + 300 + 37 * wall[:, None]
    grey = PICTURE[np.mod(across[:, 1].astype(int), 600), np.mod(across[:, 0].astype(int), 600)]
    shape = (camera.height, camera.width)
    metres = np.where(depth < 12, depth, 0).reshape(shape).astype(np.float32)
    return Frame(np.repeat(grey.reshape(*shape, 1), 3, 2), camera, 1, metres, map_from_camera)


def walk(camera: Camera = CAMERA, count: int = 10) -> list[Frame]:
    start = Rotation.from_euler('yx', [30, 10], degrees=True)
    return [room(matrix_from([0.12 * i, 0.1, -0.05 * i], (Rotation.from_euler('y', 2.5 * i, degrees=True) * start).as_quat()), camera)
            for i in range(count)]


def inverted(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, map_from_camera=rigid_inverse(frame.map_from_camera)) for frame in frames]


def without_depth(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, depth=None) for frame in frames]


@pytest.mark.parametrize('camera', [CAMERA, LENS], ids=['pinhole', 'lens'])
def test_right_poses_pass_and_inverted_ones_do_not(camera: Camera) -> None:
    frames = walk(camera)
    found = check_consistency(frames)
    assert found.method == 'depth' and found.pairs >= 4 and found.given > 0.8 and found.inverted < 0.5
    with pytest.raises(DataError, match='^bag: the reference poses are inverted'):
        check_consistency(inverted(frames), name='bag')


def test_without_depth_the_matches_tell() -> None:
    frames = without_depth(walk())
    found = check_consistency(frames)
    assert found.method == 'epipolar' and found.given > 0.8 and found.inverted < 0.5
    with pytest.raises(DataError, match='inverted'):
        check_consistency(inverted(frames))


@pytest.mark.parametrize(('factor', 'words'), [(1000.0, 'multiplied by 0.001'), (0.001, 'multiplied by 1000'), (5.0, 'multiplied by 0.2')])
def test_depth_in_another_unit_than_the_poses(factor: float, words: str) -> None:
    with pytest.raises(DataError, match=f'different units.*{words}'):
        check_consistency([replace(frame, depth=frame.depth * np.float32(factor)) for frame in walk()])


def test_noise_and_holes_are_no_mistake() -> None:
    rng = np.random.default_rng(1)
    frames = []
    for frame in walk():
        depth = frame.depth * rng.normal(1, 0.01, frame.depth.shape).astype(np.float32)
        depth[rng.random(depth.shape) < 0.4] = 0
        jitter = matrix_from(rng.normal(scale=0.01, size=3), Rotation.from_rotvec(rng.normal(scale=0.005, size=3)).as_quat())
        frames.append(replace(frame, depth=depth, map_from_camera=frame.map_from_camera @ jitter))
    assert check_consistency(frames).given > 0.6


def test_poses_that_float32_cannot_hold_are_refused() -> None:
    far = np.eye(4)
    far[:3, 3] = [500e3, 5_400e3, 30.0]  # UTM
    with pytest.raises(DataError, match='room: reference poses lie up to 5423 km from the origin'):
        check_consistency([replace(frame, map_from_camera=far @ frame.map_from_camera) for frame in walk()], name='room')


def test_a_camera_at_rest_or_without_poses_says_nothing() -> None:
    still = [walk(count=1)[0]] * 5
    assert check_consistency(still).pairs == 0
    assert check_consistency([replace(frame, map_from_camera=None) for frame in still]).method == 'none'
    assert check_consistency([]).pairs == 0


@pytest.mark.parametrize(('name', 'split'), [('kitchen', 'train'), ('lounge', 'train'), ('bonsai', 'train')])
def test_real_rooms(name: str, split: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip('no ../shared/data here')
    frames = [frame for _, frame in zip(range(15), open_source(SHARED / name, split), strict=False)]
    assert check_consistency(frames, max_pairs=4).given > 0.7
    with pytest.raises(DataError, match='inverted'):
        check_consistency(inverted(frames), max_pairs=4)
