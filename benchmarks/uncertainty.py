"""Whether a map knows how wrong it is: stated scale of its cells against their errors, and the covariance of its poses against theirs.

    python -m benchmarks.uncertainty kitchen.dsacmap $D/kitchen --split val_near val_far --out uncertainty

Writes FOLDER/uncertainty.md and .png. Cells need depth, which says where they really are; poses only their reference.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import chi2, gamma

from benchmarks.mapping_ablation import QUERIES
from benchmarks.predictions import Predictor
from dsac_ros.config import LOCALIZER_GROUPS, EstimatorOptions, build_groups
from dsac_ros.data.opening import open_source
from dsac_ros.errors import DataError, DsacError
from dsac_ros.evaluation.metrics import nees
from dsac_ros.evaluation.replay import ThinnedSource, replay_offline
from dsac_ros.localizer import Localizer
from dsac_ros.records import Frame

LEVELS = (0.5, 0.9, 0.99)
# Length of an isotropic Laplace error in space over its scale (density exp(-r / s) / s^3, training.losses); squared length of a whitened
# Gaussian error of a pose.
CELL_ERROR, POSE_ERROR = gamma(3), chi2(6)
GROUPS = 10  # of equally many cells


@dataclass(frozen=True)
class Cells:
    """Of N cells: stated scales_N [m], lengths of the errors errors_N and their parts along the viewing rays along_N [m]."""

    scales_N: np.ndarray
    errors_N: np.ndarray
    along_N: np.ndarray


def cell_errors(predict: Predictor, frames: Iterable[Frame]) -> Cells:
    """Of all cells with measured depth, in all frames that have depth and a reference pose."""
    scales, errors, along = [], [], []
    for frame in frames:
        if frame.depth is not None and frame.map_from_camera is not None:
            problem = predict(frame)
            known = problem.depths_N > 0
            seen_N3 = problem.points_N3 @ problem.camera_from_map[:3, :3].T + problem.camera_from_map[:3, 3]
            offset_N3 = (seen_N3 - problem.camera_points_N3())[known]
            scales.append(problem.scales_N[known] / EstimatorOptions().scale_factor)
            errors.append(np.linalg.norm(offset_N3, axis=1))
            along.append((offset_N3 * problem.bearings_N3()[known]).sum(1))
    if not scales:
        raise DataError('no frame has depth and a reference pose')
    return Cells(np.concatenate(scales), np.concatenate(errors), np.concatenate(along))


def cell_table(cells: Cells) -> str:
    """What the scales promise and what came, by tenths of the cells from the surest on."""
    lines = ['| cells | stated median, cm | found median, cm | found / stated | along / across the ray, rms of the better half | '
             + ' | '.join(f'within {100 * level:.0f} %' for level in LEVELS) + ' |', '|---' * (5 + len(LEVELS)) + '|']
    groups = np.array_split(np.argsort(cells.scales_N, kind='stable'), GROUPS)
    for name, rows in [*((f'tenth {number}', rows) for number, rows in enumerate(groups, 1)), ('all', np.arange(len(cells.scales_N)))]:
        scales, errors, along = cells.scales_N[rows], cells.errors_N[rows], cells.along_N[rows]
        stated, found = np.median(scales) * CELL_ERROR.median(), np.median(errors)
        factor = np.median(errors / scales) / CELL_ERROR.median()
        better = errors <= found
        across = np.sqrt(np.maximum(errors[better] ** 2 - along[better] ** 2, 0).mean() / 2)  # of each of the two directions
        shares = [f'{100 * (errors <= CELL_ERROR.ppf(level) * scales).mean():.0f}' for level in LEVELS]
        lines.append(f'| {name} | {100 * stated:.1f} | {100 * found:.1f} | {factor:.2f} | '
                     f'{np.sqrt((along[better] ** 2).mean()) / across:.1f} | {" | ".join(shares)} |')
    return '\n'.join(lines)


def pose_squares(map_path: Path, sources: Iterable[ThinnedSource], query: str) -> np.ndarray:
    """(answers,): squared errors of the accepted poses over their covariance."""
    modality, settings = QUERIES[query]
    groups = build_groups(LOCALIZER_GROUPS, settings)
    localizer = Localizer.from_map(map_path, 'cpu', groups['estimator'], groups['integrity'])
    found = [nees(result) for source in sources for result in replay_offline(localizer, source, modality) if result.answered]
    return np.array([value for value in found if value is not None])


def pose_table(squares: dict[str, np.ndarray]) -> str:
    lines = ['| query | answers | ' + ' | '.join(f'within {100 * level:.0f} %' for level in LEVELS)
             + ' | variance found / stated, by the median | NEES over 6, mean |', '|---' * (4 + len(LEVELS)) + '|']
    for query, found in squares.items():
        if len(found):
            shares = [f'{100 * (found <= POSE_ERROR.ppf(level)).mean():.0f}' for level in LEVELS]
            lines.append(f'| {query} | {len(found)} | {" | ".join(shares)} | {np.median(found) / POSE_ERROR.median():.2f} | '
                         f'{found.mean() / 6:.2f} |')
    return '\n'.join(lines)


def plot(path: Path, title: str, cells: Cells | None, squares: dict[str, np.ndarray]) -> None:
    """Left: median error of each group of cells over what was stated, with the middle 80 %. Right: share of the poses in each ellipsoid."""
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if cells is not None:
        groups = np.array_split(np.argsort(cells.scales_N, kind='stable'), GROUPS)
        stated = np.array([np.median(cells.scales_N[rows]) for rows in groups])
        low, middle, high = 100 * np.array([np.quantile(cells.errors_N[rows], (0.1, 0.5, 0.9)) for rows in groups]).T
        left.errorbar(100 * stated * CELL_ERROR.median(), middle, [middle - low, high - middle], marker='o', capsize=3, label='found')
        for level, style in ((0.1, ':'), (0.5, '-'), (0.9, ':')):
            left.plot(100 * stated * CELL_ERROR.median(), 100 * stated * CELL_ERROR.ppf(level), style, color='black', linewidth=0.8,
                      label='as stated' if level == 0.5 else None)
        left.set(xscale='log', yscale='log', xlabel='stated median error of a cell [cm]', ylabel='error: 10, 50, 90 % [cm]')
        left.legend()
    levels = np.linspace(0, 1, 201)
    for query, found in squares.items():
        if len(found):
            right.plot(levels, (found[:, None] <= POSE_ERROR.ppf(levels)).mean(0), label=f'{query} ({len(found)})')
    right.plot([0, 1], [0, 1], color='black', linewidth=0.8)
    right.set(xlabel='stated probability of the ellipsoid', ylabel='share of the poses in it', xlim=(0, 1), ylim=(0, 1.01))
    if any(map(len, squares.values())):
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def measure(map_path: Path, sources: Sequence[ThinnedSource], has_depth: bool, title: str, out: Path) -> str:
    """Write the two files to the folder `out`; returns the text of the tables."""
    cells = cell_errors(Predictor(map_path), chain.from_iterable(sources)) if has_depth else None
    queries: Sequence[str] = [query for query, (modality, _) in QUERIES.items() if has_depth or modality == 'rgb']
    squares = {query: pose_squares(map_path, sources, query) for query in queries}
    tables = [f'{title}', pose_table(squares)] if cells is None else [f'{title}', cell_table(cells), pose_table(squares)]
    text = '\n\n'.join(tables) + '\n'
    out.mkdir(parents=True, exist_ok=True)
    plot(out / 'uncertainty.png', title, cells, squares)
    (out / 'uncertainty.md').write_text(text)
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.uncertainty', description=__doc__.splitlines()[0])
    parser.add_argument('map', type=Path)
    parser.add_argument('source', type=Path, help='a bag or a data folder with reference poses')
    parser.add_argument('--split', nargs='+', default=[None], help='parts of a data folder, taken together')
    parser.add_argument('--every', type=int, default=1, help='take every N-th frame')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER')
    options = parser.parse_args(arguments)
    try:
        sources = [ThinnedSource(open_source(options.source, split, require_poses=True), options.every) for split in options.split]
        has_depth = any(frame.depth is not None for frame in chain.from_iterable(sources))
        title = ' '.join([f'{options.map.stem}, {options.source.name}', *filter(None, options.split)])
        print(measure(options.map, sources, has_depth, title, options.out))
    except DsacError as error:
        print(f'uncertainty: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
