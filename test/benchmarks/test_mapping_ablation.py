"""Runs of the ablation are made once, with the CPU time they were given, and tables say what the records say."""
from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mapping_ablation
from benchmarks.mapping_ablation import SLEEP_WHILE_WAITING, SUITES, THREADS, Job, cpu_clock, main, read_runs, report, run, run_job, spread
from dsac_ros.config import MappingOptions
from dsac_ros.errors import DataError
from dsac_ros.maps.bundle import load_map

TINY = {'minutes': 5.0, 'steps': 20, 'width': 64, 'augmented': 0, 'capacity': 20_000}


def job(source: Path, setting: str = 'default', seed: int = 0, **options: Any) -> Job:
    return Job(str(source), None, (None,), 5, setting, seed, {**TINY, **options})


def test_the_clock_counts_work_and_no_sleep() -> None:
    begin = cpu_clock()
    time.sleep(0.3)
    slept = cpu_clock() - begin
    work_s = time.process_time() + 0.2  # of all threads, hence no bound on the wall clock
    while time.process_time() < work_s:
        pass
    worked = cpu_clock() - begin - slept
    assert slept < 0.1 and worked == pytest.approx(0.2 / THREADS, abs=0.05)


def test_all_settings_are_options_and_differ() -> None:
    for suite in SUITES.values():
        made = [MappingOptions(**options) for options in suite.values()]
        assert len(set(made)) == len(made)
    assert {options['minutes'] for options in SUITES['choices'].values()} == {2.0}


def test_a_run_says_what_was_made_and_how_good_it_is(room: Path, tmp_path: Path) -> None:
    record = run_job(replace(job(room, 'some, name', 3), tests=(None, str(room))), tmp_path)
    path = tmp_path / 'maps' / 'room__some-name_3.dsacmap'
    bundle = load_map(path)
    assert bundle.training['options'] == asdict(MappingOptions(**TINY, seed=3))
    assert record['steps'] == 20 and record['landmarks'] == len(bundle.landmarks.points_L3) > 0
    assert record['cpu_s'] == THREADS * bundle.training['seconds'] and record['wall_s'] > 1
    assert record['megabytes'] == pytest.approx(sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) / 1e6)
    queries = ['RGB', 'RGB-D', 'RGB, cells alone', 'RGB-D, cells alone']
    assert [test['query'] for test in record['tests']] == 2 * queries
    assert [test['split'] for test in record['tests']] == 4 * [None] + 4 * [str(room)]
    assert all(test['frames'] == 4 for test in record['tests'])
    good, bad = record['tests'][0], record['tests'][2]
    assert good['median_translation_m'] < 0.05  # landmarks, in mapped views
    assert bad['median_translation_m'] is None or bad['median_translation_m'] > 0.05  # a head of 20 steps


def test_a_map_without_landmarks_is_asked_for_cells_only(room: Path, tmp_path: Path) -> None:
    record = run_job(job(room, landmarks=0), tmp_path)
    assert [test['query'] for test in record['tests']] == ['RGB, cells alone', 'RGB-D, cells alone'] and record['landmarks'] == 0


def test_what_is_done_is_not_done_again_and_a_failure_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    class Here:
        """Runs in this process."""

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def submit(self, _: Any, job: Job, folder: Path) -> Any:
            done.append(job.setting)
            if job.setting == 'bad':
                raise DataError('no frames')
            return type('Future', (), {'result': lambda self: {'job': asdict(job), 'tests': []}})()

    monkeypatch.setattr(mapping_ablation, 'ProcessPoolExecutor', Here)
    jobs = [job(Path('a'), name) for name in ('first', 'bad', 'second')]
    assert run(jobs, tmp_path) == 1 and done == ['first', 'bad', 'second'] and 'bad_0: no frames' in capsys.readouterr().err
    assert run(jobs, tmp_path) == 1 and done[3:] == ['bad']
    assert run([job(Path('a'), 'first', width=32)], tmp_path) == 0 and done[4:] == ['first']
    assert [record['job']['setting'] for record in read_runs(tmp_path)] == ['first', 'second', 'first']


