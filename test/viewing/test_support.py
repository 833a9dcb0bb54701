"""What is shown of a frame, against OpenCV's projection and what the estimate itself says."""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dsac_ros.config import EstimatorOptions
from dsac_ros.localizer import Localizer
from dsac_ros.records import Guess
from dsac_ros.viewing.support import support_of

sys.path.append(str(Path(__file__).parents[1]))
import rooms  # noqa: E402


@pytest.fixture(scope='module')
def localizer() -> Localizer:
    return Localizer.from_map(rooms.tiny_map()[0], 'cpu')


def test_landmarks_are_where_the_pose_puts_them(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[4]
    estimate = localizer.localize(frame, 'rgb')
    support = support_of(localizer, frame, estimate)
    # Here the odds are even at a given residual; the estimator narrows its noise in the end.
    assert support.kind == 'landmarks' and 0.6 * estimate.landmarks < support.inlier_N.sum() < 1.7 * estimate.landmarks
    turn = cv2.Rodrigues(np.linalg.inv(estimate.map_from_camera)[:3, :3])[0]
    expected = cv2.projectPoints(support.points_N3, turn, np.linalg.inv(estimate.map_from_camera)[:3, 3], frame.camera.matrix(), None)[0]
    np.testing.assert_allclose(support.expected_N2, expected[:, 0], atol=1e-6)
    apart = np.linalg.norm(support.seen_N2 - support.expected_N2, axis=1)
    # A residual is an angle, times the focal length: off the axis a pixel is less of an angle.
    assert (apart >= 0.99 * support.residuals_px_N - 1e-6).all() and (apart <= 2 * support.residuals_px_N + 1e-6).all()
    assert np.median(apart[support.inlier_N]) < 2
    landmarks = localizer.choice.sub_maps.get(0).bundle.landmarks.points_L3.double().numpy()
    assert (np.abs(support.points_N3[:, None] - landmarks).max(-1).min(1) < 1e-6).all(), 'of the map'


def test_a_tracked_frame_has_its_landmarks(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[4]
    tracked = localizer.localize(frame, 'rgb', Guess(np.linalg.inv(frame.map_from_camera), 48.0, 10.0))
    assert tracked.tracked and localizer.seen.cells is None
    support = support_of(localizer, frame, tracked)
    assert support.kind == 'landmarks' and 0.6 * tracked.landmarks < support.inlier_N.sum() < 1.7 * tracked.landmarks


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_without_landmarks_cells_speak(modality: str) -> None:
    localizer = Localizer.from_map(rooms.tiny_map()[0], 'cpu', EstimatorOptions(landmarks=False))
    frame = rooms.tiny_frames()[4]
    estimate = localizer.localize(frame, modality)
    support = support_of(localizer, frame, estimate)
    assert support.kind == 'cells' and abs(support.inlier_N.sum() - estimate.inliers) < 0.25 * estimate.inliers + 5
    assert (support.seen_N2 >= -0.5).all() and (support.seen_N2 < [frame.camera.width, frame.camera.height]).all()


def test_a_pose_that_is_no_number_has_none(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[4]
    estimate = replace(localizer.localize(frame, 'rgb'), map_from_camera=np.full((4, 4), np.nan))
    support = support_of(localizer, frame, estimate)
    assert len(support.points_N3) == 0 == support.inlier_N.sum()
