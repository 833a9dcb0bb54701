"""Pieces of furniture from a random generator: lists of boxes in the piece's own frame.

The frame of a piece: origin on the floor at the middle of its back, x along the back, y into the room, z up; metres.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Mapping

import numpy as np

from dsac_ros.data.synthetic import pictures, textures
from dsac_ros.data.synthetic.textures import Painter


@dataclass(frozen=True)
class Box:
    """A solid box: its centre frame, size (x, y, z) in metres, a painter for all sides and others for sides by name.

    Sides are front (+y), back (-y), right (+x), left (-x), top (+z), bottom (-z).
    """

    map_from_box: np.ndarray
    size: tuple[float, float, float]
    painter: Painter
    sides: Mapping[str, Painter] = field(default_factory=dict)

    def placed(self, a_from_map: np.ndarray) -> Box:
        """The same box after its frame was moved by a (4, 4) transform."""
        return Box(a_from_map @ self.map_from_box, self.size, self.painter, self.sides)


@dataclass(frozen=True)
class Piece:
    """A piece of furniture: footprint (width along x, depth along y), height, boxes in its own frame."""

    footprint: tuple[float, float]
    height: float
    boxes: tuple[Box, ...]


def transform(x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """(4, 4) of a turn by yaw [rad] about z and a shift."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], np.float64)


def block(x: float, y: float, z: float, size: tuple[float, float, float], painter: Painter, yaw: float = 0.0, **sides: Painter) -> Box:
    """A box that stands with the middle of its bottom at (x, y, z)."""
    return Box(transform(x, y, z + size[2] / 2, yaw), tuple(float(s) for s in size), painter, sides)


def _wood(rng: np.random.Generator) -> Painter:
    if rng.uniform() < 0.6:
        return partial(textures.wood, rgb=tuple(np.clip(np.array([0.58, 0.40, 0.25]) * rng.uniform(0.5, 1.5), 0, 1)))
    return partial(textures.wood, rgb=textures.colour(rng, (0.0, 0.6), (0.2, 0.9)))


def _cloth(rng: np.random.Generator) -> Painter:
    return partial(textures.fabric, rgb=textures.colour(rng, (0.2, 0.8), (0.25, 0.8)))


def clutter(rng: np.random.Generator, width: float, depth: float, y: float, z: float, count: int) -> list[Box]:
    """Small things on a surface of width x depth whose middle is (0, y, z): books, boxes, tins, a picture that stands."""
    boxes: list[Box] = []
    slots = np.linspace(-width / 2, width / 2, count + 1)
    for left, right in zip(slots[:-1], slots[1:]):
        room, x, turn = right - left, (left + right) / 2, rng.uniform(-0.4, 0.4)
        kind = rng.integers(4)
        w = min(rng.uniform(0.12, 0.3), 0.75 * room)
        d = min(w, 0.6 * depth)
        if kind == 0:
            for k in range(rng.integers(2, 5)):
                cover = partial(textures.fabric, rgb=textures.colour(rng))
                boxes.append(block(x, y, z + 0.035 * k, (w, d, 0.035), cover, turn + rng.uniform(-0.2, 0.2), top=pictures.poster,
                                   front=pictures.books))
        elif kind == 1:
            boxes.append(block(x, y, z, (w, d, rng.uniform(0.1, 0.25)), pictures.carton, turn))
        elif kind == 2:
            boxes.append(block(x, y, z, (0.09, 0.09, rng.uniform(0.1, 0.3)), pictures.abstract, turn))
        else:
            boxes.append(block(x, y, z, (w, 0.03, w * rng.uniform(0.8, 1.3)), _wood(rng), turn / 2, front=pictures.framed))
    return boxes


