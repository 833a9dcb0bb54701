"""Messages of rosbags (and rclpy where it is installed) against arrays made independently."""
from __future__ import annotations

import array
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dsac_ros.data.decode import decode_camera, decode_colour, decode_depth, is_rectified
from dsac_ros.errors import DecodeError
from dsac_ros.records import Camera

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def image(pixels: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False, **changes: object) -> SimpleNamespace:
    """An Image message by its fields; `padding` bytes of rubbish end each row."""
    height, width = pixels.shape[:2]
    rows = np.frombuffer(np.ascontiguousarray(pixels).tobytes(), np.uint8).reshape(height, -1)
    rows = np.hstack([rows, np.full((height, padding), 77, np.uint8)])
    fields = dict(height=height, width=width, encoding=encoding, is_bigendian=int(big), step=rows.shape[1], data=rows.ravel())
    return SimpleNamespace(**(fields | changes))


def info(**changes: object) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    k = np.array([500.0, 0, 320, 0, 510, 240, 0, 0, 1])
    p = np.array([450.0, 0, 310, 0, 0, 460, 230, 0, 0, 0, 1, 0])
    fields = dict(width=640, height=480, k=k, p=p, d=np.zeros(5), distortion_model='plumb_bob', binning_x=0, binning_y=0, roi=roi)
    return SimpleNamespace(**(fields | changes))


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(('encoding', 'pixels'), [
    ('rgb8', RGB), ('bgr8', RGB[..., ::-1]),
    ('rgba8', np.dstack([RGB, RGB[..., :1]])), ('bgra8', np.dstack([RGB[..., ::-1], RGB[..., :1]]))])
def test_colours_keep_their_place_whatever_the_row_padding(encoding: str, pixels: np.ndarray, padding: int) -> None:
    decoded = decode_colour(image(pixels, encoding, padding=padding))
    np.testing.assert_array_equal(decoded, RGB)
    assert decoded.flags.c_contiguous and decoded.flags.writeable


@pytest.mark.parametrize(('encoding', 'dtype', 'factor'), [('mono8', np.uint8, 1), ('8UC1', np.uint8, 1), ('mono16', np.uint16, 257)])
def test_grey_becomes_three_equal_channels(encoding: str, dtype: type, factor: int) -> None:
    grey = RGB[..., 0].astype(dtype) * factor
    np.testing.assert_array_equal(decode_colour(image(grey, encoding)), np.repeat(RGB[..., :1], 3, 2))


def test_mono16_big_endian() -> None:
    grey = (RGB[..., 0].astype(np.uint16) * 257).astype('>u2')
    np.testing.assert_array_equal(decode_colour(image(grey, 'mono16', big=True)), np.repeat(RGB[..., :1], 3, 2))


def test_yuv422_and_bayer_as_opencv_sees_them() -> None:
    packed = RNG.integers(0, 256, (6, 8, 2), np.uint8)
    np.testing.assert_array_equal(decode_colour(image(packed, 'yuv422_yuy2')), cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_YUYV))
    np.testing.assert_array_equal(decode_colour(image(packed, 'yuv422')), cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_UYVY))
    # A red scene under an RGGB filter: only the pixels at even rows and columns get light.
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[::2, ::2] = 200
    centre = decode_colour(image(mosaic, 'bayer_rggb8'))[4, 4]
    assert centre[0] == 200 and centre[1] < 10 and centre[2] < 10


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_compressed_colour(extension: str) -> None:
    smooth = np.dstack([np.full((16, 16), 200), np.full((16, 16), 100), np.full((16, 16), 20)]).astype(np.uint8)
    data = cv2.imencode(extension, smooth[..., ::-1])[1].ravel()
    decoded = decode_colour(SimpleNamespace(format='rgb8; jpeg compressed bgr8', data=data))
    assert np.abs(decoded.astype(int) - smooth).max() <= 3
    swapped = decode_colour(SimpleNamespace(format='rgb8; jpeg compressed rgb8', data=cv2.imencode(extension, smooth)[1].ravel()))
    assert np.abs(swapped.astype(int) - smooth).max() <= 3


def test_grey_jpeg_and_jpeg_with_exif_orientation() -> None:
    grey = cv2.imencode('.jpg', RGB[..., 0])[1].ravel()
    assert decode_colour(SimpleNamespace(format='mono8; jpeg compressed', data=grey)).shape == RGB.shape
    jpeg = cv2.imencode('.jpg', RGB)[1].tobytes()
    # EXIF "rotate by 90 degrees" put behind the start-of-image marker: camera_info describes the image as it is stored.
    exif = b'Exif\0\0' + b'II*\0\x08\0\0\0' + struct.pack('<HHHIHH', 1, 0x0112, 3, 1, 6, 0) + b'\0\0\0\0'
    turned = jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (8, 6), 'the test file has to be a turned one'
    assert decode_colour(SimpleNamespace(format='jpeg', data=np.frombuffer(turned, np.uint8))).shape == RGB.shape


