"""Maps of many experts: adding, removing and merging touch no file of another expert, and a crash leaves the old map or the new one."""
from __future__ import annotations

import hashlib
import os
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small import expert, saved

from dsac_ros.errors import MapError
from dsac_ros.maps import editing, manifest
from dsac_ros.maps.bundle import load_map
from dsac_ros.maps.editing import add_experts, check_addable, merge_sites, problems, remove_expert
from dsac_ros.maps.manifest import changing, read_manifest


def hashes(site: Path) -> dict[str, str]:
    return {str(file.relative_to(site)): hashlib.sha256(file.read_bytes()).hexdigest() for file in site.rglob('*') if file.is_file()}


def names(site: Path) -> list[str]:
    return [entry.name for entry in read_manifest(site).entries]


def rigid(seed: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.random(random_state=seed).as_matrix(), [seed, -2.0, 0.5]
    return pose


@pytest.fixture
def rooms(tmp_path: Path) -> list[Path]:
    """Three maps of one expert each."""
    for seed, name in enumerate(('hall', 'office', 'lab')):
        saved(tmp_path / f'{name}.dsacmap', seed, name=name)
    return [tmp_path / f'{name}.dsacmap' for name in ('hall', 'office', 'lab')]


@pytest.fixture
def site(rooms: list[Path], tmp_path: Path) -> Path:
    merge_sites(rooms[:2], tmp_path / 'site.dsacmap')
    return tmp_path / 'site.dsacmap'


def test_merged_maps_hold_what_they_were_made_of(site: Path, rooms: list[Path]) -> None:
    assert names(site) == ['hall', 'office'] and problems(site) == []
    for seed, room in enumerate(rooms[:2]):
        merged, alone = load_map(site, room.stem), load_map(room)
        torch.testing.assert_close(merged.expert.state_dict(), alone.expert.state_dict())
        torch.testing.assert_close(merged.expert.centres, expert(seed).centres)
        assert merged.training == alone.training and torch.equal(merged.landmarks.points_L3, alone.landmarks.points_L3)
        assert torch.equal(merged.prototypes.descriptors_MD, alone.prototypes.descriptors_MD) and merged.entry == alone.entry


def test_adding_writes_no_file_of_another_expert(site: Path, rooms: list[Path]) -> None:
    before, stamps = hashes(site), {file: file.stat().st_mtime_ns for file in site.rglob('*.safetensors')}
    assert add_experts(site, rooms[2]) == ['lab'] and names(site) == ['hall', 'office', 'lab'] and problems(site) == []
    after = hashes(site)
    new = {'experts/lab.safetensors', 'experts/lab.yaml', 'gating/lab.safetensors'}
    assert set(after) - set(before) == new and {file for file in before if before[file] != after[file]} == {'manifest.yaml'}
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
    remove_expert(site, 'lab')
    assert hashes(site) == before  # the manifest, too


def test_a_placed_expert_says_where(site: Path, rooms: list[Path]) -> None:
    add_experts(site, rooms[2], 'far lab', rigid(3))
    entry = read_manifest(site).entries[2]
    assert entry.name == 'far lab' and entry.file == 'experts/far lab.safetensors'
    np.testing.assert_allclose(entry.site_from_map_44, rigid(3), atol=1e-12)
    add_experts(rooms[0], rooms[1], 'again', rigid(5))
    remove_expert(rooms[0], 'hall')
    add_experts(site, rooms[0], 'twice moved', rigid(4))  # from the frame of a map in which it is placed already
    np.testing.assert_allclose(read_manifest(site).entries[3].site_from_map_44, rigid(4) @ rigid(5), atol=1e-12)
    with pytest.raises(MapError, match='rotation'):
        add_experts(site, rooms[1], 'mirrored', np.diag([1.0, 1.0, -1.0, 1.0]))
    assert len(names(site)) == 4


def test_what_is_refused_changes_nothing(site: Path, rooms: list[Path], tmp_path: Path) -> None:
    other = tmp_path / 'other.dsacmap'
    saved(other, frame_id='attic', name='attic')
    blind = tmp_path / 'blind.dsacmap'
    saved(blind, name='blind', prototypes=None)
    damaged = tmp_path / 'damaged.dsacmap'
    saved(damaged, name='damaged')
    (damaged / 'experts' / 'damaged.safetensors').write_bytes(b'x')
    before = hashes(site)
    for arguments, words in (((rooms[0],), "two experts would be called 'hall'"), ((other,), "'attic'.*site-from-map"),
                             ((damaged,), 'sha256'),
                             ((blind,), 'no gating file'), ((rooms[2], '../lab'), 'expert name'), ((tmp_path / 'none',), 'manifest.yaml'),
                             ((site, 'both'), 'a name is for one')):
        with pytest.raises(MapError, match=words):
            add_experts(site, *arguments)
    with pytest.raises(MapError, match='gating file'):
        add_experts(blind, rooms[0])
    with pytest.raises(MapError, match="no expert 'cellar'"):
        remove_expert(site, 'cellar')
    with pytest.raises(MapError, match='only expert'):
        remove_expert(rooms[0], 'hall')
    with pytest.raises(MapError, match='hall'):
        merge_sites([site, rooms[0]], tmp_path / 'double.dsacmap')
    assert hashes(site) == before and not (tmp_path / 'double.dsacmap').exists()
    assert add_experts(site, other, site_from_map=np.eye(4)) == ['attic']


def test_no_more_experts_than_a_map_can_be_read_with(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(site)
    saved(tmp_path / 'more.dsacmap', name='more')
    monkeypatch.setattr(editing, 'MAX_EXPERTS', len(read_manifest(site).entries))
    for add in (lambda: add_experts(site, tmp_path / 'more.dsacmap'), lambda: check_addable(site, 'more')):
        with pytest.raises(MapError, match='experts would be in one map, expected at most'):
            add()
    assert hashes(site) == before


@pytest.mark.parametrize('folder', ['', 'experts', 'gating'])
def test_a_site_that_cannot_be_written_is_told_before_the_work(site: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    def denied(dir: Path) -> Any:  # root may write everywhere
        if dir == site / folder:
            raise PermissionError(13, 'Permission denied')
        return BytesIO()

    assert check_addable(site, 'lab').frame_id == 'map'
    monkeypatch.setattr(editing.tempfile, 'TemporaryFile', denied)
    with pytest.raises(MapError, match=f'{site / folder}: cannot be written: Permission denied'):
        check_addable(site, 'lab')


@pytest.mark.parametrize('fail_at', [1, 2, 3, 4])
def test_a_crash_while_adding_leaves_the_old_map(site: Path, rooms: list[Path], monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    """Three files and the manifest are put in their place; the process ends before each of them."""
    before, calls, replace = hashes(site), [], os.replace

    def dying(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, 'replace', dying)
    with pytest.raises(KeyboardInterrupt):
        add_experts(site, rooms[2])
    monkeypatch.undo()
    assert names(site) == ['hall', 'office'] and {file: h for file, h in hashes(site).items() if file in before} == before
    left_over = problems(site)
    assert len(left_over) == fail_at - 1 and all('lab' in line and 'left over' in line for line in left_over)
    add_experts(site, rooms[2])
    assert names(site) == ['hall', 'office', 'lab'] and problems(site) == []


def test_a_full_disk_is_one_error(site: Path, rooms: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    before = hashes(site)
    for module in (editing, manifest):
        monkeypatch.setattr(module.os, 'fsync', full)
    with pytest.raises(MapError, match='No space left'):
        add_experts(site, rooms[2])
    with pytest.raises(MapError, match='No space left'):
        remove_expert(site, 'hall')
    assert hashes(site) == before


def test_two_that_change_a_map_at_once(site: Path, rooms: list[Path]) -> None:
    with changing(site), pytest.raises(MapError, match='another process'):
        add_experts(site, rooms[2])
    done = threading.Thread(target=add_experts, args=(site, rooms[2]))
    done.start()
    done.join()
    assert names(site) == ['hall', 'office', 'lab']


def test_problems_names_every_damaged_file(site: Path) -> None:
    with (site / 'experts' / 'hall.safetensors').open('ab') as file:
        file.write(b'x')
    (site / 'gating' / 'office.safetensors').unlink()
    (site / 'experts' / 'stranger.safetensors').write_bytes(b'')
    found = problems(site)
    assert len(found) == 3
    for line, words in zip(found, ('experts/hall.safetensors: sha256', 'gating/office.safetensors: cannot be read', 'stranger')):
        assert words in line
