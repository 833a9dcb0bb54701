"""How far the inverse Hessian understates the error of a finished map: measured on frames that the head never saw."""
from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dsac_ros.config import IntegrityOptions
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import ExpertEntry, MapBundle
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Frame

FALLBACK_FACTOR = 100.0  # where no frame could be held out: neighbouring cells share most of their receptive field
QUANTILES = (0.5, 0.9)


def calibrate(expert: Expert, frames: list[Frame], frame_id: str, centre: list[float], extent: list[float], device: torch.device,
              with_depth: bool) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Factors on the covariance and errors by modality, of the held-out frames.

    The factor is the larger of what the median and what the 90 % quantile of the squared Mahalanobis error ask for (chi-square, six
    degrees of freedom), so that neither the bulk nor the tail is understated.
    """
    bundle = MapBundle(frame_id, ExpertEntry('room', '', '', centre, extent), expert, {'rgb': 1.0, 'rgbd': 1.0})
    localizer = Localizer(bundle, str(device), integrity=IntegrityOptions())
    factors, errors = {}, {}
    for modality in ('rgb', 'rgbd'):
        usable = [f for f in frames if modality == 'rgb' or (with_depth and f.depth is not None)]
        squares, metres, degrees = [], [], []
        for frame in usable:
            estimate = localizer.localize(frame, modality)
            error = pose_error(estimate.map_from_camera, frame.map_from_camera)
            squares.append(error @ np.linalg.solve(estimate.covariance + 1e-15 * np.eye(6), error))
            metres.append(np.linalg.norm(error[:3]))
            degrees.append(np.degrees(np.linalg.norm(error[3:])))
        factors[modality] = FALLBACK_FACTOR
        if len(squares) >= 8:
            factors[modality] = float(max(np.quantile(squares, q) / chi2.ppf(q, 6) for q in QUANTILES))
            errors[modality] = {'frames': len(squares), 'median_translation_m': round(float(np.median(metres)), 4),
                                'median_rotation_deg': round(float(np.median(degrees)), 3)}
    return factors, errors


def pose_error(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(6,) translation [m] and rotation vector [rad] about the map's axes, from the reference to the estimate."""
    turn = Rotation.from_matrix(estimate[:3, :3] @ reference[:3, :3].T).as_rotvec()
    return np.concatenate([estimate[:3, 3] - reference[:3, 3], turn])
