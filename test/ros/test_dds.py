"""Which profile of Fast DDS a process gets that is started from here."""
from __future__ import annotations

from importlib.metadata import distributions

import pytest

from dsac_ros.ros.dds import PROFILE, PROFILE_VARIABLES, profile_variable, room_for_images


def test_images_get_room_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert room_for_images() == {profile_variable(): str(PROFILE)} and PROFILE.is_file()


def test_the_name_is_the_one_that_this_fast_dds_reads() -> None:
    """By the version of its wheel: 3.0.0 renamed it."""
    found = [each.version for each in distributions() if each.name.replace('-', '_') in ('ros_fastrtps', 'ros_fastdds')]
    if not found:
        pytest.skip('Fast DDS is of a distribution and has no wheel')
    assert profile_variable() == ('FASTRTPS_DEFAULT_PROFILES_FILE' if found[0].startswith('2.') else 'FASTDDS_DEFAULT_PROFILES_FILE')


@pytest.mark.parametrize(('packages', 'name'), [(('rclpy', 'fastrtps_cmake_module'), 'FASTRTPS_DEFAULT_PROFILES_FILE'),
                                                (('rclpy',), 'FASTDDS_DEFAULT_PROFILES_FILE')])
def test_packages_of_a_distribution_without_python_in_them_count(monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...],
                                                                 name: str) -> None:
    monkeypatch.setattr('dsac_ros.ros.dds.get_packages_with_prefixes', lambda: dict.fromkeys(packages, '/opt/ros/any'))
    assert profile_variable() == name


def test_without_ros_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    assert profile_variable() in PROFILE_VARIABLES


@pytest.mark.parametrize('name', PROFILE_VARIABLES)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in PROFILE_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, '/home/me/profile.xml')
    assert room_for_images() == {}
