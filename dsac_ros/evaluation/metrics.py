"""Frame results in, one flat dictionary of numbers out. Every key is explained in docs/evaluation.md.

Nothing is aligned: the estimate lives in the map's frame, and an offset of the map is an error like any other. A frame
without an answer has an infinite translation error and a rotation error of 180 deg, as in hloc's evaluator, so silence
never betters a median or a share.
"""
from __future__ import annotations

from collections import Counter
from typing import Any, Iterable, Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.evaluation.records import FrameResult
from dsac_ros.geometry import se3

THRESHOLDS = (('1cm_1deg', 0.01, 1.0), ('2cm_2deg', 0.02, 2.0), ('5cm_5deg', 0.05, 5.0), ('10cm_5deg', 0.10, 5.0),
              ('25cm_2deg', 0.25, 2.0), ('50cm_5deg', 0.50, 5.0))
FALSE_ACCEPT_M, FALSE_ACCEPT_DEG = 0.5, 5.0
# Quantiles of chi square with 6 degrees of freedom: an honest covariance keeps this share of the NEES values below them.
COVERAGE = ((50, 5.348120627447122), (90, 10.644640675668422), (99, 16.811893829770927))


def pose_error(estimate: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Distance of the camera centres [m] and geodesic angle [deg] between two (4, 4) transforms."""
    translation = float(np.linalg.norm(estimate[:3, 3] - reference[:3, 3]))
    between = torch.from_numpy(np.asarray(reference[:3, :3].T @ estimate[:3, :3], dtype=np.float64))
    return translation, float(np.degrees(float(se3.rotation_angle(between))))


def pose_difference(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(6,) shift [m] and rotation vector [rad] about the map's axes, from the reference to the estimate, (4, 4) both."""
    turn = Rotation.from_matrix(estimate[:3, :3] @ reference[:3, :3].T).as_rotvec()
    return np.concatenate([estimate[:3, 3] - reference[:3, 3], turn])


def squared_error(difference: np.ndarray, covariance: np.ndarray) -> float:
    """e^T C^-1 e of a pose_difference; infinite where the covariance (6, 6) is not positive definite."""
    try:
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), difference)
    except np.linalg.LinAlgError:
        return float('inf')
    value = float(whitened @ whitened)
    return value if np.isfinite(value) else float('inf')


def errors_of(result: FrameResult) -> tuple[float, float] | None:
    """Error of the estimate that a result holds, accepted or not; None where the estimate or the reference is missing."""
    if result.map_from_camera is None or result.reference is None:
        return None
    return pose_error(result.map_from_camera, result.reference)


def counted_errors(results: Iterable[FrameResult]) -> np.ndarray:
    """Errors as they count, (N, 2) [m, deg], of the frames with a reference: infinite and 180 deg without an answer."""
    rows = [errors_of(r) if r.answered else (np.inf, 180.0) for r in results if r.reference is not None]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def nees(result: FrameResult) -> float | None:
    """Normalised estimation error squared (squared_error); None where estimate, reference or covariance is missing."""
    if result.map_from_camera is None or result.reference is None or result.covariance is None:
        return None
    return squared_error(pose_difference(result.map_from_camera, result.reference), result.covariance)


def summarise(results: Sequence[FrameResult]) -> dict[str, Any]:
    """All numbers of a run: what the poses say (the same in every offline run) and what the clock said."""
    return {**summarise_poses(results), **summarise_latency(results)}


def summarise_poses(results: Sequence[FrameResult]) -> dict[str, Any]:
    """Everything that does not depend on the clock of the machine. None stands for infinite or undefined."""
    errors = counted_errors(results)
    answered = sum(r.answered for r in results)
    metres, degrees = errors[:, 0], errors[:, 1]
    seen = np.isfinite(metres)
    false = seen & ((metres > FALSE_ACCEPT_M) | (degrees > FALSE_ACCEPT_DEG))
    summary: dict[str, Any] = {
        'frames': len(results), 'frames_with_reference': len(errors), 'frames_without_reference': len(results) - len(errors),
        'answered': answered, 'availability': answered / len(results) if results else None,
        'median_translation_m': _median(metres), 'median_rotation_deg': _median(degrees),
        'median_translation_m_answered': _median(metres[seen]), 'median_rotation_deg_answered': _median(degrees[seen])}
    for name, limit_m, limit_deg in THRESHOLDS:
        summary[f'within_{name}'] = _share((metres < limit_m) & (degrees < limit_deg))
    summary |= {'false_accepts': _share(false), 'false_accept_count': int(false.sum()), 'false_rejects': _false_rejects(results),
                'max_translation_m_answered': float(metres[seen].max()) if seen.any() else None}
    summary |= _published(results)
    summary |= _gaps(results) | _consistency(results)
    causes = (reason.partition(':')[0] for r in results if not r.answered for reason in r.reasons or ('unknown',))
    summary['reasons'] = dict(sorted(Counter(causes).items()))
    return summary


