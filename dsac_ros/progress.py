"""One progress bar for all commands: smooth on a terminal, a line every few seconds in a log."""
from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_PERIOD_S = 15.0


def progress_bar(text: str, total: int | None = None, quiet: bool = False, unit: str = 'frame', **arguments: Any) -> tqdm:
    """A bar on stderr; further arguments are those of tqdm."""
    period_s = 0.1 if sys.stderr.isatty() else LOG_PERIOD_S
    return tqdm(total=total, desc=text, disable=quiet, unit=unit, dynamic_ncols=True, mininterval=period_s, maxinterval=period_s,
                **arguments)
