"""Room for images in Fast DDS, for whatever is started from here; a profile that the user has set stays."""
from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_packages_with_prefixes

PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
PROFILE = Path(__file__).with_name('fastdds_profile.xml')


def room_for_images() -> dict[str, str]:
    """Variables to be set, none where the user has chosen a profile. Another middleware does not read them."""
    return {} if any(name in os.environ for name in PROFILE_VARIABLES) else {profile_variable(): str(PROFILE)}


def profile_variable() -> str:
    """Fast DDS 2 (Jazzy) knows the one name, Fast DDS 3 (Kilted) the other and prints a warning when it sees the old one.

    Which of them it is, its package says that only the former comes with, in the index of a distribution as of wheels.
    """
    try:
        return PROFILE_VARIABLES['fastrtps_cmake_module' not in get_packages_with_prefixes()]
    except OSError:  # ROS is not sourced: nothing that is started from here finds a middleware either
        return PROFILE_VARIABLES[-1]
