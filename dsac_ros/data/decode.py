"""ROS messages in (of rclpy or rosbags: only the field names count), arrays and a Camera out; bad ones raise DecodeError.

Every array is the caller's own: contiguous, writable and no view on the message.
"""
from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rosbags.image import ImageError, image_to_cvimage
from rosbags.image.image import to_cvtype

from dsac_ros.data.topics import base_name
from dsac_ros.errors import DecodeError
from dsac_ros.records import Camera

DEPTH_TYPES = {'16UC1': 'u2', 'mono16': 'u2', '32FC1': 'f4'}
UNPADDED = 128  # pixels of a row that no padding to 256 bytes makes three times as long
PNG_SIGNATURE = b'\x89PNG'
# Names that drivers use for the models of records.DISTORTION_MODELS, and how many coefficients each may have.
MODELS = {'plumb_bob': 'plumb_bob', 'rational_polynomial': 'rational_polynomial', 'equidistant': 'equidistant', 'fisheye': 'equidistant',
          'none': 'none', '': 'none'}
MIN_FOCAL, MAX_FOCAL = 0.05, 100.0  # of the longer side of the image: fisheye lenses have 0.2, the longest lenses 50
COEFFICIENTS = {'plumb_bob': (4, 5), 'rational_polynomial': (8,), 'equidistant': (4,), 'none': ()}


def decode_colour(message: Any) -> np.ndarray:
    """sensor_msgs Image or CompressedImage -> (H, W, 3) uint8 RGB. Raises DecodeError."""
    if hasattr(message, 'format'):
        return _decompress_colour(message)
    # 8UC1 can only be grey; whether 8UC3 is RGB or BGR nobody knows, so it is refused below.
    encoding = 'mono8' if message.encoding == '8UC1' else message.encoding.lower()
    if encoding[:1].isdigit():
        raise DecodeError(f'the encoding {message.encoding!r} does not say which colour is which; expected rgb8, bgr8 or another named '
                          'one: is this a depth '
                          'topic?')
    try:
        _, _, dtype, channels = to_cvtype(encoding)
    except ImageError:
        raise DecodeError(f'unknown image encoding {message.encoding!r}; expected rgb8, bgr8, rgba8, bgra8, mono8, mono16, yuv422, '
                          'yuv422_yuy2 or '
                          'bayer_*: set the camera driver to one of them') from None
    rows = _rows(message, np.dtype(dtype).itemsize * channels)
    if encoding == 'rgb8':
        return rows.reshape(message.height, message.width, 3).copy()
    packed = SimpleNamespace(encoding=encoding, height=message.height, width=message.width, is_bigendian=bool(message.is_bigendian),
                             data=np.ascontiguousarray(rows))
    try:
        image = image_to_cvimage(packed, 'rgb8')
    except (ImageError, cv2.error, TypeError) as error:
        raise DecodeError(f'an image of encoding {message.encoding!r} and size {message.width} x {message.height} cannot be turned into '
                          f'RGB: {error}') from error
    if image.shape != (message.height, message.width, 3):
        raise DecodeError(f'images of encoding {message.encoding!r} are not understood; set the camera driver to rgb8 or bgr8')
    return np.ascontiguousarray(image)


def decode_depth(message: Any) -> np.ndarray:
    """sensor_msgs Image (16UC1, mono16 [mm], 32FC1 [m]) or CompressedImage (16-bit PNG [mm], compressedDepth) -> (H, W) float32 metres.

    0 where there is none: NaN, infinite and negative depths become 0. Raises DecodeError.
    """
    if hasattr(message, 'format'):
        return _decompress_depth(message)
    if message.encoding not in DEPTH_TYPES:
        raise DecodeError(f'unknown depth encoding {message.encoding!r}; expected 16UC1 (mm) or 32FC1 (m): is this the colour topic?')
    dtype = np.dtype(DEPTH_TYPES[message.encoding]).newbyteorder('>' if message.is_bigendian else '<')
    values = np.ascontiguousarray(_rows(message, dtype.itemsize)).view(dtype)
    return _from_mm(values) if dtype.kind == 'u' else _cleaned(values)


