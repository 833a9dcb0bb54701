"""Image messages to arrays: colour through cv_bridge where it is installed, else through dsac_ros.data.decode."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dsac_ros.data.decode import decode_camera, decode_colour, decode_depth, is_rectified
from dsac_ros.errors import DecodeError

__all__ = ['colour_decoder', 'decode_camera', 'decode_colour', 'decode_depth', 'is_rectified']


def colour_decoder() -> Callable[[Any], np.ndarray]:
    """The function that turns sensor_msgs Image or CompressedImage into (H, W, 3) uint8 RGB, or raises DecodeError.

    Depth always goes through decode_depth: cv_bridge would hand it on as it is, with the unit and the holes still to be settled.
    """
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:  # the wheels have none; NumPy 2 beside an old cv_bridge raises ImportError too
        return decode_colour
    bridge = CvBridge()

    def through_cv_bridge(message: Any) -> np.ndarray:
        convert = bridge.imgmsg_to_cv2 if hasattr(message, 'encoding') else bridge.compressed_imgmsg_to_cv2
        try:
            image = np.asarray(convert(message, 'rgb8'))
        # A message whose size, step and data disagree makes cv_bridge fail in NumPy, with whatever NumPy raises.
        except (CvBridgeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DecodeError(f'colour image: cv_bridge refuses it: {error}') from error
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DecodeError(f'colour image: expected (H, W, 3) uint8, cv_bridge gave {image.shape} {image.dtype}')
        return image

    return through_cv_bridge
