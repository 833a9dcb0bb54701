"""From a seed to a furnished room: its size, boxes, lamps, wall decoration, and where a camera can be.

The map frame has its origin on the floor in the middle of the room, x and y along the walls, z up; metres.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import cv2
import numpy as np

from dsac_ros.data.synthetic import furniture, pictures, textures
from dsac_ros.data.synthetic.furniture import Box, Piece, block, transform
from dsac_ros.data.synthetic.textures import Painter

CAMERA_HEIGHTS_M = (1.0, 1.75)  # cameras stay between: whatever reaches into it is an obstacle, and so is furniture below it
FLOOR_ITEM_M = 0.1  # what is lower can be stepped on
HIDDEN_GAP_M = 0.07
OPENING_HEIGHT_M, DOOR_WIDTH_M = 2.05, 0.95
# Seen from above: centres (B, 2), axes in columns (B, 2, 2) and half sizes (B, 2) of rectangles.
Footprints = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Face:
    """A flat rectangle seen from one side: corner + a * right + b * down, 0 <= a <= size[0], 0 <= b <= size[1].

    right and down are unit vectors as its viewer sees them, so right x down points away from the viewer.
    """

    corner: np.ndarray
    right: np.ndarray
    down: np.ndarray
    size: tuple[float, float]
    painter: Painter

    def placed(self, a_from_map: np.ndarray) -> Face:
        """The same face after its frame was moved by a (4, 4) transform."""
        rotation = a_from_map[:3, :3]
        return replace(self, corner=rotation @ self.corner + a_from_map[:3, 3], right=rotation @ self.right, down=rotation @ self.down)


@dataclass(frozen=True)
class Opening:
    """A way through a wall (0 to 3: y-, x+, y+, x-): its middle along the wall, in the frame of the wall, and its width [m]."""

    wall: int
    x: float
    width: float


@dataclass(frozen=True)
class Room:
    """size: (x, y, z) metres. boxes: all furniture and decoration. shell: the six inner faces. lamps: (L, 3) points. seed: of it all.
    posters: which posters and framed pictures hang there; the room of another number is else the same."""

    seed: int
    size: tuple[float, float, float]
    boxes: tuple[Box, ...]
    shell: tuple[Face, ...]
    lamps: np.ndarray
    posters: int = 0
    openings: tuple[Opening, ...] = ()

    def faces(self) -> list[Face]:
        """All faces that can be seen from where a camera can be, in an order that depends on the seed only."""
        half = np.array([self.size[0] / 2, self.size[1] / 2, self.size[2] / 2])

        def shows(face: Face) -> bool:
            # not where it faces a wall, the floor or the ceiling across a gap that no camera fits in
            normal, centre = -np.cross(face.right, face.down), face.corner + (face.size[0] * face.right + face.size[1] * face.down) / 2
            gap = half - np.sign(normal) * (centre - [0, 0, half[2]])
            return not ((np.abs(normal) > 0.99) & (gap < HIDDEN_GAP_M)).any()

        return [*self.shell, *(face for box in self.boxes for face in box_faces(box) if shows(face))]

    @cached_property
    def obstacles(self) -> tuple[Box, ...]:
        """The boxes that a walker with a camera has to keep away from."""
        def spans(box: Box) -> tuple[float, float]:
            return box.map_from_box[2, 3] - box.size[2] / 2, box.map_from_box[2, 3] + box.size[2] / 2
        return tuple(b for b in self.boxes if spans(b)[1] > FLOOR_ITEM_M and spans(b)[0] < CAMERA_HEIGHTS_M[1] + 0.15)

    @cached_property
    def footprints(self) -> Footprints:
        """Of the obstacles."""
        return (np.stack([b.map_from_box[:2, 3] for b in self.obstacles]), np.stack([b.map_from_box[:2, :2] for b in self.obstacles]),
                np.array([b.size[:2] for b in self.obstacles]) / 2)

    def walls(self) -> Footprints:
        """Of the walls between the openings, without thickness."""
        parts = []
        for wall in range(4):
            map_from_wall, length = _map_from_wall(self.size, wall)
            for left, right in _closed(-length / 2, length / 2, [(o.x, o.width) for o in self.openings if o.wall == wall]):
                centre = map_from_wall @ np.array([(left + right) / 2, 0, 0, 1])
                parts.append((centre[:2], map_from_wall[:2, :2], ((right - left) / 2, 0.0)))
        return tuple(np.array(part) for part in zip(*parts))

    def clearance(self, points_N2: np.ndarray) -> np.ndarray:
        """Horizontal distance (N,) of map points to the nearest wall or obstacle [m], not positive inside one; openings count as wall."""
        return np.minimum((np.array(self.size[:2]) / 2 - np.abs(points_N2)).min(-1), distance_to(self.footprints, points_N2))


def distance_to(footprints: Footprints, points_N2: np.ndarray) -> np.ndarray:
    """Distance (N,) of points to the nearest of the rectangles, negative inside one."""
    centres_B2, axes_B22, halves_B2 = footprints
    local = np.einsum('nbi,bij->nbj', points_N2[:, None] - centres_B2, axes_B22)
    beyond = np.abs(local) - halves_B2
    return (np.hypot(*np.maximum(beyond, 0).transpose(2, 0, 1)) + np.minimum(np.maximum(beyond[..., 0], beyond[..., 1]), 0)).min(-1)


def box_faces(box: Box) -> list[Face]:
    """The six sides of a box, seen from outside."""
    rotation, centre, half = box.map_from_box[:3, :3], box.map_from_box[:3, 3], np.array(box.size) / 2
    axes = {'front': (0, 1, 0), 'back': (0, -1, 0), 'right': (1, 0, 0), 'left': (-1, 0, 0), 'top': (0, 0, 1), 'bottom': (0, 0, -1)}
    faces = []
    for name, normal in axes.items():
        up = np.array((0, 1, 0) if normal[2] else (0, 0, 1), np.float64)
        right = np.cross(up, normal)
        size = tuple(float(s) for s in (2 * np.abs(right) @ half, 2 * np.abs(up) @ half))
        corner = (np.array(normal) - right + up) * half
        faces.append(Face(centre + rotation @ corner, rotation @ right, rotation @ -up, size, box.sides.get(name, box.painter)))
    return faces


def _shell(rng: np.random.Generator, size: tuple[float, float, float], openings: tuple[Opening, ...] = ()) -> tuple[Face, ...]:
    """Floor, ceiling and four walls: the sides of a box, mirrored to be seen from inside."""
    kinds = rng.permutation(4)
    pale = textures.colour(rng, (0.05, 0.25), (0.75, 0.95))
    painters = {'bottom': textures.floor(rng), 'top': partial(textures.ceiling, rgb=pale),
                **{name: textures.wall(rng, int(kind)) for name, kind in zip(('front', 'right', 'back', 'left'), kinds)}}
    box = Box(transform(0, 0, size[2] / 2), size, painters['front'], painters)
    faces = [Face(f.corner + f.size[0] * f.right, -f.right, f.down, f.size, f.painter) for f in box_faces(box)]
    walls = {2: faces[0], 0: faces[1], 1: faces[2], 3: faces[3]}
    return tuple(part for wall, face in [*walls.items(), *enumerate(faces[4:], 4)]
                 for part in _parts(face, [(face.size[0] / 2 - o.x, o.width) for o in openings if o.wall == wall]))


def _parts(wall: Face, openings: list[tuple[float, float]]) -> list[Face]:
    """A wall but for its openings: (middle from its left, width) [m]."""
    drop = wall.size[1] - OPENING_HEIGHT_M
    beside = [replace(wall, corner=wall.corner + left * wall.right, size=(right - left, wall.size[1]))
              for left, right in _closed(0.0, wall.size[0], openings)]
    above = [replace(wall, corner=wall.corner + (middle - width / 2) * wall.right, size=(width, drop)) for middle, width in openings]
    return beside + above


def _closed(start: float, end: float, openings: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What openings (middle, width) leave of an interval."""
    edges = [start, *(edge for middle, width in sorted(openings) for edge in (middle - width / 2, middle + width / 2)), end]
    return list(zip(edges[::2], edges[1::2]))


