"""The cells of a camera's images that scene coordinates are regressed for: where they are, and along which rays they look."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dsac_ros.geometry.camera import bearings, cell_centres
from dsac_ros.networks.encoder import STRIDE, input_size
from dsac_ros.records import Camera


@dataclass(frozen=True)
class CellGrid:
    """The cells of one camera's images that are used: every second one, as on a chessboard, since neighbours see nearly the same.

    cells_N: their indices in the encoder's grid. pixels_N2: int, of the image as it comes. bearings_N3:
    unit viewing rays. focal: [px] of the resized image.
    """

    width: int
    height: int
    cells_N: Tensor
    pixels_N2: np.ndarray
    bearings_N3: np.ndarray
    focal: float


@lru_cache(maxsize=16)
def cell_grid(camera: Camera) -> CellGrid:
    """Distortion is undone here, once per camera and for the cells alone."""
    width, height = input_size(camera.width, camera.height)
    centres = cell_centres(width, height, STRIDE)
    chosen = np.flatnonzero(np.indices(centres.shape[:2]).sum(0).ravel() % 2 == 0)
    pixels = (centres.reshape(-1, 2)[chosen] + 0.5) * [camera.width / width, camera.height / height] - 0.5
    return CellGrid(width, height, torch.from_numpy(chosen), np.rint(pixels).astype(int), bearings(camera, pixels),
                    camera.resized(width, height).fx)


def depths_at(depth: np.ndarray, pixels_N2: np.ndarray) -> np.ndarray:
    """(N,) float32 metres at pixels (int), 0 where there is none: one NaN in the normal equations would spoil the pose."""
    values = depth[pixels_N2[:, 1], pixels_N2[:, 0]]
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))
