"""What a real sensor adds to a perfect image and depth map: exposure, vignette, noise, holes. Seeded per frame."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dsac_ros.records import Camera


@dataclass(frozen=True)
class SensorOptions:
    """Strength of the effects; zero switches one off.

    image_noise: deviation in grey levels. vignette: share of light lost in the corners. exposure_jitter: deviation of the gain of a frame.
    depth_noise: deviation of the depth at 1 m [m], grows with its square; also opens holes at edges, at grazing angles and beyond 8 m.
    """

    image_noise: float = 1.5
    vignette: float = 0.12
    exposure_jitter: float = 0.03
    depth_noise: float = 0.0


class Sensor:
    """Applies the effects to frames of one camera.

    The noise of a frame is a random cut from a field made once: drawing it anew costs more.
    """

    MAX_DEPTH_M = 8.0

    def __init__(self, camera: Camera, options: SensorOptions) -> None:
        self.options = options
        rng = np.random.default_rng([camera.width, camera.height, 3])
        self._field = rng.standard_normal((camera.height + 128, camera.width + 128, 3), np.float32)
        y, x = np.mgrid[-1:1:camera.height * 1j, -1:1:camera.width * 1j]
        self._falloff = (1 - options.vignette * ((x ** 2 + y ** 2) / 2) ** 2).astype(np.float32)[..., None].repeat(3, -1)

    def _cut(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        y, x = rng.integers(0, 128, 2)
        return self._field[y:y + shape[0], x:x + shape[1]]

    def image(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 with blur of the optics, vignette, exposure and noise."""
        out = cv2.GaussianBlur(rgb, (3, 3), 0.5)
        gain, noise = float(np.exp(self.options.exposure_jitter * rng.standard_normal())), self._cut(rng, rgb.shape)
        if self.options.vignette > 0 or self.options.exposure_jitter > 0:
            out = cv2.multiply(out, self._falloff, scale=gain, dtype=cv2.CV_8U)
        if self.options.image_noise > 0:
            out = cv2.scaleAdd(noise, self.options.image_noise, out.astype(np.float32))
            out = np.clip(out + np.float32(0.5), 0, 255).astype(np.uint8)
        return out

    def depth(self, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W) float32 metres with noise and holes (0), or the depth itself where depth_noise is 0."""
        if self.options.depth_noise == 0:
            return depth
        fields = self._cut(rng, depth.shape)
        noisy = depth + np.float32(self.options.depth_noise) * depth ** 2 * fields[..., 0]
        # a step of more than a tenth between neighbours is an edge or a surface seen at a grazing angle: both read badly
        kernel = np.ones((3, 3), np.uint8)
        step = cv2.dilate(depth, kernel) - cv2.erode(depth, kernel)
        holes = (step > 0.1 * depth) & (fields[..., 1] > -0.5) | (fields[..., 2] > 2.6)
        return np.where(holes | (depth > self.MAX_DEPTH_M), np.float32(0), noisy)