@pytest.mark.parametrize(('message', 'words'), [
    (image(RGB, 'rgb8', data=np.zeros(10, np.uint8)), ['10 bytes', '144']),
    (image(RGB, 'rgb8', step=20), ['20 bytes', '24']),
    (image(np.zeros((4, 160, 3), np.uint8), 'mono16'), ['480 bytes', '3 for each of 160 pixels', "'mono16' have 2"]),
    (image(np.zeros((4, 160, 3), np.uint8), 'mono8'), ['480 bytes', "'mono8' have 1"]),
    (image(RGB, 'rgb8', height=0), ['8 x 0']),
    (image(RGB, 'rgb8', width=0), ['0 x 6']),
    (image(RGB, '8UC3'), ['8UC3', 'rgb8']),
    (image(RGB, '16UC1'), ['16UC1', 'depth']),
    (image(RGB, 'h264'), ['h264', 'rgb8']),
    (image(RGB, ''), ["''", 'rgb8']),
    (image(np.zeros((6, 8), np.uint8), 'nv12'), ['nv12']),
    (SimpleNamespace(format='jpeg', data=np.zeros(0, np.uint8)), ['0 bytes']),
    (SimpleNamespace(format='jpeg', data=np.arange(100, dtype=np.uint8)), ['100 bytes', 'JPEG']),
])
def test_bad_colour_says_what_is_wrong(message: SimpleNamespace, words: list[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_colour(message)
    assert all(word in str(caught.value) for word in words), str(caught.value)


DEPTH_MM = np.array([[0, 1, 1500], [65535, 999, 10000]], np.uint16)


@pytest.mark.parametrize('encoding', ['16UC1', 'mono16'])
@pytest.mark.parametrize('big', [False, True])
def test_millimetres_of_both_byte_orders(encoding: str, big: bool) -> None:
    decoded = decode_depth(image(DEPTH_MM.astype('>u2' if big else '<u2'), encoding, big=big, padding=4))
    assert decoded.dtype == np.float32 and decoded.flags.writeable
    np.testing.assert_allclose(decoded, DEPTH_MM / 1000, rtol=1e-6)


@pytest.mark.parametrize('big', [False, True])
def test_float_depth_holes_become_zero(big: bool) -> None:
    metres = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 2.5]], '>f4' if big else '<f4')
    np.testing.assert_array_equal(decode_depth(image(metres, '32FC1', big=big)), np.array([[0, 0, 0], [0, 0, 2.5]], np.float32))


def test_compressed_depth_of_three_kinds() -> None:
    png = cv2.imencode('.png', DEPTH_MM)[1].ravel()
    plain = SimpleNamespace(format='16UC1; png compressed', data=png)
    np.testing.assert_allclose(decode_depth(plain), DEPTH_MM / 1000, rtol=1e-6)
    with_header = SimpleNamespace(format='16UC1; compressedDepth png', data=np.concatenate([np.zeros(12, np.uint8), png]))
    np.testing.assert_allclose(decode_depth(with_header), DEPTH_MM / 1000, rtol=1e-6)
    # Floats, quantised as compressed_depth_image_transport documents: q = A / z + B with A = quantisation * (quantisation + 1).
    quant_a, quant_b = 100 * 101.0, 1 - 100 * 101.0 / 10.0
    metres = np.array([[0.5, 1.0, 2.0], [4.0, 8.0, 0.0]], np.float32)
    q = np.where(metres > 0, np.rint(quant_a / np.maximum(metres, 1e-3) + quant_b), 0).astype(np.uint16)
    data = np.concatenate([np.frombuffer(struct.pack('<iff', 0, quant_a, quant_b), np.uint8), cv2.imencode('.png', q)[1].ravel()])
    decoded = decode_depth(SimpleNamespace(format='32FC1; compressedDepth png', data=data))
    np.testing.assert_allclose(decoded, metres, atol=8.0 ** 2 / quant_a)  # one step of q at 8 m


