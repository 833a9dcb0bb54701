"""From a room and a seed to the poses of a camera carried through it by hand.

A walk between random free points, corners rounded; the view sweeps round and round, turns faster where a wall is near, nods and tilts a
little. Optical frames: x right, y down, z forward.
"""
from __future__ import annotations

import numpy as np

from dsac_ros.data.synthetic.building import Building
from dsac_ros.data.synthetic.room import CAMERA_HEIGHTS_M, Room, free_space
from dsac_ros.errors import ConfigError

STEP_S = 0.02
SPEED_M_S = (0.3, 0.5)
MARGINS_M = (0.45, 0.4, 0.35, 0.3)  # of the straight walk from obstacles, the widest that leaves enough space
CLEARANCE_M = 0.2  # after rounding the corners
DOORSTEP_M, MIN_INSIDE_M = 0.75, 1.5  # of a tour: straight ways before and behind each door, and the least way in a room


def _smooth(values: np.ndarray, sigma_s: float) -> np.ndarray:
    """Gaussian mean over time along axis 0, ends held."""
    reach = int(4 * sigma_s / STEP_S)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * STEP_S / sigma_s) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, [(reach, reach)] + [(0, 0)] * (values.ndim - 1), mode='edge')
    columns = padded.reshape(len(padded), -1).T
    return np.stack([np.convolve(column, kernel, 'valid') for column in columns], -1).reshape(values.shape)


def _wander(rng: np.random.Generator, count: int, sigma_s: float) -> np.ndarray:
    """Smooth noise (count,) of unit deviation."""
    extra = int(4 * sigma_s / STEP_S)
    raw = _smooth(rng.standard_normal(count + 2 * extra), sigma_s)[extra:extra + count]
    return raw * np.sqrt(2 * np.sqrt(np.pi) * sigma_s / STEP_S)


def _walk(room: Room, rng: np.random.Generator, length_m: float, margin: float, start: np.ndarray | None = None) -> np.ndarray | None:
    """Corners (N, 2) of a free walk of at least this length that seeks the parts of the room it has not been to."""
    free = free_space(room, margin)
    if len(free) * 0.05 ** 2 < 1.5:
        return None
    first = rng.integers(len(free)) if start is None else np.argmin(np.linalg.norm(free - start, axis=-1))
    corners, visited, walked = [free[first]], [], 0.0
    while walked < length_m:
        candidates = free[rng.integers(len(free), size=24)]
        distances = np.linalg.norm(candidates - corners[-1], axis=-1)
        ways = corners[-1] + np.linspace(0, 1, 40)[:, None, None] * (candidates - corners[-1])
        clear = (room.clearance(ways.reshape(-1, 2)).reshape(40, -1) > margin - 0.02).all(0) & (distances > 0.4)
        if not clear.any():
            # a corner that sees little: step a short way aside
            near = free[np.linalg.norm(free - corners[-1], axis=-1) < 0.3]
            candidates, clear = near, np.ones(len(near), bool)
        # how often places near each candidate were visited; old visits count less
        ages = 0.85 ** np.arange(len(visited))[::-1] if visited else np.zeros(0)
        crowd = [float((ages * np.exp(-((np.array(visited) - c) ** 2).sum(-1) / 0.5)).sum()) if visited else 0.0 for c in candidates]
        best = int(np.argmin(np.where(clear, crowd, np.inf)))
        walked += float(np.linalg.norm(candidates[best] - corners[-1]))
        way = corners[-1] + np.linspace(0.25, 1, 4)[:, None] * (candidates[best] - corners[-1])
        visited.extend(way)
        corners.append(candidates[best])
    return np.array(corners)


def _tour(building: Building, rng: np.random.Generator, length_m: float, margin: float) -> np.ndarray | None:
    """Corners (N, 2) of a way along the corridor, in at each door, through the room and out again as one came.

    Raises ConfigError where the length is too short for that.
    """
    rooms = len(building.rooms)
    between = np.linalg.norm(np.diff(building.doors_D2, axis=0), axis=-1).sum()
    least = between + 2 * rooms * (MIN_INSIDE_M + 2 * DOORSTEP_M)
    if length_m < least:
        raise ConfigError(f'a way through {rooms} rooms is {least:.0f} m long at least, these frames walk {length_m:.0f} m; '
                          'take more frames, or a lower rate')
    corners: list[np.ndarray] = []
    left = length_m - between
    for index, ((map_from_room, room), door) in enumerate(zip(building.rooms, building.doors_D2)):
        inward = map_from_room[:2, 1]
        start = map_from_room[:2, :2].T @ (door + DOORSTEP_M * inward - map_from_room[:2, 3])
        # Half a leg less, since a walk ends with the leg that reaches its length.
        inside_m = max(left / (2 * (rooms - index)) - 2 * DOORSTEP_M - 0.8, 0.1)
        walk = _walk(room, rng, inside_m, margin, start)
        if walk is None:
            return None
        walk = np.concatenate([[start], walk]) @ map_from_room[:2, :2].T + map_from_room[:2, 3]
        outside = (door - DOORSTEP_M * inward)[None]
        visit = np.concatenate([outside, walk, walk[-2::-1], outside])
        left -= np.linalg.norm(np.diff(visit, axis=0), axis=-1).sum()
        corners.append(visit)
    # Whoever is back early stands there for a while.
    return np.concatenate(corners) if left > 0 else None


