"""Matching against a plain search in numpy, on landmarks whose true matches are known."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.landmarks.landmarks import COMPRESSED, NEAREST, Landmarks, candidates, match, match_anywhere, view_distance

COUNT = 400  # as in conftest


def test_every_keypoint_finds_its_landmark(scene) -> None:
    found = candidates(scene['landmarks'], scene['pose'], scene['rays'])
    points, matched = match(found, scene['rays'], scene['words'], torch.ones(COUNT, dtype=torch.bool), 0.02, 0.88)
    assert matched.float().mean() > 0.95
    torch.testing.assert_close(points[matched], scene['landmarks'].points_L3[scene['order']][matched])


def test_what_projects_elsewhere_or_is_unusable_is_no_match(scene) -> None:
    found = candidates(scene['landmarks'], scene['pose'], scene['rays'])
    usable = torch.arange(COUNT) % 2 == 0
    moved = scene['rays'] + torch.where(torch.arange(COUNT)[:, None] < COUNT // 2, 0.1, 0.0)
    points, matched = match(found, moved, scene['words'], usable, 0.02, 0.88)
    assert not matched[~usable].any() and matched[COUNT // 2:][usable[COUNT // 2:]].float().mean() > 0.95
    true = (points == scene['landmarks'].points_L3[scene['order']]).all(1)
    assert not (matched & true)[:COUNT // 2].any()


def test_landmarks_seen_from_behind_or_from_far_are_no_candidates(scene) -> None:
    whole = scene['landmarks']
    behind, far = (replace(whole, views_L3=views) for views in (-whole.views_L3, 5 * whole.views_L3))
    assert candidates(whole, scene['pose'], scene['rays']).visible_C.all()
    for hidden in (behind, far):
        assert not candidates(hidden, scene['pose'], scene['rays']).visible_C.any()


def test_two_places_that_look_alike_are_ambiguous_and_one_mapped_twice_is_not(scene) -> None:
    one = scene['landmarks']
    for shift, expected in ((0.3, False), (0.002, True)):  # metres; SAME_PLACE is 3 % of 1.5 m and more
        twins = Landmarks(torch.cat([one.points_L3, one.points_L3 + shift]), one.views_L3.repeat(2, 1),
                          one.descriptors_LC.repeat(2, 1), one.basis_DC)
        found = candidates(twins, scene['pose'], scene['rays'])
        _, matched = match(found, scene['rays'], scene['words'], torch.ones(COUNT, dtype=torch.bool), 1.0, 0.88)
        assert (matched.float().mean() > 0.4) == expected  # of twins only one can be mutual with its keypoint: either will do


def test_anywhere_needs_no_pose(scene) -> None:
    points, weights = match_anywhere(scene['landmarks'], scene['words'], torch.ones(COUNT, dtype=torch.bool))
    true = (points == scene['landmarks'].points_L3[scene['order'][:len(points)]]).all(1)
    assert (weights > 0).all() and true.float().mean() > 0.95
    _, none = match_anywhere(scene['landmarks'], scene['words'], torch.zeros(COUNT, dtype=torch.bool))
    assert not none.any()


def test_anywhere_doubts_what_two_places_look_like(scene) -> None:
    """A twin of every landmark five metres off takes its weight, one in the same place takes none; a few twins share a block."""
    whole, usable = scene['landmarks'], torch.ones(COUNT, dtype=torch.bool)
    weights = []
    for shift in (0.0, 5.0):
        points = torch.cat([whole.points_L3, whole.points_L3 + shift])
        mixed = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
        twins = Landmarks(points[mixed], whole.views_L3.repeat(2, 1)[mixed], whole.descriptors_LC.repeat(2, 1)[mixed], whole.basis_DC)
        weights.append(match_anywhere(twins, scene['words'], usable)[1])
    alone = match_anywhere(whole, scene['words'], usable)[1]
    assert weights[0].median() > 0.3 * alone.median() and (weights[1] < 1e-3).double().mean() > 0.8 and alone.median() > 0.5


def test_the_map_file_keeps_descriptors_to_a_percent(scene) -> None:
    again = Landmarks.from_tensors(scene['landmarks'].tensors())
    assert again.descriptors_LC.shape == (COUNT, COMPRESSED)
    cosine = (again.descriptors_LC * scene['landmarks'].descriptors_LC).sum(1)
    assert cosine.min() > 0.995
    torch.testing.assert_close(again.views_L3, scene['landmarks'].views_L3, atol=5e-3, rtol=0)


def test_all_of_them_go_to_a_device(scene) -> None:
    there = scene['landmarks'].to(torch.device('meta'))
    tensors = [value for value in vars(there).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(value.is_meta for value in tensors)


def turned(degrees: float, axis: int = 1) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(degrees) * np.eye(3)[axis]).as_matrix()


def map_from_camera(rotation_33: np.ndarray, centre: tuple[float, float, float]) -> torch.Tensor:
    return torch.from_numpy(np.column_stack([rotation_33, centre])).float()


def test_the_distance_of_a_view_is_the_way_as_an_angle_and_the_turn() -> None:
    """Of a camera at (1, 0, 0), turned by 20 degrees about y, that sees things 4 m away, from two mapped views."""
    pose = np.eye(4)
    pose[:3] = map_from_camera(turned(20), (1, 0, 0)).numpy()
    camera_from_map, nearness = torch.from_numpy(np.linalg.inv(pose)), torch.tensor(0.25, dtype=torch.float64)
    near, far = map_from_camera(turned(20) @ turned(12, 2), (1, 0, 0.4)), map_from_camera(turned(-120), (0, 3, 0))
    expected = np.hypot(0.1, np.radians(12))
    for cameras in (torch.stack([near, far]), torch.stack([far, near]), near[None]):
        assert view_distance(cameras, camera_from_map, nearness).item() == pytest.approx(expected, rel=1e-5)
    itself = map_from_camera(turned(20), (1, 0, 0))
    assert view_distance(torch.stack([far, itself]), camera_from_map, nearness).item() == pytest.approx(NEAREST)
    opposite = map_from_camera(turned(200), (1, 0, 0))[None]
    assert view_distance(opposite, camera_from_map, nearness).item() == pytest.approx(np.pi, abs=2e-3)


def test_where_no_view_is_known_all_are_at_a_distance_of_one() -> None:
    nearness = torch.tensor(0.25, dtype=torch.float64)
    distance = view_distance(torch.zeros(0, 3, 4), torch.eye(4, dtype=torch.float64), nearness)
    assert distance == 1 and distance.dtype == nearness.dtype
