"""Dark images are made brighter, by so much and no more; others are not touched; a dark room is recognised."""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsac_ros.config import MappingOptions
from dsac_ros.exposure import BRIGHT, MAX_GAIN, STEP, brightened
from dsac_ros.localizer import Localizer
from dsac_ros.records import Frame
from dsac_ros.training.mapping import read_frames

sys.path.append(str(Path(__file__).parent))
import rooms  # noqa: E402


def darkened(frame: Frame, share: float = 0.08) -> Frame:
    """With so much of the light, and some noise of the sensor."""
    noise = np.random.default_rng(frame.stamp_ns % 1000).normal(0, 1, frame.image.shape)
    return replace(frame, image=np.clip(share * frame.image + noise, 0, 255).astype(np.uint8))


def test_the_brightest_hundredth_becomes_bright() -> None:
    image = np.random.default_rng(0).integers(0, 26, (240, 320, 3), np.uint8)
    found = brightened(image)
    assert found.dtype == np.uint8 and abs(np.percentile(found.max(-1), 99) - BRIGHT) < 10
    assert np.corrcoef(found.ravel().astype(float), image.ravel())[0, 1] > 0.999


def test_what_is_bright_enough_is_not_touched() -> None:
    image = np.full((64, 64, 3), 20, np.uint8)
    image[::STEP, :, 1] = 255  # a lamp, in one channel
    assert brightened(image) is image


def test_black_stays_black_and_noise_is_not_blown_up_to_the_full() -> None:
    assert not brightened(np.zeros((48, 64, 3), np.uint8)).any()
    assert brightened(np.ones((48, 64, 3), np.uint8)).max() == MAX_GAIN


def test_frames_are_brightened_once_for_calibration(tmp_path: Path) -> None:
    """Held-out frames are the localizer's to make brighter: where the gain is limited, twice is not once."""
    night = [replace(frame, image=frame.image // 50) for frame in rooms.tiny_frames()[:20]]
    training, held_out, _ = read_frames(rooms.ListSource(night), MappingOptions())
    assert max(frame.image.max() for frame in training + held_out) < 6
    assert np.percentile(brightened(brightened(night[0].image)), 99) > np.percentile(brightened(night[0].image), 99)


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_a_dark_room_is_recognised(modality: str) -> None:
    localizer = Localizer.from_map(rooms.tiny_map()[0], 'cpu')
    for frame in rooms.tiny_frames()[2::9]:
        estimate = localizer.localize(darkened(frame), modality)
        assert estimate.verdict.accepted
        assert np.linalg.norm(estimate.map_from_camera[:3, 3] - frame.map_from_camera[:3, 3]) < 0.05
