"""dsac-ros finetune: arguments become options, what it prints is what the map records."""
from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsac_ros import cli
from dsac_ros.commands import finetune as command
from dsac_ros.config import FinetuningOptions
from dsac_ros.data import opening
from dsac_ros.errors import ConfigError
from dsac_ros.training import finetuning

RECORD = dict(steps=900, best_step=700, seconds=601.2, frames=180, held_out_loss=1.234,
              held_out={'rgb': {'frames': 20, 'median_translation_m': 0.0312, 'median_rotation_deg': 0.77}})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked of the training, which is not run."""
    seen: dict[str, Any] = {'record': RECORD, 'paths': []}

    def source(path: str, options: argparse.Namespace, **named: Any) -> Any:
        seen['paths'].append(path)
        seen.update(named)
        return SimpleNamespace(warnings={'no_pose': 3}, details={})

    def train(path: str, sources: list[Any], out: str, options: FinetuningOptions, device: str, overwrite: bool, resume: bool,
              watch: Any, quiet: bool) -> Any:
        seen.update(quiet=quiet, map=path, sources=sources, out=out, options=options, device=device, overwrite=overwrite, resume=resume)
        return SimpleNamespace(training={'finetuned': seen['record']})

    monkeypatch.setattr(opening, 'source_from', source)
    monkeypatch.setattr(finetuning, 'finetune', train)
    return seen


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_defaults_are_those_of_the_options(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run('a.dsacmap', 'bag1', 'bag2', '--out', 'b.dsacmap') == 0
    assert asked['options'] == FinetuningOptions() and asked['paths'] == ['bag1', 'bag2'] and len(asked['sources']) == 2
    assert asked['require_poses'] and 'load_depth' not in asked and not asked['overwrite'] and not asked['resume']
    said = capsys.readouterr()
    assert '900 steps in 601 s on 180 frames' in said.out and 'step 700, held-out pose loss 1.23' in said.out and not said.err
    assert 'rgb: 3.1 cm, 0.77 deg in the median of 20 frames' in said.out and 'b.dsacmap.finetuning' in said.out
    assert '3 x no_pose' in said.out


def test_arguments_become_options(asked: dict[str, Any]) -> None:
    run('a.dsacmap', 'bag', '--out', 'b', '--modality', 'rgbd', '--minutes', '2', '--seed', '5', '--resume', '--set', 'bits=4.5',
        '--set', 'batch=8')
    assert asked['options'] == FinetuningOptions(modality='rgbd', minutes=2.0, seed=5, bits=4.5, batch=8)
    assert asked['resume']
    with pytest.raises(ConfigError, match='--seed'):
        run('a', 'bag', '--out', 'b', '--set', 'seed=3')
    with pytest.raises(ConfigError, match='learning_rate'):
        run('a', 'bag', '--out', 'b', '--set', 'learning_rat=3')


@pytest.mark.parametrize(('name', 'value'), [('threads', '-1'), ('threads', '257'), ('nice', '-5'), ('nice', '20')])
def test_threads_and_niceness_have_limits(asked: dict[str, Any], name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f'{name}: expected 0 to .*, found {value}'):
        run('a', 'bag', '--out', 'b', f'--{name}', value)
    assert not asked['paths']


def test_a_training_that_did_not_help_says_so(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked['record'] = {**RECORD, 'best_step': 0}
    run('a', 'bag', '--out', 'b')
    assert 'no state was better' in capsys.readouterr().err


def test_a_missing_map_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'bag').mkdir()
    assert cli.main(['finetune', str(tmp_path / 'no.dsacmap'), str(tmp_path / 'bag'), '--out', str(tmp_path / 'o')]) == 1
    assert 'no data found' in capsys.readouterr().err
