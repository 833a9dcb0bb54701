"""Problem sets: geometry that fits, noise of the promised size and correlation, exact and nested shares of outliers."""
from __future__ import annotations

import numpy as np
import pytest
from scenery import FRAMES, Surface, folder, problem_set

from benchmarks.problems import NOISE_MODELS, NOISES_CM, OUTLIERS, STRIDE, draw_noise, elsewhere, make_sets, read_scene, spread_frames
from dsac_ros.errors import DataError
from dsac_ros.records import Camera


@pytest.mark.parametrize('name', NOISE_MODELS)
def test_inliers_are_the_truth_and_noise(name: str) -> None:
    problem = problem_set(name).problem(0, 0, 2)
    assert len(problem.points_N3) == 40 * 30 - 4  # one corner has no depth
    moved = problem.points_N3 @ problem.camera_from_map[:3, :3].T + problem.camera_from_map[:3, 3]
    away = (moved - problem.camera_points_N3())[problem.inliers_N]
    bearings = problem.bearings_N3()[problem.inliers_N]
    along = (away * bearings).sum(1)
    across = np.linalg.norm(away - along[:, None] * bearings, axis=1) / np.sqrt(2)
    assert np.sqrt((across ** 2).mean()) == pytest.approx(0.01, rel=0.1)
    assert along.std() == pytest.approx(0.01 * NOISE_MODELS[name].stretch, rel=0.15)


def test_cells_differ_by_what_their_names_say_alone() -> None:
    iid, correlated = problem_set('iid'), problem_set('correlated')
    right = [iid.problem(0, outlier, 1).inliers_N for outlier in range(len(OUTLIERS))]
    assert [1 - inliers.mean() for inliers in right] == pytest.approx(OUTLIERS, abs=1e-3)
    assert all((more >= fewer).all() for more, fewer in zip(right, right[1:]))
    np.testing.assert_array_equal(right[2], correlated.problem(1, 2, 1).inliers_N)
    one, five = (iid.problem(noise, 1, 1).points_N3 for noise in (0, 2))
    clean = one - (five - one) * NOISES_CM[0] / (NOISES_CM[2] - NOISES_CM[0])
    two = iid.problem(1, 1, 1).points_N3
    np.testing.assert_allclose(two - clean, (five - clean) * 0.4, atol=1e-5)


def test_neighbours_share_noise_and_strangers_do_not() -> None:
    scene = read_scene(Surface(), FRAMES)
    noise = draw_noise(np.random.default_rng(0), scene, NOISE_MODELS['correlated'])
    across = noise[..., 0] - (noise * scene.rays_FHW3).sum(-1) * scene.rays_FHW3[..., 0] / (scene.rays_FHW3 ** 2).sum(-1)
    for shift, expected in ((1, 0.5 * np.exp(-1 / 16)), (12, 0.0)):
        assert np.corrcoef(across[:, :, shift:].ravel(), across[:, :, :-shift].ravel())[0, 1] == pytest.approx(expected, abs=0.06)


def test_outliers_come_from_other_frames() -> None:
    scene = read_scene(Surface(), FRAMES)
    wrong = elsewhere(np.random.default_rng(0), scene)
    for frame in range(FRAMES):
        others = np.arange(FRAMES) != frame
        seen = set(map(tuple, scene.points_FHW3[others][scene.depths_FHW[others] > 0]))
        assert set(map(tuple, wrong[frame].reshape(-1, 3))) <= seen


def test_wider_strides_thin_the_same_cells() -> None:
    problems = problem_set('iid')
    dense, thin = problems.problem(0, 0, 0), problems.problem(0, 0, 0, 2 * STRIDE)
    assert problems.cells(STRIDE) == 1200 and problems.cells(2 * STRIDE) == 300
    at = {tuple(pixel): point for pixel, point in zip(dense.pixels_N2, dense.points_N3)}
    assert all((at[tuple(pixel)] == point).all() for pixel, point in zip(thin.pixels_N2, thin.points_N3))


def test_same_seed_same_set(tmp_path) -> None:
    again = make_sets(Surface(), tmp_path, FRAMES, seed=3)
    assert [path.read_bytes() for path in again] == [(folder() / path.name).read_bytes() for path in again]


def test_no_depth_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Surface, '__iter__', lambda self: iter(()))
    with pytest.raises(DataError, match='depth'):
        make_sets(Surface(), tmp_path, FRAMES, seed=3)


def test_distortion_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('scenery.CAMERA', Camera(320, 240, 260.0, 265.0, 158.0, 121.0, 'plumb_bob', (0.1, 0.0, 0.0, 0.0)))
    with pytest.raises(DataError, match='undistorted'):
        read_scene(Surface(), FRAMES)


def test_frames_are_spread_over_the_recording() -> None:
    chosen = list(spread_frames(100, 5))
    assert sorted(chosen) == [0, 25, 50, 74, 99] and chosen != sorted(chosen)
    assert sorted(spread_frames(4, 0)) == [0, 1, 2, 3]
