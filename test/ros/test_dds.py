"""Which profile of Fast DDS a process gets that is started from here."""
from __future__ import annotations

import pytest

from dsac_ros.ros.dds import PROFILE, PROFILE_VARIABLES, profile_variable, room_for_images


def test_images_get_room_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert room_for_images() == {profile_variable(): str(PROFILE)} and PROFILE.is_file()


@pytest.mark.parametrize('name', PROFILE_VARIABLES)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in PROFILE_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, '/home/me/profile.xml')
    assert room_for_images() == {}
