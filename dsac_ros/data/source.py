"""The one protocol of everything that yields frames, and the records of what it had to leave out."""
from __future__ import annotations

from collections import Counter
from typing import Iterator, Protocol

from dsac_ros.records import Frame


class FrameSource(Protocol):
    """Frames in stamp order. Iterating again starts again; what was left out is counted by cause in `warnings`.

    map_frame: name of the frame that the reference poses are in. len(): an upper bound of the number of frames.
    """

    map_frame: str
    warnings: Counter[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...
