"""Frame results with known errors, for the tests of metrics and reports."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.evaluation.records import FrameResult

SIGMA_M, SIGMA_RAD = 0.015, 0.005


@pytest.fixture
def run_of_60() -> list[FrameResult]:
    """A drive around a square room: honest noise, three false accepts, a hole of six rejected frames, one frame without a reference."""
    rng = np.random.default_rng(7)
    covariance = np.diag([SIGMA_M**2] * 3 + [SIGMA_RAD**2] * 3)
    results = []
    for i in range(60):
        angle = 2 * np.pi * i / 60
        reference = np.eye(4)
        reference[:3, :3] = Rotation.from_euler('z', angle).as_matrix() @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        reference[:3, 3] = [2 * np.cos(angle), 1.5 * np.sin(angle), 1.2]
        estimate = reference.copy()
        estimate[:3, 3] += rng.normal(size=3) * SIGMA_M
        estimate[:3, :3] = Rotation.from_rotvec(rng.normal(size=3) * SIGMA_RAD).as_matrix() @ reference[:3, :3]
        if i in (5, 30, 50):
            estimate[:3, 3] += [1.0, -0.5, 0.0]
        answered = not 20 <= i < 26
        results.append(FrameResult(
            1_700_000_000_123_456_789 + i * 100_000_000, f'frame-{i:06d}', answered, 'rgbd', estimate, covariance,
            None if i == 40 else reference, reasons=() if answered else ('few_inliers', 'spread'), expert='room', inliers=500.0 + i,
            inlier_ratio=0.5, spread=0.8, residual=0.02, latency_ms=50.0 + i, stage_times_ms={'encoder': 30.0 + i, 'estimator': 20.0}))
    return results
