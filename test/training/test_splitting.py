"""Large recordings cut into sub-maps: corridors with rooms, single rooms, borders."""
from __future__ import annotations

import numpy as np
import pytest

from dsac_ros.training.splitting import MIN_PART, split_frames


def looking(rng: np.random.Generator, positions_F2: np.ndarray, reach: float = 2.0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cameras at positions and what each sees: a hundred points of a wall in some direction."""
    poses = np.tile(np.eye(4), (len(positions_F2), 1, 1))
    poses[:, :2, 3], poses[:, 2, 3] = positions_F2, 1.4
    yaw = rng.uniform(-np.pi, np.pi, len(poses))
    towards = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(len(yaw))], -1)
    return poses, [pose[:3, 3] + reach * way + rng.normal(0, 0.4, (100, 3)) for pose, way in zip(poses, towards)]


def corridor_with_rooms(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """24 m of corridor, and four rooms of 4 x 4 m 8 m apart; the middles of the rooms."""
    middles = np.array([[0.0, 4], [8, 4], [16, 4], [24, 4]])
    rooms = [middle + rng.uniform(-1, 1, (60, 2)) for middle in middles]
    ways = [np.stack([np.linspace(x, x + 8, 40), np.zeros(40)], -1) for x in (0, 8, 16)]
    positions = np.concatenate([rooms[0], ways[0], rooms[1], ways[1], rooms[2], ways[2], rooms[3]])
    return *looking(rng, positions), middles


def extent(poses: np.ndarray, points: list[np.ndarray], part: list[int]) -> float:
    seen = np.concatenate([points[index] for index in part] + [poses[part, :3, 3]])
    return float(np.ptp(np.quantile(seen, [0.05, 0.95], axis=0), axis=0).max())


def test_a_corridor_with_rooms_is_cut_and_no_frame_is_lost() -> None:
    rng = np.random.default_rng(1)
    poses, points, middles = corridor_with_rooms(rng)
    parts = split_frames(poses, points, 8.0)
    assert 4 <= len(parts) <= 10
    assert set().union(*parts) == set(range(len(poses)))
    assert all(part == sorted(set(part)) and len(part) >= MIN_PART for part in parts)
    for part in parts:
        assert extent(poses, points, part) < 8.0 * 1.4  # with the frames of its borders
    for middle in middles:
        inside = set(np.flatnonzero(np.abs(poses[:, :2, 3] - middle).max(1) < 1.0))
        assert max(len(inside & set(part)) for part in parts) > 0.9 * len(inside), 'a room of 4 m is cut in two'


def test_parts_overlap_at_their_borders_only() -> None:
    poses, points = looking(np.random.default_rng(2), np.stack([np.linspace(0, 40, 400), np.zeros(400)], -1))
    parts = split_frames(poses, points, 10.0)
    count = np.bincount(np.concatenate(parts), minlength=400)
    assert count.min() == 1 and count.max() == 2
    assert 0.03 < (count == 2).mean() < 0.4
    for one, next_ in zip(parts, parts[1:]):
        assert len(set(one) & set(next_)) >= 3


@pytest.mark.parametrize('known', [True, False])
def test_a_single_room_stays_one(known: bool) -> None:
    rng = np.random.default_rng(3)
    poses, points = looking(rng, rng.uniform(-2, 2, (200, 2)), 1.5)
    assert split_frames(poses, points if known else [np.zeros((0, 3))] * 200, 8.0) == [list(range(200))]


def test_what_frames_see_counts_and_not_only_where_they_are() -> None:
    rng = np.random.default_rng(4)
    poses = np.tile(np.eye(4), (100, 1, 1))
    points = [rng.normal(0, 0.3, (50, 3)) + [12.0 * (index % 2), 0, 0] for index in range(100)]
    points[7][:] = np.nan
    parts = split_frames(poses, points, 8.0)
    assert parts[0][:4] == [0, 2, 4, 6] and len(parts) == 2


def test_the_same_frames_give_the_same_parts_wherever_the_map_lies() -> None:
    poses, points, _ = corridor_with_rooms(np.random.default_rng(5))
    moved = poses.copy()
    moved[:, :3, 3] += [100, -30, 2]
    expected = split_frames(poses, points, 8.0)
    assert split_frames(poses, points, 8.0) == expected
    assert split_frames(moved, [each + [100, -30, 2] for each in points], 8.0) == expected


def test_parts_are_never_smaller_than_a_head_can_learn_from() -> None:
    poses, points = looking(np.random.default_rng(6), np.stack([np.linspace(0, 60, 50), np.zeros(50)], -1))
    parts = split_frames(poses, points, 4.0)
    assert len(parts) == 2 and min(map(len, parts)) >= MIN_PART
