"""dsac-ros convert, end to end on small data."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dsac_ros.commands import convert
from dsac_ros.data.opening import open_source
from dsac_ros.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four frames; one without depth, one without a pose."""
    path = tmp_path / 'room'
    (path / 'rgb').mkdir(parents=True)
    (path / 'depth').mkdir()
    for i in range(4):
        cv2.imwrite(str(path / 'rgb' / f'{i:06d}.png'), np.full((12, 16, 3), (0, 0, 50 * i), np.uint8))
        if i != 1:
            cv2.imwrite(str(path / 'depth' / f'{i:06d}.png'), np.full((12, 16), 1000 + i, np.uint16))
    (path / 'poses.txt').write_text(''.join(f'{i:06d} {i} 0 0 0 0 0 1\n' for i in range(3)))
    (path / 'intrinsics.json').write_text(json.dumps(dict(fx=20, fy=20, cx=7.5, cy=5.5, width=16, height=12)))
    (path / 'splits.json').write_text(json.dumps(dict(val=['000002', '000000'])))
    return path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_a_folder_becomes_a_bag_and_another_bag(folder: Path, tmp_path: Path, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, '--out', tmp_path / 'a', '--storage', storage) == 0
    said = capsys.readouterr().out
    assert f'{tmp_path / "a"}: 4 frames over 0.1 s, 3 depth images, 3 reference poses' in said
    assert 'warning: 1 x no_depth' in said and 'warning: 1 x no_pose' in said
    assert run(tmp_path / 'a', '--out', tmp_path / 'b', '--compressed') == 0
    originals = list(open_source(folder))
    for bag in ('a', 'b'):
        copies = list(open_source(tmp_path / bag))
        for original, copy in zip(originals, copies, strict=True):
            assert original.stamp_ns == copy.stamp_ns and original.camera == copy.camera
            assert np.abs(original.image.astype(int) - copy.image).max() <= (0 if bag == 'a' else 4)
            for before, after in ((original.depth, copy.depth), (original.map_from_camera, copy.map_from_camera)):
                assert (before is None) == (after is None)
                if before is not None:
                    np.testing.assert_allclose(after, before, atol=1e-6)


def test_split_and_rgb_only(folder: Path, tmp_path: Path) -> None:
    assert run(folder, '--out', tmp_path / 'bag', '--split', 'val', '--rgb-only') == 0
    assert [(frame.image[0, 0, 0], frame.depth) for frame in open_source(tmp_path / 'bag', load_depth=False)] == [(0, None), (100, None)]


def test_a_bad_source_leaves_no_bag(folder: Path, tmp_path: Path) -> None:
    (folder / 'rgb' / '000003.png').write_bytes(b'no image')
    with pytest.raises(DataError, match='000003.png'):
        run(folder, '--out', tmp_path / 'bag')
    assert [path.name for path in tmp_path.iterdir()] == ['room']


def test_an_existing_bag_needs_overwrite(folder: Path, tmp_path: Path) -> None:
    assert run(folder, '--out', tmp_path / 'bag') == 0
    with pytest.raises(DataError, match='exists already'):
        run(folder, '--out', tmp_path / 'bag')
    assert run(folder, '--out', tmp_path / 'bag', '--split', 'val', '--overwrite') == 0
    assert len(list(open_source(tmp_path / 'bag'))) == 2


def test_a_source_is_never_the_target(folder: Path, tmp_path: Path) -> None:
    bag = tmp_path / 'bag'
    run(folder, '--out', bag)
    (tmp_path / 'link').symlink_to(bag)
    for source in (bag, bag / 'bag.db3', tmp_path / 'link'):
        with pytest.raises(DataError, match=f'--out {bag}: the source {source} is there'):
            run(source, '--out', bag, '--overwrite')
    assert len(list(open_source(bag))) == 4
