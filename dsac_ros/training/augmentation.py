"""Other looks at a training image: turned, rolled, zoomed, brighter or darker; where every cell came from stays known."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation


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


def augmented_view(image: np.ndarray, width: int, height: int, cells: np.ndarray, focal_px: float, rng: np.random.Generator,
                   max_turn_deg: float = 20.0, max_roll_deg: float = 25.0, max_zoom: float = 1.4, max_shift: float = 0.3,
                   max_gain: float = 0.2) -> View:
    """A random homography of the image, brighter or darker: how a plane looks to a camera turned, rolled, moved and zoomed.

    For a turn alone this is exact whatever the scene is; for a shift it is for one random plane. Which pixel of the source a cell
    shows is exact in any case, so this needs no depth.

    Args:
        cells: (rows, columns, 2) pixels of the view. focal_px: of the source image.
        max_turn_deg: about the horizontal and the vertical axis. max_zoom: focal length times 1 / max_zoom to max_zoom.
        max_shift: of the camera, over the distance of the plane.
    """
    turn = np.radians(rng.uniform(-1, 1, 3) * [max_turn_deg, max_turn_deg, max_roll_deg])
    zoom = max_zoom ** rng.uniform(-1, 1)
    source_h, source_w = image.shape[:2]
    source = np.array([[focal_px, 0, (source_w - 1) / 2], [0, focal_px, (source_h - 1) / 2], [0, 0, 1.0]])
    view = np.array([[focal_px * zoom * width / source_w, 0, (width - 1) / 2],
                     [0, focal_px * zoom * height / source_h, (height - 1) / 2], [0, 0, 1.0]])
    tilt = np.append(rng.uniform(-0.7, 0.7, 2), 1.0)
    motion = Rotation.from_rotvec(turn).as_matrix() + np.outer(rng.uniform(-max_shift, max_shift, 3), tilt / np.linalg.norm(tilt))
    source_from_view = source @ motion @ np.linalg.inv(view)
    shrink = source_w / width / zoom
    smooth = cv2.GaussianBlur(image, (0, 0), 0.35 * shrink) if shrink > 1.3 else image
    warped = cv2.warpPerspective(smooth, source_from_view, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                 borderMode=cv2.BORDER_REFLECT_101)
    gain, bias = rng.uniform(1 - max_gain, 1 + max_gain), 255 * rng.uniform(-max_gain, max_gain) / 2
    mean = float(warped.mean())
    warped = np.clip((warped.astype(np.float32) - mean) * gain + mean + bias, 0, 255).astype(np.uint8)
    rays = np.concatenate([cells, np.ones((*cells.shape[:2], 1))], -1) @ source_from_view.T
    return View(warped, rays[..., :2] / rays[..., 2:])
