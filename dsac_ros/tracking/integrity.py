"""Independent tests that a pose must pass before it is published; the names of those that failed."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dsac_ros.config import IntegrityOptions
from dsac_ros.records import Check, Verdict

SURPRISE = 0.2  # probability below which a sub-map takes SURE times as many landmarks as a pose (docs/large_places.md)
SURE = 2.0


def judge(map_from_camera: np.ndarray, covariance: np.ndarray, inliers: float, inlier_ratio: float, spread: float, landmarks: float,
          cells_suffice: bool, tracked: bool, centre: np.ndarray, extent: np.ndarray, options: IntegrityOptions,
          margin: float = np.inf, misfit: float = np.nan, depth_misfit: float = np.nan, share: float = np.nan,
          focal_misfit: float = np.nan) -> Verdict:
    """Every test that fails is named, and all that are made are told with their numbers.

    Args:
        covariance: (6, 6) in ROS order. inliers, inlier_ratio, spread, landmarks: as in records.Estimate. Enough landmarks, each a match
            of a descriptor to a pixel or two, speak for a pose by themselves; without them the cells have to.
        cells_suffice: whether they may. With depth they have a say of their own about distances; without, and where landmarks could have
            confirmed the pose and none did, cells were hardly ever right (docs/mapping.md). tracked: the cells were not asked.
        margin: lead over the best candidate of another place, infinite where there was none.
        misfit, depth_misfit, share, focal_misfit: of the landmarks, as in landmarks.positioning.ByLandmarks and landmarks.surroundings; NaN
            where they say nothing. With a wrong calibration everything but depth and focal length agrees.
        centre, extent: of the map's scene coordinates [m]; a camera far outside of them cannot see what it claims to.
    """
    if not all(np.isfinite(part).all() for part in (map_from_camera, covariance, [inliers, inlier_ratio, spread, landmarks])):
        return Verdict(False, ('not_finite',))
    deviation_m = float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance[:3, :3])[-1])))
    deviation_rad = float(np.sqrt(max(0.0, np.linalg.eigvalsh(covariance[3:, 3:])[-1])))
    outside_m = float((np.abs(map_from_camera[:3, 3] - centre) - extent / 2).max())
    by_cells = landmarks < options.min_landmarks
    # Some dozens of landmarks agree on a wrong pose where things look alike; cells and the other landmarks then know better.
    doubted = not by_cells and not tracked and landmarks < options.sure_landmarks
    made = (('few_inliers', by_cells, 'min_inliers', inliers),
            ('cells_disagree', doubted, 'min_support', inlier_ratio),
            ('landmarks_disagree', doubted and not np.isnan(share), 'min_landmark_share', share),
            ('low_inlier_ratio', by_cells, 'min_inlier_ratio', inlier_ratio),
            ('low_spread', by_cells, 'min_spread', spread),
            ('', not by_cells, 'min_landmarks', landmarks),
            ('poor_fit', not np.isnan(misfit), 'max_misfit', misfit),
            ('depth_disagrees', not np.isnan(depth_misfit), 'max_depth_misfit', depth_misfit),
            ('focal_length', not np.isnan(focal_misfit), 'max_focal_misfit', focal_misfit),
            ('ambiguous', not tracked, 'min_margin', margin),
            ('uncertain_position', True, 'max_position_deviation', deviation_m),
            ('uncertain_rotation', True, 'max_rotation_deviation', deviation_rad),
            ('outside_map', True, 'map_margin', outside_m))
    checks = [(reason, Check(name, value, getattr(options, name))) for reason, applies, name, value in made if applies]
    failed = [reason for reason, check in checks if not passes(check)]
    if not cells_suffice and not landmarks:
        failed.insert(0, 'no_landmarks')
    return Verdict(not failed, tuple(failed), tuple(check for _, check in checks))


def passes(check: Check) -> bool:
    """Whether the value is on the good side of its limit, or on it."""
    return check.value >= check.limit if check.name.startswith('min_') else check.value <= check.limit


def judge_place(verdict: Verdict, expert: str, posterior: Mapping[str, float], by_image: float, landmarks: float,
                options: IntegrityOptions) -> Verdict:
    """The same with whether the frame is of this sub-map, and not of another one (ambiguous_place) or of none of them (unknown_place).

    Args:
        posterior: name -> probability, '' none of them. by_image: that of the expert by the image as a whole. The frames before have no
            say in it: what was refused of one would speak for the next. landmarks: soft inliers. Of many sub-maps one is soon found with
            some dozens of them that agree with a frame of elsewhere.
    """
    if posterior[expert] < options.min_posterior:
        rival = max((name for name in posterior if name != expert), key=lambda name: posterior[name])
        return Verdict(False, (*verdict.reasons, 'ambiguous_place' if rival else 'unknown_place'), verdict.checks)
    if by_image >= SURPRISE or not landmarks:
        return verdict
    needed = SURE * options.min_landmarks
    checks = tuple(replace(check, limit=needed) if check.name == 'min_landmarks' else check for check in verdict.checks)
    if landmarks >= needed:
        return replace(verdict, checks=checks)
    return Verdict(False, (*verdict.reasons, 'unknown_place'), checks)
