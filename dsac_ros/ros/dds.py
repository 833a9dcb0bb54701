"""Room for images in Fast DDS, for whatever is started from here; a profile that the user has set stays."""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
PROFILE = Path(__file__).with_name('fastdds_profile.xml')


def room_for_images() -> dict[str, str]:
    """Variables to be set, none where the user has chosen a profile. Another middleware does not read them."""
    return {} if any(name in os.environ for name in PROFILE_VARIABLES) else {profile_variable(): str(PROFILE)}


def profile_variable() -> str:
    """Fast DDS 2 (Jazzy) knows the one name, Fast DDS 3 (Kilted) the other and prints a warning when it sees the old one."""
    return PROFILE_VARIABLES[importlib.util.find_spec('fastrtps_cmake_module') is None]
