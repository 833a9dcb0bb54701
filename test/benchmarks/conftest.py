"""Puts the repository's root, where benchmarks/ lies, and scenery.py on sys.path: last, since the overlay's dsac_ros has to come first;
and a bag to make maps of."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dsac_ros import cli

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]


@pytest.fixture(scope='session')
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bag of a synthetic room."""
    path = tmp_path_factory.mktemp('bags') / 'room'
    assert cli.main(['synth', '--out', str(path), '--frames', '16', '--width', '320', '--height', '240', '--rate', '3',
                     '--texels-per-metre', '60']) == 0
    return path
