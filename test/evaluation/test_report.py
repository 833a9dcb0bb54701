"""The results folder: every file is there, parses with strict readers, is the same twice, and never destroys anything."""
from __future__ import annotations

import base64
import csv
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsac_ros.errors import DataError
from dsac_ros.evaluation import metrics, report, tables
from dsac_ros.evaluation.page import summary_rows
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.tables import PER_FRAME_COLUMNS, write_json


def write(folder: Path, results, overwrite=False, **options):
    return report.write_results(folder, results, report.describe_run(Path('a & b.dsacmap'), 'bag', 'rgbd', 'cpu', options), overwrite)


@pytest.fixture
def no_page(monkeypatch):
    """Plots take seconds: tests of the other files do without."""
    monkeypatch.setattr(report.page, 'render', lambda *_: 'page')


def read_strict(path: Path):
    """JSON as other languages read it: NaN and Infinity are errors."""
    def refuse(word):
        raise AssertionError(f'{path}: {word}')
    return json.loads(path.read_text(), parse_constant=refuse)


def test_folder_is_complete_and_consistent(tmp_path, run_of_60, no_page):
    summary = write(tmp_path / 'results', run_of_60, split='val')
    folder = tmp_path / 'results'
    assert sorted(p.name for p in folder.iterdir()) == sorted(report.FILES)
    assert [p.name for p in tmp_path.iterdir()] == ['results']
    stored = read_strict(folder / 'summary.json')
    assert stored == json.loads(json.dumps(summary))
    assert {'frames', 'answered', 'median_translation_m', 'median_rotation_deg', 'within_5cm_5deg', 'within_2cm_2deg', 'availability',
            'false_accepts', 'latency_p50_ms', 'latency_p95_ms'} <= set(stored)
    assert read_strict(folder / 'metrics.json') == {k: v for k, v in stored.items() if not k.startswith('latency') and k != 'run'}
    assert stored['run']['split'] == 'val' and stored['run']['options'] == {'split': 'val'} and stored['run']['device']


def test_tum_files_hold_the_poses(tmp_path, run_of_60, no_page):
    write(tmp_path / 'r', run_of_60)
    lines = (tmp_path / 'r' / 'est.tum').read_text().splitlines()
    assert lines[0].split()[0] == '1700000000.123456789'
    answered = [r for r in run_of_60 if r.answered]
    assert len(lines) == len(answered)
    for line, r in zip(lines, answered):
        values = np.array(line.split()[1:], dtype=float)
        np.testing.assert_allclose(values[:3], r.map_from_camera[:3, 3], atol=1e-9)
        np.testing.assert_allclose(Rotation.from_quat(values[3:]).as_matrix(), r.map_from_camera[:3, :3], atol=1e-8)
    assert len((tmp_path / 'r' / 'ref.tum').read_text().splitlines()) == sum(r.reference is not None for r in run_of_60)


def test_per_frame_csv_is_read_again(tmp_path, run_of_60):
    tables.write_per_frame(tmp_path / 'a.csv', run_of_60)
    again = tables.read_per_frame(tmp_path / 'a.csv')
    for one, two in zip(run_of_60, again, strict=True):
        for name in ('stamp_ns', 'name', 'answered', 'modality', 'state', 'reasons', 'expert', 'inliers', 'spread', 'tracked', 'published'):
            assert getattr(one, name) == getattr(two, name), name
        for name in ('map_from_camera', 'covariance', 'reference'):
            if getattr(one, name) is None:
                assert getattr(two, name) is None
            else:
                np.testing.assert_allclose(getattr(two, name), getattr(one, name), atol=2e-9)
    tables.write_per_frame(tmp_path / 'b.csv', [replace(run_of_60[0], tracked=False, published=True, landmarks=7.0)])
    [read] = tables.read_per_frame(tmp_path / 'b.csv')
    assert (read.tracked, read.published, read.landmarks) == (False, True, 7.0)
    with pytest.raises(DataError, match='none.csv'):
        tables.read_per_frame(tmp_path / 'none.csv')


def test_reasons_with_details(tmp_path):
    """They stay as many as they were in per_frame.csv, and summary.json counts them by cause."""
    details = [('no_camera_info: none yet; is it published?',), ('too_old: 3.1 s', 'weak_position'), ('too_old: 3.2 s',)]
    results = [FrameResult(i, '', False, 'rgb', reasons=reasons) for i, reasons in enumerate(details)]
    tables.write_per_frame(tmp_path / 'a.csv', results)
    assert [r.reasons for r in tables.read_per_frame(tmp_path / 'a.csv')] == [
        ('no_camera_info: none yet, is it published?',), *details[1:]]
    assert metrics.summarise(results)['reasons'] == {'no_camera_info': 1, 'too_old': 2, 'weak_position': 1}


