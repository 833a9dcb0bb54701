"""Puts differences.py and the scenes of the tests of ransac on sys.path (test modules are imported without packages)."""
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / 'ransac')]
