"""report.html: one file that opens anywhere, plots inside."""
from __future__ import annotations

import base64
from html import escape
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from dsac_ros.evaluation.metrics import FALSE_ACCEPT_DEG, FALSE_ACCEPT_M, THRESHOLDS, errors_of
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.tables import stage_names

# Of what a reader warns of, what costs no image and no message: frames without depth or reference are evaluated all the same.
KEPT = ('no_depth', 'no_pose', 'depth_size', 'depth_frame', 'assumed_camera_pose', 'time_jump')
NO_ERRORS = 'The source has no reference poses, so there are no errors.'
STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 2em } p.under { color: #555; margin-top: .2em }
table { border-collapse: collapse; margin: .6em 0 } td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top }
td, th { border-bottom: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } img { width: 100%; height: auto }
.tiles { display: flex; flex-wrap: wrap; gap: .8em; margin: 1.2em 0 }
.tile { border: 1px solid #ddd; border-radius: 6px; padding: .5em 1em; min-width: 8.5em }
.tile b { display: block; font-size: 1.5em } .tile span { color: #555; font-size: .9em } code { overflow-wrap: anywhere }
'''


def render(results: Sequence[FrameResult], summary: Mapping[str, Any]) -> str:
    """The page of one run; `summary` is what summary.json holds."""
    from dsac_ros.evaluation import plots  # here: every call of dsac-ros imports this module, and matplotlib takes a second
    run = summary['run']
    title = f'{run["modality"]} {"live" if run["live"] else "offline"} replay of {run["map"]}'
    under = f'{run["source"]}{", split " + run["split"] if run["split"] else ""}; {summary["frames"]} frames; {run["created"]}'
    sections = [
        _tiles(summary), '<h2>Summary</h2>', _table(('', ''), summary_rows(summary)),
        *_figure('Trajectory from above', plots.trajectory(results), 'No pose to draw.',
                 'Lines join each answer with its reference. Nothing is aligned: both are in the frame of the map.'),
        *_figure('Error by place', plots.coverage(results), NO_ERRORS,
                 'Where the map is good and where it wants more frames: every frame at its reference, with its direction, by the error of '
                 'its answer.'),
        *_figure('Error over time', plots.error_over_time(results), NO_ERRORS),
        *_figure('Cumulative error', plots.cumulative_error(results), NO_ERRORS,
                 'Over all frames with a reference. No answer is an infinite error: the curve ends at the share of answers.'),
        *_figure('Latency', plots.latency(results), 'No latency was measured.', _latency_note(run['live'])),
        _stages(results), '<h2>Frames without an answer</h2>', _reasons(summary), '<h2>Worst answers</h2>', _worst(results),
        '<h2>Run</h2>', _table(('', ''), _flat(run))]
    body = '\n'.join(section for section in sections if section)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
            f'<body><h1>{escape(title)}</h1><p class="under">{escape(under)}</p>\n{body}\n</body></html>\n')


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers that a reader asks for first, as (label, text); the command prints the same rows."""
    rows = [('frames', f'{summary["frames"]} ({summary["frames_without_reference"]} without a reference)'),
            ('answered', f'{summary["answered"]} (availability {percent(summary["availability"])})'),
            ('left out by the reader', _left_out(summary['run']['left_out'])),
            ('median error', f'{centimetres(summary["median_translation_m"])}, {degrees(summary["median_rotation_deg"])}'),
            ('median error of the answers',
             f'{centimetres(summary["median_translation_m_answered"])}, {degrees(summary["median_rotation_deg_answered"])}')]
    rows += [(f'within {m * 100:g} cm, {deg:g} deg', percent(summary[f'within_{name}'])) for name, m, deg in THRESHOLDS]
    return rows + [
        (f'false accepts (> {FALSE_ACCEPT_M:g} m or {FALSE_ACCEPT_DEG:g} deg)',
         f'{percent(summary["false_accepts"])} ({summary["false_accept_count"]})'),
        ('published by the node, false ones', f'{percent(summary["published"])}, {_number(summary["published_false_accept_count"])}'),
        ('good poses rejected', percent(summary['false_rejects'])),
        ('longest gap, time to first pose', f'{_number(summary["longest_gap_s"], "s")}, {_number(summary["time_to_first_fix_s"], "s")}'),
        ('NEES median (honest: 5.35)', _number(summary['nees_median'])),
        ('covariance coverage 50, 90, 99 %', ', '.join(percent(summary[f'coverage_{p}']) for p in (50, 90, 99))),
        ('latency p50, p95, p99', ', '.join(_number(summary[f'latency_p{p}_ms'], 'ms') for p in (50, 95, 99)))]


def percent(share: float | None) -> str:
    """0.625 -> '62.5 %'."""
    return '-' if share is None else f'{share * 100:.1f} %'


def centimetres(metres: float | None) -> str:
    """0.0213 -> '2.13 cm'; None, an infinite median, -> 'infinite'."""
    return 'infinite' if metres is None else f'{metres * 100:.2f} cm'


def degrees(value: float | None) -> str:
    """0.5 -> '0.50 deg'."""
    return 'undefined' if value is None else f'{value:.2f} deg'


def _number(value: float | None, unit: str = '') -> str:
    digits = 0 if isinstance(value, int) else 1
    return '-' if value is None else f'{value:.{digits}f} {unit}'.rstrip()


def _left_out(warnings: Mapping[str, int]) -> str:
    causes = {cause: count for cause, count in sorted(warnings.items()) if count and cause not in KEPT}
    listed = ', '.join(f'{cause}: {count}' for cause, count in causes.items())
    return f'{sum(causes.values())} messages ({listed})' if causes else 'nothing'


def _tiles(summary: Mapping[str, Any]) -> str:
    tiles = ((centimetres(summary['median_translation_m']), 'median translation'),
             (degrees(summary['median_rotation_deg']), 'median rotation'), (percent(summary['within_5cm_5deg']), 'within 5 cm, 5 deg'),
             (percent(summary['availability']), 'availability'), (percent(summary['false_accepts']), 'false accepts'),
             (_number(summary['latency_p95_ms'], 'ms'), 'latency p95'))
    boxes = ''.join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{boxes}</div>'


def _figure(title: str, png: bytes | None, absent: str, note: str = '') -> list[str]:
    if png is None:
        return [f'<h2>{escape(title)}</h2>', f'<p>{escape(absent)}</p>']
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return [f'<h2>{escape(title)}</h2>', image, f'<p class="under">{escape(note)}</p>' if note else '']


def _latency_note(live: bool) -> str:
    return ('From the image being sent to its pose being received, the middleware included.' if live
            else 'Time in the localizer, from frame to estimate; reading and decoding of the source not included.')


def _stages(results: Sequence[FrameResult]) -> str:
    rows = []
    for stage in stage_names(results):
        times = [r.stage_times_ms[stage] for r in results if stage in r.stage_times_ms]
        rows.append((stage, *(f'{np.percentile(times, p):.1f}' for p in (50, 95))))
    return _table(('stage', 'p50 [ms]', 'p95 [ms]'), rows, numbers=True) if rows else ''


def _reasons(summary: Mapping[str, Any]) -> str:
    if not summary['reasons']:
        return '<p>Every frame has an answer.</p>'
    rows = sorted(summary['reasons'].items(), key=lambda item: -item[1])
    note = '<p class="under">A frame counts once for each test that it failed.</p>'
    return _table(('reason', 'frames', 'share'), [(r, str(n), percent(n / summary['frames'])) for r, n in rows], numbers=True) + note


def _worst(results: Sequence[FrameResult], count: int = 10) -> str:
    """The answers with the largest translation errors, the evidence beside them."""
    judged = [(errors, r) for r in results if r.answered and (errors := errors_of(r)) is not None]
    judged.sort(key=lambda item: -item[0][0])
    rows = [(r.name or str(r.stamp_ns), f'{m * 100:.1f}', f'{deg:.2f}', _number(r.inliers), percent(r.inlier_ratio), r.expert or '-')
            for (m, deg), r in judged[:count]]
    header = ('frame', 'error [cm]', 'error [deg]', 'inliers', 'ratio', 'expert')
    return _table(header, rows, numbers=True) if rows else '<p>None to judge.</p>'


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        nested = value if isinstance(value, Mapping) else {}
        plain = [(key, '-' if value in ('', None, {}) else str(value))]
        rows += [(f'{key}.{k}', str(v)) for k, v in nested.items()] or plain
    return rows


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """An HTML table; with `numbers` all columns but the first are set to the right."""
    def line(tag: str, cells: Sequence[str]) -> str:
        marks = [' class="number"' if numbers and i else '' for i in range(len(cells))]
        return '<tr>' + ''.join(f'<{tag}{mark}>{escape(cell)}</{tag}>' for cell, mark in zip(cells, marks)) + '</tr>'
    head = line('th', header) if any(header) else ''
    return f'<table>{head}{"".join(line("td", row) for row in rows)}</table>'
