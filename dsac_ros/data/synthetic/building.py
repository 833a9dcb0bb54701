"""A building of furnished rooms on both sides of a row of corridors, from a seed, in one frame.

The map frame has its origin on the floor in the middle of the corridors, x along them, z up; metres. Each room and each part of the
corridor is a Room of its own with its own light; where they meet, both have an opening.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dsac_ros.data.synthetic.furniture import transform
from dsac_ros.data.synthetic.room import DOOR_WIDTH_M, Footprints, Opening, Room, build_corridor, build_room, distance_to
from dsac_ros.errors import ConfigError

CORRIDOR_M = 1.9  # wide
ARCH_M = 1.4  # the ways from one part of the corridor to the next
GAP_M = 0.2  # between neighbouring rooms


@dataclass(frozen=True)
class Building:
    """seed: of it all. cells: (map_from_room, room) of every room and part of the corridor. doors_D2: the middle of each room's door, in
    the order of a visit to all of them, along one side of the corridor and back along the other."""

    seed: int
    cells: tuple[tuple[np.ndarray, Room], ...]
    doors_D2: np.ndarray

    @property
    def rooms(self) -> tuple[tuple[np.ndarray, Room], ...]:
        """The cells that are rooms, in the order of their doors."""
        return self.cells[:len(self.doors_D2)]

    @property
    def size(self) -> tuple[float, float, float]:
        """Of the box around it, in metres."""
        corners = np.concatenate([np.array([[x, y, 1] for x in (-r.size[0] / 2, r.size[0] / 2) for y in (-r.size[1] / 2, r.size[1] / 2)])
                                  @ m[:2, [0, 1, 3]].T for m, r in self.cells])
        return (*np.ptp(corners, axis=0).tolist(), max(room.size[2] for _, room in self.cells))

    @property
    def boxes(self) -> tuple[object, ...]:
        return tuple(box for _, room in self.cells for box in room.boxes)

    @cached_property
    def _footprints(self) -> Footprints:
        parts = []
        for map_from_room, room in self.cells:
            centres, axes, halves = (np.concatenate(both) for both in zip(room.footprints, room.walls()))
            rotation = map_from_room[:2, :2]
            parts.append((centres @ rotation.T + map_from_room[:2, 3], rotation @ axes, halves))
        return tuple(np.concatenate(part) for part in zip(*parts))

    def clearance(self, points_N2: np.ndarray) -> np.ndarray:
        """Horizontal distance (N,) of map points to the nearest wall or obstacle [m], not positive inside an obstacle."""
        return distance_to(self._footprints, points_N2)


def build_building(seed: int, rooms: int) -> Building:
    """The building of a seed with an even number of rooms. Raises ConfigError."""
    if rooms < 2 or rooms % 2:
        raise ConfigError(f'rooms: expected an even number, found {rooms}')
    rng = np.random.default_rng([seed, 13])
    doors = rng.uniform(-0.9, 0.9, rooms)
    built = [build_room(1000 * seed + k, door=float(x)) for k, x in enumerate(doors)]
    pairs = rooms // 2
    opposite = [rooms - 1 - k for k in range(pairs)]
    lengths = [max(built[k].size[0], built[j].size[0]) + GAP_M for k, j in zip(range(pairs), opposite)]
    starts = np.concatenate([[0], np.cumsum(lengths)]) - sum(lengths) / 2
    placed, corridor, middles = {}, [], {}
    for k, j in zip(range(pairs), opposite):
        x = float(starts[k] + lengths[k] / 2)
        for index, side in ((k, 1), (j, -1)):
            placed[index] = (transform(x, side * (CORRIDOR_M + built[index].size[1]) / 2, 0, 0 if side > 0 else np.pi), built[index])
            middles[index] = (x + side * doors[index], side * CORRIDOR_M / 2)
        openings = [Opening(2, float(-doors[k]), DOOR_WIDTH_M), Opening(0, float(-doors[j]), DOOR_WIDTH_M)]
        openings += [Opening(wall, 0.0, ARCH_M) for wall, there in ((3, k > 0), (1, k < pairs - 1)) if there]
        corridor.append((transform(x, 0), build_corridor(1000 * seed + 500 + k, (lengths[k], CORRIDOR_M, 2.6), tuple(openings))))
    order = range(rooms)
    return Building(seed, (*(placed[k] for k in order), *corridor), np.array([middles[k] for k in order]))
