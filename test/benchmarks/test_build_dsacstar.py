"""What is built of a clone of DSAC*: a copy that OpenCV 4 compiles; one clear error for what is no clone, or another version of it."""
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.build_dsacstar import build, main, patched
from dsac_ros.errors import DsacError

OLD = '''	if (_dABdB.needed()) { _dABdB.create(9, 9, A.type()); }
	CvMat matA = A,
		matB = B;
	cvCalcMatMulDeriv(&matA, &matB, 0, 0);
'''


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    source = tmp_path / 'clone' / 'dsacstar'
    source.mkdir(parents=True)
    (source / 'dsacstar.cpp').write_text('#include <opencv2/opencv.hpp>\n')
    (source / 'dsacstar_util_rgbd.h').write_text(OLD)
    return source.parent


def test_a_copy_is_patched(clone: Path, tmp_path: Path) -> None:
    copy = patched(clone, tmp_path)
    header = (copy / 'dsacstar_util_rgbd.h').read_text()
    assert 'cv::matMulDeriv(A, B,' in header and 'CvMat' not in header and 'cvCalc' not in header
    assert header.startswith(OLD.splitlines()[0])
    assert 'calib3d' in (copy / 'shim' / 'opencv2' / 'opencv.hpp').read_text()
    assert (clone / 'dsacstar' / 'dsacstar_util_rgbd.h').read_text() == OLD


def test_another_version_is_refused(clone: Path, tmp_path: Path) -> None:
    (clone / 'dsacstar' / 'dsacstar_util_rgbd.h').write_text('cv::matMulDeriv(A, B, C, D);')
    with pytest.raises(DsacError, match='found 0 calls of the C interface of OpenCV, expected 1'):
        patched(clone, tmp_path)


def test_what_is_missing_is_said(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DsacError, match='not a clone of vislearn/dsacstar'):
        patched(tmp_path, tmp_path / 'out')
    with pytest.raises(DsacError, match='install libopencv-calib3d-dev'):
        build(clone, tmp_path, tmp_path / 'out')
    assert main([]) == 2 and 'FOLDER_OF_A_CLONE' in capsys.readouterr().err