def shelf(rng: np.random.Generator) -> Piece:
    """A book case: sides, boards, and blocks of books that stand back to different depths."""
    w, d, h, board, material = rng.uniform(0.8, 1.3), rng.uniform(0.26, 0.34), rng.uniform(1.5, 2.1), 0.025, _wood(rng)
    boxes = [block(side * (w - board) / 2, d / 2, 0, (board, d, h), material) for side in (-1, 1)]
    boxes.append(block(0, 0.01, 0, (w - 2 * board, 0.02, h), material))
    levels = np.linspace(0.06, h - board, int(h / 0.34) + 1)
    for z, above in zip(levels, [*levels[1:], None]):
        boxes.append(block(0, d / 2 + 0.01, z, (w - 2 * board, d - 0.02, board), material))
        if above is None:
            continue
        x, end, free = -w / 2 + board, w / 2 - board, above - z - board
        while end - x > 0.15:
            length = min(rng.uniform(0.15, 0.6), end - x)
            if rng.uniform() < 0.85:
                deep, tall = rng.uniform(0.55, 0.9) * d, rng.uniform(0.65, 0.95) * free
                cover = partial(textures.fabric, rgb=textures.colour(rng))
                boxes.append(block(x + length / 2, 0.02 + deep / 2, z + board, (length, deep, tall), cover, front=pictures.books,
                                   top=pictures.books))
            x += length + rng.uniform(0.0, 0.12)
    return Piece((w, d), h, (*boxes, *clutter(rng, w * 0.8, d, d / 2, h, 2)))


def cabinet(rng: np.random.Generator) -> Piece:
    """A chest or a wardrobe with drawer fronts, things on top."""
    tall = rng.uniform() < 0.35
    w, d, h = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.55), rng.uniform(1.7, 2.0) if tall else rng.uniform(0.7, 1.1)
    rgb = textures.colour(rng, (0.2, 0.6), (0.35, 0.85))
    body = block(0, d / 2, 0, (w, d, h), partial(textures.wood, rgb=rgb), front=partial(pictures.drawers, rgb=rgb))
    return Piece((w, d), h, (body, *clutter(rng, w * 0.9, d, d / 2, h, rng.integers(2, 5))))


def _legs(w: float, d: float, y: float, h: float, thick: float, material: Painter) -> list[Box]:
    return [block(sx * (w - thick) / 2, y + sy * (d - thick) / 2, 0, (thick, thick, h), material) for sx in (-1, 1) for sy in (-1, 1)]


def table(rng: np.random.Generator) -> Piece:
    """A table with four legs and things on it; stands free."""
    w, d, h, material = rng.uniform(1.0, 1.5), rng.uniform(0.6, 0.8), rng.uniform(0.45, 0.76), _wood(rng)
    top = block(0, d / 2, h - 0.04, (w, d, 0.04), material, top=textures.rug if rng.uniform() < 0.3 else material)
    return Piece((w, d), h, (top, *_legs(w * 0.95, d * 0.95, d / 2, h - 0.04, 0.06, material),
                             *clutter(rng, w * 0.8, d * 0.8, d / 2, h, 4)))


def desk(rng: np.random.Generator) -> Piece:
    """A desk with one or two monitors, a drawer block below and a chair pushed in."""
    w, d, h, material = rng.uniform(1.2, 1.6), rng.uniform(0.6, 0.75), 0.74, _wood(rng)
    boxes = [block(0, d / 2, h - 0.03, (w, d, 0.03), material), *_legs(w, d, d / 2, h - 0.03, 0.05, material)]
    rgb, side = textures.colour(rng, (0.1, 0.6), (0.3, 0.8)), rng.choice([-1, 1])
    boxes.append(block(side * (w / 2 - 0.26), d / 2, 0.05, (0.4, d * 0.8, 0.55), partial(textures.wood, rgb=rgb),
                       front=partial(pictures.drawers, rgb=rgb)))
    dark = partial(textures.fabric, rgb=(0.12, 0.12, 0.13))
    for x in ((0.0,) if rng.uniform() < 0.5 else (-0.3, 0.33)):
        boxes.append(block(x, 0.2, h, (0.16, 0.14, 0.12), dark))
        boxes.append(block(x, 0.22, h + 0.1, (0.54, 0.04, 0.33), dark, rng.uniform(-0.2, 0.2), front=pictures.screen))
    boxes.append(block(0, d * 0.7, h, (0.42, 0.14, 0.02), dark, top=pictures.grid))
    cloth, x = _cloth(rng), -side * 0.2
    boxes += [block(x, d + 0.05, 0.43, (0.44, 0.42, 0.06), cloth), block(x, d + 0.24, 0.5, (0.42, 0.04, 0.42), cloth)]
    boxes += [box.placed(transform(x, d + 0.05)) for box in _legs(0.42, 0.4, 0.0, 0.43, 0.035, material)]
    return Piece((w, d + 0.3), 1.2, tuple(boxes))


