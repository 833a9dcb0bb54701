"""The command view: clear refusals everywhere, and a recording that holds what was asked for, where Rerun is installed."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from packaging.requirements import Requirement

from dsac_ros import cli
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.evaluation.report import write_results
from dsac_ros.viewing import recording

sys.path.append(str(Path(__file__).parents[1]))
import rooms  # noqa: E402

HAS_RERUN = importlib.util.find_spec('rerun') is not None
needs_rerun = pytest.mark.skipif(not HAS_RERUN, reason='rerun-sdk is not installed')


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of five frames, one of them refused, whose map is gone."""
    from dsac_ros.evaluation import report
    monkeypatch.setattr(report.page, 'render', lambda *_: 'page')
    frames = []
    for i in range(5):
        pose = np.eye(4)
        pose[:3, 3] = [0.1 * i, 0.2, 0.3]
        reasons = ('few_inliers',) if i == 2 else ()
        frames.append(FrameResult(10 ** 18 + i * 10 ** 8, f'f{i}', i != 2, 'rgb', pose, np.eye(6) * 1e-4, pose, 'TRACKING', reasons,
                                  landmarks=50.0 + i, published=i != 2))
    write_results(tmp_path / 'results', frames, {'map_path': str(tmp_path / 'gone.dsacmap')})
    return tmp_path / 'results'


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(['view', *map(str, arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith('dsac-ros view: ') and err.count('\n') == 1
    return err


def test_without_rerun_it_says_what_to_install(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'rerun', None)
    assert f'pip install "{recording.REQUIREMENT}"' in said(capsys, results, '--out', results / 'x.rrd')
    assert not (results / 'x.rrd').exists()


def test_the_extra_is_that_of_setup_py() -> None:
    assert f"'view': ['{recording.REQUIREMENT}']" in (Path(__file__).parents[2] / 'setup.py').read_text()
    assert '0.41.0' in Requirement(recording.REQUIREMENT).specifier  # which was tried


@pytest.fixture
def fake_rerun(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Its stream, which begins a file as Rerun does and takes everything."""
    rerun = MagicMock()
    rerun.RecordingStream.return_value.save.side_effect = lambda file, **_: Path(file).write_bytes(b'RRF2')
    monkeypatch.setitem(sys.modules, 'rerun', rerun)
    return rerun.RecordingStream.return_value


def test_only_a_recording_is_replaced(results: Path, tmp_path: Path, fake_rerun: MagicMock, capsys: pytest.CaptureFixture[str]) -> None:
    older, mine = tmp_path / 'older.rrd', tmp_path / 'mine.rrd'
    older.write_bytes(b'RRF0 of last week')
    mine.write_text('of somebody else')
    (tmp_path / 'folder.rrd').mkdir()
    before = {file: file.read_bytes() for file in results.iterdir()}
    assert 'ends in .rrd' in said(capsys, results, '--out', results / 'per_frame.csv', '--overwrite')
    assert 'exists already' in said(capsys, results, '--out', older)
    assert 'is left alone' in said(capsys, results, '--out', mine, '--overwrite')
    assert 'Is a directory' in said(capsys, results, '--out', tmp_path / 'folder.rrd', '--overwrite')
    assert 'too long' in said(capsys, results, '--out', tmp_path / ('x' * 300 + '.rrd'))
    assert mine.read_text() == 'of somebody else' and before == {file: file.read_bytes() for file in results.iterdir()}
    for out in (older, tmp_path / 'new' / 'folder' / 'r.rrd'):
        assert cli.main(['view', str(results), '--out', str(out), '--overwrite']) == 0
        assert out.read_bytes() == b'RRF2' and list(out.parent.glob('.*')) == []


@pytest.mark.parametrize(('step', 'error', 'words'), [
    ('save', OSError(28, 'No space left on device'), 'No space left on device'),
    ('flush', RuntimeError('File-writer thread\nshut down prematurely'), 'File-writer thread shut down prematurely'),
    ('disconnect', OSError(28, 'No space left on device'), 'No space left on device')])
def test_a_recording_that_cannot_be_written_leaves_the_older_one(results: Path, tmp_path: Path, fake_rerun: MagicMock, step: str,
                                                                 error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'r.rrd'
    out.write_bytes(b'RRF2 of last week')
    getattr(fake_rerun, step).side_effect = error
    assert f'{out}: cannot be written: {words}' in said(capsys, results, '--out', out, '--overwrite')
    assert out.read_bytes() == b'RRF2 of last week' and {file.name for file in tmp_path.iterdir()} == {'results', 'r.rrd'}


def test_an_interrupted_recording_leaves_nothing(results: Path, tmp_path: Path, fake_rerun: MagicMock) -> None:
    fake_rerun.log.side_effect = KeyboardInterrupt
    assert cli.main(['view', str(results), '--out', str(tmp_path / 'r.rrd')]) == 130
    assert [file.name for file in tmp_path.iterdir()] == ['results']


def test_what_cannot_be_read_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f'{"x" * 300}: cannot be read: File name too long' in said(capsys, 'x' * 300, 'drive')


def test_wrong_use_is_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'SOURCE' in said(capsys, tmp_path)
    assert '--every 0' in said(capsys, results, '--every', 0)
    (results / 'per_frame.csv').write_text('stamp_ns,name\n1,2\n')
    assert 'no per_frame.csv of an evaluation' in said(capsys, results, '--out', tmp_path / 'x.rrd')


def printed(file: Path) -> str:
    """What Rerun's own tool reads in a recording."""
    done = subprocess.run([sys.executable, '-m', 'rerun', 'rrd', 'print', '-v', str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_rerun
def test_results_are_recorded(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['view', str(results), '--out', str(tmp_path / 'r.rrd')]) == 0
    assert '5 frames' in (out := capsys.readouterr().out) and 'map is not shown' in out
    text = printed(tmp_path / 'r.rrd')
    for entity in ('/map/path', '/map/reference', '/map/now/covariance_90', '/figures/landmarks', '/figures/position_error_m', '/status'):
        assert entity in text, entity
    assert '/image' not in text and '/map/points' not in text


@needs_rerun
def test_a_map_and_frames_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dsac_ros.data.writing import BagWriter
    with BagWriter(tmp_path / 'drive', map_frame='map') as bag:
        for frame in rooms.tiny_frames()[:4]:
            bag.write(frame)
    command = ['view', str(rooms.tiny_map()[0]), str(tmp_path / 'drive'), '--out', str(tmp_path / 'r.rrd'), '--device', 'cpu']
    assert cli.main([*command, '--set', 'state.agreeing=1']) == 0
    assert '4 frames' in capsys.readouterr().out
    text = printed(tmp_path / 'r.rrd')
    for entity in ('/map/points', '/map/experts', '/map/now/camera', '/map/now/inliers', '/map/reference', '/image', '/figures/landmarks'):
        assert entity in text, entity
    assert 0 < (tmp_path / 'r.rrd').stat().st_size < 5e6
