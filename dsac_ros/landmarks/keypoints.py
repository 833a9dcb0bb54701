"""Keypoints of an image: sub-pixel places with descriptors, for what a grid of cells is too coarse for."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dsac_ros.geometry.camera import normalised
from dsac_ros.records import Camera

CONTRAST = 0.02
DIMENSIONS = 128
WIDEST = 5.0  # of x/z and y/z, 79 degrees: a wide fisheye lens sees more, where these say less and less of the direction


@dataclass(frozen=True)
class Effort:
    """short_side [px] of the image that keypoints are looked for in, and how many of them are kept."""

    short_side: int
    count: int


MAPPING = Effort(240, 600)
LOCALIZING = Effort(220, 450)  # a third less time for next to the same accuracy (docs/mapping.md)


@dataclass(frozen=True)
class Keypoints:
    """Strongest first. pixels_M2: of the source image. rays_M2: (x/z, y/z), undistorted. descriptors_MD: float32 of unit length."""

    pixels_M2: np.ndarray
    rays_M2: np.ndarray
    descriptors_MD: np.ndarray


def detect(image: np.ndarray, camera: Camera, effort: Effort) -> Keypoints:
    """SIFT (Lowe 2004) with RootSIFT descriptors (Arandjelovic & Zisserman 2012) in a (H, W, 3) uint8 image.

    The image is made smaller first: at half its size SIFT takes a quarter of the time that it takes at 640 x 480, and its
    first octave, which doubles the image, sees the detail of the source again.
    """
    scale = effort.short_side / min(camera.width, camera.height)
    resized = cv2.resize(image, (round(camera.width * scale), round(camera.height * scale)), interpolation=cv2.INTER_AREA)
    detector = cv2.SIFT_create(effort.count, contrastThreshold=CONTRAST, enable_precise_upscale=True)
    points, words = detector.detectAndCompute(cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY), None)
    if words is None:
        return Keypoints(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, DIMENSIONS), np.float32))
    order = np.argsort([-p.response for p in points], kind='stable')
    points, words = [points[i] for i in order], words[order]
    scale = [camera.width / resized.shape[1], camera.height / resized.shape[0]]
    pixels = (np.array([p.pt for p in points], np.float64) + 0.5) * scale - 0.5
    words = np.sqrt(words / np.maximum(words.sum(1, keepdims=True), 1e-9)).astype(np.float32)
    rays = normalised(camera, pixels)
    known = (np.abs(rays) < WIDEST).all(1)
    return Keypoints(pixels[known], rays[known], words[known])


def padded(keypoints: Keypoints, camera: Camera, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rays (count, 2), places in the image (count, 2), descriptors (count, D) and a mask (count,): one shape for every image.

    A place is a pixel off the middle of the image over its short side.
    """
    number = min(len(keypoints.rays_M2), count)
    rays, places, words = np.zeros((count, 2)), np.zeros((count, 2)), np.zeros((count, DIMENSIONS), np.float32)
    rays[:number], words[:number] = keypoints.rays_M2[:number], keypoints.descriptors_MD[:number]
    size = np.array([camera.width, camera.height])
    places[:number] = (keypoints.pixels_M2[:number] + 0.5 - size / 2) / size.min()
    return rays, places, words, np.arange(count) < number
