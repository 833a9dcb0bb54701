"""A new folder in the place of what was there: nothing is lost where that fails, and nothing is left over."""
from __future__ import annotations

from pathlib import Path

import pytest

from dsac_ros.replacing import check_replaceable, move_into_place


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / 'file').write_text(content)
    return path


def listed(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


@pytest.mark.parametrize('older', ['nothing', 'folder', 'link'])
def test_the_new_one_takes_the_place(tmp_path: Path, older: str) -> None:
    place, new = tmp_path / 'place', folder(tmp_path / 'new', 'new')
    target = folder(tmp_path / 'v1', 'old')
    if older == 'folder':
        folder(place, 'old')
    elif older == 'link':
        place.symlink_to('v1')
    check_replaceable(place)
    move_into_place(new, place)
    assert (place / 'file').read_text() == 'new' and not place.is_symlink() and (target / 'file').read_text() == 'old'
    assert listed(tmp_path) == ['place', 'v1']


@pytest.mark.parametrize('fails', [OSError(5, 'Input/output error'), KeyboardInterrupt()])
@pytest.mark.parametrize('fail_at', [1, 2])
@pytest.mark.parametrize('link', [False, True])
def test_where_it_fails_the_old_one_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: BaseException, fail_at: int,
                                            link: bool) -> None:
    place, new = tmp_path / 'place', folder(tmp_path / 'new', 'new')
    place.symlink_to(folder(tmp_path / 'v1', 'old')) if link else folder(place, 'old')
    before, rename, calls = listed(tmp_path), Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == fail_at:
            raise fails
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(type(fails)):
        move_into_place(new, place)
    assert (place / 'file').read_text() == 'old' and place.is_symlink() is link and listed(tmp_path) == before


def test_an_old_one_that_cannot_come_back_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, new, rename = folder(tmp_path / 'place', 'old'), folder(tmp_path / 'new', 'new'), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == place:
            raise OSError(5, 'Input/output error')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(OSError, match='Input/output'):
        move_into_place(new, place)
    (older,) = tmp_path.glob('.place.old.*/place')
    assert (older / 'file').read_text() == 'old'


@pytest.mark.parametrize('place', ['.', '..', 'inner/..', '/', '/proc'])
def test_no_place_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'inner').mkdir()
    with pytest.raises(OSError, match='working directory or of a disk of its own'):
        check_replaceable(Path(place))


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / 'current').symlink_to('unmounted')
    with pytest.raises(OSError, match='leads nowhere'):
        check_replaceable(tmp_path / 'current')
    check_replaceable(tmp_path / 'new')