def _map_from_wall(size: tuple[float, float, float], wall: int) -> tuple[np.ndarray, float]:
    """The frame of a wall (x along it, y into the room, origin at the foot of its middle) and its length."""
    yaw = wall * np.pi / 2
    reach, length = (size[1], size[0]) if wall % 2 == 0 else (size[0], size[1])
    foot = transform(0, 0, 0, yaw) @ np.array([0, -reach / 2, 0, 1])
    return transform(foot[0], foot[1], 0, yaw), length


def _footprint(map_from_piece: np.ndarray, footprint: tuple[float, float], margin: float) -> np.ndarray:
    """Axis-aligned bounds ((x, y) low, (x, y) high) of a piece with a margin."""
    w, d = footprint[0] / 2, footprint[1]
    corners = np.array([[-w, 0, 0, 1], [w, 0, 0, 1], [-w, d, 0, 1], [w, d, 0, 1]]) @ map_from_piece.T
    return np.stack([corners[:, :2].min(0) - margin, corners[:, :2].max(0) + margin])


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[0] < b[1]) & (b[0] < a[1])).all())


class _Layout:
    """Places things in a room one after the other and remembers which space they take."""

    def __init__(self, rng: np.random.Generator, size: tuple[float, float, float]) -> None:
        self.rng, self.size = rng, size
        self.boxes: list[Box] = []
        self.taken: list[np.ndarray] = []  # bounds on the floor
        self.covered: list[tuple[int, float, float, float]] = []  # (wall, from, to along it, up to this height)

    def put_at_wall(self, piece: Piece) -> bool:
        """Stand a piece somewhere along a wall; False where there is no room for it."""
        for _ in range(25):
            wall = int(self.rng.integers(4))
            map_from_wall, length = _map_from_wall(self.size, wall)
            x = self.rng.uniform(-1, 1) * (length - piece.footprint[0]) / 2
            map_from_piece = map_from_wall @ transform(x, 0.015)
            bounds = _footprint(map_from_piece, piece.footprint, 0.04)
            if not any(_overlap(bounds, other) for other in self.taken):
                self.boxes += [box.placed(map_from_piece) for box in piece.boxes]
                self.taken.append(bounds)
                self.covered.append((wall, x - piece.footprint[0] / 2, x + piece.footprint[0] / 2, piece.height + 0.3))
                return True
        return False

    def leave_open(self, opening: Opening) -> None:
        """Keep floor and wall free at an opening."""
        map_from_wall, _ = _map_from_wall(self.size, opening.wall)
        self.taken.append(_footprint(map_from_wall @ transform(opening.x, 0), (opening.width + 0.1, 1.1), 0))
        self.covered.append((opening.wall, opening.x - opening.width / 2 - 0.05, opening.x + opening.width / 2 + 0.05, OPENING_HEIGHT_M))

    def put_door(self) -> None:
        """Hang a door and keep the floor before it free."""
        wall = int(self.rng.integers(4))
        map_from_wall, length = _map_from_wall(self.size, wall)
        x = self.rng.uniform(-1, 1) * (length / 2 - 0.8)
        door = block(x, 0.02, 0.0, (0.95, 0.04, 2.05), textures.flat_painter, front=pictures.door)
        self.boxes.append(door.placed(map_from_wall))
        self.taken.append(_footprint(map_from_wall @ transform(x, 0), (1.0, 0.9), 0))
        self.covered.append((wall, x - 0.5, x + 0.5, 2.1))

    def hang(self, wall: int, wide: float, high: float, bottom: float, thick: float, painter: Painter) -> bool:
        """Hang a picture or window where the wall is free above the furniture; False where there is no room."""
        map_from_wall, length = _map_from_wall(self.size, wall)
        for _ in range(20):
            x = self.rng.uniform(-1, 1) * (length - wide - 0.1) / 2
            left, right = x - wide / 2 - 0.04, x + wide / 2 + 0.04
            if not any(w == wall and a < right and left < b and bottom < top for w, a, b, top in self.covered):
                edge = partial(textures.wood, rgb=textures.colour(self.rng, (0.0, 0.6), (0.1, 0.8)))
                self.boxes.append(block(x, thick / 2, bottom, (wide, thick, high), edge, front=painter).placed(map_from_wall))
                self.covered.append((wall, left, right, bottom + high))
                return True
        return False

    def decorate(self, wall: int) -> None:
        """Windows and pictures at eye level, then a higher row of small ones."""
        top = self.size[2] - 0.12
        for _ in range(self.rng.integers(1, 3)):
            self.hang(wall, self.rng.uniform(0.8, 1.4), self.rng.uniform(0.9, 1.2), self.rng.uniform(0.9, 1.05), 0.03, pictures.window)
        for low, size, count in ((1.0, (0.5, 1.0), 7), (1.3, (0.35, 0.7), 8), (1.2, (0.25, 0.4), 5), (1.9, (0.25, 0.55), 7)):
            for _ in range(count):
                wide = self.rng.uniform(*size)
                bottom = low + self.rng.uniform(-0.1, 0.25)
                high = min(wide * self.rng.uniform(0.7, 1.5), top - bottom)
                if high > 0.2:
                    self.hang(wall, wide, high, bottom, self.rng.uniform(0.015, 0.05),
                              (pictures.framed, pictures.poster)[self.rng.integers(2)])

    def put_in_the_middle(self) -> None:
        """A rug, and a table on it where that leaves ways round it; lamps and beams at the ceiling."""
        x, y, yaw = *(self.rng.uniform(-0.4, 0.4, 2)), self.rng.uniform(0, np.pi)
        self.boxes.append(block(x, y, 0.0, (2.0, 1.4, 0.012), textures.rug, yaw))
        piece = furniture.table(self.rng)
        map_from_piece = transform(x, y, 0.0121, yaw) @ transform(0, -piece.footprint[1] / 2)
        if not any(_overlap(_footprint(map_from_piece, piece.footprint, 0.75), other) for other in self.taken):
            self.boxes += [box.placed(map_from_piece) for box in piece.boxes]
        for k in (-1, 1):
            at = k * self.size[0] * self.rng.uniform(0.15, 0.38)
            wood = partial(textures.wood, rgb=textures.colour(self.rng, (0.2, 0.6), (0.2, 0.6)))
            self.boxes.append(block(at, 0, self.size[2] - 0.13, (0.16, self.size[1], 0.13), wood))
        high = 0.25
        self.boxes.append(block(x * 1.5, y * 1.5, self.size[2] - 0.05 - high, (0.4, 0.4, high), pictures.abstract, self.rng.uniform(0, 1)))


