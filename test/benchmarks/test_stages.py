"""Stage times are those that the localizer states, and FLOPs those that can be counted by hand."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scenery import saved_map, walk

from benchmarks import stages
from benchmarks.stages import SETTINGS, flops, frame_table, random_buffer, rates, stage_table, timed_frames
from dsac_ros.config import MappingOptions
from dsac_ros.localizer import Localizer
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.expert import CLUSTERS
from dsac_ros.training.head import batch_loss, new_expert


def test_each_setting_goes_its_own_way(tmp_path: Path) -> None:
    localizer = Localizer.from_map(saved_map(tmp_path / 'room.dsacmap', list(walk()[::2])), 'cpu')
    found = timed_frames(localizer, walk()[1::4])
    assert list(found) == list(SETTINGS) and len(found['RGB, searched']) == len(found['RGB-D, searched']) == 6
    assert 1 <= len(found['tracked']) <= 5  # the first frame has nothing to be tracked from
    assert {e.modality for e in found['RGB-D, searched']} == {'rgbd'} and all(e.tracked for e in found['tracked'])
    table = frame_table(found)
    assert table.splitlines()[0].split(' | ')[4:6] == ['prepare', 'encoder'] and '| RGB-D, searched | 6 |' in table


def test_the_table_holds_medians() -> None:
    estimates = [SimpleNamespace(stage_times_ms=times) for times in ({'a': 1.0, 'b': 10.0}, {'a': 3.0, 'b': 20.0}, {'a': 5.0, 'b': 90.0})]
    assert frame_table({'x': estimates, 'none': [], 'y': [SimpleNamespace(stage_times_ms={'c': 7.0})]}).splitlines()[2:] == [
        '| x | 3 | 23 | 88 | 3.0 | 20.0 |  |', '| y | 1 | 7 | 7 |  |  | 7.0 |']
    assert stage_table({'read': 1.0, 'train': 3.0}).splitlines()[2:] == ['| read | 1.0 | 25 % |', '| train | 3.0 | 75 % |']


def test_flops_of_a_product_and_of_a_step() -> None:
    assert flops(lambda: torch.randn(30, 40) @ torch.randn(40, 50)) == 2 * 30 * 40 * 50
    width, batch, buffer = 32, 64, random_buffer(2000)
    expert, options = new_expert(buffer, width), MappingOptions(width=width, batch=batch)
    found = flops(lambda: batch_loss(expert, buffer, torch.arange(batch), 0.5, options)[0].backward())
    first, others, choice = CHANNELS * width, 4 * width ** 2 + width * (CLUSTERS + 4), 3 * CLUSTERS
    # Forwards, and backwards to weights and inputs: features and centres are not learnt, and ask for one of these less.
    assert found == 2 * batch * (2 * first + 3 * others + 2 * choice)


def test_rates_are_below_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, 'SAMPLES', 3000)
    monkeypatch.setattr(stages, 'MATRIX', 768)
    monkeypatch.setattr(stages, 'ROUNDS', 3)
    threads = torch.get_num_threads()
    found = rates(64, 256)
    torch.set_num_threads(threads)
    assert set(found) == {'product', 'encoder', 'training'} and found['product'] > 1e9
    assert 0 < found['encoder'] < found['product'] and 0 < found['training'] < found['product']


def test_a_map_without_stages_or_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages.main(['mapping', str(tmp_path / 'nowhere.dsacmap')]) == 1 and 'manifest.yaml' in capsys.readouterr().err
    assert stages.main(['mapping', str(saved_map(tmp_path / 'bare.dsacmap', None))]) == 1
    assert 'does not say' in capsys.readouterr().err
