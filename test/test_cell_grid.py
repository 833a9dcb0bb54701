"""Rays and pixels of the cells of a resized, distorted camera against OpenCV, and the depth at them."""
from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from dsac_ros.cell_grid import cell_grid, depths_at
from dsac_ros.networks.encoder import input_size
from dsac_ros.records import Camera

PLAIN = Camera(500, 400, 420.0, 450.0, 230.0, 210.0, 'plumb_bob', (0.0, 0.0, 0.0, 0.0))  # other size, off centre, fx != fy
BENT = Camera(320, 240, 290.0, 290.0, 159.5, 119.5, 'plumb_bob', (-0.25, 0.06, 0.001, -0.001, 0.0))


def test_the_grid_is_of_the_image_that_the_encoder_sees() -> None:
    grid = cell_grid(PLAIN)
    columns, rows = grid.width // 8, grid.height // 8
    assert (grid.width, grid.height) == input_size(500, 400) and len(grid.bearings_N3) == len(grid.pixels_N2) == len(grid.cells_N)
    small, cells = PLAIN.resized(grid.width, grid.height), grid.cells_N.tolist()
    # as on a chessboard, up to the corners
    assert sorted(cells) == [r * columns + c for r in range(rows) for c in range(columns) if (r + c) % 2 == 0]
    # the cell in row 3 and column 5: pixels 40 to 47 and 24 to 31 of the resized image
    at = cells.index(columns * 3 + 5)
    ray = grid.bearings_N3[at]
    np.testing.assert_allclose(ray[:2] / ray[2], [(43.5 - small.cx) / small.fx, (27.5 - small.cy) / small.fy], atol=1e-9)
    assert grid.pixels_N2[at].tolist() == [round(44 * 500 / grid.width - 0.5), round(28 * 400 / grid.height - 0.5)]
    assert grid.pixels_N2.min() >= 0 and (grid.pixels_N2.max(0) < [500, 400]).all()
    assert cell_grid(replace(PLAIN)) is grid


def test_distortion_is_undone() -> None:
    grid = cell_grid(BENT)
    seen = cv2.projectPoints(grid.bearings_N3[:, None], np.zeros(3), np.zeros(3), BENT.matrix(), np.array(BENT.distortion))[0][:, 0]
    assert np.abs(seen - grid.pixels_N2).max() < 0.51  # whole pixels nearest to the cells' centres


def test_depth_that_is_none_is_zero() -> None:
    depth = np.array([[1.5, np.nan, -2.0], [np.inf, 0.0, 3.25]], np.float32)
    pixels = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])
    depths = depths_at(depth, pixels)
    assert depths.tolist() == [1.5, 0, 0, 0, 0, 3.25] and depths.dtype == np.float32
