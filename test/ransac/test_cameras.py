"""One scene through every kind of camera: the pose does not depend on how the image was taken, cut or resampled."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import scenes
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry.camera import bearings
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Camera

METRES, DEGREES = 1e-3, 0.02  # what issue 3 grants; exact correspondences leave the cameras' own rounding
BENT = ('plumb_bob', (-0.28, 0.08, -0.0006, 0.0004, -0.01))
LANDSCAPE = Camera(640, 480, 525.0, 515.0, 310.3, 247.7, *BENT)
CAMERAS = {
    'landscape': LANDSCAPE,
    'portrait': Camera(480, 640, 525.0, 515.0, 201.0, 333.0, *BENT),
    'resized': LANDSCAPE.resized(426, 240),
    'cropped': LANDSCAPE.cropped(101, 57, 400, 300),
    'cropped and binned': LANDSCAPE.cropped(100, 60, 400, 300).resized(200, 150),
    'no distortion': Camera(640, 480, 600.0, 600.0, 319.5, 239.5),
    'rational': Camera(640, 480, 600.0, 610.0, 322.0, 236.0, 'rational_polynomial', (0.6, -0.4, 1e-4, 2e-4, 0.03, 0.9, -0.3, 0.02)),
    'fisheye': Camera(640, 480, 200.0, 195.0, 317.0, 243.0, 'equidistant', (0.02, -0.005, 0.003, -0.001)),
}


def pixels_of(camera: Camera, seen: np.ndarray) -> np.ndarray:
    """Camera-frame points -> pixels by OpenCV."""
    d, o = np.array(camera.distortion, np.float64), np.zeros(3)
    if camera.distortion_model == 'equidistant':
        return cv2.fisheye.projectPoints(seen[:, None], o, o, camera.matrix(), d)[0][:, 0]
    return cv2.projectPoints(seen[:, None], o, o, camera.matrix(), d if d.size else None)[0][:, 0]


def view(camera: Camera, seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) that the camera sees, in its frame, and the bearings of their pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform([0, 0], [camera.width - 1, camera.height - 1], (count, 2))
    seen = bearings(camera, pixels) * rng.uniform(1.0, 4.0, (count, 1))
    again = pixels_of(camera, seen)  # from here on the points are the truth, and OpenCV says where they are seen
    return seen, bearings(camera, again)


def pose_of(points: np.ndarray, rays: np.ndarray, ranges: np.ndarray | None = None, **rig: torch.Tensor) -> np.ndarray:
    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values)[None]
    ones = np.ones(len(points))
    depth = {} if ranges is None else {'ranges_BN': tensor(ranges), 'range_noise_BN': tensor(0.01 * ones)}
    problem = Correspondences(tensor(points), tensor(rays), tensor(0.01 * ones), tensor(1e-3 * ones), tensor(ones > 0), **depth, **rig)
    solution = estimate(problem, tensor(ones), uniform_draws([0], 64), EstimatorOptions())
    return solution.camera_from_map_B44[0].numpy()


def assert_same(found: np.ndarray, truth: np.ndarray) -> None:
    a, b = np.linalg.inv(found), np.linalg.inv(truth)
    assert np.linalg.norm(a[:3, 3] - b[:3, 3]) < METRES
    assert np.degrees(Rotation.from_matrix(a[:3, :3] @ b[:3, :3].T).magnitude()) < DEGREES


@pytest.mark.parametrize('with_depth', [False, True])
@pytest.mark.parametrize('name', CAMERAS)
def test_the_pose_of_a_camera(name: str, with_depth: bool) -> None:
    truth = scenes.pose(3)
    seen, rays = view(CAMERAS[name], 1)
    ranges = np.linalg.norm(seen, axis=1) if with_depth else None
    assert_same(pose_of(scenes.in_map(truth, seen), rays, ranges), truth)


@pytest.mark.parametrize('with_depth', [False, True])
def test_the_pose_of_a_rig_of_two_cameras(with_depth: bool) -> None:
    """A fisheye ahead and a bent pinhole to the side, 0.4 m apart: the pose of the rig's frame."""
    truth = scenes.pose(4)
    sideways = np.eye(4)
    sideways[:3, :3] = Rotation.from_euler('y', 80, degrees=True).as_matrix()
    sideways[:3, 3] = [0.4, 0.05, -0.1]
    points, rays, ranges, cameras, origins = [], [], [], [], []
    for number, (name, rig_from_camera) in enumerate((('fisheye', np.eye(4)), ('landscape', sideways))):
        seen, bearing = view(CAMERAS[name], number, 200)
        points.append(scenes.in_map(truth, seen @ rig_from_camera[:3, :3].T + rig_from_camera[:3, 3]))
        rays.append(bearing @ rig_from_camera[:3, :3].T)
        ranges.append(np.linalg.norm(seen, axis=1))
        cameras.append(np.full(200, number))
        origins.append(np.tile(rig_from_camera[:3, 3], (200, 1)))
    rig = {'cameras_BN': torch.from_numpy(np.concatenate(cameras))[None], 'origins_BN3': torch.from_numpy(np.concatenate(origins))[None]}
    assert_same(pose_of(np.concatenate(points), np.concatenate(rays), np.concatenate(ranges) if with_depth else None, **rig), truth)
