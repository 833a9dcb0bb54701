"""Cutting a large recording into overlapping sub-maps, each of about the extent that one head can hold.

Frames are divided by where what they see lies, by two-means, until every part is small enough (as ESAC clusters large places by the scene
coordinates of images, Brachmann & Rother 2019). Then each part is given the frames of others that are nearly as near to it: a camera at a
border has both.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXTENT_M = 8.0  # the best of 6, 8, 10 and 12 in a building, by little (docs/large_places.md)
OVERLAP = 0.15  # of the distance to the nearest middle: what is so little farther belongs to both
MIN_PART = 20  # frames, else there is nothing to train on
ROUNDS = 30
INSIDE = (0.05, 0.95)  # quantiles that an extent is between: one far view through a door does not count


def split_frames(map_from_camera_F44: np.ndarray, points_F: Sequence[np.ndarray], extent_m: float = EXTENT_M) -> list[list[int]]:
    """Frames of each sub-map, in order of time; a frame near a border is in more than one.

    Args:
        points_F: scene coordinates (N, 3) that each frame sees; NaN, or none at all, where they are not known: then the camera stands in.
        extent_m: of what the frames of a sub-map see, before those of the borders are added; one place that is not larger stays one. No
            part of a divided recording has fewer than MIN_PART frames.

    The same frames always give the same parts, numbered by their first frame.
    """
    cameras = map_from_camera_F44[:, :3, 3]
    seen = [np.concatenate([camera[None], points[np.isfinite(points).all(-1)].reshape(-1, 3)]) for camera, points in zip(cameras, points_F)]
    # Half-way between a camera and what it looks at: neither alone says which room it is in.
    centres = (cameras + np.stack([np.median(points, axis=0) for points in seen])) / 2
    parts = [np.arange(len(centres))]
    done: list[np.ndarray] = []
    while parts:
        part = parts.pop()
        halves = _halves(centres[part]) if _extent([seen[index] for index in part]) > extent_m else None
        if halves is None or min(halves.sum(), (~halves).sum()) < MIN_PART:
            done.append(part)
        else:
            parts += [part[halves], part[~halves]]
    done.sort(key=lambda part: int(part[0]))
    if len(done) == 1:
        return [done[0].tolist()]
    middles = np.stack([centres[part].mean(0) for part in done])
    distances_FP = np.linalg.norm(centres[:, None] - middles, axis=-1)
    owned = np.zeros(distances_FP.shape, bool)
    for index, part in enumerate(done):
        owned[part, index] = True
    own_F = np.where(owned, distances_FP, 0).sum(1)
    shared = distances_FP <= (1 + OVERLAP) * own_F[:, None]
    return [np.flatnonzero(column).tolist() for column in (owned | shared).T]


def _extent(points: Sequence[np.ndarray]) -> float:
    low, high = np.quantile(np.concatenate(points), INSIDE, axis=0)
    return float((high - low).max())


def _halves(points_N3: np.ndarray) -> np.ndarray | None:
    """Which of the points belong to the first of two means, started at the ends of the principal axis; None where they are all one."""
    centred = points_N3 - points_N3.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    if np.ptp(along) == 0:
        return None
    means = points_N3[[np.argmin(along), np.argmax(along)]]
    for _ in range(ROUNDS):
        first = np.linalg.norm(points_N3 - means[0], axis=1) <= np.linalg.norm(points_N3 - means[1], axis=1)
        means = np.stack([points_N3[first].mean(0), points_N3[~first].mean(0)])
    return first
