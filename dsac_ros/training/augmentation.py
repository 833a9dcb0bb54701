"""Other looks at a training image: in-plane rotation, scale, brightness and contrast; where every cell came from stays known."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class View:
    """An image of the encoder's input size and, for each of its cells, the pixel of the source image that it shows.

    image: (h, w, 3) uint8. source_px: (rows, columns, 2) float64, may lie outside of the source image where the view is padded.
    """

    image: np.ndarray
    source_px: np.ndarray


def clean_view(image: np.ndarray, width: int, height: int, cells: np.ndarray) -> View:
    """The view that the localizer sees: the whole image resampled to width x height; cells: (rows, columns, 2) pixels of it."""
    sx, sy = image.shape[1] / width, image.shape[0] / height
    return View(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), (cells + 0.5) * [sx, sy] - 0.5)


def augmented_view(image: np.ndarray, width: int, height: int, cells: np.ndarray, rng: np.random.Generator,
                   max_angle_deg: float = 25.0, max_zoom: float = 1.4, max_gain: float = 0.2) -> View:
    """A random view of the same image: rotated about its centre, zoomed by 1/max_zoom to max_zoom, brighter or darker."""
    angle = np.deg2rad(rng.uniform(-max_angle_deg, max_angle_deg))
    zoom = max_zoom ** rng.uniform(-1, 1)
    source_h, source_w = image.shape[:2]
    sx, sy = source_w / width / zoom, source_h / height / zoom
    c, s = np.cos(angle), np.sin(angle)
    # Rows map a pixel of the view to one of the source; built about the centres with integer pixel centres.
    linear = np.array([[c, -s], [s, c]]) @ np.diag([sx, sy])
    offset = np.array([(source_w - 1) / 2, (source_h - 1) / 2]) - linear @ [(width - 1) / 2, (height - 1) / 2]
    source_from_view = np.concatenate([linear, offset[:, None]], 1)
    smooth = cv2.GaussianBlur(image, (0, 0), 0.35 * sx) if sx > 1.3 else image
    warped = cv2.warpAffine(smooth, source_from_view, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                            borderMode=cv2.BORDER_REFLECT_101)
    gain, bias = rng.uniform(1 - max_gain, 1 + max_gain), 255 * rng.uniform(-max_gain, max_gain) / 2
    mean = float(warped.mean())
    warped = np.clip((warped.astype(np.float32) - mean) * gain + mean + bias, 0, 255).astype(np.uint8)
    return View(warped, cells @ linear.T + offset)
