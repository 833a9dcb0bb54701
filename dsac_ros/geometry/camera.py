"""From a camera and a grid of cells to pixels and viewing rays, and back; what two views of a point have to fulfil."""
from __future__ import annotations

import cv2
import numpy as np

from dsac_ros.records import Camera


def cell_centres(width: int, height: int, stride: int) -> np.ndarray:
    """Pixels (x, y) that the cells of a stride grid over a width x height image stand for.

    Cell (i, j) covers rows i*stride to (i+1)*stride - 1, hence its centre lies at i*stride + (stride - 1) / 2 with integer pixel
    centres. The one owner of this convention. Returns (height // stride, width // stride, 2) float64.
    """
    xs = np.arange(width // stride) * stride + (stride - 1) / 2
    ys = np.arange(height // stride) * stride + (stride - 1) / 2
    return np.stack(np.meshgrid(xs, ys), -1)


def normalised(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Undistorted image-plane coordinates (x/z, y/z) of pixels (..., 2), float64."""
    flat = np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2)
    coefficients = np.asarray(camera.distortion, np.float64)
    if not len(flat):  # OpenCV gives None
        return np.zeros(pixels.shape)
    if camera.distortion_model == 'equidistant':
        out = cv2.fisheye.undistortPoints(flat, camera.matrix(), coefficients[:4])
    elif camera.distortion_model == 'none' or not coefficients.any():
        out = (flat - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    else:
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-12)
        out = cv2.undistortPointsIter(flat, camera.matrix(), coefficients, None, None, criteria)
    return out.reshape(pixels.shape)


def bearings(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Unit viewing rays (..., 3) of pixels (..., 2), float64; beyond 90 degrees too, for a fisheye lens."""
    if camera.distortion_model != 'equidistant':
        plane = normalised(camera, pixels)
        rays = np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], -1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    distorted = (np.asarray(pixels, np.float64) - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    radius = np.linalg.norm(distorted, axis=-1, keepdims=True)
    angle = _fisheye_angle(radius, np.asarray(camera.distortion, np.float64)[:4])
    direction = np.divide(distorted, radius, out=np.zeros_like(distorted), where=radius > 0)
    return np.concatenate([direction * np.sin(angle), np.cos(angle)], -1)


def largest_turn(one: Camera, other: Camera) -> float:
    """Angle [rad] by which the ray at a place in the image of one camera differs from that of the other, at most over five; infinite where
    either has none. The places are off the corners, where the polynomial of a strongly distorting lens may have no inverse."""
    places = np.array([[0.5, 0.5], [0.15, 0.15], [0.85, 0.15], [0.15, 0.85], [0.85, 0.85]])
    rays = [bearings(camera, places * [camera.width, camera.height] - 0.5) for camera in (one, other)]
    apart = 2 * np.arcsin(np.linalg.norm(rays[0] - rays[1], axis=-1).clip(max=2.0) / 2)
    return float(apart.max()) if np.isfinite(apart).all() else np.inf


def _fisheye_angle(radius: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The angle off the axis with angle (1 + k1 angle^2 + ... + k4 angle^8) = radius (Kannala & Brandt 2006), by Newton's method."""
    polynomial = np.zeros(10)
    polynomial[1::2] = [1.0, *coefficients]
    angle = np.minimum(radius, np.pi)
    for _ in range(20):
        slope = np.polynomial.polynomial.polyval(angle, np.polynomial.polynomial.polyder(polynomial))
        step = (np.polynomial.polynomial.polyval(angle, polynomial) - radius) / np.maximum(slope, 0.1)
        angle = np.clip(angle - step, 0, np.pi)
    return angle


def pixels_of(camera: Camera, points_N3: np.ndarray) -> np.ndarray:
    """(N, 3) in front of the camera -> (N, 2) pixels with distortion; -1e6 far outside the view, where polynomials fold back."""
    if not len(points_N3):  # OpenCV raises
        return np.zeros((0, 2))
    plane = points_N3[:, :2] / points_N3[:, 2:]
    limit = np.abs(normalised(camera, np.array([[0.0, 0.0], [camera.width - 1.0, camera.height - 1.0]]))).max() * 1.2
    clipped = np.column_stack([np.clip(plane, -limit, limit), np.ones(len(plane))])
    d = np.array(camera.distortion, np.float64)
    if camera.distortion_model == 'equidistant':
        pixels = cv2.fisheye.projectPoints(clipped[:, None], np.zeros(3), np.zeros(3), camera.matrix(), d)[0]
    else:
        pixels = cv2.projectPoints(clipped, np.zeros(3), np.zeros(3), camera.matrix(), d if d.size else None)[0]
    pixels = pixels.reshape(-1, 2)
    pixels[(np.abs(plane) > limit).any(1)] = -1e6
    return pixels


def homogeneous(plane_N2: np.ndarray) -> np.ndarray:
    """(N, 3): image-plane coordinates (x/z, y/z) with z = 1."""
    return np.column_stack([plane_N2, np.ones(len(plane_N2))])


def essential_matrix(second_from_first_44: np.ndarray) -> np.ndarray:
    """(3, 3) E with b^T E a = 0 for a point at a in the first view and at b in the second (Longuet-Higgins 1981)."""
    x, y, z = second_from_first_44[:3, 3]
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ second_from_first_44[:3, :3]