def free_space(room: Room, margin: float, step: float = 0.05) -> np.ndarray:
    """Points (N, 2) of a grid where a camera can be with a margin, all in the largest connected part; seen from above."""
    xs, ys = (np.arange(-s / 2, s / 2, step) + step / 2 for s in room.size[:2])
    points = np.stack(np.meshgrid(xs, ys), -1)
    free = (room.clearance(points.reshape(-1, 2)) > margin).reshape(points.shape[:2])
    _, labels, stats, _ = cv2.connectedComponentsWithStats(free.astype(np.uint8), connectivity=4)
    if len(stats) < 2:
        return np.zeros((0, 2))
    return points[labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]


def build_room(seed: int, posters: int = 0, door: float | None = None) -> Room:
    """The room of a seed: always the same, with at least 3 m2 for the camera to walk in; a near-twin of it for each number of posters.

    Args:
        door: where along the wall y- its door stands open; else it is closed, and somewhere.
    """
    openings = () if door is None else (Opening(0, door, DOOR_WIDTH_M),)
    for attempt in range(50):
        rng = np.random.default_rng([seed, attempt])
        size = tuple(float(rng.uniform(*bounds)) for bounds in ((4.4, 6.0), (3.6, 5.0), (2.5, 2.8)))
        layout = _Layout(rng, size)
        if door is None:
            layout.put_door()
        for opening in openings:
            layout.leave_open(opening)
        for index in (0, *(1 + rng.permutation(len(furniture.WALL_PIECES) - 1))):  # one book case at least
            layout.put_at_wall(furniture.WALL_PIECES[index](rng))
        for wall in range(4):
            layout.decorate(wall)
        layout.put_in_the_middle()
        lamps = _lamps(rng, size)
        room = Room(seed, size, tuple(layout.boxes), _shell(rng, size, openings), lamps, posters, openings)
        free = free_space(room, 0.45)
        entered = door is None or _nearest(free, [door, 0.7 - size[1] / 2]) < 0.2
        if len(free) * 0.05 ** 2 > 3.0 and entered:
            return room
    raise RuntimeError(f'no layout with enough free space for room seed {seed}')


def build_corridor(seed: int, size: tuple[float, float, float], openings: tuple[Opening, ...]) -> Room:
    """A part of a corridor: bare floor, pictures on the walls."""
    rng = np.random.default_rng([seed, 0])
    layout = _Layout(rng, size)
    for opening in openings:
        layout.leave_open(opening)
    for wall in range(4):
        layout.decorate(wall)
    return Room(seed, size, tuple(layout.boxes), _shell(rng, size, openings), _lamps(rng, size), openings=openings)


def _lamps(rng: np.random.Generator, size: tuple[float, float, float]) -> np.ndarray:
    lamps = np.stack([rng.uniform(-0.3, 0.3, 2) * size[:2] for _ in range(2)])
    return np.concatenate([lamps, np.full((2, 1), size[2] - 0.4)], -1)


def _nearest(points_N2: np.ndarray, point: list[float]) -> float:
    return float(np.linalg.norm(points_N2 - point, axis=-1).min(initial=np.inf))
