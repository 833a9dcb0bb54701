"""What the workers of test_executors do; a module, so that they can import it."""
from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from dsac_ros.errors import DataError


def work(argument: tuple[str, str]) -> None:
    """Write NAME.done, by what is asked for: at once, or after having been killed so many times, or not at all."""
    folder, task = Path(argument[0]), argument[1]
    name, _, how = task.partition(':')
    tries = len(list(folder.glob(f'{name}.try*')))
    (folder / f'{name}.try{tries}').write_text(f'{os.getpid()} {time.monotonic()}')
    if how == 'bad':
        raise DataError(f'{name}: no poses')
    if how == 'bug':
        raise KeyError(name)
    if how.startswith('killed') and tries < int(how[6:]):
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f'{name}.done').write_text('')
