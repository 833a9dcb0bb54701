"""The command dsac-ros: help of every sub-command, one line for an error of the user, a traceback for ours."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsac_ros import cli
from dsac_ros.commands import convert
from dsac_ros.errors import DataError, Interrupted


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
