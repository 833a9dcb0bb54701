"""What every test needs: the overlay before the repository on sys.path, and a DDS domain that nobody else is in."""
from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before the first DDS participant of this process or of one that it starts. Domains above 101 use ports that Linux hands out to others.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 101)


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


HAS_ROS = _has('rclpy')
if HAS_ROS:
    # `python -m pytest` puts the repository first, where dsac_ros has no messages; in the overlay it has.
    sys.path[:] = [entry for entry in sys.path if Path(entry or '.').resolve() != ROOT]
    if not _has('dsac_ros.msg'):
        raise pytest.UsageError('rclpy is there, but dsac_ros.msg is not: run `make test`, or `make setup` and `source tools/env.sh`')
collect_ignore = [] if HAS_ROS else ['ros']


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under test/ros needs ROS; without it nothing marked so is run."""
    for item in items:
        if ROOT / 'test' / 'ros' in item.path.parents:
            item.add_marker('ros')
        if not HAS_ROS and item.get_closest_marker('ros'):
            item.add_marker(pytest.mark.skip(reason='rclpy is not installed'))
