"""Gating that is taught by pose losses: prototypes move to where the better sub-map is chosen, and nothing else of a map changes."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from dsac_ros.config import FinetuningOptions
from dsac_ros.errors import DataError, MapError
from dsac_ros.maps.bundle import load_training
from dsac_ros.maps.editing import problems
from dsac_ros.maps.manifest import read_manifest
from dsac_ros.networks.gating import DIMENSIONS, Gating, Prototypes
from dsac_ros.training.gating import Lessons, expected, improved, train_gating

sys.path.append(str(Path(__file__).resolve().parents[1]))
import rooms  # noqa: E402


def near(centres_SD: torch.Tensor, owners_V: torch.Tensor, spread: float, seed: int) -> torch.Tensor:
    noise = torch.randn(len(owners_V), centres_SD.shape[1], generator=torch.Generator().manual_seed(seed))
    return normalize(centres_SD[owners_V] + spread * noise, dim=1)


def test_prototypes_move_to_where_the_pose_loss_is_small() -> None:
    """Three places, of two of which the prototypes are nearly those of each other's."""
    truth_SD = normalize(torch.randn(3, DIMENSIONS, generator=torch.Generator().manual_seed(1)), dim=1)
    mixed = normalize(truth_SD[0] + truth_SD[1], dim=0)
    first = tuple(Prototypes(normalize(value[None], dim=1)) for value in (0.9 * mixed + 0.1 * truth_SD[1],
                                                                          0.9 * mixed + 0.1 * truth_SD[0], truth_SD[2]))

    def given(seed: int) -> Lessons:
        owners_V = torch.arange(60) % 3
        losses_VE = torch.full((60, 3), 40.0, dtype=torch.float64)
        losses_VE[torch.arange(60), owners_V] = 2.0
        return Lessons(near(truth_SD, owners_V, 0.02, seed), torch.arange(3).expand(60, 3), losses_VE)
    sets, before, after = improved(first, given(2), given(3))
    assert before.right < 0.5 and after.right == 1.0 and after.loss < 0.3 * before.loss
    assert [each.descriptors_MD.shape for each in sets] == [(1, DIMENSIONS)] * 3
    torch.testing.assert_close(torch.cat([each.descriptors_MD for each in sets]).norm(dim=1), torch.ones(3))
    assert expected(Gating(sets), given(3)).mean().item() == pytest.approx(after.loss)


def test_what_does_not_help_is_not_kept() -> None:
    """Taught the contrary of what the watched frames say."""
    first = tuple(Prototypes(each[None]) for each in torch.eye(DIMENSIONS)[:2])
    descriptors_VD, experts_VM = torch.eye(DIMENSIONS)[torch.arange(10) % 2], torch.arange(2).expand(10, 2)
    losses_VM = torch.where(torch.arange(10)[:, None] % 2 == experts_VM, 1.0, 9.0).double()
    taught, watched = (Lessons(descriptors_VD, experts_VM, losses) for losses in (10 - losses_VM, losses_VM))
    sets, before, after = improved(first, taught, watched)
    assert before == after and all(torch.equal(one.descriptors_MD, other.descriptors_MD) for one, other in zip(sets, first))


def test_a_map_of_two_rooms_gets_prototypes_and_keeps_the_rest(tmp_path: Path) -> None:
    site, out = rooms.tiny_site(), tmp_path / 'gated.dsacmap'
    sources = [rooms.ListSource(rooms.in_site(frame, room) for frame in rooms.tiny_frames(room)[::2]) for room in (1, 2)]
    before, after = train_gating(site, sources, out, FinetuningOptions(held_out_share=0.3), 'cpu', quiet=True)
    assert after.loss <= before.loss and after.right > 0.8 and before.right > 0.8
    assert problems(out) == []
    for old, new in zip(read_manifest(site).entries, read_manifest(out).entries):
        assert (old.name, old.sha256, old.site_from_map) == (new.name, new.sha256, new.site_from_map)
        assert (site / old.file).read_bytes() == (out / new.file).read_bytes()
        record = load_training(out, new)
        assert record['gated']['from'] == str(site) and record['gated']['held_out_frames'] > 0 and record['options']['seed'] == 0
    with pytest.raises(MapError, match='exists already'):
        train_gating(site, sources, out, device='cpu', quiet=True)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    source = rooms.ListSource(rooms.tiny_frames(1))
    with pytest.raises(MapError, match='one sub-map'):
        train_gating(rooms.tiny_map(1)[0], [source], tmp_path / 'm.dsacmap', device='cpu', quiet=True)
    source.map_frame = 'odom'
    with pytest.raises(DataError, match="'odom'"):
        train_gating(rooms.tiny_site(), [source], tmp_path / 'm.dsacmap', device='cpu', quiet=True)
    assert not list(tmp_path.iterdir())
