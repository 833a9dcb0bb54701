"""Training end to end starts from the map of the same seed, and what --set changes has a name and a row of its own."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import end_to_end, mapping_ablation
from benchmarks.end_to_end import FIRST, QUERIES, SETTINGS, main, run_job
from benchmarks.mapping_ablation import SLEEP_WHILE_WAITING, Job
from dsac_ros.config import FinetuningOptions, MappingOptions
from dsac_ros.errors import ConfigError
from dsac_ros.maps.bundle import load_map

TINY = {'minutes': 5.0, 'steps': 20, 'width': 64, 'augmented': 0, 'capacity': 20_000}
TINY_TRAINING = {'iterations': 2, 'hypotheses': 16, 'bits': 2.0, 'augmented': 0}


def test_all_settings_are_options() -> None:
    for options in SETTINGS.values():
        FinetuningOptions(**options['finetune']) if 'finetune' in options else MappingOptions(**options)
    assert len(QUERIES) == 8 and {modality for modality, _ in QUERIES.values()} == {'rgb', 'rgbd'}


def test_a_run_starts_from_the_first_map_of_its_seed(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = dict(list(QUERIES.items())[::5])
    monkeypatch.setattr(end_to_end, 'QUERIES', queries)
    trained = Job(str(room), None, (None,), 8, 'end to end, RGB', 3, {'finetune': TINY_TRAINING})
    with pytest.raises(ConfigError, match=f'room__{FIRST}_3.dsacmap: missing'):
        run_job(trained, tmp_path)
    first = run_job(Job(str(room), None, (None,), 8, FIRST, 3, TINY), tmp_path)
    record = run_job(trained, tmp_path)
    made = load_map(tmp_path / 'maps' / 'room__end-to-end-RGB_3.dsacmap').training
    assert made['finetuned']['from'].endswith(f'room__{FIRST}_3.dsacmap') and made['finetuned']['options']['seed'] == 3
    assert first['steps'] == 20 and record['steps'] == 2 and 0 < record['cpu_s']
    for each in (first, record):
        assert [test['query'] for test in each['tests']] == list(queries) and all(test['frames'] == 2 for test in each['tests'])


def test_settings_seeds_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(mapping_ablation, 'run', lambda jobs, folder, work: asked.extend(jobs) or 0)
    for name in SLEEP_WHILE_WAITING:
        monkeypatch.setenv(name, 'told otherwise')  # and put back at the end
    arguments: list[Any] = ['run', 'kitchen', '--train', 'fit', '--test', 'near', '--out', str(tmp_path / 'out'), '--seeds', '2',
                            '--only', f'{FIRST}|end to end, RGB-D', '--set', 'learning_rate=1e-4']
    assert main(arguments) == 0
    changed = 'end to end, RGB-D, learning_rate=1e-4'
    assert [(job.setting, job.seed) for job in asked] == [(FIRST, 0), (changed, 0), (FIRST, 1), (changed, 1)]
    assert asked[0].options == SETTINGS[FIRST]
    assert asked[1].options == {'finetune': {'modality': 'rgbd', 'minutes': 10.0, 'learning_rate': 1e-4}}
    with pytest.raises(SystemExit):
        main([*arguments[:-3], 'end to end'])
