"""Fixtures of tests with real nodes; test/nodes.py has them."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from nodes import call, change, domain_id, node_in_process, small_room  # noqa: E402, F401
