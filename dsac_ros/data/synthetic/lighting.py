"""Fixed light of a synthetic room: a lightness map per face, from lamps with soft shadows and an even rest."""
from __future__ import annotations

import numpy as np

from dsac_ros.data.synthetic.room import Face, Room

GRID_M = 0.1  # spacing of the points of a lightness map
AMBIENT = 0.55
LAMP = 3.2  # lightness that a lamp adds at 1 m straight below, before the distance law is softened


def _grid(face: Face) -> np.ndarray:
    """Points (h, w, 3) on a face, at the centres of its lightness map."""
    w, h = (max(int(s / GRID_M), 2) for s in face.size)
    a, b = (np.arange(w) + 0.5) / w * face.size[0], (np.arange(h) + 0.5) / h * face.size[1]
    return face.corner + a[None, :, None] * face.right + b[:, None, None] * face.down


def _lit(points_N3: np.ndarray, lamp: np.ndarray, room: Room) -> np.ndarray:
    """Which points (N,) see a point of a lamp: no box cuts the segment between them (slab test in each box's own frame)."""
    free, points_3N = np.ones(len(points_N3), bool), np.ascontiguousarray(points_N3.T, np.float32)
    for box in room.boxes:
        if box.map_from_box[2, 3] > lamp[2] or min(box.size) < 0.018:
            continue
        rotation, half = box.map_from_box[:3, :3].astype(np.float32), np.float32(box.size)[:, None] / 2
        centre = box.map_from_box[:3, 3].astype(np.float32)
        start = rotation.T @ (points_3N - centre[:, None])
        step = (rotation.T @ (np.float32(lamp) - centre))[:, None] - start
        step[np.abs(step) < 1e-9] = 1e-9
        middle, reach = -start / step, half / np.abs(step)
        enter, leave = (middle - reach).max(0), (middle + reach).min(0)
        free &= ~((enter < leave) & (leave > 1e-3) & (enter < 1))
    return free


def lightness(room: Room, faces: list[Face], samples: int = 4) -> list[np.ndarray]:
    """One (h, w) float32 map per face, about 0.5 in shadow to 1.3 near a lamp; `samples` points per lamp make its shadows soft."""
    rng = np.random.default_rng([room.seed, 77])
    grids = [_grid(face) for face in faces]
    normals = np.concatenate([np.tile(-np.cross(f.right, f.down), (g.shape[0] * g.shape[1], 1)) for f, g in zip(faces, grids)])
    points = np.concatenate([g.reshape(-1, 3) for g in grids]) + 2e-3 * normals  # off the face, so that it does not shade itself
    total = np.full(len(points), AMBIENT)
    total += 0.06 * (normals @ np.array([0.6, 0.3, 0.74]))  # so that sides of a box in shadow still differ
    for lamp in np.repeat(room.lamps, samples, 0) + rng.normal(0, 0.1, (samples * len(room.lamps), 3)) * [1, 1, 0.2]:
        ray = lamp - points
        distance = np.linalg.norm(ray, axis=-1)
        cosine = np.maximum((ray * normals).sum(-1), 0) / distance
        index = np.flatnonzero(cosine > 0)
        seen = _lit(points[index], lamp, room)
        total[index] += np.where(seen, LAMP / samples / len(room.lamps) * cosine[index] / (1 + distance[index] ** 2 / 2), 0)
    out, start = [], 0
    for grid in grids:
        h, w = grid.shape[:2]
        out.append(total[start:start + h * w].reshape(h, w).astype(np.float32))
        start += h * w
    return out
