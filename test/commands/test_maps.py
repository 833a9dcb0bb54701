"""dsac-ros map with several sources, and dsac-ros maps: on maps of seconds of training, or of none."""
from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict, replace
from importlib.util import find_spec
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
from dsac_ros.commands import maps  # noqa: E402
from dsac_ros.data import opening  # noqa: E402
from dsac_ros.data.writing import BagWriter  # noqa: E402
from dsac_ros.errors import DataError  # noqa: E402
from dsac_ros.maps.bundle import load_map  # noqa: E402
from dsac_ros.maps.manifest import changing, read_manifest  # noqa: E402

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


@pytest.fixture(scope='module')
def hall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag that workers can read, of 14 frames."""
    path = tmp_path_factory.mktemp('bags') / 'hall'
    with BagWriter(path) as bag:
        for frame in rooms.tiny_frames()[:14]:
            bag.write(frame)
    return path


@pytest.fixture(scope='module')
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of too few frames."""
    path = tmp_path_factory.mktemp('bags') / 'dark'
    with BagWriter(path) as bag:
        for frame in rooms.tiny_frames()[:3]:
            bag.write(frame)
    return path


def names(site: Path) -> list[str]:
    return [entry.name for entry in read_manifest(site).entries]


def room_of(source: Path, folder: Path) -> command.Room:
    options = cli.parse(['map', str(source), '--out', str(folder / 'site')])
    return command.Room(str(source), None, 'hall', folder / 'hall.dsacmap', options, command.MappingOptions(), 1)


def hashes(site: Path) -> dict[str, str]:
    return {str(file.relative_to(site)): hashlib.sha256(file.read_bytes()).hexdigest() for file in site.rglob('*') if file.is_file()}


def test_names_come_from_paths() -> None:
    assert [command.expert_name(path) for path in ('maps/kitchen.v2.dsacmap', '/data/My Lab!/', '...', '--x--', '9')] == [
        'kitchen', 'My_Lab', 'room', 'x', '9']
    assert command.distinct(['a', 'b', 'a', 'a']) == ['a', 'b', 'a-2', 'a-3']
    assert command.distinct(['a', 'a-2', 'a', 'a-2']) == ['a', 'a-2', 'a-3', 'a-2-2']
    assert command.distinct(['a', 'a', 'a-2']) == ['a', 'a-3', 'a-2']


