"""Cells, rays and projection against OpenCV and against images that are really resampled."""
from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.geometry.camera import bearings, cell_centres, essential_matrix, homogeneous, largest_turn, normalised
from dsac_ros.records import Camera

CAMERAS = {
    'none': Camera(640, 480, 525.0, 515.0, 310.3, 247.7),
    'plumb_bob 4': Camera(640, 480, 525.0, 515.0, 310.3, 247.7, 'plumb_bob', (0.12, -0.25, 0.001, -0.002)),
    'plumb_bob 5': Camera(640, 480, 525.0, 515.0, 310.3, 247.7, 'plumb_bob', (-0.28, 0.08, -0.0006, 0.0004, -0.01)),
    'plumb_bob of zeros': Camera(640, 480, 525.0, 515.0, 310.3, 247.7, 'plumb_bob', (0.0,) * 5),
    'rational': Camera(640, 480, 600.0, 610.0, 322.0, 236.0, 'rational_polynomial', (0.6, -0.4, 1e-4, 2e-4, 0.03, 0.9, -0.3, 0.02)),
    'equidistant': Camera(640, 480, 290.0, 285.0, 317.0, 243.0, 'equidistant', (0.02, -0.005, 0.003, -0.001)),
    'equidistant of zeros': Camera(640, 480, 290.0, 285.0, 317.0, 243.0, 'equidistant', (0.0,) * 4),
    'portrait': Camera(480, 640, 525.0, 515.0, 201.0, 333.0, 'plumb_bob', (0.1, -0.2, 0.001, 0.0, 0.05)),
}


def opencv_pixels(camera: Camera, points_N3: np.ndarray) -> np.ndarray:
    """Camera-frame points -> pixels, all by OpenCV."""
    d, o = np.array(camera.distortion, np.float64), np.zeros(3)
    if camera.distortion_model == 'equidistant':
        return cv2.fisheye.projectPoints(points_N3[:, None], o, o, camera.matrix(), d)[0].reshape(-1, 2)
    return cv2.projectPoints(points_N3[:, None], o, o, camera.matrix(), d if d.size else None)[0].reshape(-1, 2)


def whole_grid(camera: Camera) -> np.ndarray:
    return np.stack(np.meshgrid(np.linspace(0, camera.width - 1, 33), np.linspace(0, camera.height - 1, 25)), -1)


@pytest.mark.parametrize('name', CAMERAS)
def test_rays_project_back_to_their_pixels(name: str) -> None:
    """Over the whole image, corners included; 1e-3 px, far below the quarter of a cell (2 px) that the noise model grants."""
    camera = CAMERAS[name]
    pixels = whole_grid(camera)
    rays = normalised(camera, pixels)
    assert rays.shape == pixels.shape and rays.dtype == np.float64 and np.isfinite(rays).all()
    points = np.column_stack([rays.reshape(-1, 2), np.ones(pixels[..., 0].size)]) * 2.7
    np.testing.assert_allclose(opencv_pixels(camera, points), pixels.reshape(-1, 2), atol=1e-3)


@pytest.mark.parametrize('name', CAMERAS)
def test_bearings_are_unit_vectors_along_the_rays(name: str) -> None:
    camera = CAMERAS[name]
    pixels = whole_grid(camera)
    found, rays = bearings(camera, pixels), normalised(camera, pixels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, atol=1e-14)
    np.testing.assert_allclose(found[..., :2] / found[..., 2:], rays, atol=1e-6)  # OpenCV's fisheye stops at 1e-8 of an angle
    assert bearings(camera, np.zeros((0, 2))).shape == (0, 3)


def test_bearings_of_a_fisheye_beyond_a_right_angle() -> None:
    """The image point of a direction, by the formula of Kannala and Brandt written out; 110 degrees off the axis OpenCV has no answer."""
    camera = Camera(800, 800, 200.0, 210.0, 399.0, 401.0, 'equidistant', (0.02, -0.003, 0.0005, -0.0001))
    angle, around = np.meshgrid(np.radians([0.0, 1e-6, 10.0, 60.0, 89.9, 90.0, 110.0]), np.linspace(0, 6, 9))
    radius = angle + sum(k * angle ** (3 + 2 * i) for i, k in enumerate(camera.distortion))
    pixels = np.stack([200 * radius * np.cos(around) + 399, 210 * radius * np.sin(around) + 401], -1)
    expected = np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], -1)
    np.testing.assert_allclose(bearings(camera, pixels), expected, atol=1e-10)


