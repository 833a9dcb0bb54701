"""Places to tell apart: real data folders and synthetic rooms, each with frames that were mapped and frames to be asked about."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from dsac_ros.data.opening import open_source
from dsac_ros.data.source import FrameSource
from dsac_ros.data.synthetic import SyntheticSource
from dsac_ros.errors import ConfigError
from dsac_ros.records import Frame

MAPPED_HZ = 1.5


@dataclass(frozen=True)
class Look:
    """How much is rendered of a synthetic room, and how finely: by default enough for the encoder, which sees images smaller still."""

    width: int = 320
    height: int = 240
    texels_per_metre: float = 150.0
    mapped: int = 72
    asked: int = 24
    asked_hz: float = 0.75


@dataclass(frozen=True)
class Place:
    """mapped, asked: frames read or rendered anew at each call. twin: whether another place looks almost the same."""

    name: str
    mapped: Callable[[], FrameSource]
    asked: Callable[[], Iterable[Frame]]
    synthetic: bool
    twin: bool = False


def places_of(text: str, look: Look = Look()) -> list[Place]:
    """FOLDER:MAPPED:ASKED[,ASKED] with names of splits; rooms:FIRST-LAST, synthetic ones; twins:ROOM, one and its near-twin. Raises
    ConfigError."""
    kind, *rest = text.split(':')
    if kind == 'rooms' and len(rest) == 1:
        first, _, last = rest[0].partition('-')
        return [_room(room, 0, look) for room in range(int(first), int(last or first) + 1)]
    if kind == 'twins' and len(rest) == 1:
        return [_room(int(rest[0]), posters, look, True) for posters in (0, 1)]
    if len(rest) != 2:
        raise ConfigError(f'place {text!r}: expected FOLDER:SPLIT:SPLIT (mapped, asked), rooms:FIRST-LAST or twins:ROOM')

    def read(splits: str) -> Iterable[Frame]:
        return chain.from_iterable(open_source(kind, split) for split in splits.split(','))
    return [Place(f'{Path(kind).name}.{rest[0]}', partial(open_source, kind, rest[0]), partial(read, rest[1]), False)]


def _room(room: int, posters: int, look: Look, twin: bool = False) -> Place:
    def frames(trajectory: int, count: int, rate_hz: float) -> SyntheticSource:
        return SyntheticSource(room, trajectory + 2 * posters, count, look.width, look.height, rate_hz,
                               texels_per_metre=look.texels_per_metre, posters=posters)
    return Place(f'room{room}.{posters}', partial(frames, 1, look.mapped, MAPPED_HZ), partial(frames, 2, look.asked, look.asked_hz), True,
                 twin)
