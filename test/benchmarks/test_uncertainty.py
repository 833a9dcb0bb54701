"""Errors drawn from what is stated are found to be as stated, and others by as much as they are larger."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scenery

from benchmarks.problems import Problem
from benchmarks.uncertainty import CELL_ERROR, GROUPS, cell_errors, cell_table, main, measure, pose_squares, pose_table
from dsac_ros.config import EstimatorOptions
from dsac_ros.errors import DataError
from dsac_ros.evaluation.metrics import summarise_poses
from dsac_ros.evaluation.replay import ThinnedSource, replay_offline
from dsac_ros.localizer import Localizer

STATED_M = 0.05


def predictor(factor: float, stretch: float = 1.0) -> Any:
    """Cells that are off by Laplace errors in space, `factor` times as large as stated, and `stretch` times that along the ray."""
    rng = np.random.default_rng(0)

    def predict(frame: Any) -> Problem:
        x, y = np.meshgrid(np.arange(4.0, frame.camera.width, 8), np.arange(4.0, frame.camera.height, 8))
        pixels, depths = np.stack([x.ravel(), y.ravel()], 1), frame.depth[y.astype(int), x.astype(int)].ravel().astype(float)
        scales = STATED_M * rng.uniform(0.5, 2, len(pixels))
        camera_from_map = np.linalg.inv(frame.map_from_camera)
        problem = Problem(frame.camera, pixels, pixels, depths, None, scales, EstimatorOptions().scale_factor * scales, camera_from_map)
        rays = problem.bearings_N3()
        # Length over scale has the density r^2 exp(-r), the direction is uniform.
        noise = rng.normal(size=(len(pixels), 3))
        noise *= (factor * scales * rng.gamma(3, size=len(pixels)) / np.linalg.norm(noise, axis=1))[:, None]
        noise += (stretch - 1) * (noise * rays).sum(1, keepdims=True) * rays
        seen = problem.camera_points_N3() + noise
        return replace(problem, points_N3=seen @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3])

    return predict


@pytest.mark.parametrize('factor', [1.0, 3.0])
def test_cells_are_as_sure_as_they_were_drawn(factor: float) -> None:
    """7,000 cells: shares to 2 %."""
    cells = cell_errors(predictor(factor), scenery.Surface())
    holes = sum((frame.depth[4::8, 4::8] == 0).sum() for frame in scenery.Surface())
    assert len(cells.scales_N) == 6 * 30 * 40 - holes < 6 * 30 * 40
    assert 0.5 * STATED_M <= cells.scales_N.min() and cells.scales_N.max() <= 2 * STATED_M
    for level in (0.5, 0.9, 0.99):
        share = (cells.errors_N <= factor * CELL_ERROR.ppf(level) * cells.scales_N).mean()
        assert share == pytest.approx(level, abs=0.02)
    rows = [line.split(' | ') for line in cell_table(cells).splitlines()[2:]]
    assert len(rows) == GROUPS + 1 and float(rows[-1][3]) == pytest.approx(factor, rel=0.05)
    stated = [float(row[1]) for row in rows[:-1]]
    assert stated == sorted(stated) and stated[0] == pytest.approx(100 * 2.674 * 0.575 * STATED_M, rel=0.05)
    assert all(float(row[3]) == pytest.approx(factor, rel=0.15) for row in rows[:-1])
    assert float(rows[-1][4]) == pytest.approx(1.0, abs=0.1)


def test_errors_along_the_ray_are_told_from_those_across() -> None:
    cells = cell_errors(predictor(1.0, stretch=4.0), scenery.Surface())
    plain = cell_errors(predictor(1.0), scenery.Surface())
    np.testing.assert_allclose(np.abs(cells.along_N), 4 * np.abs(plain.along_N), rtol=1e-6)
    np.testing.assert_allclose(cells.errors_N ** 2 - cells.along_N ** 2, plain.errors_N ** 2 - plain.along_N ** 2, atol=1e-9)


def test_cells_need_depth() -> None:
    blind = [replace(frame, depth=None) for frame in scenery.Surface()]
    with pytest.raises(DataError, match='depth'):
        cell_errors(predictor(1.0), blind)


def test_poses_are_counted_as_in_an_evaluation(tmp_path: Path) -> None:
    path = scenery.saved_map(tmp_path / 'room.dsacmap', list(scenery.walk()[::2]))
    source = ThinnedSource(Frames(scenery.walk()[1::2]), 3)
    squares = pose_squares(path, [source], 'RGB')
    np.testing.assert_array_equal(pose_squares(path, [source, source], 'RGB'), np.tile(squares, 2))
    summary = summarise_poses(replay_offline(Localizer.from_map(path, 'cpu'), source, 'rgb'))
    row = pose_table({'RGB': squares, 'none': np.zeros(0)}).splitlines()[2:]
    shares = [f'{100 * summary[f"coverage_{percent}"]:.0f}' for percent in (50, 90, 99)]
    assert row == [f'| RGB | {summary["nees_frames"]} | {" | ".join(shares)} | {summary["nees_median"] / 5.348:.2f} | '
                   f'{summary["nees_mean"] / 6:.2f} |']


def test_poses_as_uncertain_as_stated() -> None:
    squares = 1.5 * np.random.default_rng(0).chisquare(6, 50_000)
    assert pose_table({'x': squares / 1.5, 'y': squares}).splitlines()[2:] == [
        '| x | 50000 | 50 | 90 | 99 | 1.00 | 1.00 |', f'| y | 50000 | {" | ".join(narrow(squares))} | 1.50 | 1.50 |']


def narrow(squares: np.ndarray) -> list[str]:
    """Shares within the quantiles of chi square with six degrees of freedom as tables have them."""
    return [f'{100 * (squares <= limit).mean():.0f}' for limit in (5.348, 10.645, 16.812)]


class Frames(list):
    """A FrameSource."""

    map_frame, warnings, path = 'map', Counter(), Path('walk')


@pytest.mark.parametrize('has_depth', [True, False])
def test_table_and_plot_are_written(tmp_path: Path, has_depth: bool) -> None:
    path = scenery.saved_map(tmp_path / 'room.dsacmap', list(scenery.walk()[::2]))
    text = measure(path, [ThinnedSource(Frames(scenery.walk()[1::8]))], has_depth, 'room, walk', tmp_path / 'out')
    assert (tmp_path / 'out' / 'uncertainty.md').read_text() == text and text.startswith('room, walk')
    assert ('tenth 10' in text) == has_depth == ('| RGB-D |' in text) and '| RGB | 3 |' in text
    picture = cv2.imread(str(tmp_path / 'out' / 'uncertainty.png'))
    assert picture.shape[1] > 1000 and len(np.unique(picture)) > 50


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / 'nowhere.dsacmap'), str(tmp_path / 'no'), '--out', str(tmp_path)]) == 1
    assert 'no such file or folder' in capsys.readouterr().err
