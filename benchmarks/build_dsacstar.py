"""Build the C++ extension of DSAC* (vislearn/dsacstar on GitHub) into the virtual environment, for `pose_estimators`. From the root:

    apt-get install libopencv-calib3d-dev g++
    python -m benchmarks.build_dsacstar FOLDER_OF_A_CLONE

The clone stays as it is: a copy is built, with OpenCV 4 in place of 3.4, whose C interface its backward pass still calls.
"""
from __future__ import annotations

import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from dsac_ros.errors import DsacError

SOURCES = ('dsacstar.cpp', 'thread_rand.cpp')
C_INTERFACE = re.compile(r'CvMat matA = .*?cvCalcMatMulDeriv\(.*?;', re.DOTALL)
CPP_INTERFACE = '''cv::Mat by_A, by_B;
	cv::matMulDeriv(A, B, by_A, by_B);
	if (_dABdA.needed()) by_A.copyTo(_dABdA);
	if (_dABdB.needed()) by_B.copyTo(_dABdB);'''
# In place of the header of all of OpenCV, which wants the headers of every module.
UMBRELLA = '#include <opencv2/core.hpp>\n#include <opencv2/calib3d.hpp>\n'


def main(arguments: list[str] | None = None) -> int:
    """Build and install; 2 when that cannot be done."""
    folders = sys.argv[1:] if arguments is None else arguments
    if len(folders) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(build(Path(folders[0]), Path('/usr/include/opencv4'), Path(sysconfig.get_path('platlib'))))
    except DsacError as error:
        print(f'build_dsacstar: {error}', file=sys.stderr)
        return 2
    return 0


def build(clone: Path, opencv: Path, out: Path) -> Path:
    """Compile the extension of a clone against the headers in `opencv`; the module in the folder `out`. Raises DsacError."""
    from setuptools import Distribution
    from setuptools.errors import BaseError
    from torch.utils.cpp_extension import BuildExtension, CppExtension
    if not (opencv / 'opencv2' / 'calib3d.hpp').is_file():
        raise DsacError(f'{opencv}: no headers of OpenCV; install libopencv-calib3d-dev')
    with tempfile.TemporaryDirectory() as folder:
        copy = patched(clone, Path(folder))
        extension = CppExtension('dsacstar', [str(copy / name) for name in SOURCES], include_dirs=[str(copy / 'shim'), str(opencv)],
                                 libraries=['opencv_core', 'opencv_calib3d'], extra_compile_args=['-fopenmp', '-O3', '-w'],
                                 extra_link_args=['-fopenmp'])
        package = Distribution({'name': 'dsacstar', 'ext_modules': [extension],
                                'cmdclass': {'build_ext': BuildExtension.with_options(use_ninja=False)}})
        command = package.get_command_obj('build_ext')
        command.build_lib, command.build_temp = str(out), str(Path(folder) / 'objects')
        try:
            package.run_command('build_ext')
        except (BaseError, RuntimeError) as error:
            raise DsacError(f'{clone}: does not build: {error}') from error
        return Path(command.get_ext_fullpath('dsacstar'))


def patched(clone: Path, folder: Path) -> Path:
    """A copy of the clone's extension in `folder` that OpenCV 4 compiles. Raises DsacError for another version than is known."""
    source, copy = clone / 'dsacstar', folder / 'dsacstar'
    if not (source / SOURCES[0]).is_file():
        raise DsacError(f'{clone}: not a clone of vislearn/dsacstar: dsacstar/{SOURCES[0]} is missing')
    shutil.copytree(source, copy)
    header = copy / 'dsacstar_util_rgbd.h'
    text, changes = C_INTERFACE.subn(CPP_INTERFACE, header.read_text())
    if changes != 1:
        raise DsacError(f'{source / header.name}: found {changes} calls of the C interface of OpenCV, expected 1 as in commit 308775f')
    header.write_text(text)
    (copy / 'shim' / 'opencv2').mkdir(parents=True)
    (copy / 'shim' / 'opencv2' / 'opencv.hpp').write_text(UMBRELLA)
    return copy


if __name__ == '__main__':
    sys.exit(main())