def _published(results: Sequence[FrameResult]) -> dict[str, float | int | None]:
    """What the node lets out of the answers: it waits for frames that agree, and refuses jumps."""
    known = [r for r in results if r.published is not None]
    errors = np.array([e for r in known if r.published and (e := errors_of(r)) is not None]).reshape(-1, 2)
    false = (errors[:, 0] > FALSE_ACCEPT_M) | (errors[:, 1] > FALSE_ACCEPT_DEG)
    return {'published': sum(r.published for r in known) / len(results) if known else None,
            'published_false_accept_count': int(false.sum()) if known else None}


def summarise_latency(results: Iterable[FrameResult]) -> dict[str, Any]:
    """Percentiles of the latency [ms] over the frames that have one (rejected frames too: they cost as much)."""
    times = np.array([r.latency_ms for r in results if r.latency_ms is not None and np.isfinite(r.latency_ms)])
    return {f'latency_p{p}_ms': float(np.percentile(times, p)) if len(times) else None for p in (50, 95, 99)}


def _median(values: np.ndarray) -> float | None:
    """Median, None for nothing or for an infinite one (half of the frames or more without an answer)."""
    middle = np.median(values) if len(values) else np.inf
    return float(middle) if np.isfinite(middle) else None


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _false_rejects(results: Sequence[FrameResult]) -> float | None:
    """Share of the frames with a reference whose good pose (5 cm, 5 deg) was thrown away."""
    known = [r for r in results if r.reference is not None]
    rejected = [errors_of(r) for r in known if not r.answered]
    return sum(e is not None and e[0] < 0.05 and e[1] < 5.0 for e in rejected) / len(known) if known else None


def is_hole(steps_ns: np.ndarray) -> np.ndarray:
    """Which steps between neighbouring frames are holes of the recording: a split takes parts of a sequence, a folder holds several."""
    return steps_ns > 5 * np.median(steps_ns) if len(steps_ns) else np.zeros(0, dtype=bool)


def _gaps(results: Sequence[FrameResult]) -> dict[str, float | None]:
    """Longest time without a new pose, start and end of the run included, and the time to the first pose [s].

    The clock stands still in holes of the recording, where nobody could have answered: they count as one usual step.
    """
    if not results:
        return {'longest_gap_s': None, 'time_to_first_fix_s': None}
    steps = np.diff(np.array([r.stamp_ns for r in results], dtype=np.int64))
    usual = int(np.median(steps)) if len(steps) else 0
    clock = np.concatenate([[0], np.cumsum(np.where(is_hole(steps), usual, steps))])
    fixes = clock[[r.answered for r in results]]
    longest = int(np.diff([0, *fixes, clock[-1]]).max())
    return {'longest_gap_s': longest / 1e9, 'time_to_first_fix_s': int(fixes[0]) / 1e9 if len(fixes) else None}


def _consistency(results: Iterable[FrameResult]) -> dict[str, float | int | None]:
    """NEES of the answers (6 degrees of freedom: mean 6, median 5.35 when honest) and its coverage."""
    found = np.array([value for r in results if r.answered and (value := nees(r)) is not None])
    usable = found[np.isfinite(found)]
    summary: dict[str, float | int | None] = {
        'nees_frames': len(found), 'nees_invalid': len(found) - len(usable),
        'nees_mean': float(usable.mean()) if len(usable) else None, 'nees_median': _median(found)}
    return summary | {f'coverage_{percent}': _share(found <= limit) for percent, limit in COVERAGE}
