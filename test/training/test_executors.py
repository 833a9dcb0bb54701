"""Jobs in processes that are really killed, fail and are resumed; and on a real local Ray cluster where Ray is installed."""
from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from dsac_ros.errors import ConfigError
from dsac_ros.training.executors import TRIES, run_jobs

HERE = Path(__file__).parent
HAS_RAY = importlib.util.find_spec('ray') is not None
RAY = pytest.param('ray', marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason='Ray is not installed')])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers import what they run by name."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(HERE), *sys.path]))


def run(folder: Path, tasks: list[str], executor: str = 'local', workers: int = 2) -> tuple[dict[str, str], dict[str, str]]:
    from jobs import work
    ended: dict[str, str] = {}
    jobs = {task.partition(':')[0]: (str(folder), task) for task in tasks}
    failed = run_jobs(work, jobs, lambda name: (folder / f'{name}.done').exists(), executor, workers, ended.__setitem__)
    return failed, ended


def tries(folder: Path, name: str) -> int:
    return len(list(folder.glob(f'{name}.try*')))


@pytest.mark.parametrize('executor', ['local', RAY])
def test_a_failed_room_and_a_killed_worker_do_not_lose_the_others(tmp_path: Path, executor: str) -> None:
    failed, ended = run(tmp_path, ['a', 'b:bad', 'c:killed1', 'd:bug', 'e'], executor)
    assert failed == {'b': 'b: no poses', 'd': "KeyError: 'd'"}
    assert ended == {'a': '', 'b': 'b: no poses', 'c': '', 'd': "KeyError: 'd'", 'e': ''}
    assert {file.stem for file in tmp_path.glob('*.done')} == {'a', 'c', 'e'}
    assert [tries(tmp_path, name) for name in 'abcde'] == [1, 1, 2, 1, 1]  # what a job raises is not tried again


@pytest.mark.parametrize('executor', ['local', RAY])
def test_a_worker_that_always_dies_is_given_up_and_named(tmp_path: Path, executor: str) -> None:
    failed, _ = run(tmp_path, ['a:killed99', 'b'], executor)
    assert list(failed) == ['a'] and 'without an answer' in failed['a']
    assert tries(tmp_path, 'a') == TRIES and (tmp_path / 'b.done').exists()


def test_what_is_done_is_not_made_again(tmp_path: Path) -> None:
    assert run(tmp_path, ['a', 'b:bad'])[0] == {'b': 'b: no poses'}
    assert run(tmp_path, ['a', 'b', 'c'])[0] == {}
    assert [tries(tmp_path, name) for name in 'abc'] == [1, 2, 1]


def test_every_job_has_a_process_of_its_own(tmp_path: Path) -> None:
    run(tmp_path, ['a', 'b', 'c'])
    processes = {file.read_text().split()[0] for file in tmp_path.glob('*.try0')}
    assert len(processes) == 3 and str(os.getpid()) not in processes


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match="local or ray, found 'slurm'"):
        run_jobs(print, {}, lambda name: False, 'slurm')


def test_less_than_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='workers: expected 0 .* or more, found -1'):
        run(tmp_path, ['a'], workers=-1)


def test_ray_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ConfigError, match='Ray is not installed'):
        run_jobs(print, {'a': 1}, lambda name: False, 'ray')
