"""All estimators on the same problems in turn, so that the ratios of their times hold on a machine whose load varies."""
from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from benchmarks.peers import Estimator
from benchmarks.problems import Problem
from dsac_ros.evaluation.metrics import pose_error

MIN_FRAMES = 5  # that also the slowest sees


@dataclass(frozen=True)
class Heat:
    """What a number holds for: the problems (set or data), the number of cells of a frame, the CPU threads, the cell of the table."""

    problems: str
    cells: int
    threads: int
    cell: str


@dataclass(frozen=True)
class Record(Heat):
    """One estimator on one frame. position_m, rotation_deg: infinite and 180 without an answer. reference_m: what its modality could reach
    there (RGB: the bound; RGB-D: the error of the fit to the true inliers), NaN where nobody knows. cpu_ms: of all threads."""

    estimator: str
    modality: str
    threshold_px: float
    frame: int
    position_m: float
    rotation_deg: float
    reference_m: float
    cpu_ms: float
    wall_ms: float


def race(heat: Heat, problems: Iterable[tuple[int, Problem, dict[str, float]]], estimators: Sequence[Estimator],
         budget_s: float) -> list[Record]:
    """Every estimator on every problem, in an order that is shuffled anew for each.

    Args:
        problems: (frame, problem, reference_m of each modality).
        budget_s: CPU seconds of an estimator, after which it sees no more than MIN_FRAMES frames.
    """
    rng = np.random.default_rng(0)
    records: list[Record] = []
    spent, seen = np.zeros(len(estimators)), np.zeros(len(estimators), int)
    for frame, problem, references in problems:
        for index in rng.permutation(len(estimators)):
            estimator = estimators[index]
            if spent[index] > budget_s and seen[index] >= MIN_FRAMES or (estimator.modality == 'rgbd' and problem.depths_N is None):
                continue
            prepared = estimator.prepare(problem)
            cpu, wall = time.process_time(), time.perf_counter()
            answer = estimator.solve(prepared)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            spent[index] += cpu
            seen[index] += 1
            position, rotation = _error(answer, problem.camera_from_map)
            records.append(Record(**asdict(heat), estimator=estimator.name, modality=estimator.modality,
                                  threshold_px=estimator.threshold_px or 0.0, frame=frame, position_m=position, rotation_deg=rotation,
                                  reference_m=references.get(estimator.modality, float('nan')), cpu_ms=1e3 * cpu, wall_ms=1e3 * wall))
    return records


def warm_up(problem: Problem, estimators: Sequence[Estimator]) -> None:
    """First calls allocate and compile; nobody is timed on those."""
    for estimator in estimators:
        if problem.depths_N is not None or estimator.modality != 'rgbd':
            for _ in range(2):
                estimator.solve(estimator.prepare(problem))


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Add to a CSV file with a header, cell by cell: an interrupted run keeps what it has."""
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        if not file.tell():
            writer.writeheader()
        writer.writerows({name: f'{value:.9g}' if isinstance(value, float) else value for name, value in asdict(record).items()}
                         for record in records)


def read_records(path: Path) -> list[Record]:
    """What append_records wrote."""
    kinds: dict[str, Any] = get_type_hints(Record)
    with path.open(newline='') as file:
        return [Record(**{name: kinds[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]


def _error(answer: np.ndarray | None, camera_from_map: np.ndarray) -> tuple[float, float]:
    if answer is None or not np.isfinite(answer).all():
        return float('inf'), 180.0
    return pose_error(np.linalg.inv(answer), np.linalg.inv(camera_from_map))
