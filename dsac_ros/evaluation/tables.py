"""Frame results as text files: TUM trajectories, CSV tables, strict JSON. The same results give the same bytes."""
from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from dsac_ros.data.transforms import matrix_from
from dsac_ros.errors import DataError
from dsac_ros.evaluation.metrics import errors_of, nees
from dsac_ros.evaluation.records import FrameResult

POSE_COLUMNS = ('tx', 'ty', 'tz', 'qx', 'qy', 'qz', 'qw')
PER_FRAME_COLUMNS = (
    'stamp_ns', 'name', 'modality', 'answered', 'published', 'state', 'reasons', 'expert', 'translation_error_m', 'rotation_error_deg',
    'inliers', 'inlier_ratio', 'spread', 'residual', 'landmarks', 'tracked', 'sigma_translation_m', 'sigma_rotation_deg', 'nees',
    *(f'est_{c}' for c in POSE_COLUMNS), *(f'ref_{c}' for c in POSE_COLUMNS),
    *(f'cov_{row}{column}' for row in range(6) for column in range(row, 6)))


def write_tum(path: Path, poses: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write (stamp_ns, map_from_camera (4, 4)) as `stamp tx ty tz qx qy qz qw`, stamps in seconds with 9 decimals, metres."""
    lines = [f'{ns // 10**9}.{ns % 10**9:09d} ' + ' '.join(f'{v:.9f}' for v in pose_values(pose)) for ns, pose in poses]
    path.write_text(''.join(f'{line}\n' for line in lines))


def pose_values(map_from_camera: np.ndarray) -> list[float]:
    """The seven numbers of POSE_COLUMNS; of the two quaternions of a rotation the one with qw >= 0. Adding 0.0 turns -0.0 into 0.0."""
    quat_xyzw = Rotation.from_matrix(map_from_camera[:3, :3]).as_quat(canonical=True)
    return [float(v) + 0.0 for v in (*map_from_camera[:3, 3], *quat_xyzw)]


def write_per_frame(path: Path, results: Sequence[FrameResult]) -> None:
    """per_frame.csv: one line a frame, PER_FRAME_COLUMNS, nothing that the clock said. Empty cells: not known."""
    _write_csv(path, PER_FRAME_COLUMNS, (_per_frame_row(r) for r in results))


def read_per_frame(path: Path) -> list[FrameResult]:
    """What write_per_frame wrote, with the poses, the covariance and the evidence. Raises DataError where it is damaged."""
    try:
        with path.open(newline='', encoding='utf-8') as file:
            return [_result_of(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f'{path}: is no per_frame.csv of an evaluation: {error}') from error


def write_timing(path: Path, results: Sequence[FrameResult]) -> None:
    """timing.csv: the latency and the stage times of each frame [ms]."""
    stages = stage_names(results)
    _write_csv(path, ('stamp_ns', 'name', 'latency_ms', *(f'{s}_ms' for s in stages)), (
        [r.stamp_ns, r.name, _cell(r.latency_ms), *(_cell(r.stage_times_ms.get(s)) for s in stages)] for r in results))


def stage_names(results: Iterable[FrameResult]) -> list[str]:
    """Names of all timed stages, in order of first appearance."""
    return list(dict.fromkeys(stage for r in results for stage in r.stage_times_ms))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON as the standard has it: what is not finite becomes null."""
    path.write_text(json.dumps(_strict(values), indent=2, allow_nan=False, ensure_ascii=False) + '\n')


def _per_frame_row(r: FrameResult) -> list[Any]:
    translation, rotation = errors_of(r) or (None, None)
    sigma_m = sigma_deg = None
    if r.covariance is not None:
        variances = np.diagonal(r.covariance)
        sigma_m, sigma_deg = math.sqrt(max(variances[:3].sum(), 0.0)), math.degrees(math.sqrt(max(variances[3:].sum(), 0.0)))
    empty = [None] * 7
    numbers = [translation, rotation, r.inliers, r.inlier_ratio, r.spread, r.residual, r.landmarks, r.tracked, sigma_m, sigma_deg, nees(r),
               *(empty if r.map_from_camera is None else pose_values(r.map_from_camera)),
               *(empty if r.reference is None else pose_values(r.reference)),
               *([None] * 21 if r.covariance is None else r.covariance[np.triu_indices(6)])]
    return [r.stamp_ns, r.name, r.modality, int(r.answered), _cell(r.published), r.state, _joined(r.reasons), r.expert,
            *map(_cell, numbers)]


def _result_of(row: Mapping[str, str]) -> FrameResult:
    def numbers(*names: str) -> np.ndarray | None:
        return np.array([float(row[name]) for name in names]) if row[names[0]] else None

    def pose(prefix: str) -> np.ndarray | None:
        values = numbers(*(f'{prefix}_{c}' for c in POSE_COLUMNS))
        return None if values is None else matrix_from(values[:3], values[3:])

    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    upper, covariance = numbers(*(name for name in PER_FRAME_COLUMNS if name.startswith('cov_'))), None
    if upper is not None:
        covariance = np.zeros((6, 6))
        covariance[np.triu_indices(6)] = upper
        covariance += np.triu(covariance, 1).T
    tracked, published = number('tracked'), number('published')
    return FrameResult(
        int(row['stamp_ns']), row['name'], row['answered'] == '1', row['modality'], pose('est'), covariance, pose('ref'), row['state'],
        tuple(filter(None, row['reasons'].split(';'))), row['expert'], *map(number, ('inliers', 'inlier_ratio', 'spread', 'residual',
        'landmarks')), tracked=None if tracked is None else bool(tracked), published=None if published is None else bool(published))


def _joined(reasons: Iterable[str]) -> str:
    """A `;` within a reason would make two of it where they are split again."""
    return ';'.join(reason.replace(';', ',') for reason in reasons)


def _cell(value: float | None) -> str:
    """Nine significant digits: finer than any sensor, and free of the last bits' noise."""
    return '' if value is None else f'{value:.9g}'


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(header)
        writer.writerows(rows)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, np.generic):
        return _strict(value.item())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
