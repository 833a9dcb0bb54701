"""Every estimator that is installed on an easy problem; the race, its records and its report; the command from end to end."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scenery import folder, problem_set

from benchmarks.ours import oracles, ours
from benchmarks.peers import POSELIB, Estimator, grid_of, peers
from benchmarks.pose_estimators import main
from benchmarks.problems import STRIDE
from benchmarks.race import MIN_FRAMES, Heat, Record, append_records, race, read_records
from benchmarks.report import summarise, write_report
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.metrics import pose_error

ESTIMATORS = ours((64,)) + oracles() + peers((10.0,))
HEAT = Heat('iid', 300, 1, '1 cm 20%')
RECORD = Record('iid', 4800, 1, '1 cm 20%', POSELIB, 'rgb', 10.0, 0, 0.03, 1.0, 0.01, 20.0, 20.0)


@pytest.mark.parametrize('estimator', ESTIMATORS, ids=lambda estimator: estimator.name)
def test_finds_the_pose(estimator: Estimator) -> None:
    problem = problem_set('iid').problem(0, 0, 2)
    answer = estimator.solve(estimator.prepare(problem))
    position, rotation = pose_error(np.linalg.inv(answer), np.linalg.inv(problem.camera_from_map))
    assert position < 0.1 and rotation < 3  # Open3D's is 10 cm off on real frames


def test_what_is_compiled_is_the_same_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the compiler itself, which takes minutes."""
    monkeypatch.setattr(torch, 'compile', lambda program, **_: program)
    problem = problem_set('iid').problem(0, 0, 2)
    found = {each.name: each.solve(each.prepare(problem)) for each in ours((16,), compiled=True) if each.name.startswith('ours 16')}
    assert len(found) == 6
    for name in ('ours 16', 'ours 16 guided', 'ours 16 RGB-D'):
        plain, compiled = found[name], found[name.replace('ours 16', 'ours 16 compiled')]
        np.testing.assert_allclose(compiled, plain, atol=1e-9)


@pytest.mark.parametrize('module', ['pycolmap', 'open3d'])
def test_peers_beside_the_pinned_ones(module: str) -> None:
    pytest.importorskip(module, reason='requirements/benchmarks.txt is not installed', exc_type=ImportError)
    assert any(module in estimator.name.lower() for estimator in ESTIMATORS)


def test_a_grid_sees_each_cell_where_the_problem_does() -> None:
    for stride in (STRIDE, 2 * STRIDE):
        problem = problem_set('iid').problem(0, 0, 2, stride)
        grid = grid_of(problem)
        points_M3, camera_M3 = (part[0].flatten(1).T.numpy() for part in (grid.points_13HW, grid.camera_points_13HW))
        filled = np.flatnonzero(points_M3.any(1))
        assert len(filled) == len(problem.points_N3) < len(points_M3), 'one corner has no depth'
        rows, columns = np.divmod(filled, grid.points_13HW.shape[-1])
        centres_N2 = np.stack([columns, rows], 1) * STRIDE + STRIDE // 2
        np.testing.assert_allclose(points_M3[filled], problem.points_N3, rtol=1e-6)
        np.testing.assert_allclose(camera_M3[filled], problem.camera_points_N3(), rtol=1e-6, atol=1e-6)
        assert grid.scale == STRIDE / stride
        # Its focal lengths differ by a fiftieth, of which the grid has the mean.
        np.testing.assert_allclose((centres_N2 - [grid.cx, grid.cy]) / grid.focal, problem.rays_N3()[:, :2], rtol=0.01)
    distorted = replace(problem, pixels_N2=problem.pixels_N2 + 0.002 * problem.pixels_N2 ** 2)
    with pytest.raises(DsacError, match='no square grid of pixels'):
        grid_of(distorted)


def test_race_gives_everybody_the_same_frames_until_the_budget_is_spent() -> None:
    problem = problem_set('iid').problem(0, 0, 0, 2 * STRIDE)
    right, wrong = lambda _: problem.camera_from_map, lambda _: None
    estimators = [Estimator('right', 'rgb', lambda p: p, right), Estimator('silent', 'rgb', lambda p: p, wrong, 10.0)]
    frames = [(frame, problem, {'rgb': 0.01}) for frame in range(2 * MIN_FRAMES)]
    records = race(HEAT, frames, estimators, budget_s=100)
    assert len(records) == 4 * MIN_FRAMES
    assert {(r.estimator, r.position_m, r.rotation_deg) for r in records} == {('right', 0.0, 0.0), ('silent', float('inf'), 180.0)}
    assert len(race(HEAT, frames, estimators, budget_s=-1)) == 2 * MIN_FRAMES
    without_depth = [(0, replace(problem, depths_N=None), {})]
    assert not race(HEAT, without_depth, [replace(estimators[0], modality='rgbd')], 100)


