"""Images too dark to recognise anything in, made as bright as mapped ones are."""
from __future__ import annotations

import cv2
import numpy as np

BRIGHT = 200.0  # what the brightest hundredth of an image should at least have
MAX_GAIN = 16.0  # beyond it there is nothing but the noise of the sensor
STEP = 8  # pixels between those that are looked at


def brightened(image: np.ndarray) -> np.ndarray:
    """The same (H, W, 3) uint8 image, times what brings the 99th percentile of its brightest channel to BRIGHT; never darker."""
    brightest = np.percentile(image[::STEP, ::STEP].max(-1), 99)
    gain = min(MAX_GAIN, BRIGHT / max(brightest, 1.0))
    return image if gain <= 1 else cv2.convertScaleAbs(image, alpha=gain)
