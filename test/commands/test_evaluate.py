"""The command on a small data folder, with a localizer of known conduct in the place of the network."""
from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / 'maps'))
from small import saved  # noqa: E402

from dsac_ros.commands import evaluate
from dsac_ros.config import EstimatorOptions
from dsac_ros.errors import ConfigError, DataError, DsacError, MapError
from dsac_ros.evaluation import report
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.replay import replay_offline
from dsac_ros.localizer import resolve_device
from dsac_ros.records import Estimate, Verdict


class NearLocalizer:
    """Answers 1 cm beside the reference; the device is the one it was asked for."""

    @classmethod
    def from_map(cls, path, device, estimator, integrity, gating):
        assert Path(path).is_dir() and device == 'cpu'
        cls.estimator, cls.guesses = estimator, []
        return cls()

    def warm_up(self, camera, modality):
        pass

    def localize(self, frame, modality, guess=None, prior=None):
        self.guesses.append(guess)
        pose = frame.map_from_camera.copy()
        pose[0, 3] += 0.01
        return Estimate(frame.stamp_ns, pose, np.eye(6) * 1e-4, Verdict(True), modality, 'room', 10.0, 0.5, 0.5, 1.0, {'encoder': 1.0})


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of six frames in two splits, a map that knows nothing, and the localizer above."""
    for part in ('rgb', 'depth'):
        (tmp_path / 'data' / part).mkdir(parents=True)
    names = [f'{i:06d}' for i in range(6)]
    for name in names:
        cv2.imwrite(str(tmp_path / 'data' / 'rgb' / f'{name}.jpg'), np.full((48, 64, 3), 128, np.uint8))
        cv2.imwrite(str(tmp_path / 'data' / 'depth' / f'{name}.png'), np.full((48, 64), 2000, np.uint16))
    (tmp_path / 'data' / 'poses.txt').write_text(''.join(f'{name} {i} 0 0 0 0 0 1\n' for i, name in enumerate(names)))
    (tmp_path / 'data' / 'intrinsics.json').write_text(json.dumps({'fx': 60, 'fy': 60, 'cx': 31.5, 'cy': 23.5, 'width': 64, 'height': 48}))
    (tmp_path / 'data' / 'splits.json').write_text(json.dumps({'train': names[:4], 'val': names[4:]}))
    saved(tmp_path / 'room.dsacmap')
    monkeypatch.setitem(sys.modules, 'dsac_ros.localizer', types.SimpleNamespace(Localizer=NearLocalizer, resolve_device=resolve_device))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_page(monkeypatch):
    """Plots take seconds: only the first test draws them."""
    monkeypatch.setattr(report.page, 'render', lambda *_: 'page')


def evaluated(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args(['room.dsacmap', 'data', '--device', 'cpu', *arguments]))


def test_writes_and_prints(place, capsys):
    assert evaluated('--split', 'val', '--out', 'r') == 0
    printed = capsys.readouterr()
    assert 'within 5 cm, 5 deg' in printed.out and '1.00 cm, 0.00 deg' in printed.out
    assert f'report: {place / "r" / "report.html"}' in printed.out and '2/2' in printed.err
    summary = json.loads((place / 'r' / 'summary.json').read_text())
    assert summary['frames'] == summary['answered'] == 2 and summary['within_2cm_2deg'] == 1.0
    assert summary['run']['modality'] == 'rgbd' and summary['run']['split'] == 'val'
    assert summary['run']['options'] == {
        'split': 'val', 'modality': 'auto', 'live': False, 'rate': 1.0, 'device': 'cpu', 'frames': 0, 'every': 1, 'set': [], 'slop': 10.0}


def test_settings_reach_the_tracker(place, no_page):
    evaluated('--out', 'r')
    assert NearLocalizer.guesses[0] is None and None not in NearLocalizer.guesses[1:]
    evaluated('--set', 'tracking.enabled=false', '--out', 's')
    assert set(NearLocalizer.guesses) == {None}


def test_settings_reach_the_estimator(place, no_page):
    evaluated('--set', 'estimator.refined=7', '--set', 'estimator.landmarks=false', '--out', 'r')
    assert NearLocalizer.estimator == EstimatorOptions(refined=7, landmarks=False)


def test_two_runs_are_identical(place, no_page):
    for name in ('a', 'b'):
        evaluated('--out', name)
    for name in report.REPRODUCIBLE:
        assert (place / 'a' / name).read_bytes() == (place / 'b' / name).read_bytes()


def test_default_folder_names_what_was_run(place, no_page):
    evaluated('--split', 'val', '--modality', 'rgb', '--every', '2')
    assert json.loads((place / 'results' / 'room_data_val_rgb' / 'summary.json').read_text())['frames'] == 1
    with pytest.raises(DataError, match='--overwrite'):
        evaluated('--split', 'val', '--modality', 'rgb')
    assert evaluated('--split', 'val', '--modality', 'rgb', '--overwrite') == 0


def test_occupied_folder_is_refused_before_the_work(place, monkeypatch):
    monkeypatch.setattr(evaluate, 'replay_offline', lambda *_: pytest.fail('worked for nothing'))
    with pytest.raises(DataError, match='not a results folder'):
        evaluated('--out', 'data', '--overwrite')
    assert (place / 'data' / 'poses.txt').is_file()


@pytest.mark.parametrize('how', ['_replay_offline', '_replay_live'])
def test_another_frame_of_the_map_is_warned_of(place, capsys, monkeypatch, how):
    def told(*_):
        assert "'map', the map is 'kitchen'" in capsys.readouterr().err
        raise DsacError('enough')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(evaluate, how, told)
    saved(place / 'room.dsacmap', frame_id='kitchen', overwrite=True)
    with pytest.raises(DsacError, match='enough'):
        evaluated('--out', 'r', *(['--live'] if how == '_replay_live' else []))


def test_a_map_that_is_none_is_refused_before_the_work(place):
    (place / 'room.dsacmap' / 'manifest.yaml').unlink()
    with pytest.raises(MapError, match='manifest.yaml is missing'):
        evaluated('--out', 'r')


@pytest.mark.parametrize(('arguments', 'error', 'words'), [
    (('--every', '0'), ConfigError, 'every'), (('--frames', '-1'), ConfigError, 'frames'), (('--rate', '0'), ConfigError, 'rate'),
    (('--device', 'toaster'), ConfigError, 'toaster'),
    (('--set', 'estimator.refned=3'), ConfigError, 'refined'), (('--split', 'nowhere'), DataError, 'nowhere')])
def test_bad_options_are_refused(place, arguments, error, words):
    with pytest.raises(error, match=words):
        evaluated(*arguments)


def test_live_without_ros_says_so(place, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(DsacError, match='rclpy'):
        evaluated('--live')


def test_live_writes_the_same_folder(place, no_page, monkeypatch):
    """What the node does is tested in test/system; here only that its results reach the folder."""
    def replay_live(map_path, source, modality, rate, device, settings, progress):
        assert (map_path, modality, rate, device, settings) == (Path('room.dsacmap'), 'rgbd', 2.0, 'cpu', {'estimator.landmarks': False})
        results = replay_offline(NearLocalizer(), source, modality, progress)
        late = FrameResult(10**12, 'late', False, modality, reference=np.eye(4), reasons=('dropped',))
        return types.SimpleNamespace(results=[*results, late], counters={'dropped': 1}, memory_mb=[(0.0, 300.04), (1.0, 310.0)])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setitem(sys.modules, 'dsac_ros.ros.live_replay', types.SimpleNamespace(replay_live=replay_live))
    assert evaluated('--live', '--rate', '2', '--set', 'estimator.landmarks=false', '--out', 'r') == 0
    summary = json.loads((place / 'r' / 'summary.json').read_text())
    assert summary['frames'] == 7 and summary['reasons'] == {'dropped': 1}
    assert summary['run']['live'] and summary['run']['rate'] == 2.0 and summary['run']['node_counters'] == {'dropped': 1}
    assert summary['run']['node_memory_mb'] == {'first': 300.0, 'last': 310.0, 'highest': 310.0}


def test_importing_needs_no_ros():
    """The command is imported by every call of dsac-ros, with ROS or without."""
    code = ('import sys; sys.modules["rclpy"] = None; import dsac_ros.commands.evaluate; '
            'assert not any(name.startswith(("dsac_ros.ros", "matplotlib")) for name in sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2])
