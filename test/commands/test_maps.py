"""dsac-ros map with several sources, and dsac-ros maps: on maps of seconds of training, or of none."""
from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / 'maps'))
import rooms  # noqa: E402
from small import saved  # noqa: E402

from dsac_ros import cli  # noqa: E402
from dsac_ros.commands import map as command  # noqa: E402
from dsac_ros.data import opening  # noqa: E402
from dsac_ros.errors import DataError  # noqa: E402
from dsac_ros.maps.bundle import load_map  # noqa: E402
from dsac_ros.maps.manifest import read_manifest  # noqa: E402

QUICK = [f'--set={name}={value}' for name, value in {**rooms.TINY, 'steps': 5, 'landmarks': 100}.items() if name != 'seed']


@pytest.fixture
def bags(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Path -> source; those that are not named are 14 frames of the tiny room. What was opened for mapping is counted."""
    special: dict[str, Any] = {'opened': Counter()}

    def source(path: str, options: argparse.Namespace, require_poses: bool, load_depth: bool) -> Any:
        special['opened'][path] += load_depth
        return special.get(str(path)) or rooms.ListSource(rooms.tiny_frames()[:14])

    monkeypatch.setattr(opening, 'source_from', source)
    return special


def names(site: Path) -> list[str]:
    return [entry.name for entry in read_manifest(site).entries]


def hashes(site: Path) -> dict[str, str]:
    return {str(file.relative_to(site)): hashlib.sha256(file.read_bytes()).hexdigest() for file in site.rglob('*') if file.is_file()}


def test_names_come_from_paths() -> None:
    assert [command.expert_name(path) for path in ('maps/kitchen.v2.dsacmap', '/data/My Lab!/', '...', '--x--', '9')] == [
        'kitchen', 'My_Lab', 'room', 'x', '9']
    assert command.distinct(['a', 'b', 'a', 'a']) == ['a', 'b', 'a-2', 'a-3']


def test_a_room_each_then_one_more_then_one_less(bags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / 'site.dsacmap'
    assert cli.main(['map', 'x/hall', 'y/hall', '--out', str(site), '--device', 'cpu', *QUICK]) == 0
    assert names(site) == ['hall', 'hall-2'] and 'site.dsacmap: 2 experts' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['site.dsacmap']  # what it worked with is gone
    before = hashes(site)
    add = ['maps', 'add', str(site), 'z/lab', '--device', 'cpu', *QUICK]
    assert cli.main([*add, '--site-from-map', '1', '2', '3', '0', '0', '0.6', '0.8']) == 0
    after = hashes(site)
    assert {file for file in after if before.get(file) != after[file]} == {
        'manifest.yaml', 'experts/lab.safetensors', 'experts/lab.yaml', 'gating/lab.safetensors'} and set(before) < set(after)
    place = read_manifest(site).entries[2].site_from_map_44
    np.testing.assert_allclose(place[:3], [[0.28, -0.96, 0, 1], [0.96, 0.28, 0, 2], [0, 0, 1, 3]], atol=1e-12)
    assert load_map(site, 'lab').training['steps'] == 5 and [p.name for p in tmp_path.iterdir()] == ['site.dsacmap']
    assert cli.main(['maps', 'verify', str(site)]) == 0 and cli.main(['maps', 'remove', str(site), 'lab']) == 0
    assert hashes(site) == before and 'lab removed' in capsys.readouterr().out


def test_a_room_that_fails_does_not_lose_the_others(bags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags['dark'] = rooms.ListSource(rooms.tiny_frames()[:3])
    site = tmp_path / 'site.dsacmap'
    arguments = ['map', 'hall', 'dark', 'lab', '--out', str(site), '--device', 'cpu', *QUICK]
    assert cli.main(arguments) == 1 and names(site) == ['hall', 'lab']
    err = capsys.readouterr().err
    assert 'dark: the-bag: 3 usable frames' in err and f'dsac-ros maps add {site} dark' in err


def test_what_is_mapped_is_not_mapped_again(bags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / 'site.dsacmap'
    arguments = ['map', 'hall', 'lab', '--out', str(site), '--device', 'cpu', *QUICK]
    original = command.map_room

    def killed(path: str, *others: Any, **named: Any) -> None:
        if path == 'lab':
            raise KeyboardInterrupt
        original(path, *others, **named)

    with monkeypatch.context() as patch:
        patch.setattr(command, 'map_room', killed)
        assert cli.main(arguments) == 130
    assert not site.exists() and bags['opened'] == {'hall': 1, 'lab': 0}
    assert cli.main(arguments) == 0 and names(site) == ['hall', 'lab'] and bags['opened'] == {'hall': 1, 'lab': 1}


def test_mistakes_are_told_before_the_work(bags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags['attic'] = SimpleNamespace(map_frame='attic')
    site = tmp_path / 'hall.dsacmap'
    saved(site, name='hall')
    for arguments, words in ((['map', 'hall', 'attic', '--out', str(tmp_path / 'new')], 'different frames, attic, map'),
                             (['map', 'hall', 'lab', '--out', str(site)], 'exists already'),
                             (['maps', 'add', str(site), 'attic'], '--site-from-map'),
                             (['maps', 'add', str(site), 'hall'], "has an expert 'hall'"),
                             (['maps', 'add', str(site), 'lab', '--name', '../lab'], 'expert name'),
                             (['maps', 'add', str(tmp_path / 'none'), 'lab'], 'manifest.yaml is missing'),
                             (['maps', 'add', str(site), 'lab', '--set', 'step=4'], 'did you mean steps?'),
                             (['maps', 'add', str(site), 'lab', '--site-from-map', *'1230000'], 'quaternion')):
        assert cli.main(arguments) == 1
        err = capsys.readouterr().err
        assert words in err and err.count('\n') == 1, err
    assert not bags['opened'].total() and [p.name for p in tmp_path.iterdir()] == ['hall.dsacmap']


def test_maps_are_added_merged_listed_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {'frames': 77, 'landmarks': 1234, 'held_out': {'rgb': {'median_translation_m': 0.021, 'median_rotation_deg': 0.5}}}
    for name, training in (('hall', record), ('lab', {'held_out': [1]}), ('attic', {})):
        saved(tmp_path / name, name=name, training=training)
    site = str(tmp_path / 'site')
    assert cli.main(['maps', 'merge', str(tmp_path / 'hall'), str(tmp_path / 'lab'), '--out', site]) == 0
    assert cli.main(['maps', 'add', site, str(tmp_path / 'attic'), '--name', 'loft', '--site-from-map', *'0030001']) == 0
    capsys.readouterr()
    assert cli.main(['maps', 'info', site]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[1].split()[:6] == ['hall', '4.0', 'x', '5.0', 'x', '2.5']
    assert '77' in lines[1] and '1234' in lines[1] and 'rgb 2.1 cm 0.50 deg' in lines[1] and '0.00 0.00 3.00' in lines[3]
    assert lines[4] == "3 experts, poses in frame 'map'"
    assert cli.main(['maps', 'verify', site]) == 0 and 'all is well' in capsys.readouterr().out
    (tmp_path / 'site' / 'experts' / 'loft.safetensors').write_bytes(b'')
    assert cli.main(['maps', 'verify', site]) == 1 and 'experts/loft.safetensors: sha256' in capsys.readouterr().err
    assert cli.main(['maps', 'remove', site, 'cellar']) == 1 and "no expert 'cellar'" in capsys.readouterr().err


def test_errors_of_one_room_alone_are_those_of_the_command(bags: dict[str, Any], tmp_path: Path) -> None:
    bags['dark'] = rooms.ListSource(rooms.tiny_frames()[:3])
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(DataError, match='3 usable frames'):
        command.run(parser.parse_args(['dark', '--out', str(tmp_path / 'm'), '--device', 'cpu', *QUICK]))
