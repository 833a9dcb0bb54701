"""Records of a race -> tables in markdown, the same numbers as JSON, and plots. The peers get their best threshold in every cell."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peers import POSELIB
from benchmarks.race import Heat, Record
from dsac_ros.evaluation.tables import write_json

MODALITIES = ('rgb', 'rgb+w', 'rgbd')
OURS = 'ours'
COLUMNS = 5  # of a table: as many as there are shares of outliers
LEAST_M, MOST_M = 1e-5, 10.0  # of an error, where ratios are averaged: no answer is no worse than one that is as wrong
BASE_PX = 10.0  # what everybody's defaults are near


@dataclass(frozen=True)
class Result(Heat):
    """An estimator in one cell, at its best threshold there (0: it has none). median_m, and over_reference: that over the median of what
    could be reached. within_5cm_5deg: share. cpu_ms, p95_cpu_ms, wall_ms; over_poselib: median ratio of its CPU time to PoseLib's (100 to
    1000 iterations, at the best threshold) on the same frames; error_over_poselib: geometric mean of the ratio of errors, likewise."""

    estimator: str
    modality: str
    threshold_px: float
    frames: int
    median_m: float
    median_deg: float
    over_reference: float
    within_5cm_5deg: float
    cpu_ms: float
    p95_cpu_ms: float
    wall_ms: float
    over_poselib: float
    over_poselib_base: float
    error_over_poselib: float


def summarise(records: Sequence[Record]) -> list[Result]:
    """One result for each estimator and cell, in order of first appearance."""
    runs_of: dict[Heat, dict[str, dict[float, dict[int, Record]]]] = {}
    for record in records:
        heat = Heat(record.problems, record.cells, record.threads, record.cell)
        # By frame: one that was run again counts once, as it was the last time.
        runs_of.setdefault(heat, {}).setdefault(record.estimator, {}).setdefault(record.threshold_px, {})[record.frame] = record
    results = []
    for heat, estimators in runs_of.items():
        best = {name: min((list(run.values()) for run in runs.values()), key=lambda run: _median(run, 'position_m'))
                for name, runs in estimators.items()}
        bases = [best.get(POSELIB, []), estimators.get(POSELIB, {}).get(BASE_PX, {}).values()]
        results += [_result(heat, run, *({record.frame: record for record in base} for base in bases)) for run in best.values()]
    return results


def write_report(folder: Path, records: Sequence[Record]) -> str:
    """summary.json, tables.md and a PNG for each set of problems; returns the text of the tables."""
    # Ours first; short names before long ones puts 64 before 256.
    results = sorted(summarise(records), key=lambda result: (
        result.problems, -result.cells, result.threads, MODALITIES.index(result.modality), not result.estimator.startswith(OURS),
        len(result.estimator), result.estimator))
    write_json(folder / 'summary.json', {'results': [asdict(result) for result in results]})
    parts = []
    for (problems, cells, threads), group in groupby(results, lambda result: (result.problems, result.cells, result.threads)):
        chosen = list(group)
        title = f'{problems}, {cells} cells, {threads} thread{"s" * (threads > 1)}'
        parts.append(f'## {title}\n\n{tables(chosen)}\n{verdict(chosen)}')
        _plot(folder / f'{title.replace(", ", "_").replace(" ", "_")}.png', title, chosen)
    text = '\n'.join(parts)
    (folder / 'tables.md').write_text(text)
    return text


def tables(results: Sequence[Result]) -> str:
    """Accuracy, then time: a row for each estimator, a column for each cell."""
    return '\n'.join([
        'Median error of the position in cm / over the Cramer-Rao bound (RGB-D: over the fit to the true inliers) / % within 5 cm, 5 deg\n',
        _table(results, lambda r: f'{_short(100 * r.median_m)} / {_short(r.over_reference)} / {100 * r.within_5cm_5deg:.0f}'),
        f'Median CPU time in ms / over that of {POSELIB} at its best threshold / at {BASE_PX:g} px / wall time in ms [/ threshold]\n',
        _table(results, _times)])


def verdict(results: Sequence[Result]) -> str:
    """What each of ours comes to over all cells, beside whoever was best with the same input."""
    lines = []
    for name in dict.fromkeys(result.estimator for result in results if result.estimator.startswith(OURS)):
        mine = [result for result in results if result.estimator == name]
        ahead = sum(result.median_m < _best_peer(result, results) for result in mine)
        lines.append(f'* {name}: error over what can be reached {_range(r.over_reference for r in mine)}; ahead of every peer with the '
                     f'same input in {ahead} of {len(mine)} cells; CPU time over that of {POSELIB} {_range(r.over_poselib for r in mine)} '
                     f'at its best threshold, {_range(r.over_poselib_base for r in mine)} at {BASE_PX:g} px; error over that of {POSELIB}, '
                     f'frame by frame, {_range(r.error_over_poselib for r in mine)}')
    return '\n'.join(lines) + '\n'


def _best_peer(result: Result, results: Sequence[Result]) -> float:
    """Median error [m] of the best peer in this cell that is given the same."""
    return min((other.median_m for other in results if (other.cell, other.modality) == (result.cell, result.modality)
                and not other.estimator.startswith((OURS, '('))), default=float('inf'))


def _result(heat: Heat, run: Sequence[Record], *bases: dict[int, Record]) -> Result:
    ratios = [[record.cpu_ms / base[record.frame].cpu_ms for record in run if record.frame in base] for base in bases]
    errors = [np.log(np.clip([record.position_m, bases[0][record.frame].position_m], LEAST_M, MOST_M))
              for record in run if record.frame in bases[0]]
    over_poselib, over_poselib_base = (float(np.median(ratio)) if ratio else float('nan') for ratio in ratios)
    median_m = _median(run, 'position_m')
    within = np.mean([record.position_m < 0.05 and record.rotation_deg < 5 for record in run])
    return Result(**asdict(heat), estimator=run[0].estimator, modality=run[0].modality, threshold_px=run[0].threshold_px, frames=len(run),
                  median_m=median_m, median_deg=_median(run, 'rotation_deg'), over_reference=median_m / _median(run, 'reference_m'),
                  within_5cm_5deg=float(within), cpu_ms=_median(run, 'cpu_ms'),
                  p95_cpu_ms=float(np.percentile([record.cpu_ms for record in run], 95)), wall_ms=_median(run, 'wall_ms'),
                  over_poselib=over_poselib, over_poselib_base=over_poselib_base,
                  error_over_poselib=float(np.exp(-np.diff(errors).mean())) if errors else float('nan'))


def _times(result: Result) -> str:
    numbers = [_short(value) for value in (result.cpu_ms, result.over_poselib, result.over_poselib_base, result.wall_ms)]
    return ' / '.join(numbers + [f'{result.threshold_px:g}'] * (result.threshold_px > 0))


def _table(results: Sequence[Result], write: Callable[[Result], str]) -> str:
    cells = list(dict.fromkeys(result.cell for result in results))
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.estimator, {})[result.cell] = result
    lines = []
    for start in range(0, len(cells), COLUMNS):
        part = cells[start:start + COLUMNS]
        lines += ['| estimator | input | ' + ' | '.join(part) + ' | frames |', '|---|---|' + '--:|' * (len(part) + 1)]
        for name, row in rows.items():
            seen = [row[cell] for cell in part if cell in row]
            frames = sorted({result.frames for result in seen})
            counts = '..'.join(map(str, dict.fromkeys((*frames[:1], *frames[-1:]))))
            entries = [write(row[cell]) if cell in row else '' for cell in part]
            lines.append(f'| {" | ".join([name, next(iter(row.values())).modality, *entries, counts])} |')
        lines.append('')
    return '\n'.join(lines)


def _plot(path: Path, title: str, results: Sequence[Result]) -> None:
    """Error over what can be reached (where that is not known: in cm) above CPU time, cell by cell; ours in thick lines."""
    cells = list(dict.fromkeys(result.cell for result in results))
    bounded = any(np.isfinite(result.over_reference) for result in results)
    figure = Figure(figsize=(14, 11), layout='constrained')
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    styles = dict(zip(MODALITIES, ('-', '--', ':')))
    for number, name in enumerate(dict.fromkeys(result.estimator for result in results)):
        row = {result.cell: result for result in results if result.estimator == name}
        places = [cells.index(cell) for cell in row]
        look = {'color': f'C{number % 10}', 'marker': 'osv^D'[number // 10 % 5], 'linestyle': styles[next(iter(row.values())).modality],
                'linewidth': 3 if name.startswith(OURS) else 1, 'label': name}
        above.plot(places, [result.over_reference if bounded else 100 * result.median_m for result in row.values()], **look)
        below.plot(places, [result.cpu_ms for result in row.values()], **look)
    above.set(title=title, yscale='log', ylabel='median error / what can be reached' if bounded else 'median error [cm]')
    if bounded:
        above.axhline(1.3, color='black', linewidth=0.8)
        above.set_ylim(0.7, 100)
    below.set(yscale='log', ylabel='median CPU time [ms]')
    below.set_xticks(range(len(cells)), cells, rotation=45)
    for axes in (above, below):
        axes.grid(alpha=0.3, which='both')
    figure.legend(*above.get_legend_handles_labels(), loc='outside right upper', fontsize=8)
    figure.savefig(path, dpi=100)


def _median(run: Sequence[Record], field: str) -> float:
    return float(np.median([getattr(record, field) for record in run]))


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return ' to '.join(dict.fromkeys(_short(value) for value in (ordered[0], ordered[-1])))


def _short(value: float) -> str:
    """Three digits that say something."""
    if not np.isfinite(value):
        return '-' if np.isnan(value) else 'inf'
    return f'{value:.2f}' if value < 10 else f'{value:.1f}' if value < 100 else f'{value:.0f}'