def depth_in_mm(depth: np.ndarray) -> np.ndarray:
    """(H, W) metres -> uint16 millimetres, the way back; what is no depth, or too far for 16 bits, becomes 0."""
    with np.errstate(invalid='ignore'):
        usable = (depth > 0) & (depth < 65.535)
    return np.where(usable, np.rint(np.where(usable, depth, 0) * 1000), 0).astype(np.uint16)


def decode_camera(camera_info: Any, rectified: bool = False) -> Camera:
    """sensor_msgs CameraInfo -> Camera of the image as it is sent: region of interest cut out, then binned.

    rectified: the image is a rectified one (image_rect), which P describes and not K and D. Raises DecodeError.
    """
    where, k = 'camera_info (K)', np.asarray(camera_info.k, np.float64)
    if rectified:
        where, k = 'camera_info (P)', np.asarray(camera_info.p, np.float64).reshape(3, 4)[:, :3]
    model, d = ('none', np.zeros(0)) if rectified else (camera_info.distortion_model, np.asarray(camera_info.d, np.float64))
    camera = checked_camera(int(camera_info.width), int(camera_info.height), k.reshape(3, 3), model, d.ravel(), where)
    roi = camera_info.roi
    if roi.width and roi.height:
        if roi.x_offset + roi.width > camera.width or roi.y_offset + roi.height > camera.height:
            raise DecodeError(f'camera_info\'s region of interest {roi.width} x {roi.height} at ({roi.x_offset}, {roi.y_offset}) leaves '
                              'the image '
                              f'of {camera.width} x {camera.height}')
        camera = camera.cropped(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
    bin_x, bin_y = max(1, int(camera_info.binning_x)), max(1, int(camera_info.binning_y))
    columns, lines = camera.width // bin_x, camera.height // bin_y
    if not (columns and lines):
        raise DecodeError(f'camera_info bins by {bin_x} x {bin_y}, more than its {camera.width} x {camera.height} pixels')
    # Pixels that do not fill a bin are lost at the right and lower edge.
    return camera.cropped(0, 0, columns * bin_x, lines * bin_y).resized(columns, lines)


def checked_camera(width: int, height: int, k: np.ndarray, model: str, d: np.ndarray, where: str) -> Camera:
    """The camera of a calibration, which has to be that of some lens.

    Args:
        width, height: of the image [px]. k: (3, 3) float64 camera matrix. model, d: ROS's name of the distortion and its (n,) coefficients.
        where: they stand, for the message.

    Raises DecodeError.
    """
    fx, fy, cx, cy = (float(v) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    if width <= 0 or height <= 0:
        raise DecodeError(f'{where} gives the image size {width} x {height}; expected the size of the calibrated image')
    if not (np.isfinite(k).all() and np.isfinite(d).all()):
        raise DecodeError(f'{where} is not finite: {k.ravel().tolist()}, distortion {d.tolist()}; calibrate the camera')
    if fx <= 0 or fy <= 0:
        raise DecodeError(f'{where} has the focal lengths {fx:g} and {fy:g}; expected positive ones: the camera is not calibrated')
    focal, largest = sorted((fx, fy)), max(width, height)
    centred = abs(cx / width - 0.5) <= 1 and abs(cy / height - 0.5) <= 1
    if not (MIN_FOCAL * largest <= focal[0] and focal[1] <= MAX_FOCAL * largest and centred):
        raise DecodeError(f'{where}: no lens has the focal lengths {fx:g} and {fy:g} and the centre ({cx:g}, {cy:g}) in an image of '
                          f'{width} x {height}; calibrate the camera')
    return Camera(width, height, fx, fy, cx, cy, *_distortion(model, d, where))


def is_rectified(topic: str) -> bool:
    """Whether a topic, by its resolved name, has rectified images: they share the camera_info of the raw ones, which does not tell."""
    return any(part.startswith('rect') for part in base_name(topic).rpartition('/')[2].split('_'))


def _distortion(name: str, d: np.ndarray, where: str) -> tuple[str, tuple[float, ...]]:
    """ROS's model and coefficients -> those of records.Camera; a polynomial of zeros is a pinhole."""
    model = MODELS.get(name.strip().lower())
    if model is None:
        raise DecodeError(f'{where} has the unknown distortion model {name!r}; expected {", ".join(m for m in MODELS if m)}')
    if model != 'equidistant' and not d.any():
        return 'none', ()
    if model == 'rational_polynomial' and len(d) in (12, 14) and not d[8:].any():
        d = d[:8]  # OpenCV's thin prism and tilt, switched off
    if len(d) not in COEFFICIENTS[model]:
        expected = ' or '.join(map(str, COEFFICIENTS[model])) or 'no'
        raise DecodeError(f'{where} has {len(d)} distortion coefficients for {name!r}; expected {expected}')
    return model, tuple(d.tolist())


def _bytes(message: Any) -> np.ndarray:
    """The message's data as (n,) uint8 without a copy: numpy in rosbags, array.array in rclpy."""
    return message.data.ravel() if isinstance(message.data, np.ndarray) else np.frombuffer(message.data, np.uint8)


def _rows(message: Any, pixel_bytes: int) -> np.ndarray:
    """The pixels without row padding, (H, W * pixel_bytes) uint8, a view; sizes are checked here."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    if height <= 0 or width <= 0:
        raise DecodeError(f'the image has the size {width} x {height}')
    if step < width * pixel_bytes:
        raise DecodeError(f'the image\'s step is {step} bytes; {width} pixels of {message.encoding!r} need {width * pixel_bytes}')
    if step == 3 * width and pixel_bytes < 3 and width >= UNPADDED:
        raise DecodeError(f'the image\'s step is {step} bytes, 3 for each of {width} pixels, and those of {message.encoding!r} have '
                          f'{pixel_bytes}: is it rgb8 or bgr8?')
    data = _bytes(message)
    if len(data) != step * height:
        raise DecodeError(f'the image has {len(data)} bytes; expected step {step} x height {height} = {step * height}: was it cut short?')
    return data.reshape(height, step)[:, :width * pixel_bytes]


def _decompress_colour(message: Any) -> np.ndarray:
    data = _bytes(message)
    # EXIF must not turn the image away from its camera_info.
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(data) else None
    if image is None:
        raise DecodeError(f'a compressed image (format {message.format!r}, {len(data)} bytes) cannot be decoded; expected a whole JPEG '
                          'or PNG')
    # Old publishers compress RGB as if it were BGR and say so in the format (compressed_image_transport).
    return image if 'compressed rgb' in message.format else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decompress_depth(message: Any) -> np.ndarray:
    data = _bytes(message)
    start = next((at for at in (0, 12) if data[at:at + 4].tobytes() == PNG_SIGNATURE), None)
    if start is None:
        raise DecodeError(f'a compressed depth image (format {message.format!r}, {len(data)} bytes) has no PNG in it; expected 16-bit '
                          'PNG or '
                          'compressedDepth with PNG: set the publisher\'s .compressedDepth.format to png, and do not record depth as JPEG')
    values = cv2.imdecode(data[start:], cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DecodeError(f'the PNG of a compressed depth image ({len(data)} bytes) cannot be decoded: was it cut short?')
    if values.dtype != np.uint16 or values.ndim != 2:
        raise DecodeError(f'a compressed depth image is {values.dtype} of shape {values.shape}; expected one channel of 16 bit')
    if not (start and message.format.strip().startswith('32FC1')):
        return _from_mm(values)
    # compressed_depth_image_transport sends floats as quantised inverse depth: z = A / (q - B), q = 0 for none.
    quant_a, quant_b = struct.unpack('<ff', data[4:12].tobytes())
    with np.errstate(divide='ignore', invalid='ignore'):
        return _cleaned(np.where(values > 0, quant_a / (values.astype(np.float32) - quant_b), 0))


def _from_mm(values: np.ndarray) -> np.ndarray:
    return np.multiply(values, np.float32(0.001), dtype=np.float32)


def _cleaned(values: np.ndarray) -> np.ndarray:
    """Float metres with 0 wherever they are no depth (NaN fails every comparison)."""
    with np.errstate(invalid='ignore'):
        return np.where((values > 0) & (values < np.inf), values, 0).astype(np.float32)
