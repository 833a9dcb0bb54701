"""The figures of a report, from frame results to PNG bytes."""
from __future__ import annotations

import io
from typing import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dsac_ros.evaluation.metrics import FALSE_ACCEPT_DEG, FALSE_ACCEPT_M, counted_errors, errors_of, is_hole
from dsac_ros.evaluation.records import FrameResult

# Colour-blind safe (Okabe and Ito); the marker says the same as the colour.
GOOD, FAIR, BAD, MISSING, REFERENCE = '#0072B2', '#E69F00', '#D55E00', '#555555', '#B0B0B0'
KINDS = (('good', 'answer within 5 cm, 5°', GOOD, 'o', 14), ('fair', 'answer, less exact', FAIR, 'D', 16),
         ('false', f'false accept (> {FALSE_ACCEPT_M:g} m or {FALSE_ACCEPT_DEG:g}°)', BAD, 'X', 46),
         ('missing', 'no answer', MISSING, '|', 40))
COVERAGE_M = (0.005, 0.5)  # drawn range of errors; smaller and larger ones have the colour of its ends
# Label, drawn range (smaller and larger errors sit on the edge), marked limits and their text.
PANELS = (('translation error [m]', (1e-3, 10.0), (0.02, 0.05), ('2 cm', '5 cm')),
          ('rotation error [deg]', (1e-2, 180.0), (2.0, 5.0), ('2°', '5°')))


def kind_of(result: FrameResult) -> str:
    """'good', 'fair', 'false' or 'missing', as in the legend; an answer without a reference is 'good' for want of a judge."""
    if not result.answered:
        return 'missing'
    errors = errors_of(result)
    if errors is None or (errors[0] < 0.05 and errors[1] < 5.0):
        return 'good'
    return 'false' if errors[0] > FALSE_ACCEPT_M or errors[1] > FALSE_ACCEPT_DEG else 'fair'


def trajectory(results: Sequence[FrameResult]) -> bytes | None:
    """Camera centres seen from above, estimate on reference; None where there is nothing to draw."""
    poses = [r.reference for r in results if r.reference is not None] or [r.map_from_camera for r in results if r.answered]
    if not poses:
        return None
    right, ahead, labels = _view_from_above(poses)
    flat = np.array([p[[right, ahead], 3] for p in poses])
    low, high = _window(flat)
    figure, axes = _floor(low, high, labels)
    line = _broken_line(results, right, ahead)
    axes.plot(line[:, 0], line[:, 1], color=REFERENCE, linewidth=2.2, zorder=1)
    handles = [Line2D([], [], color=REFERENCE, linewidth=2.2, label='reference')]
    outside = 0
    for kind, label, colour, marker, size in KINDS:
        chosen = [r for r in results if kind_of(r) == kind]
        places = [r.map_from_camera if r.answered else r.reference for r in chosen]
        points = np.array([p[[right, ahead], 3] for p in places if p is not None]).reshape(-1, 2)
        marker = 'o' if kind == 'missing' else marker
        faces = 'none' if kind == 'missing' else colour
        outside += int(((points < low) | (points > high)).any(1).sum())
        axes.scatter(points[:, 0], points[:, 1], s=size, marker=marker, facecolors=faces, edgecolors=colour, zorder=3)
        handles.append(Line2D([], [], color=colour, marker=marker, markerfacecolor=faces, linestyle='', label=f'{label} ({len(chosen)})'))
        pairs = [(r.reference, r.map_from_camera) for r in chosen if r.answered and r.reference is not None]
        links = [[a[[right, ahead], 3], b[[right, ahead], 3]] for a, b in pairs]  # type: ignore[index]
        axes.add_collection(LineCollection(links, colors=colour, linewidths=0.7, alpha=0.7, zorder=2), autolim=False)
    if outside:
        handles.append(Line2D([], [], linestyle='', label=f'{outside} outside of the window'))
    figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
    return _png(figure)


