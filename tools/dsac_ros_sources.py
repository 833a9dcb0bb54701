"""Copied into the virtual environment by tools/setup.sh: a new module of the repository is found before the next build.

The overlay comes first and holds a link for every module that was there when it was built; setuptools' editable finder
serves what lies directly in dsac_ros/, but not what lies in its sub-packages. This is asked last, after both.
"""
import sys
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path('@ROOT@')


class SourceFinder:
    """Finds dsac_ros.x.y in the repository, whichever copy of dsac_ros.x was imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Called by the import system when nobody else knew the module."""
        parents = name.split('.')[:-1]
        return PathFinder.find_spec(name, [str(ROOT.joinpath(*parents))]) if parents[:1] == ['dsac_ros'] else None


sys.meta_path.append(SourceFinder)