@pytest.mark.parametrize(('message', 'words'), [
    (image(RGB, 'rgb8'), ['rgb8', '16UC1']),
    (image(DEPTH_MM, '16UC1', data=np.zeros(3, np.uint8)), ['3 bytes', '12']),
    (image(DEPTH_MM, '16UC1', height=0), ['3 x 0']),
    (SimpleNamespace(format='jpeg', data=cv2.imencode('.jpg', RGB)[1].ravel()), ['no PNG']),
    (SimpleNamespace(format='16UC1; compressedDepth png', data=cv2.imencode('.png', DEPTH_MM)[1].ravel()[:40]), ['cut short']),
    (SimpleNamespace(format='png', data=cv2.imencode('.png', RGB)[1].ravel()), ['uint8', '16 bit']),
    (SimpleNamespace(format='png', data=np.zeros(0, np.uint8)), ['0 bytes']),
])
def test_bad_depth_says_what_is_wrong(message: SimpleNamespace, words: list[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_depth(message)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_camera_of_every_model() -> None:
    assert decode_camera(info()) == Camera(640, 480, 500, 510, 320, 240)
    assert decode_camera(info(d=[], distortion_model='')) == Camera(640, 480, 500, 510, 320, 240)
    for model, count in (('plumb_bob', 4), ('plumb_bob', 5), ('rational_polynomial', 8), ('equidistant', 4)):
        d = tuple(0.01 * (i + 1) for i in range(count))
        assert decode_camera(info(d=np.array(d), distortion_model=model)) == Camera(640, 480, 500, 510, 320, 240, model, d)
    long = decode_camera(info(d=np.array([0.1] * 8 + [0.0] * 6), distortion_model='rational_polynomial'))
    assert long.distortion == (0.1,) * 8
    # A fisheye of zeros is not a pinhole.
    assert decode_camera(info(d=np.zeros(4), distortion_model='equidistant')).distortion_model == 'equidistant'
    assert decode_camera(info(d=np.full(5, 0.1)), rectified=True) == Camera(640, 480, 450, 460, 310, 230)


def test_region_and_binning_follow_a_projected_point() -> None:
    roi = SimpleNamespace(x_offset=100, y_offset=60, width=321, height=240, do_rectify=False)
    camera = decode_camera(info(roi=roi, binning_x=2, binning_y=3))
    assert (camera.width, camera.height) == (160, 80)
    point = np.array([0.1, -0.2, 2.0])
    full = np.array([500 * point[0] / point[2] + 320, 510 * point[1] / point[2] + 240])
    # A bin of n pixels has its centre (n - 1) / 2 after its first pixel.
    expected = [(full[0] - 100 - 0.5) / 2, (full[1] - 60 - 1) / 3]
    found = (camera.matrix() @ point)[:2] / point[2]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(('changes', 'words'), [
    (dict(k=np.zeros(9)), ['focal', 'not calibrated']),
    (dict(width=0), ['0 x 480']),
    (dict(k=np.full(9, np.nan)), ['not finite']),
    (dict(d=np.full(5, np.inf)), ['not finite']),
    (dict(d=np.ones(3)), ['3 distortion', '4 or 5']),
    (dict(d=np.ones(5), distortion_model='equidistant'), ['5 distortion', '4']),
    (dict(d=np.ones(5), distortion_model='magic'), ['magic', 'plumb_bob']),
    (dict(d=np.ones(2), distortion_model='none'), ['2 distortion', 'no']),
    (dict(roi=SimpleNamespace(x_offset=600, y_offset=0, width=100, height=100)), ['region', '640']),
    (dict(binning_x=1000), ['1000']),
])
def test_bad_camera_says_what_is_wrong(changes: dict, words: list[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_camera(info(**changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_rclpy_messages_decode_alike() -> None:
    messages = pytest.importorskip('sensor_msgs.msg')
    message = messages.Image(height=6, width=8, encoding='bgr8', step=24, data=array.array('B', RGB[..., ::-1].tobytes()))
    np.testing.assert_array_equal(decode_colour(message), RGB)
    packed = messages.CompressedImage(format='png', data=array.array('B', cv2.imencode('.png', DEPTH_MM)[1].tobytes()))
    np.testing.assert_allclose(decode_depth(packed), DEPTH_MM / 1000, rtol=1e-6)
    k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    camera_info = messages.CameraInfo(width=640, height=480, k=k, d=[0.1] * 5, distortion_model='plumb_bob')
    assert decode_camera(camera_info) == Camera(640, 480, 500, 510, 320, 240, 'plumb_bob', (0.1,) * 5)


@pytest.mark.parametrize(('topic', 'rectified'), [
    ('/camera/image_rect', True), ('/camera/image_rect_color', True), ('/camera/image_rect/compressed', True), ('/left/rectified', True),
    ('/camera/image_raw', False), ('/camera/image_direct', False), ('/rectory/image_raw', False), ('/rect/image_color/compressed', False)])
def test_names_of_rectified_images(topic: str, rectified: bool) -> None:
    assert is_rectified(topic) == rectified
