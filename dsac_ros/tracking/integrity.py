"""Independent tests that a pose must pass before it is published; the names of those that failed."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dsac_ros.config import IntegrityOptions
from dsac_ros.records import Verdict


def judge(map_from_camera: np.ndarray, covariance: np.ndarray, inliers: float, inlier_ratio: float, spread: float, landmarks: float,
          cells_suffice: bool, tracked: bool, centre: np.ndarray, extent: np.ndarray, options: IntegrityOptions) -> Verdict:
    """Every test that fails is named.

    Args:
        covariance: (6, 6) in ROS order. inliers, inlier_ratio, spread, landmarks: as in records.Estimate. Enough landmarks, each a match
            of a descriptor to a pixel or two, speak for a pose by themselves; without them the cells have to.
        cells_suffice: whether they may. With depth they have a say of their own about distances; without, and where landmarks could have
            confirmed the pose and none did, cells were hardly ever right (docs/mapping.md). tracked: the cells were not asked.
        centre, extent: of the map's scene coordinates [m]; a camera far outside of them cannot see what it claims to.
    """
    if not all(np.isfinite(part).all() for part in (map_from_camera, covariance, [inliers, inlier_ratio, spread, landmarks])):
        return Verdict(False, ('not_finite',))
    deviation_m = float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance[:3, :3])[-1])))
    deviation_rad = float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance[3:, 3:])[-1])))
    outside = np.abs(map_from_camera[:3, 3] - centre) > extent / 2 + options.map_margin
    by_cells = landmarks < options.min_landmarks
    failed = (('no_landmarks', not cells_suffice and not landmarks),
              ('few_inliers', by_cells and inliers < options.min_inliers),
              # Some dozens of landmarks agree on a wrong pose where things look alike; cells then know better.
              ('cells_disagree', (not by_cells and not tracked and landmarks < options.sure_landmarks
                                  and inlier_ratio < options.min_support)),
              ('low_inlier_ratio', by_cells and inlier_ratio < options.min_inlier_ratio),
              ('low_spread', by_cells and spread < options.min_spread),
              ('uncertain_position', deviation_m > options.max_position_deviation),
              ('uncertain_rotation', deviation_rad > options.max_rotation_deviation),
              ('outside_map', bool(outside.any())))
    reasons = tuple(name for name, bad in failed if bad)
    return Verdict(not reasons, reasons)


def judge_place(verdict: Verdict, expert: str, posterior: Mapping[str, float], options: IntegrityOptions) -> Verdict:
    """The same with whether the frame is of this sub-map, and not of another one (ambiguous_place) or of none of them (unknown_place).

    Args:
        posterior: name -> probability, '' none of them.
    """
    if posterior[expert] >= options.min_posterior:
        return verdict
    rival = max((name for name in posterior if name != expert), key=lambda name: posterior[name])
    return Verdict(False, (*verdict.reasons, 'ambiguous_place' if rival else 'unknown_place'))