def coverage(results: Sequence[FrameResult]) -> bytes | None:
    """Where the map is good: by place and direction of the reference, how far off the answers are, and where there are none; None without
    references."""
    known = [r for r in results if r.reference is not None]
    if not known:
        return None
    right, ahead, labels = _view_from_above([r.reference for r in known])
    places = np.array([r.reference[[right, ahead], 3] for r in known])
    looks = np.array([r.reference[[right, ahead], 2] for r in known])  # the optical axis
    errors = counted_errors(known)[:, 0]
    low, high = _window(places)
    figure, axes = _floor(low, high, labels)
    length = 0.04 * (high - low).max()
    answered = np.isfinite(errors)
    order = np.argsort(errors, kind='stable')  # the worst on top
    scale = LogNorm(*COVERAGE_M, clip=True)
    colours = colormaps['viridis_r'](scale(np.where(answered, errors, COVERAGE_M[1])))
    colours[~answered] = to_rgba(BAD)
    lines = np.stack([places, places + length * looks], 1)
    axes.add_collection(LineCollection(lines[order], colors=colours[order], linewidths=1.0), autolim=False)
    for chosen, marker, size in ((answered, 'o', 16), (~answered, 'X', 34)):
        kept = order[chosen[order]]
        axes.scatter(*places[kept].T, s=size, marker=marker, c=colours[kept], zorder=3)
    figure.colorbar(ScalarMappable(scale, 'viridis_r'), ax=axes, label='translation error [m]', format='{x:g}')
    handles = [Line2D([], [], color=BAD, marker='X', linestyle='', label=f'no answer ({int((~answered).sum())})'),
               Line2D([], [], color='black', marker='o', label='camera, and where it looks')]
    figure.legend(handles=handles, loc='outside lower center', ncols=2, frameon=False)
    return _png(figure)


def error_over_time(results: Sequence[FrameResult]) -> bytes | None:
    """Translation and rotation error over time, logarithmic, with frames without an answer on the top edge."""
    known = [r for r in results if r.reference is not None]
    if not known:
        return None
    start = results[0].stamp_ns
    figure = Figure(figsize=(9.5, 6.0), layout='constrained')
    rows = figure.subplots(2, 1, sharex=True)
    for row, (axes, (unit, limits, marks, _)) in enumerate(zip(rows, PANELS)):
        for kind, _, colour, marker, size in KINDS:
            chosen = [r for r in known if kind_of(r) == kind]
            seconds = [(r.stamp_ns - start) / 1e9 for r in chosen]
            heights = [limits[1] if kind == 'missing' else errors_of(r)[row] for r in chosen]  # type: ignore[index]
            axes.scatter(seconds, np.clip(heights, *limits), s=size, marker=marker, color=colour, linewidths=1.2, zorder=3, clip_on=False)
        raw = [(r, errors) for r in known if not r.answered and (errors := errors_of(r)) is not None]
        axes.scatter([(r.stamp_ns - start) / 1e9 for r, _ in raw], np.clip([e[row] for _, e in raw], *limits), s=14, marker='x',
                     color=MISSING, linewidths=0.8, alpha=0.7, zorder=2)
        _mark_limits(axes.axhline, marks)
        axes.set(yscale='log', ylim=limits, ylabel=unit)
        axes.yaxis.set_major_formatter('{x:g}')
        axes.grid(alpha=0.3)
    rows[1].set_xlabel('time since the first frame [s]')
    handles = [Line2D([], [], color=colour, marker=marker, linestyle='', label=label) for _, label, colour, marker, _ in KINDS]
    handles += [Line2D([], [], color=MISSING, marker='x', linestyle='', label='rejected pose (does not count)'),
                Line2D([], [], color='black', linewidth=0.8, linestyle='--', label='2 and 5 cm, 2 and 5°')]
    figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
    return _png(figure)


