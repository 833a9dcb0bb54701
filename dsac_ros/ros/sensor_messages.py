"""Frames to sensor messages, for players and tests: the way back from images.py."""
from __future__ import annotations

from array import array

import numpy as np
from sensor_msgs.msg import CameraInfo, Image

from dsac_ros.data.decode import depth_in_mm
from dsac_ros.records import Camera
from dsac_ros.ros.messages import time_message

CAMERA_FRAME = 'camera_optical_frame'


def colour_message(image: np.ndarray, stamp_ns: int = 0) -> Image:
    """(H, W, 3) uint8 RGB to rgb8."""
    return _image(image, 'rgb8', stamp_ns)


def depth_message(depth: np.ndarray, stamp_ns: int = 0) -> Image:
    """(H, W) metres to 16UC1 millimetres; what is no depth, or too far for 16 bits, becomes 0."""
    return _image(depth_in_mm(depth), '16UC1', stamp_ns)


def camera_info_message(camera: Camera, stamp_ns: int = 0) -> CameraInfo:
    """ROS has no name for a camera without distortion: it becomes plumb_bob with zeros."""
    bare = camera.distortion_model == 'none'
    message = CameraInfo(width=camera.width, height=camera.height, distortion_model='plumb_bob' if bare else camera.distortion_model)
    message.header.stamp, message.header.frame_id = time_message(stamp_ns), CAMERA_FRAME
    message.d = [0.0] * 5 if bare else list(camera.distortion)
    k = camera.matrix()
    message.k, message.r, message.p = k.ravel(), np.eye(3).ravel(), np.hstack([k, np.zeros((3, 1))]).ravel()
    return message


def _image(pixels: np.ndarray, encoding: str, stamp_ns: int) -> Image:
    pixels = np.ascontiguousarray(pixels)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=pixels.strides[0])
    message.header.stamp, message.header.frame_id = time_message(stamp_ns), CAMERA_FRAME
    data = array('B')
    data.frombytes(pixels.view(np.uint8).reshape(-1))  # assigning bytes would walk them one by one
    message.data = data
    return message
