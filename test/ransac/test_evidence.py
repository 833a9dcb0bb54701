"""Spread over the view and residual, against numbers known by hand."""
from __future__ import annotations

import pytest
import torch

from dsac_ros.ransac.evidence import occupied, weighted_rms


def test_a_point_at_the_camera_itself_does_not_spoil_the_residual() -> None:
    square, over = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1e4, 1e4, 1e-9])
    assert weighted_rms(square[:2], over[:2], torch.ones(2)).item() == pytest.approx(0.01)
    assert weighted_rms(square, over, torch.ones(3)).item() < 0.02
    assert weighted_rms(square, over, torch.zeros(3)).item() == 0


def test_the_share_of_tiles_that_hold_enough() -> None:
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing='ij')
    places = torch.stack([column.flatten(), row.flatten()], 1)
    everywhere = torch.ones(64)
    left = (places[:, 0] < 4).float()
    for weights, expected in ((everywhere, 1.0), (left, 0.5), (0 * left, 0.0)):
        assert occupied(places, weights, 1.5).item() == expected
    assert occupied(places, everywhere, 4.0).item() == 0.0  # four in a tile are not more than four
