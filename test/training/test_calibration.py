"""The covariance factors are what chi-square asks for, measured with errors of a known size."""
from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.maps.manifest import COVARIANCE_KEYS
from dsac_ros.training import calibration
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import FALLBACK_FACTORS, calibrate


def calibrated(monkeypatch: pytest.MonkeyPatch, count: int, understated: float, with_depth: bool = True, landmarks: Any = None,
               budget: Budget = Budget(math.inf)) -> Any:
    """A localizer whose errors have `understated` times the covariance that it states."""
    rng = np.random.default_rng(1)
    stated = np.diag([1e-4, 4e-4, 1e-4, 1e-6, 1e-6, 9e-6])

    class Noisy:
        def __init__(self, bundle: Any, device: str, *_: Any, **__: Any) -> None:
            assert set(bundle.covariance_factors.values()) == {1.0}
            assert landmarks is None or bundle.landmarks.common_shift == bundle.landmarks.growth == 0

        def localize(self, frame: Any, modality: str) -> Any:
            e = rng.normal(size=6) * (understated * stated.diagonal()) ** 0.5
            pose = frame.map_from_camera.copy()
            pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(e[3:]).as_matrix() @ pose[:3, :3], pose[:3, 3] + e[:3]
            return SimpleNamespace(map_from_camera=pose, covariance=stated, landmarks=50.0, modality=modality)

    monkeypatch.setattr(calibration, 'Localizer', Noisy)
    frames = [SimpleNamespace(depth=np.ones((2, 2)), map_from_camera=np.eye(4)) for _ in range(count)]
    return calibrate(None, landmarks, frames, 'map', [0.0] * 3, [1.0] * 3, torch.device('cpu'), with_depth, budget)


@pytest.mark.parametrize('understated', [1.0, 25.0])
def test_factor_undoes_what_was_understated(monkeypatch: pytest.MonkeyPatch, understated: float) -> None:
    """600 errors: the median of chi-square is known to 4 %, its 90 % quantile to 4 %; the larger of the two leans up by some percent."""
    factors, errors = calibrated(monkeypatch, 600, understated, landmarks=Landmarks(*torch.zeros(4, 1, 1), common_shift=0.1, growth=3.0))
    assert set(factors) == set(COVARIANCE_KEYS) == set(errors)
    for key in COVARIANCE_KEYS:
        assert factors[key] == pytest.approx(understated, rel=0.15) and isinstance(factors[key], float)
        # median of the length of N(0, diag) translations: between sqrt of the smallest and of the largest variance, times 1.54
        assert 0.0154 * understated ** 0.5 < errors[key]['median_translation_m'] < 0.0308 * understated ** 0.5
        assert errors[key]['frames'] == 600


def test_a_heavy_tail_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of gross errors must raise the factor to what their quantile asks for, not only what the median does."""
    assert chi2.ppf(0.9, 6) > 0
    calls = []
    original = np.random.default_rng(0)

    class Tailed:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def localize(self, frame: Any, modality: str) -> Any:
            calls.append(1)
            pose = frame.map_from_camera.copy()
            pose[:3, 3] += original.normal(size=3) * (1.0 if len(calls) % 5 == 0 else 0.01)
            return SimpleNamespace(map_from_camera=pose, covariance=np.eye(6) * 1e-4, landmarks=0.0, modality=modality)

    monkeypatch.setattr(calibration, 'Localizer', Tailed)
    frames = [SimpleNamespace(depth=np.ones((2, 2)), map_from_camera=np.eye(4)) for _ in range(200)]
    factors, _ = calibrate(None, None, frames, 'map', [0.0] * 3, [1.0] * 3, torch.device('cpu'), False, Budget(math.inf))
    assert factors['rgb'] > 300


def test_too_few_frames_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    factors, errors = calibrated(monkeypatch, 3, 1.0)
    assert factors == FALLBACK_FACTORS and errors == {}


def test_a_factor_that_is_known_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, 'Localizer', lambda *_: SimpleNamespace(localize=None))
    factors, _ = calibrate(None, None, [], 'map', [0.0] * 3, [1.0] * 3, torch.device('cpu'), False, Budget(math.inf), {'landmarks': 2.5})
    assert factors == {**FALLBACK_FACTORS, 'landmarks': 2.5}


def test_without_depth_only_rgb_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    factors, errors = calibrated(monkeypatch, 50, 1.0, with_depth=False)
    assert set(errors) == {'rgb'} and factors['rgbd'] == FALLBACK_FACTORS['rgbd'] and factors['rgb'] != FALLBACK_FACTORS['rgb']


def test_a_budget_that_is_over_leaves_just_enough_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    _, errors = calibrated(monkeypatch, 50, 1.0, budget=Budget(0))
    assert errors['rgb']['frames'] == errors['rgbd']['frames'] == calibration.MIN_FRAMES
