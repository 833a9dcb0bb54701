"""The command dsac-ros: help of every sub-command, one line for an error of the user, a traceback for ours."""
from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dsac_ros import cli
from dsac_ros.commands import convert
from dsac_ros.errors import DataError, Interrupted
from dsac_ros.training.mapping import stop_on_interrupt


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, '--help'])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and f'dsac-ros {name}' in text and len(text) > 300


def test_every_module_of_commands_is_a_command() -> None:
    modules = {path.stem for path in Path(convert.__file__).parent.glob('*.py')} - {'__init__'}
    assert modules == set(cli.COMMANDS)


@pytest.mark.parametrize('arguments', [[], ['fly'], ['map'], ['map', 'x', '--out', 'y', '--minutes', 'soon']])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and 'usage: dsac-ros' in capsys.readouterr().err


def test_an_error_of_the_user_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['map', str(tmp_path / 'none'), '--out', str(tmp_path / 'm.dsacmap')]) == 1
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('dsac-ros map: ') and 'none: no such file' in err and err.count('\n') == 1


def test_an_error_of_ours_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(convert, 'run', fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(['convert', 'a', '--out', 'b'])
    monkeypatch.setattr(convert, 'run', lambda _: (_ for _ in ()).throw(DataError('bag: empty')))
    assert cli.main(['convert', 'a', '--out', 'b']) == 1
    monkeypatch.setattr(convert, 'run', lambda _: (_ for _ in ()).throw(Interrupted('left; go on with --resume')))
    assert cli.main(['convert', 'a', '--out', 'b']) == cli.INTERRUPTED


def test_ctrl_c_while_the_commands_are_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, 'import_module', interrupted)
    assert cli.main(['map', 'a', '--out', 'b']) == cli.INTERRUPTED
    assert capsys.readouterr().err == 'dsac-ros: interrupted\n'


@pytest.fixture
def handlers() -> Any:
    """SIGINT and SIGTERM as a terminal has them, and afterwards as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def terminated(*_: Any) -> int:
    signal.raise_signal(signal.SIGTERM)
    return 0


@pytest.mark.parametrize('on_ctrl_c', [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_ctrl_c(handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_ctrl_c: Any) -> None:
    """Also where SIGINT is ignored, as in the background of a script."""
    monkeypatch.setattr(convert, 'run', terminated)
    signal.signal(signal.SIGINT, on_ctrl_c)
    assert cli.main(['convert', 'a', '--out', 'b']) == cli.INTERRUPTED
    assert capsys.readouterr().err == 'dsac-ros convert: interrupted\n' and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_keeps_the_best_map_so_far_as_ctrl_c_does(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Any) -> int:
        with stop_on_interrupt() as stopped:
            terminated()
            return 7 if stopped() else 0

    monkeypatch.setattr(convert, 'run', run)
    assert cli.main(['convert', 'a', '--out', 'b']) == 7


def test_whoever_handles_sigterm_goes_on_doing_so(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(convert, 'run', terminated)
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    assert cli.main(['convert', 'a', '--out', 'b']) == 0 and seen == [signal.SIGTERM]


@pytest.mark.parametrize('on_ctrl_c', [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_reaches_the_workers(handlers: None, monkeypatch: pytest.MonkeyPatch, on_ctrl_c: Any) -> None:
    worker = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(300,))

    def run(_: Any) -> int:
        worker.start()
        return terminated()

    monkeypatch.setattr(convert, 'run', run)
    signal.signal(signal.SIGINT, on_ctrl_c)
    assert cli.main(['convert', 'a', '--out', 'b']) == cli.INTERRUPTED
    worker.join(100)
    assert worker.exitcode not in (None, 0)


def test_a_process_that_is_terminated_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, '-m', 'dsac_ros.cli', 'synth', '--out', str(tmp_path / 'bag'), '--frames', '100000',
                                '--width', '64', '--height', '48', '--texels-per-metre', '30'], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 200
        while not any(tmp_path.iterdir()) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        process.terminate()
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED and 'Traceback' not in err and not any(tmp_path.iterdir()), err


@pytest.mark.parametrize(('command', 'given', 'expected'), [
    ('map', None, cli.SPINS), ('maps', None, cli.SPINS), ('finetune', None, cli.SPINS), ('map', '7', '7'), ('evaluate', None, None)])
def test_threads_that_train_sleep_soon(command: str, given: str | None, expected: str | None) -> None:
    """Said before torch is there to read it, and not to whoever says otherwise."""
    code = f'''
import os, sys

class Finder:
    def find_spec(self, name, *_):
        if name == 'torch':
            print(os.environ.get('GOMP_SPINCOUNT'))

sys.meta_path.insert(0, Finder())
from dsac_ros import cli
cli.main([{command!r}, '--help'])
'''
    environment = {name: value for name, value in os.environ.items() if name != 'GOMP_SPINCOUNT'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=200,
                          env={**environment, **({'GOMP_SPINCOUNT': given} if given else {})})
    assert done.stdout.splitlines()[0] == str(expected), done.stderr


def test_as_a_process(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, '-m', 'dsac_ros.cli', 'map', str(tmp_path / 'none'), '--out', str(tmp_path / 'm')],
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and 'Traceback' not in done.stderr and done.stderr.startswith('dsac-ros map: ')
