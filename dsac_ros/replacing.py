"""A whole new folder comes to its place at once; what was there stays until then, and where that fails."""
from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def check_replaceable(place: Path) -> None:
    """Raise OSError, in words for the user, where move_into_place could never work: before the work and not after."""
    here = Path.cwd()
    if place.name == '..' or Path(os.path.abspath(place)) in (here, *here.parents) or os.path.ismount(place):
        raise OSError(errno.EBUSY, 'no folder can take the place of the working directory or of a disk of its own; name one in it')
    if place.is_symlink() and not place.exists():
        raise OSError(errno.ENOENT, 'it is a link that leads nowhere; remove it')


def move_into_place(new: Path, place: Path) -> None:
    """Rename the folder `new`, on the same disk, to `place`. What is there steps aside first and is removed last; of a link the link, and
    not what it leads to. Raises OSError, and then what was there is there again."""
    if not place.exists():
        new.rename(place)
        return
    aside = Path(tempfile.mkdtemp(prefix=f'.{place.name}.old.', dir=place.parent))
    older = aside / place.name
    try:
        place.rename(older)
        try:
            new.rename(place)
        except BaseException:
            older.rename(place)
            raise
    except BaseException:
        with suppress(OSError):  # not rmtree: if it could not go back, the only copy is in there
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