def test_records_survive_the_file(tmp_path: Path) -> None:
    records = [RECORD, replace(RECORD, frame=1, position_m=float('inf'), rotation_deg=180.0)]
    for record in records:
        append_records(tmp_path / 'records.csv', [record])
    assert read_records(tmp_path / 'records.csv') == records


def test_peers_get_their_best_threshold_and_times_are_paired() -> None:
    mine = replace(RECORD, estimator='ours 64', threshold_px=0.0, position_m=0.01, cpu_ms=30.0)
    wide = replace(RECORD, threshold_px=30.0, position_m=0.02, cpu_ms=10.0)
    poselib, ours_64 = summarise([RECORD, wide, replace(mine, cpu_ms=99.0), mine])  # the same frame again: the last one counts
    assert (poselib.threshold_px, poselib.median_m, poselib.over_poselib, poselib.over_poselib_base) == (30.0, 0.02, 1.0, 0.5)
    assert (ours_64.frames, ours_64.over_reference, ours_64.over_poselib, ours_64.over_poselib_base) == (1, 1.0, 3.0, 1.5)
    assert ours_64.within_5cm_5deg == 1
    # Frame by frame, in the geometric mean: half and a quarter; no answer counts as ten metres.
    more = [replace(one, frame=frame, position_m=metres) for one, frame, metres in
            ((wide, 1, 0.04), (mine, 1, 0.01), (wide, 2, float('inf')), (mine, 2, 10.0), (mine, 3, 1.0))]
    poselib, ours_64 = summarise([wide, mine, *more])
    assert (poselib.error_over_poselib, ours_64.error_over_poselib) == (1.0, pytest.approx(0.5))


def test_report_without_known_bounds(tmp_path: Path) -> None:
    nan = float('nan')
    records = [replace(RECORD, reference_m=nan), replace(RECORD, estimator='ours 64', reference_m=nan, position_m=0.02)]
    text = write_report(tmp_path, records)
    assert '| ours 64 | rgb | 2.00 / - / 100 | 1 |' in text and 'in 1 of 1 cells' in text
    assert {path.suffix for path in tmp_path.iterdir()} == {'.md', '.json', '.png'}


def test_command_from_sets_to_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ['run', str(folder()), '--out', str(tmp_path), '--frames', '2', '--strides', str(2 * STRIDE), '--only', 'ours,PoseLib 100',
             '--hypotheses', '64', '--cells', '1 cm 20%,5 cm 50%']
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert '## iid, 300 cells, 1 thread' in out and '## correlated, 300 cells, 1 thread' in out
    assert len(read_records(tmp_path / 'records.csv')) == 2 * 2 * 2 * (6 + 3)
    assert main(['run', str(tmp_path), '--out', str(tmp_path)]) == 2
    assert 'iid.npz: missing' in capsys.readouterr().err
    assert main([*asked[:-1], '7 cm 1%']) == 2
    assert '--cells 7 cm 1%: not in' in capsys.readouterr().err
    assert main(['report', str(tmp_path / 'nothing')]) == 2
    assert 'records.csv: missing' in capsys.readouterr().err


def test_plugin_speaks_the_language_of_the_script() -> None:
    from benchmarks.peers_plugin import ESTIMATORS as plugged

    problem = problem_set('iid').problem(0, 0, 1)
    truth = problem.camera_from_map
    theirs = SimpleNamespace(K=problem.camera.matrix(), image_wh=(320, 240), pix=problem.pixels_N2, xyz=problem.points_N3,
                             cam=problem.camera_points_N3(), w=problem.weights_N, R=truth[:3, :3], t=truth[:3, 3], cache={})
    assert {solve.modality for solve in plugged.values()} == {'rgb', 'rgb+w', 'rgbd'}
    for solve in plugged.values():
        solve.prepare(theirs)
        rotation, translation = solve(theirs)
        assert np.abs(rotation - truth[:3, :3]).max() < 0.01 and np.abs(translation - truth[:3, 3]).max() < 0.02