def test_rays_do_not_depend_on_the_layout_of_the_pixels() -> None:
    camera = CAMERAS['plumb_bob 5']
    pixels = whole_grid(camera)
    flipped = np.asfortranarray(pixels[::-1])
    np.testing.assert_array_equal(normalised(camera, flipped), normalised(camera, pixels)[::-1])
    np.testing.assert_allclose(normalised(camera, pixels.astype(np.float32)), normalised(camera, pixels), atol=1e-6)
    assert normalised(camera, np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(('width', 'height', 'stride'), [(640, 480, 8), (320, 240, 8), (24, 40, 8), (30, 17, 8), (8, 8, 8), (64, 32, 4)])
def test_a_cell_stands_for_the_mean_of_its_pixels(width: int, height: int, stride: int) -> None:
    """Independent: average the coordinates of all pixels in each cell."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    centres = cell_centres(width, height, stride)
    assert centres.shape == (height // stride, width // stride, 2)
    for i in range(height // stride):
        for j in range(width // stride):
            block = np.s_[i * stride:(i + 1) * stride, j * stride:(j + 1) * stride]
            assert centres[i, j].tolist() == [x[block].mean(), y[block].mean()]


def spot(camera: Camera, point: np.ndarray, sigma: float) -> np.ndarray:
    """A float image with one Gaussian spot where the camera sees the point."""
    u, v = opencv_pixels(camera, point[None])[0]
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma ** 2)).astype(np.float32)


def centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:image.shape[0], :image.shape[1]]
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


POINTS = ([0.0, 0.0, 2.0], [-0.5, 0.33, 1.9], [0.41, -0.36, 1.4], [0.13, 0.42, 1.7])


@pytest.mark.parametrize('camera', [Camera(640, 480, 525.0, 515.0, 310.3, 247.7), Camera(480, 640, 560.0, 480.0, 251.0, 301.5)],
                         ids=['landscape', 'portrait'])
@pytest.mark.parametrize('scale', [(0.5, 0.5), (0.25, 0.25), (2.0, 2.0), (0.5, 0.25), (0.75, 0.6)], ids=str)
def test_resized_camera_sees_what_the_resized_image_shows(camera: Camera, scale: tuple[float, float]) -> None:
    """The centroid of a spot survives resampling up to 0.01 px; a camera scaled without the half-pixel shift is off by 0.12 to 0.75 px."""
    width, height = round(camera.width * scale[0]), round(camera.height * scale[1])
    for point in np.array(POINTS):
        image = cv2.resize(spot(camera, point, 8.0), (width, height), interpolation=cv2.INTER_AREA if scale[0] < 1 else cv2.INTER_LINEAR)
        seen = opencv_pixels(camera.resized(width, height), point[None])[0]
        np.testing.assert_allclose(seen, centroid(image), atol=0.01)


def test_binned_image() -> None:
    """2 x 2 binning is a mean of pixels: done here by reshape, not by OpenCV."""
    camera = Camera(640, 480, 525.0, 515.0, 310.3, 247.7)
    for point in np.array(POINTS):
        binned = spot(camera, point, 8.0).reshape(240, 2, 320, 2).mean((1, 3))
        np.testing.assert_allclose(opencv_pixels(camera.resized(320, 240), point[None])[0], centroid(binned), atol=2e-3)


def test_cropped_then_resized_camera() -> None:
    camera = Camera(640, 480, 525.0, 515.0, 310.3, 247.7)
    window = camera.cropped(101, 60, 480, 400)
    for point in np.array(POINTS):
        crop = spot(camera, point, 8.0)[60:460, 101:581]
        np.testing.assert_allclose(opencv_pixels(window, point[None])[0], centroid(crop), atol=2e-3)
        small = cv2.resize(crop, (240, 100), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(opencv_pixels(window.resized(240, 100), point[None])[0], centroid(small), atol=0.01)


def test_resizing_keeps_distortion_and_can_be_undone() -> None:
    camera = CAMERAS['plumb_bob 5']
    small = camera.resized(320, 240)
    assert (small.distortion_model, small.distortion) == (camera.distortion_model, camera.distortion)
    back = small.resized(640, 480)
    assert np.allclose([back.fx, back.fy, back.cx, back.cy], [camera.fx, camera.fy, camera.cx, camera.cy], rtol=0, atol=1e-12)
    # The same ray leaves through the matching pixel, distortion included.
    pixels = whole_grid(camera)
    np.testing.assert_allclose(normalised(small, (pixels + 0.5) / 2 - 0.5), normalised(camera, pixels), atol=1e-9)
    assert replace(camera, width=640) == camera


def test_the_largest_turn_of_a_ray_between_two_cameras() -> None:
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    assert largest_turn(camera, camera) == 0
    assert largest_turn(camera, camera.resized(320, 240)) < 1e-9
    shifted = replace(camera, cx=camera.cx + 50)
    assert largest_turn(camera, shifted) == pytest.approx(np.arctan(0.1))  # of the middle, where a pixel is largest
    longer, off_axis = replace(camera, fx=1000.0, fy=1000.0), 0.35 * np.hypot(640, 480)
    assert largest_turn(camera, longer) == pytest.approx(np.arctan(off_axis / 500) - np.arctan(off_axis / 1000))
    assert largest_turn(camera, replace(camera, distortion_model='plumb_bob', distortion=(np.nan,) * 4)) == np.inf


def test_a_barrel_whose_corners_have_no_inverse_turns_little_with_its_focus() -> None:
    barrel = Camera(640, 480, 300.0, 300.0, 319.5, 239.5, 'plumb_bob', (-0.4, 0.1, 0.0, 0.0))
    assert largest_turn(barrel, replace(barrel, fx=300.15, fy=300.15)) < 1e-3
    assert largest_turn(barrel, barrel.resized(320, 240)) < 1e-3


def test_what_two_views_see_of_a_point_fulfils_the_essential_matrix() -> None:
    rng = np.random.default_rng(0)
    second_from_first = np.eye(4)
    second_from_first[:3, :3], second_from_first[:3, 3] = Rotation.random(random_state=1).as_matrix(), [0.3, -0.2, 0.5]
    points = rng.normal(size=(50, 3))
    moved = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    first, second = (homogeneous(each[:, :2] / each[:, 2:]) for each in (points, moved))
    essential = essential_matrix(second_from_first)
    off = np.abs(((first @ essential.T) * second).sum(1)) / np.linalg.norm(first @ essential.T, axis=1)
    assert off.max() < 1e-9 and np.abs(((first @ essential) * second).sum(1)).min() > 1e-3


def test_what_lies_in_an_image() -> None:
    camera = Camera(4, 3, 2.0, 2.0, 1.5, 1.0)
    pixels = np.array([[0.0, 0.0], [3.4, 2.4], [3.6, 1.0], [1.0, 2.6], [-0.6, 1.0], [1.0, -0.6], [np.nan, 1.0]])
    assert camera.contains(pixels).tolist() == [True, True, False, False, False, False, False]
