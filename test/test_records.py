"""The records: immutable, comparable where caches need it, and scaled by one owner (the geometry is tested in geometry/test_camera.py)."""
from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from dsac_ros.records import DISTORTION_MODELS, Camera, Estimate, Frame, Verdict

CAMERA = Camera(640, 480, 525.0, 515.0, 310.0, 247.0, 'plumb_bob', (0.1, 0.2, 0.0, 0.0, 0.3))


def test_records_cannot_be_changed() -> None:
    for record, name in ((CAMERA, 'fx'), (Verdict(True), 'accepted'), (Frame(np.zeros((480, 640, 3), np.uint8), CAMERA, 1), 'stamp_ns')):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, 3)


def test_cameras_are_keys_by_value() -> None:
    """The localizer caches rays by camera: an equal camera of the next message must hit, any other one must not."""
    again = Camera(640, 480, 525.0, 515.0, 310.0, 247.0, 'plumb_bob', (0.1, 0.2, 0.0, 0.0, 0.3))
    others = {CAMERA.resized(320, 240), CAMERA.cropped(1, 0, 640, 480), Camera(640, 480, 525.0, 515.0, 310.0, 247.0)}
    assert hash(CAMERA) == hash(again) and CAMERA == again and CAMERA not in others and len(others) == 3


def test_matrix_is_opencvs() -> None:
    np.testing.assert_array_equal(CAMERA.matrix(), [[525.0, 0, 310.0], [0, 515.0, 247.0], [0, 0, 1]])
    assert CAMERA.distortion_model in DISTORTION_MODELS


def test_resized_by_hand() -> None:
    """Pixel centres are integers: the left edge is at -0.5 and stays there, the principal point 310 is 310.5 from it, halved 155.25."""
    half = CAMERA.resized(320, 120)
    assert (half.width, half.height, half.fx, half.fy, half.cx, half.cy) == (320, 120, 262.5, 128.75, 154.75, 61.375)
    assert CAMERA.resized(640, 480) == CAMERA
    window = CAMERA.cropped(10, 20, 100, 50)
    assert (window.width, window.height, window.fx, window.cx, window.cy) == (100, 50, 525.0, 300.0, 227.0)


def test_defaults() -> None:
    frame = Frame(np.zeros((2, 2, 3), np.uint8), CAMERA, 5)
    assert frame.depth is None and frame.map_from_camera is None and frame.name == ''
    one, two = (Estimate(5, np.eye(4), np.eye(6), Verdict(True), 'rgb', 'room', 1.0, 1.0, 1.0, 1.0) for _ in range(2))
    assert one.stage_times_ms == {} and one.stage_times_ms is not two.stage_times_ms
