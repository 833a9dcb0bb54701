"""The offline replay with the real Localizer: deterministic to the byte, through map file, encoder, estimator and report."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsac_ros.evaluation import report
from dsac_ros.evaluation.replay import replay_offline
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import save_map
from dsac_ros.maps.manifest import COVARIANCE_KEYS
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Camera, Frame


class NoiseSource:
    """Five images of noise with depth: no pose is right, but each must be the same twice."""

    map_frame = 'map'
    warnings: Counter[str] = Counter()

    def __len__(self):
        return 5

    def __iter__(self):
        camera = Camera(160, 120, 130.0, 130.0, 79.5, 59.5)
        for i in range(5):
            rng = np.random.default_rng(i)
            depth = None if i == 2 else rng.uniform(1, 3, (120, 160)).astype(np.float32)
            yield Frame(rng.integers(0, 255, (120, 160, 3), np.uint8), camera, (i + 1) * 10**8, depth, np.eye(4), str(i))


@pytest.fixture(scope='module')
def untrained_map(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('maps') / 'noise.dsacmap'
    save_map(path, 'map', 'room', Expert(CHANNELS), None, dict.fromkeys(COVARIANCE_KEYS, 1.0), [0.0, 0.0, 0.0], [4.0, 4.0, 4.0], {})
    return path


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_two_runs_write_the_same_bytes(tmp_path, untrained_map, modality, monkeypatch):
    monkeypatch.setattr(report.page, 'render', lambda *_: 'page')
    for name in ('a', 'b'):
        results = replay_offline(Localizer.from_map(untrained_map, device='cpu'), NoiseSource(), modality)
        assert [r.modality for r in results] == [modality, modality, 'rgb', modality, modality]
        run = report.describe_run(untrained_map, 'noise', modality, 'cpu', {})
        assert run['map_manifest_sha256']
        report.write_results(tmp_path / name, results, run)
    for name in report.REPRODUCIBLE:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes(), name


def test_images_of_an_odd_shape_are_frames_without_an_answer(untrained_map):
    class Odd(NoiseSource):
        def __iter__(self):
            for frame in super().__iter__():
                yield replace(frame, image=frame.image[:30], depth=None, camera=replace(frame.camera, height=30))
    results = replay_offline(Localizer.from_map(untrained_map, device='cpu'), Odd(), 'rgb')
    assert [r.answered for r in results] == [False] * 5 and all(r.reasons[0].startswith('bad_frame: image of 160x30') for r in results)
