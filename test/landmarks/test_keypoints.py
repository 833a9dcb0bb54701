"""Keypoints of lenses of any width, and where they lie in the image."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from dsac_ros.geometry.camera import bearings
from dsac_ros.landmarks.keypoints import LOCALIZING, detect, padded
from dsac_ros.ransac.evidence import occupied
from dsac_ros.records import Camera

NOISE = cv2.resize(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(('focal', 'all_seen'), [(525.0, True), (300.0, True), (250.0, False), (215.0, False)])
def test_a_fisheye_lens_has_keypoints_all_over_its_image_and_none_without_a_direction(focal: float, all_seen: bool) -> None:
    """f = 215 sees 104 degrees off the axis in its corners, where x/z is of the other sign, or infinite."""
    camera = Camera(640, 480, focal, focal, 319.5, 239.5, 'equidistant', (0.0, 0.0, 0.0, 0.0))
    found = detect(NOISE, camera, LOCALIZING)
    towards = np.column_stack([found.rays_M2, np.ones(len(found.rays_M2))])
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(towards, bearings(camera, found.pixels_M2), atol=1e-6)
    rays, places, words, usable = padded(found, camera, LOCALIZING.count)
    assert (usable.sum() == LOCALIZING.count) == all_seen and usable.sum() > 200
    assert np.abs(places).max() <= 2 / 3 and len({len(rays), len(places), len(words), len(usable)}) == 1
    assert occupied(torch.from_numpy(places), torch.from_numpy(usable).double(), 1.5) == 1.0
