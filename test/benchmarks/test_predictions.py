"""Problems from a map: an untrained one is enough to see that pixels, depth and truth belong together."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scenery import CAMERA, Surface

from benchmarks.predictions import predicted_problems
from dsac_ros.maps.bundle import save_map
from dsac_ros.maps.manifest import COVARIANCE_KEYS
from dsac_ros.networks.encoder import CHANNELS, STRIDE, input_size
from dsac_ros.networks.expert import Expert


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    factors = dict.fromkeys(COVARIANCE_KEYS, 1.0)
    save_map(tmp_path / 'room.dsacmap', 'map', 'room', Expert(CHANNELS), None, factors, [0.0] * 3, [1.0] * 3, {})
    return tmp_path / 'room.dsacmap'


def test_cells_of_the_chosen_frames(untrained: Path) -> None:
    frames = list(Surface())
    found = list(predicted_problems(untrained, Surface(), [1, 4]))
    assert [number for number, _, _ in found] == [1, 4]
    width, height = input_size(CAMERA.width, CAMERA.height)
    for number, problem, references in found:
        assert not references and problem.inliers_N is None and problem.scales_known
        assert len(problem.points_N3) == (width // STRIDE) * (height // STRIDE)
        np.testing.assert_allclose(problem.camera_from_map @ frames[number].map_from_camera, np.eye(4), atol=1e-12)
        columns, rows = np.rint(problem.pixels_N2).astype(int).T
        np.testing.assert_array_equal(problem.depths_N, frames[number].depth[rows, columns])
        assert problem.pixels_N2.mean(0) == pytest.approx([(CAMERA.width - 1) / 2, (CAMERA.height - 1) / 2])
