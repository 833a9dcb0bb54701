"""A map of many sub-maps, as it is localised in: the manifest and what gating needs are in memory, the rest is read at first need."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dsac_ros.errors import MapError
from dsac_ros.maps.bundle import MapBundle, load_expert, load_map, load_prototypes
from dsac_ros.maps.manifest import ExpertEntry, read_manifest
from dsac_ros.networks.gating import Prototypes

T = TypeVar('T')


@dataclass(frozen=True)
class Site:
    """frame_id: that poses are in. prototypes: of each expert, none where there is one expert. read: an expert by its index."""

    frame_id: str
    entries: tuple[ExpertEntry, ...]
    prototypes: tuple[Prototypes, ...]
    read: Callable[[int], MapBundle]

    @cached_property
    def map_from_site_E44(self) -> np.ndarray:
        """To the frame of each sub-map."""
        return np.linalg.inv(np.stack([entry.site_from_map_44 for entry in self.entries]))

    def distances(self, place_3: np.ndarray) -> np.ndarray:
        """(E,) metres from a place in the site to the box of the mapped points of each sub-map, 0 inside."""
        centres, extents = (np.array([getattr(entry, name) for entry in self.entries]) for name in ('centre', 'extent'))
        places_E3 = self.map_from_site_E44[:, :3, :3] @ place_3 + self.map_from_site_E44[:, :3, 3]
        return np.linalg.norm(np.maximum(np.abs(places_E3 - centres) - extents / 2, 0), axis=1)


def open_site(path: str | Path) -> Site:
    """The map at `path`, of one expert or of many. Raises MapError."""
    path = Path(path)
    manifest = read_manifest(path)
    if len(manifest.entries) == 1:
        return site_of(load_map(path))
    blind = [entry.name for entry in manifest.entries if not entry.gating_sha256]
    if blind:
        raise MapError(f'{path}: expert {blind[0]!r} has no gating file to tell it from the others; map it again with this version')
    prototypes = tuple(load_prototypes(path, entry) for entry in manifest.entries)
    frame_id, entries = manifest.frame_id, manifest.entries
    return Site(frame_id, entries, prototypes, lambda index: load_expert(path, frame_id, entries[index]))


def site_of(bundle: MapBundle) -> Site:
    """Of one sub-map that is in memory."""
    return Site(bundle.frame_id, (bundle.entry,), (), lambda _: bundle)


class SubMaps(Generic[T]):
    """What was made of the `keep` sub-maps used last. For one thread; what preload() names is made beside it."""

    def __init__(self, make: Callable[[int], T], keep: int) -> None:
        self._make, self._keep = make, keep
        self._made: OrderedDict[int, Future[T]] = OrderedDict()  # used last, last
        self._reader = ThreadPoolExecutor(1, 'sub-maps')

    def get(self, index: int) -> T:
        """Made now where it is not there. What making it raises is raised here, and tried again the next time."""
        made = self._made.pop(index, None)
        if made is None or made.cancel():  # one that still waits for its turn is made faster here
            made = Future()
            made.set_result(self._make(index))
        result = made.result()
        self._made[index] = made
        self._forget()
        return result

    def preload(self, indices: Iterable[int]) -> None:
        """Have these made, at most half of what is kept: they are only likely to be needed."""
        for index in list(indices)[:self._keep // 2]:
            if index not in self._made:
                self._made[index] = self._reader.submit(self._make, index)
            self._made.move_to_end(index)
        self._forget()

    def ready(self, index: int) -> bool:
        """Whether get() would not have to wait."""
        return index in self._made and self._made[index].done()

    def _forget(self) -> None:
        while len(self._made) > self._keep:
            self._made.popitem(last=False)[1].cancel()