def sofa(rng: np.random.Generator) -> Piece:
    """A sofa with back, arms, seat cushions of one cloth and pillows of others."""
    w, d, cloth = rng.uniform(1.4, 2.0), rng.uniform(0.8, 0.9), _cloth(rng)
    boxes = [block(0, d / 2, 0.06, (w, d, 0.22), cloth), block(0, 0.11, 0.28, (w, 0.22, rng.uniform(0.45, 0.6)), cloth)]
    boxes += [block(side * (w / 2 - 0.09), d / 2, 0.28, (0.18, d, 0.3), cloth) for side in (-1, 1)]
    seats = 2 if w < 1.7 else 3
    wide = (w - 0.36) / seats
    for k in range(seats):
        x = -w / 2 + 0.18 + (k + 0.5) * wide
        boxes.append(block(x, 0.22 + (d - 0.22) / 2, 0.28, (wide - 0.01, d - 0.22, 0.15), _cloth(rng) if rng.uniform() < 0.3 else cloth))
        if rng.uniform() < 0.7:
            boxes.append(block(x, 0.3, 0.43, (0.38, 0.14, 0.36), _cloth(rng), rng.uniform(-0.3, 0.3),
                               front=rng.choice([pictures.abstract, textures.rug])))
    return Piece((w, d), 0.9, tuple(boxes))


def television(rng: np.random.Generator) -> Piece:
    """A television on a low board with loudspeakers."""
    w, d, h, rgb = rng.uniform(1.3, 1.7), 0.42, rng.uniform(0.4, 0.55), textures.colour(rng, (0.1, 0.6), (0.3, 0.85))
    dark = partial(textures.fabric, rgb=(0.1, 0.1, 0.11))
    boxes = [block(0, d / 2, 0, (w, d, h), partial(textures.wood, rgb=rgb), front=partial(pictures.drawers, rgb=rgb)),
             block(0, 0.2, h + 0.05, (1.05, 0.05, 0.62), dark, rng.uniform(-0.1, 0.1), front=pictures.screen), block(0, 0.2, h,
                                                                                                                     (0.4, 0.2,
                                                                                                                      0.05), dark)]
    boxes += [block(side * (w / 2 - 0.08), 0.2, h, (0.14, 0.16, rng.uniform(0.25, 0.5)), _wood(rng),
                    front=pictures.abstract) for side in (-1, 1)]
    return Piece((w, d), 1.1, tuple(boxes))


def bed(rng: np.random.Generator) -> Piece:
    """A bed with head board, blanket and pillows."""
    w, d, material = rng.uniform(1.0, 1.5), rng.uniform(1.8, 2.0), _wood(rng)
    boxes = [block(0, d / 2, 0.05, (w, d, 0.25), material), block(0, 0.03, 0.3, (w, 0.06, 0.6), material, front=pictures.abstract),
             block(0, 0.06 + (d - 0.06) / 2, 0.3, (w - 0.04, d - 0.1, 0.18), _cloth(rng)),
             block(0, d * 0.62, 0.48, (w, d * 0.6, 0.06), _cloth(rng), top=textures.rug)]
    boxes += [block(x, 0.3, 0.48, (w * 0.36, 0.36, 0.12), _cloth(rng), rng.uniform(-0.2, 0.2)) for x in (-w / 4, w / 4)]
    return Piece((w, d), 0.9, tuple(boxes))


def cartons(rng: np.random.Generator) -> Piece:
    """A stack of packing boxes."""
    boxes, z, w = [], 0.0, rng.uniform(0.5, 0.7)
    for _ in range(rng.integers(2, 5)):
        size = w * rng.uniform(0.65, 0.95), w * rng.uniform(0.6, 0.85), rng.uniform(0.22, 0.45)
        boxes.append(block(rng.uniform(-0.03, 0.03), w / 2, z, size, pictures.carton, rng.uniform(-0.12, 0.12)))
        z += size[2]
    return Piece((w, w), z, tuple(boxes))


WALL_PIECES: tuple[Callable[[np.random.Generator], Piece], ...] = (shelf, sofa, desk, cabinet, television, shelf, cartons, bed, cabinet,
                                                                   cartons)
