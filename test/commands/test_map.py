"""dsac-ros map: arguments become options, what it prints is what the map records, and Ctrl-C leaves a map."""
from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsac_ros import cli
from dsac_ros.commands import map as command
from dsac_ros.config import MappingOptions
from dsac_ros.data import opening
from dsac_ros.errors import ConfigError
from dsac_ros.maps.bundle import load_map
from dsac_ros.training import mapping

RECORD = dict(options={'landmarks': 9000}, frames=40, frames_given=60, triangulated=40, landmarks=300, samples=5000, steps=77,
              seconds=12.3, interrupted=False, poses={},
              held_out={'rgb': {'frames': 9, 'median_translation_m': 0.0312, 'median_rotation_deg': 0.77}})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked of the mapping, which is not run."""
    seen: dict[str, Any] = {}

    def source(path: str, options: argparse.Namespace, **named: Any) -> Any:
        seen.update(path=path, **named)
        return SimpleNamespace(warnings={'no_depth': 3}, details={})

    def make(_: Any, out: str, options: MappingOptions, device: str, name: str, overwrite: bool) -> Any:
        seen.update(out=out, options=options, device=device, name=name, overwrite=overwrite)
        return SimpleNamespace(training=RECORD)

    monkeypatch.setattr(opening, 'source_from', source)
    monkeypatch.setattr(mapping, 'map_source', make)
    return seen


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_defaults_are_those_of_the_options(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run('bag', '--out', 'maps/kitchen.v2.dsacmap') == 0
    assert asked['options'] == MappingOptions() and asked['require_poses'] and asked['load_depth']
    given = [asked[key] for key in ('path', 'out', 'device', 'name', 'overwrite')]
    assert given == ['bag', 'maps/kitchen.v2.dsacmap', 'auto', 'kitchen', False]
    out = capsys.readouterr().out
    assert '77 steps in 12 s' in out and 'rgb: 3.1 cm, 0.77 deg in the median of 9 frames' in out and '3 x no_depth' in out
    assert 'interrupted' not in out and 'disagreed' not in out


@pytest.mark.parametrize('moved', [0, 31])
def test_moved_poses_are_told(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                              moved: int) -> None:
    poses = {'given_px': 0.58, 'px': 0.41, 'moved': moved, 'moved_m': 0.0068, 'turned_deg': 0.14}
    monkeypatch.setitem(RECORD, 'poses', poses)
    assert run('bag', '--out', 'm.dsacmap') == 0
    said = ('images disagreed with the poses, or with the calibration, by 0.58 px in the median: 31 poses moved by 0.7 cm, 0.14 deg '
            '(0.41 px left; --set adjust_poses=false keeps them)')
    assert (said in capsys.readouterr().out) is (moved > 0)


@pytest.mark.parametrize(('changes', 'said'), [
    ({}, None), ({'frames': 20}, '20 of 60 frames'), ({'frames': 20, 'interrupted': True}, None), ({'held_out': {}}, None),
    ({'triangulated': 19}, '19 of 40 frames'), ({'triangulated': 0, 'options': {'landmarks': 0}}, None),
    ({'held_out': {'rgb': {'frames': 9, 'median_translation_m': 1.38, 'median_rotation_deg': 66.0},
                   'rgbd': {'frames': 9, 'median_translation_m': 0.9, 'median_rotation_deg': 66.0}}}, '90 cm')])
def test_a_map_that_is_hardly_one_is_doubted(changes: dict[str, Any], said: str | None) -> None:
    lines = command.doubts({**RECORD, **changes})
    assert not lines if said is None else len(lines) == 1 and said in lines[0]


def test_interrupted_before_there_is_a_head(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(mapping, 'map_source', interrupted)
    assert run('bag', '--out', 'm') == 130 and 'no map was written' in capsys.readouterr().err


def test_arguments_become_options(asked: dict[str, Any]) -> None:
    run('bag', '--out', 'm', '--minutes', '2.5', '--rgb-only', '--seed', '9', '--set', 'steps=40', '--set', 'learning_rate=1e-3',
        '--overwrite', '--device', 'cpu')
    assert asked['options'] == MappingOptions(minutes=2.5, rgb_only=True, seed=9, steps=40, learning_rate=1e-3)
    assert asked['overwrite'] and asked['device'] == 'cpu' and not asked['load_depth']


@pytest.mark.parametrize(('arguments', 'message'), [
    (('--set', 'step=3'), 'did you mean steps'), (('--set', 'steps'), 'NAME=VALUE'), (('--minutes', '0'), 'minutes'),
    (('--minutes', 'nan'), 'minutes'), (('--set', 'minutes=3'), 'use --minutes'),
    (('--set', 'rgb_only=true'), 'use --rgb-only'), (('--seed', '-1'), 'seed')])
def test_wrong_options(asked: dict[str, Any], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run('bag', '--out', 'm', *arguments)
    assert 'options' not in asked


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('bags') / 'room'
    assert cli.main(['synth', '--out', str(path), '--frames', '24', '--width', '320', '--height', '240', '--rate', '3',
                     '--texels-per-metre', '60']) == 0
    return path


@pytest.mark.slow
def test_ctrl_c_leaves_a_map(bag: Path, tmp_path: Path) -> None:
    """A real process, a real SIGINT some seconds into training; about 25 s."""
    out = tmp_path / 'm.dsacmap'
    process = subprocess.Popen([sys.executable, '-m', 'dsac_ros.cli', 'map', str(bag), '--out', str(out), '--minutes', '30',
                                '--device', 'cpu', '--set', 'augmented=0',
                                '--set', 'width=64', '--set', 'landmarks=0', '--set', 'encoding_share=0.05'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'PYTHONUNBUFFERED': '1'})
    try:
        text, end = '', time.monotonic() + 250
        while 'train:' not in text and time.monotonic() < end and process.poll() is None:
            text += os.read(process.stderr.fileno(), 4096).decode(errors='replace')
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        out_text, err_text = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0 and b'Traceback' not in err_text, err_text[-2000:]
    assert b'(interrupted)' in out_text and load_map(out).training['interrupted'] and load_map(out).training['steps'] > 0