def cumulative_error(results: Sequence[FrameResult]) -> bytes | None:
    """Share of all frames with a reference whose error is below x; frames without an answer never come in."""
    errors = counted_errors(results)
    if not len(errors):
        return None
    figure = Figure(figsize=(9.5, 3.8), layout='constrained')
    for column, (axes, (unit, limits, marks, sign)) in enumerate(zip(figure.subplots(1, 2, sharey=True), PANELS)):
        values = np.sort(np.where(np.isfinite(errors[:, 0]), errors[:, column], np.inf))
        values = np.clip(values[np.isfinite(values)], limits[0], None)
        shares = np.arange(1, len(values) + 1) / len(errors)
        axes.step([limits[0], *values, max(limits[1], *values[-1:], 0.0)], [0.0, *shares, *(shares[-1:] if len(shares) else [0.0])],
                  where='post', color=GOOD, linewidth=2.0)
        _mark_limits(axes.axvline, marks)
        for mark, text in zip(marks, sign):
            share = float((values < mark).sum()) / len(errors)
            axes.annotate(f'{text}: {share:.0%}', (mark, share), xytext=(8, -12 if share > 0.15 else 6), textcoords='offset points',
                          fontsize=9, bbox={'boxstyle': 'square,pad=0.1', 'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.85})
            axes.plot([mark], [share], marker='o', color=GOOD, markersize=5)
        axes.set(xscale='log', xlim=limits, ylim=(0, 1.02), xlabel=unit)
        axes.xaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_major_formatter(lambda y, _: f'{y:.0%}')
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel('share of frames below')
    return _png(figure)


def latency(results: Sequence[FrameResult]) -> bytes | None:
    """Histogram of the latency with its median and 95th percentile."""
    times = np.array([r.latency_ms for r in results if r.latency_ms is not None and np.isfinite(r.latency_ms)])
    if not len(times):
        return None
    p50, p95 = np.percentile(times, (50, 95))
    # One slow frame must not squeeze all others into one bar: the last bar holds all beyond twice the 95th percentile.
    edge = max(2 * p95, 1e-3)
    figure = Figure(figsize=(9.5, 3.2), layout='constrained')
    axes = figure.add_subplot()
    axes.hist(np.clip(times, 0, edge), bins=np.linspace(0, edge, 61), color=GOOD, alpha=0.85)
    for value, name, style in ((p50, 'p50', '-'), (p95, 'p95', '--')):
        axes.axvline(value, color='black', linewidth=1.2, linestyle=style, label=f'{name} {value:.1f} ms')
    late = int((times > edge).sum())
    slower = f'; last bar: {late} slower, up to {times.max():.0f} ms' if late else ''
    axes.set(xlabel=f'latency [ms]{slower}', ylabel='frames', xlim=(0, edge))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def _view_from_above(poses: Sequence[np.ndarray]) -> tuple[int, int, tuple[str, str]]:
    """Axes of the map that point right and ahead on the page.

    Up is z in a ROS map, but many data sets have the axes of their first camera: take the map axis nearest to the cameras'
    mean up (-y of the optical frame).
    """
    up = -np.mean([p[:3, 1] for p in poses], axis=0)
    if np.linalg.norm(up) < 0.3:
        up = np.array([0.0, 0.0, 1.0])  # cameras that look at the floor do not know where up is: z, as in REP-103
    axis = int(np.abs(up).argmax())
    right, ahead = (axis + 1) % 3, (axis + 2) % 3
    if up[axis] < 0:
        right, ahead = ahead, right
    return right, ahead, (f'{"xyz"[right]} of the map [m]', f'{"xyz"[ahead]} of the map [m]')


def _broken_line(results: Sequence[FrameResult], right: int, ahead: int) -> np.ndarray:
    """Reference path (M, 2) with NaN rows where the recording has a hole, so that separate parts are not joined."""
    known = [r for r in results if r.reference is not None]
    points = np.array([r.reference[[right, ahead], 3] for r in known]).reshape(-1, 2)  # type: ignore[index]
    holes = np.flatnonzero(is_hole(np.diff([r.stamp_ns for r in known]))) + 1
    return np.insert(points, holes, np.nan, axis=0)


def _window(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the drawn window: the reference with a margin, so that one wild estimate does not shrink the rest."""
    low, high = points.min(0), points.max(0)
    margin = 0.15 * max(float((high - low).max()), 0.2)
    return low - margin, high + margin


def _floor(low: np.ndarray, high: np.ndarray, labels: tuple[str, str]) -> tuple[Figure, Axes]:
    """An empty plan of this window, both axes to one scale."""
    width, height = high - low
    figure = Figure(figsize=(9.5, float(np.clip(8.5 * height / width + 1.3, 3.2, 7.5))), layout='constrained')
    axes = figure.add_subplot()
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=labels[0], ylabel=labels[1])
    axes.set_aspect('equal')
    axes.grid(alpha=0.3)
    return figure, axes


def _mark_limits(draw: object, values: Sequence[float]) -> None:
    for value in values:
        draw(value, color='black', linewidth=0.8, linestyle='--', alpha=0.6)  # type: ignore[operator]


def _png(figure: Figure) -> bytes:
    """Agg, never a window; without metadata, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.set_dpi(130)
    FigureCanvasAgg(figure).print_png(buffer, metadata={'Software': None})
    return buffer.getvalue()
