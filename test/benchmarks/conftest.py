"""Puts the repository's root, where benchmarks/ lies, and scenery.py on sys.path: last, since the overlay's dsac_ros has to come first."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
