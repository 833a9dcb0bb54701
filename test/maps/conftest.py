"""Puts small.py, shared by the tests of this folder, on sys.path (test modules are imported without packages)."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