def _view_distance(room: Room | Building, point_2: np.ndarray, yaw: float) -> float:
    """How far the view is free in the plane, by steps of 0.2 m up to 2.4 m."""
    steps = np.arange(0.2, 2.5, 0.2)
    hit = room.clearance(point_2 + steps[:, None] * [np.cos(yaw), np.sin(yaw)]) < 0.05
    return float(steps[np.argmax(hit)] if hit.any() else steps[-1])


def _headings(room: Room | Building, rng: np.random.Generator, points_N2: np.ndarray) -> np.ndarray:
    """Yaw (N,) [rad]: sweeps of 250 to 500 degrees to and fro, slow where there is much to see."""
    yaw, sign, left = rng.uniform(-np.pi, np.pi), rng.choice([-1.0, 1.0]), rng.uniform(np.radians(250), np.radians(500))
    every = 10  # the free view is looked up five times a second
    rates = np.zeros(len(points_N2))
    for start in range(0, len(points_N2), every):
        view = _view_distance(room, points_N2[start], yaw)
        rate = np.radians(np.interp(view, [0.6, 2.4], [29.0, 20.0]))
        rates[start:start + every] = sign * rate
        yaw += sign * rate * every * STEP_S
        left -= rate * every * STEP_S
        if left < 0:
            sign, left = -sign, rng.uniform(np.radians(250), np.radians(500))
    return yaw - np.sum(rates) * STEP_S + np.cumsum(_smooth(rates, 0.5)) * STEP_S


def _rotations(yaw_N: np.ndarray, pitch_N: np.ndarray, roll_N: np.ndarray) -> np.ndarray:
    """map_from_camera rotations (N, 3, 3): forward at yaw and pitch (up is positive), turned about forward by roll [rad]."""
    forward = np.stack([np.cos(yaw_N) * np.cos(pitch_N), np.sin(yaw_N) * np.cos(pitch_N), np.sin(pitch_N)], -1)
    level = np.stack([np.sin(yaw_N), -np.cos(yaw_N), np.zeros_like(yaw_N)], -1)
    down = np.cross(forward, level)
    c, s = np.cos(roll_N)[:, None], np.sin(roll_N)[:, None]
    return np.stack([c * level + s * down, c * down - s * level, forward], -1)


def hand_held(room: Room | Building, seed: int, frames: int, rate_hz: float) -> np.ndarray:
    """Poses map_from_camera (frames, 4, 4) float64 at rate_hz: at most 0.5 m/s over the floor and 40 deg/s, 0.2 m clear of everything.

    Through all rooms of a building, in turn. Raises ConfigError where the seed leaves no way through; then another one helps.
    """
    rng = np.random.default_rng([room.seed, seed, 9])
    count = max(int(np.ceil(frames / rate_hz / STEP_S)) + 1, 2)
    speed = np.clip(np.mean(SPEED_M_S) + 0.04 * _wander(rng, count, 1.5), *SPEED_M_S)
    arc = np.cumsum(speed) * STEP_S
    for attempt in range(4 * len(MARGINS_M)):
        find = _tour if isinstance(room, Building) else _walk
        corners = find(room, rng, arc[-1] + 0.1, MARGINS_M[attempt // 4])
        if corners is None:
            continue
        reached = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=-1))])
        points = _smooth(np.stack([np.interp(arc, reached, corners[:, k]) for k in (0, 1)], -1), 0.6)
        if room.clearance(points).min() > CLEARANCE_M:
            break
    else:
        raise ConfigError(f'room {room.seed}, trajectory {seed}: no way between the furniture; take another seed')
    yaw = _headings(room, rng, points) + np.radians(2.5) * _wander(rng, count, 0.8)
    pitch = np.radians(-8) + np.radians(8) * _wander(rng, count, 1.8)
    roll = np.radians(2.5) * _wander(rng, count, 1.5)
    height = np.clip(rng.uniform(1.3, 1.5) + 0.07 * _wander(rng, count, 2.5), *CAMERA_HEIGHTS_M)
    at = np.arange(frames) / rate_hz / STEP_S
    sampled = [np.interp(at, np.arange(count), v) for v in (yaw, pitch, roll, points[:, 0], points[:, 1], height)]
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = _rotations(*sampled[:3])
    poses[:, :3, 3] = np.stack(sampled[3:], -1)
    return poses