def test_a_room_each_then_one_more_then_one_less(hall: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / 'site.dsacmap'
    assert cli.main(['map', str(hall), str(hall), '--out', str(site), '--device', 'cpu', *QUICK]) == 0
    assert names(site) == ['hall', 'hall-2'] and 'site.dsacmap: 2 experts' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['site.dsacmap']  # what it worked with is gone
    before = hashes(site)
    add = ['maps', 'add', str(site), str(hall), '--name', 'lab', '--device', 'cpu', *QUICK]
    assert cli.main([*add, '--site-from-map', '1', '2', '3', '0', '0', '0.6', '0.8']) == 0
    after = hashes(site)
    assert {file for file in after if before.get(file) != after[file]} == {
        'manifest.yaml', 'experts/lab.safetensors', 'experts/lab.yaml', 'gating/lab.safetensors'} and set(before) < set(after)
    place = read_manifest(site).entries[2].site_from_map_44
    np.testing.assert_allclose(place[:3], [[0.28, -0.96, 0, 1], [0.96, 0.28, 0, 2], [0, 0, 1, 3]], atol=1e-12)
    assert load_map(site, 'lab').training['steps'] == 5 and [p.name for p in tmp_path.iterdir()] == ['site.dsacmap']
    assert cli.main(['maps', 'verify', str(site)]) == 0 and cli.main(['maps', 'remove', str(site), 'lab']) == 0
    assert hashes(site) == before and 'lab removed' in capsys.readouterr().out


@pytest.mark.parametrize('others', [False, True])
def test_adding_a_room_keeps_those_of_an_interrupted_map(bags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         others: bool) -> None:
    site, work = tmp_path / 'site.dsacmap', tmp_path / 'site.dsacmap.rooms'
    saved(site, name='hall')
    if others:
        saved(work / 'lab.dsacmap', name='lab', training={'mark': 7})
    monkeypatch.setattr(maps, 'map_room', lambda source, out, name, *_, overwrite: saved(Path(out), name=name))
    assert cli.main(['maps', 'add', str(site), 'lab']) == 0 and names(site) == ['hall', 'lab']
    assert load_map(work / 'lab.dsacmap').training['mark'] == 7 if others else [p.name for p in tmp_path.iterdir()] == [site.name]


def test_a_room_that_fails_does_not_lose_the_others_and_those_that_are_mapped_are_kept(
        hall: Path, dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site, room = tmp_path / 'site.dsacmap', tmp_path / 'site.dsacmap.rooms' / 'hall-2.dsacmap'
    mapping = command.MappingOptions(**{**rooms.TINY, 'steps': 5, 'landmarks': 100})
    saved(room, name='hall-2', training={'options': asdict(mapping), 'interrupted': False, 'mark': 7})
    arguments = ['map', *map(str, (hall, hall, dark)), '--out', str(site), '--device', 'cpu', '--workers', '2', *QUICK]
    options = cli.parse(arguments)
    before = command.Room(str(hall), None, 'hall-2', room, options, mapping, 1)
    before.note.write_text(before.made_of())
    assert cli.main(arguments) == 1
    out, err = capfd.readouterr()
    assert names(site) == ['hall', 'hall-2'] and load_map(site, 'hall-2').training['mark'] == 7 and 'hall-2.dsacmap: mapped before' in out
    assert '3 usable frames' in err and f'dsac-ros maps add {site} {dark}' in err and not room.parent.exists()


def test_where_every_room_fails_there_is_no_map_to_add_to(dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / 'site.dsacmap'
    assert cli.main(['map', str(dark), str(dark), '--out', str(site), '--device', 'cpu', '--workers', '2', *QUICK]) == 1
    err = capfd.readouterr().err
    assert err.count('3 usable frames') == 2 and f'{site}: no room could be mapped, so no map was written' in err
    assert 'maps add' not in err and not list(tmp_path.iterdir())


def test_a_room_that_was_interrupted_is_mapped_again(hall: Path, tmp_path: Path) -> None:
    mapping = command.MappingOptions()
    room = room_of(hall, tmp_path)
    assert not command.is_mapped(room)
    for interrupted in (True, False):
        saved(room.out, name='hall', training={'options': asdict(mapping), 'interrupted': interrupted})
        room.note.write_text(room.made_of())
        assert command.is_mapped(room) is not interrupted
        shutil.rmtree(room.out)


def test_a_room_of_another_recording_is_mapped_again(hall: Path, tmp_path: Path) -> None:
    room = room_of(hall, tmp_path)
    saved(room.out, name='hall', training={'options': asdict(room.mapping), 'interrupted': False})
    assert not command.is_mapped(room)  # of unknown origin: interrupted between map and note
    room.note.write_text(room.made_of())
    (tmp_path / 'other' / 'hall').mkdir(parents=True)
    others = [replace(room, source=str(tmp_path / 'other' / 'hall')), replace(room, part=[0, 1]),
              replace(room, options=argparse.Namespace(**{**vars(room.options), 'pose_topic': '/odom'}))]
    assert [command.is_mapped(each) for each in [room, *others]] == [True, False, False, False]
    copied = tmp_path / 'copied' / 'hall'
    shutil.copytree(hall, copied)
    moved = replace(room, source=str(copied))
    moved.note.write_text(moved.made_of())
    assert command.is_mapped(moved)
    (file,) = copied.glob('*.db3')
    content, folder = file.read_bytes(), copied.stat().st_mtime_ns
    for anew in (content, content + b'x'):
        file.write_bytes(anew)
        assert not command.is_mapped(moved) and copied.stat().st_mtime_ns == folder  # which knows nothing of what is in a file
        moved.note.write_text(moved.made_of())
        assert command.is_mapped(moved)
    alone = replace(room, source=str(file))
    alone.note.write_text(alone.made_of())
    assert command.is_mapped(alone)
    os.utime(file, ns=(0, 0))
    assert not command.is_mapped(alone)
    shutil.rmtree(copied)
    assert not command.is_mapped(alone)


def test_no_workers_are_refused_for_one_room_too(hall: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['map', str(hall), '--out', str(tmp_path / 'map'), '--workers', '-1', *QUICK]) == 1
    assert 'workers: expected 0' in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize('split, expected', [(None, (False, None)), ('train', (False, 'train')), ('auto', (True, None)),
                                             ('train,auto', (True, 'train')), ('train,test', (False, 'train,test'))])
def test_split_names_a_part_of_a_folder_or_asks_for_cutting(split: str | None, expected: tuple[bool, str | None]) -> None:
    assert command.is_auto(split) == expected


@pytest.mark.slow
@pytest.mark.skipif(find_spec('ray') is None, reason='Ray is not installed')
def test_rooms_are_mapped_by_tasks_of_a_ray_cluster(hall: Path, dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / 'site.dsacmap'
    arguments = ['map', str(hall), str(dark), '--out', str(site), '--executor', 'ray', '--workers', '2', '--device', 'cpu', *QUICK]
    assert cli.main(arguments) == 1 and names(site) == ['hall'] and cli.main(['maps', 'verify', str(site)]) == 0
    assert '3 usable frames' in capfd.readouterr().err


@pytest.mark.slow
def test_a_large_recording_becomes_an_expert_for_each_part(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bag = tmp_path / 'floor'
    with BagWriter(bag) as writer:
        for index, (frame, far) in enumerate((f, far) for far in (0.0, 20.0) for f in rooms.tiny_frames()[:24]):
            shifted = frame.map_from_camera.copy()
            shifted[0, 3] += far
            writer.write(replace(frame, map_from_camera=shifted, stamp_ns=10**9 + index * 10**8))
    site = tmp_path / 'site.dsacmap'
    assert cli.main(['map', str(bag), '--split', 'auto', '--out', str(site), '--device', 'cpu', *QUICK]) == 0
    assert names(site) == ['floor_1', 'floor_2'] and '2 parts of 24, 24 frames' in capfd.readouterr().out
    left, right = (entry.centre[0] for entry in read_manifest(site).entries)
    assert 15 < right - left < 25


@pytest.mark.parametrize('placed', [False, True])
def test_a_room_that_cannot_be_added_after_all_is_kept(bags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: bool,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    site, room = tmp_path / 'site.dsacmap', tmp_path / 'site.dsacmap.added' / 'lab.dsacmap'
    saved(site, name='hall')
    monkeypatch.setattr(maps, 'map_room', lambda source, out, name, *_, overwrite: saved(Path(out), name=name))
    place = ['--site-from-map', *'1230001'] if placed else []
    with changing(site):
        assert cli.main(['maps', 'add', str(site), 'lab', *place]) == 1
    err = capsys.readouterr().err
    words = ', with the same --site-from-map, adds it' if placed else ' adds it'
    assert 'another process is changing this map' in err and f'`dsac-ros maps add {site} {room}`{words}' in err and err.count('\n') == 1
    assert cli.main(['maps', 'add', str(site), str(room), *place]) == 0 and names(site) == ['hall', 'lab']
    assert read_manifest(site).entries[1].site_from_map_44[0, 3] == placed


def test_a_room_that_cannot_be_mapped_leaves_nothing_beside_the_site(bags: dict[str, Any], tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    bags['dark'] = rooms.ListSource(rooms.tiny_frames()[:3])
    saved(tmp_path / 'site.dsacmap', name='hall')
    assert cli.main(['maps', 'add', str(tmp_path / 'site.dsacmap'), 'dark', '--device', 'cpu', *QUICK]) == 1
    assert '3 usable frames' in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ['site.dsacmap']


def test_mistakes_are_told_before_the_work(bags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags['attic'] = SimpleNamespace(map_frame='attic')
    site, blind = tmp_path / 'hall.dsacmap', tmp_path / 'blind.dsacmap'
    saved(site, name='hall')
    saved(blind, name='blind', prototypes=None)
    for arguments, words in ((['map', 'hall', 'attic', '--out', str(tmp_path / 'new')], 'different frames, attic, map'),
                             (['map', 'hall', 'lab', '--out', str(site)], 'exists already'),
                             (['maps', 'add', str(site), 'attic'], '--site-from-map'),
                             (['maps', 'add', str(site), 'hall'], "two experts would be called 'hall'"),
                             (['maps', 'add', str(site), 'lab', '--name', '../lab'], 'expert name'),
                             (['maps', 'add', str(tmp_path / 'none'), 'lab'], 'manifest.yaml is missing'),
                             (['maps', 'add', str(site), 'lab', '--set', 'step=4'], 'did you mean steps?'),
                             (['maps', 'add', str(blind), 'lab'], 'no gating file'),
                             (['maps', 'add', str(site), 'x' * 300], f'{"x" * 300}: cannot be read: File name too long'),
                             (['maps', 'add', str(site), 'lab', '--site-from-map', '1e12', *'230001'], 'site_from_map'),
                             (['maps', 'add', str(site), 'lab', '--site-from-map', *'1230000'], 'quaternion')):
        assert cli.main(arguments) == 1
        err = capsys.readouterr().err
        assert words in err and err.count('\n') == 1, err
    assert not bags['opened'].total() and {p.name for p in tmp_path.iterdir()} == {'hall.dsacmap', 'blind.dsacmap'}


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