def test_counts_are_printed_without_decimals(run_of_60):
    results = [replace(r, published=r.answered) for r in run_of_60]
    rows = dict(summary_rows(metrics.summarise(results) | {'run': {'left_out': {}}}))
    assert rows['published by the node, false ones'] == '90.0 %, 3' and rows['NEES median (honest: 5.35)'].count('.') == 1


@pytest.mark.parametrize('warnings, told', [
    ({'undecodable': 3, 'no_depth': 4, 'camera_size': 2, 'out_of_order': 0}, '5 messages (camera_size: 2, undecodable: 3)'),
    ({'no_pose': 1}, 'nothing')])
def test_what_the_reader_left_out_is_told_beside_the_availability(run_of_60, warnings, told):
    """It is no frame, so that no other figure knows of it."""
    run = report.describe_run(Path('m'), 'bag', 'rgb', 'cpu', {}, warnings)
    rows = summary_rows(metrics.summarise(run_of_60) | {'run': run})
    assert rows[1] == ('answered', '54 (availability 90.0 %)') and rows[2] == ('left out by the reader', told)


def test_per_frame_csv_is_enough_to_compute_the_summary(tmp_path, run_of_60, no_page):
    summary = write(tmp_path / 'r', run_of_60)
    with (tmp_path / 'r' / 'per_frame.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == PER_FRAME_COLUMNS and len(rows) == 60
    judged = [row for row in rows if row['ref_tx']]
    errors = [float(row['translation_error_m']) if row['answered'] == '1' else np.inf for row in judged]
    assert np.median(errors) == pytest.approx(summary['median_translation_m'], rel=1e-8)
    assert rows[20]['reasons'] == 'few_inliers;spread' and rows[20]['answered'] == '0' and rows[20]['est_tx']
    assert rows[40]['translation_error_m'] == '' and rows[40]['nees'] == ''
    covariance = np.zeros((6, 6))
    covariance[np.triu_indices(6)] = [float(rows[0][c]) for c in PER_FRAME_COLUMNS if c.startswith('cov_')]
    np.testing.assert_allclose(covariance, run_of_60[0].covariance, rtol=1e-8)
    nees = [float(row['nees']) for row in rows if row['answered'] == '1' and row['nees']]
    assert np.mean(nees) == pytest.approx(summary['nees_mean'], rel=1e-6)


def test_timing_csv_has_a_column_a_stage(tmp_path, run_of_60, no_page):
    write(tmp_path / 'r', run_of_60)
    with (tmp_path / 'r' / 'timing.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['stamp_ns', 'name', 'latency_ms', 'encoder_ms', 'estimator_ms']
    assert float(rows[3]['encoder_ms']) == 33.0


def test_same_results_give_the_same_bytes(tmp_path, run_of_60, no_page):
    """Poses the same, clock readings not: everything but summary, timing and report must be equal."""
    write(tmp_path / 'a', run_of_60)
    again = [FrameResult(**{**r.__dict__, 'latency_ms': r.latency_ms * 1.1, 'stage_times_ms': {}}) for r in run_of_60]
    write(tmp_path / 'b', again)
    for name in report.REPRODUCIBLE:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes(), name
    assert set(report.FILES) - set(report.REPRODUCIBLE) == {'summary.json', 'timing.csv', 'report.html'}


class Page(HTMLParser):
    """Checks that tags nest and collects images, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.images, self.outside, self.text = [], [], [], ''

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == 'img':
            self.images.append(attributes['src'])
        self.outside += [v for k, v in attrs if k in ('src', 'href') and not v.startswith('data:')]
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert not page.open and not page.outside
    return page


def test_report_is_one_file_with_five_plots(tmp_path, run_of_60):
    summary = write(tmp_path / 'r', run_of_60)
    page = parse(tmp_path / 'r' / 'report.html')
    assert len(page.images) == 5
    for source in page.images:
        png = np.frombuffer(base64.b64decode(source.removeprefix('data:image/png;base64,')), np.uint8)
        image = cv2.imdecode(png, cv2.IMREAD_COLOR)
        assert image.shape[1] >= 900 and image.std() > 5  # something is drawn
    assert 'a & b.dsacmap' in page.text and 'few_inliers' in page.text
    assert f'{summary["median_translation_m"] * 100:.2f} cm' in page.text


@pytest.mark.parametrize('case', ['empty', 'no_reference', 'all_rejected', 'no_pose', 'one_frame'])
def test_report_of_poor_runs(tmp_path, run_of_60, case):
    pick = {'empty': [], 'one_frame': run_of_60[:1], 'no_reference': [FrameResult(**{**r.__dict__, 'reference': None}) for r in run_of_60],
            'all_rejected': [FrameResult(**{**r.__dict__, 'answered': False}) for r in run_of_60],
            'no_pose': [FrameResult(i, '', False, 'rgb', reasons=('no_depth',)) for i in range(3)]}[case]
    summary = write(tmp_path / 'r', pick)
    page = parse(tmp_path / 'r' / 'report.html')
    assert len(page.images) == {'empty': 0, 'no_reference': 2, 'no_pose': 0}.get(case, 5)
    read_strict(tmp_path / 'r' / 'summary.json')
    if case == 'all_rejected':
        assert 'infinite' in page.text and summary['availability'] == 0
    if case == 'no_reference':
        assert summary['within_5cm_5deg'] is None and summary['availability'] == 0.9


def test_older_results_are_replaced_only_when_asked(tmp_path, run_of_60, no_page):
    folder = tmp_path / 'r'
    write(folder, run_of_60)
    before = (folder / 'summary.json').read_bytes()
    with pytest.raises(DataError, match='--overwrite'):
        write(folder, run_of_60[:10])
    assert (folder / 'summary.json').read_bytes() == before
    write(folder, run_of_60[:10], overwrite=True)
    assert read_strict(folder / 'summary.json')['frames'] == 10
    assert [p.name for p in tmp_path.iterdir()] == ['r']


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, run_of_60, no_page):
    write(tmp_path / 'v1', run_of_60)
    (tmp_path / 'current').symlink_to('v1')
    write(tmp_path / 'current', run_of_60[:10], overwrite=True)
    assert [read_strict(tmp_path / name / 'summary.json')['frames'] for name in ('current', 'v1')] == [10, 60]
    assert not (tmp_path / 'current').is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ['current', 'v1']


def test_older_results_are_back_where_the_new_ones_cannot_be_moved(tmp_path, run_of_60, no_page, monkeypatch):
    folder, rename = tmp_path / 'r', os.rename
    write(folder, run_of_60)

    def failing(source, target):
        if target == folder and '.old.' not in str(source):
            raise OSError(5, 'Input/output error')
        rename(source, target)
    for name in ('rename', 'replace'):
        monkeypatch.setattr(os, name, failing)
    with pytest.raises(DataError, match='r: cannot be written: Input/output error'):
        write(folder, run_of_60[:10], overwrite=True)
    assert read_strict(folder / 'summary.json')['frames'] == 60 and [p.name for p in tmp_path.iterdir()] == ['r']


def test_the_working_directory_is_no_place_for_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r'^\.: cannot be written: .*working directory'):
        report.check_place(Path('.'), overwrite=False)


def test_a_stranger_s_folder_is_left_alone(tmp_path, run_of_60, no_page):
    (tmp_path / 'thesis.tex').write_text('ten years')
    with pytest.raises(DataError, match='thesis.tex'):
        write(tmp_path, run_of_60, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
    with pytest.raises(DataError, match='file'):
        write(tmp_path / 'thesis.tex', run_of_60, overwrite=True)


@pytest.mark.parametrize('place', ['/proc/nowhere/results', 'a_file/results', 'a_file/of/results'])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, place):
    (tmp_path / 'a_file').touch()
    with pytest.raises(DataError, match=f'{place}: cannot be written'):
        report.check_place(tmp_path / place, overwrite=False)


def test_a_crash_leaves_nothing(tmp_path, run_of_60, monkeypatch):
    monkeypatch.setattr(report.page, 'render', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / 'r', run_of_60)
    assert not list(tmp_path.iterdir())


def test_json_has_no_infinities(tmp_path):
    write_json(tmp_path / 'x.json', {'a': float('inf'), 'b': [np.float64('nan'), 1, np.int64(2)], 'c': {'d': Path('/x')}})
    assert read_strict(tmp_path / 'x.json') == {'a': None, 'b': [None, 1, 2], 'c': {'d': '/x'}}


def test_every_metric_and_column_is_documented(run_of_60):
    text = (Path(__file__).parents[2] / 'docs' / 'evaluation.md').read_text()
    known = set(re.findall(r'`([a-z0-9_]+)`', text))
    assert set(metrics.summarise(run_of_60)) <= known
    assert {c for c in PER_FRAME_COLUMNS if c[:4] not in ('est_', 'ref_', 'cov_')} <= known
    run = report.describe_run(Path('m'), 's', 'rgb', 'cpu', {})
    assert set(run) <= known
