"""How far the inverse Hessian understates the error of a finished map: measured on frames held out of its training."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import chi2

from dsac_ros.config import EstimatorOptions
from dsac_ros.evaluation.metrics import pose_difference, squared_error
from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.maps.manifest import COVARIANCE_KEYS, ExpertEntry
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget

# Where no frame could be held out: neighbouring cells share most of their receptive field, landmarks but the errors of the reference poses.
FALLBACK_FACTORS = {'rgb': 100.0, 'rgbd': 100.0, 'landmarks': 10.0}
QUANTILES = (0.5, 0.9)
MIN_FRAMES = 8
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e8


def calibrate(expert: Expert, landmarks: Landmarks | None, frames: list[Frame], frame_id: str, centre: list[float], extent: list[float],
              device: torch.device, with_depth: bool, budget: Budget,
              known: Mapping[str, float] = {}) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Factors on the covariance by what the pose comes from (rgb, rgbd, landmarks), and the errors of the map, on held-out frames.

    The factor is the larger of what the median and what the 90 % quantile of the squared Mahalanobis error ask for (chi-square, six
    degrees of freedom), so that neither the bulk nor the tail is understated. Once the budget is over MIN_FRAMES have to do.

    Args:
        known: factors that something else tells better (training.stretches).
    """
    factors, errors = dict(FALLBACK_FACTORS), {}
    if landmarks is not None:
        # Held-out frames lie between frames of the same stretch, and are turned as those are.
        landmarks = replace(landmarks, common_shift=0.0, growth=0.0)
    entry = ExpertEntry('room', '', '', centre, extent, dict.fromkeys(COVARIANCE_KEYS, 1.0))
    bundle = MapBundle(frame_id, entry, expert, landmarks)
    runs = [('rgb', 'rgb', False), ('rgbd', 'rgbd', False), ('landmarks', 'rgb', True)]
    for key, modality, by_landmarks in runs:
        if (key == 'rgbd' and not with_depth) or (by_landmarks and landmarks is None):
            continue
        localizer = Localizer(bundle, str(device), EstimatorOptions(landmarks=by_landmarks))
        squares, metres, degrees = [], [], []
        for frame in frames:
            if key == 'rgbd' and frame.depth is None:
                continue
            if budget.over() and len(squares) >= MIN_FRAMES:
                break
            estimate = localizer.localize(frame, modality)
            if by_landmarks and not estimate.landmarks:
                continue
            error = pose_difference(estimate.map_from_camera, frame.map_from_camera)
            squares.append(squared_error(error, estimate.covariance))
            metres.append(np.linalg.norm(error[:3]))
            degrees.append(np.degrees(np.linalg.norm(error[3:])))
        if len(squares) >= MIN_FRAMES:
            factor = max(np.quantile(squares, q) / chi2.ppf(q, 6) for q in QUANTILES)
            # A hopeless map still has to load, and say that it is: not finite fails both comparisons and gets the largest.
            factors[key] = float(factor) if MIN_FACTOR < factor < MAX_FACTOR else MIN_FACTOR if factor <= MIN_FACTOR else MAX_FACTOR
            errors[key] = {'frames': len(squares), 'median_translation_m': round(float(np.median(metres)), 4),
                           'median_rotation_deg': round(float(np.median(degrees)), 3)}
    return factors | known, errors
