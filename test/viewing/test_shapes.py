"""Arrays that are drawn, against what they are drawn of."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.geometry.camera import normalised
from dsac_ros.records import Camera
from dsac_ros.viewing import shapes
from dsac_ros.viewing.support import Support

CAMERA = Camera(640, 480, 525.0, 515.0, 310.3, 247.7, 'plumb_bob', (0.12, -0.25, 0.001, -0.002, 0.0))


def test_the_frustum_has_the_corners_of_the_image() -> None:
    lines = shapes.frustum(CAMERA).reshape(8, 2, 3)
    corners = lines[:4, 1]
    assert (lines[:4, 0] == 0).all() and np.allclose(corners[:, 2], shapes.FRUSTUM_M)
    pixels = np.array([[0.0, 0.0], [639.0, 0.0], [639.0, 479.0], [0.0, 479.0]])
    np.testing.assert_allclose(corners[:, :2] / corners[:, 2:], normalised(CAMERA, pixels), atol=1e-9)
    np.testing.assert_array_equal(lines[4:, 0], corners)
    np.testing.assert_array_equal(lines[4:, 1], corners[[1, 2, 3, 0]])


def test_a_wide_fisheye_has_a_finite_frustum() -> None:
    camera = Camera(640, 480, 150.0, 150.0, 320.0, 240.0, 'equidistant', (0.0,) * 4)
    assert np.abs(shapes.frustum(camera)).max() < 10 * shapes.FRUSTUM_M


def test_colours_go_from_green_to_red() -> None:
    colours = shapes.residual_colours(np.array([0.0, 2.0, 4.0, 99.0]), 480)
    assert [tuple(c) for c in colours] == [shapes.GREEN, shapes.YELLOW, shapes.RED, shapes.RED]
    np.testing.assert_array_equal(shapes.residual_colours(np.array([4.0]), 960)[0], shapes.YELLOW)
    assert shapes.residual_colours(np.zeros(0), 480).shape == (0, 3)


def test_the_ellipsoid_holds_nine_of_ten_draws() -> None:
    root = Rotation.from_rotvec([0.3, -0.4, 0.5]).as_matrix() @ np.diag([0.1, 0.02, 0.4])
    half_axes, rotation = shapes.ellipsoid(root @ root.T)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    draws = np.random.default_rng(0).normal(size=(20000, 3)) @ root.T
    inside = (((draws @ rotation) / half_axes) ** 2).sum(1) < 1
    assert inside.mean() == pytest.approx(0.9, abs=0.007)  # three standard deviations of the share


def test_the_image_shows_inliers_and_leaves_the_original_alone() -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    places = np.array([[100.0, 100.0], [300.0, 200.0], [1e9, 5.0]])
    support = Support('landmarks', np.zeros((3, 3)), places, places + [10.0, 0.0], np.array([0.0, 9.0, 0.0]), np.array([True, False, True]))
    drawn = shapes.with_support(image, support, [])
    assert (image == 90).all() and tuple(drawn[100, 105]) != (90, 90, 90), 'a line to where it is expected'
    assert tuple(drawn[200, 310]) == (90, 90, 90), 'none for what does not agree'
    ring = drawn[197:204, 297:304].reshape(-1, 3)
    assert (ring > 110).any() and (ring.max(1) == ring.min(1)).all(), 'but a grey ring'
    assert (shapes.with_support(image, support, shapes.caption(support, 'LOST', ('no_images',)))[:60] != 90).any()
    assert shapes.caption(support, 'LOST', ('a', 'b')) == ['LOST: 2 of 3 landmarks agree', 'a', 'b']