def test_seeds_come_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(mapping_ablation, 'run', lambda jobs, folder, work: asked.extend(jobs) or 0)
    for name in SLEEP_WHILE_WAITING:
        monkeypatch.setenv(name, 'told otherwise')
    arguments = ['run', 'choices', 'kitchen', '--train', 'fit', '--test', 'near', 'far', '--out', str(tmp_path / 'out')]
    assert main([*arguments, '--seeds', '2', '--only', 'default|width 64', '--minutes', '0.5']) == 0
    assert [(j.setting, j.seed) for j in asked] == [(f'{name}, 0.5 min', seed) for seed in (0, 1) for name in ('default', 'width 64')]
    assert asked[1] == Job('kitchen', 'fit', ('near', 'far'), 1, 'width 64, 0.5 min', 0, {'minutes': 0.5, 'width': 64})
    assert {name: os.environ[name] for name in SLEEP_WHILE_WAITING} == SLEEP_WHILE_WAITING
    with pytest.raises(SystemExit):
        main([*arguments, '--only', 'width 65'])


def made(setting: str, seed: int, split: str, centimetres: float | None, share: float) -> dict[str, Any]:
    test = {'split': split, 'query': 'RGB', 'median_translation_m': None if centimetres is None else centimetres / 100,
            'median_rotation_deg': 0.5, 'false_accept_count': seed, 'availability': 0.5,
            **{f'within_{name}': share for name in ('5cm_5deg', '2cm_2deg', '1cm_1deg')}}
    return {'job': {'source': '/x/kfit', 'setting': setting, 'seed': seed}, 'steps': 10 + seed, 'cpu_s': 240.4, 'megabytes': 1.25,
            'tests': [test]}


def test_tables_hold_median_and_range_over_the_seeds() -> None:
    runs = [made('default', seed, 'near', cm, share) for seed, cm, share in ((0, 1.0, 0.5), (1, 4.0, 0.7), (2, None, 0.6))]
    runs.append(made('other', 0, 'far', 3.0, 1.0))
    short = report(runs, full=False).splitlines()
    assert '`kfit` `near`: median, within 5 cm 5 deg, within 2 cm 2 deg' in short
    assert '| default | 3 | 11 (10..12) | 4.00 (1.00..inf) cm, 60 (50..70) %, 60 (50..70) % |' in short
    assert '| other | 1 | 10 |  |' in short and '| other | 1 | 10 | 3.00 cm, 100 %, 100 % |' in short
    full = report(runs, full=True).splitlines()
    assert ('| default | 3 | 240 | 1.2 | 4.00 (1.00..inf) | 0.50 | 60 (50..70) | 60 (50..70) | 60 (50..70) | 50 | 1 (0..2) |') in full
    assert '| other | 1 | 240 | 1.2 | 3.00 | 0.50 | 100 | 100 | 100 | 50 | 0 |' in full
    assert len([line for line in full if line.startswith('| other')]) == 1


def test_spread() -> None:
    assert spread([3.0, 1.0, 8.0], '.1f') == '3.0 (1.0..8.0)' and spread([2.01, 2.02], '.1f') == '2.0'


@pytest.mark.slow
def test_whole_in_processes_of_its_own(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 minutes of two cores are 12 CPU seconds: not much more is used, whatever else the machine does."""
    for name in SLEEP_WHILE_WAITING:
        monkeypatch.setenv(name, 'told otherwise')  # and put back at the end
    arguments = ['run', 'choices', str(room), '--every', '8', '--seeds', '1', '--only', 'width 64', '--minutes', '0.1', '--out',
                 str(tmp_path)]
    assert main(arguments) == 0
    written = (tmp_path / 'runs.jsonl').read_text()
    record = json.loads(written)
    assert 0 < record['cpu_s'] < 30 and record['steps'] > 0
    assert main(arguments) == 0 and (tmp_path / 'runs.jsonl').read_text() == written
    capsys.readouterr()
    assert main(['report', str(tmp_path)]) == 0 and '| width 64, 0.1 min | 1 |' in capsys.readouterr().out
