"""Minimal sets follow the weights and the uniform share, in a rig within one camera."""
from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from dsac_ros.ransac.sampling import draw_minimal_sets, mixed, uniform_draws

WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0, 8.0, 5.0], dtype=torch.float64)
CAMERAS = torch.tensor([[0, 0, 0, 2, 2, 2, 2]])
COUNT = 20000


def drawn(weights: torch.Tensor, share: float, seed: int = 0, count: int = COUNT, device: str = 'cpu',
          cameras: torch.Tensor | None = None) -> torch.Tensor:
    """(count, 3), of one image."""
    draws = uniform_draws([seed], count, device)
    return draw_minimal_sets(mixed(weights[None].to(device), share), draws, None if cameras is None else cameras.to(device))[0].cpu()


def mixture(share: float) -> torch.Tensor:
    usable = (WEIGHTS > 0).double()
    return (1 - share) * WEIGHTS / WEIGHTS.sum() + share * usable / usable.sum()


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('scale', [1.0, 1e-9, 1e9])
def test_frequencies_are_those_of_the_mixture(share: float, scale: float, device: str) -> None:
    """Chi-square of 60,000 draws at p = 1e-4: an error of 1 % in a probability of 0.25 fails it."""
    sets = drawn(scale * WEIGHTS, share, device=device)
    assert sets.shape == (COUNT, 3)
    expected = mixture(share)
    counts = torch.bincount(sets.flatten(), minlength=len(WEIGHTS))
    assert (counts[WEIGHTS == 0] == 0).all()
    assert chisquare(counts[WEIGHTS > 0].numpy(), (expected[WEIGHTS > 0] * 3 * COUNT).numpy()).pvalue > 1e-4
    torch.testing.assert_close(mixed(scale * WEIGHTS[None], share)[0], expected, atol=1e-12, rtol=0)


def test_the_three_places_of_a_set_are_independent() -> None:
    sets = drawn(WEIGHTS, 0.1)
    p = mixture(0.1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = torch.bincount(sets[:, a] * 7 + sets[:, b], minlength=49)
        expected = torch.outer(p, p).flatten()
        assert chisquare(pairs[expected > 0].numpy(), (expected[expected > 0] * COUNT).numpy()).pvalue > 1e-4


def test_a_set_of_a_rig_is_of_one_camera(device: str) -> None:
    """The first member is drawn from all, the others by the same probabilities within its camera."""
    sets = drawn(WEIGHTS, 0.1, device=device, cameras=CAMERAS)
    p, cameras = mixture(0.1), CAMERAS[0]
    assert (cameras[sets] == cameras[sets[:, :1]]).all()
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for camera in (0, 2):
        own = torch.where(cameras == camera, p, 0.0)
        expected += torch.outer(own, own) / own.sum()
    expected = expected.flatten()
    for a, b in ((0, 1), (0, 2)):
        pairs = torch.bincount(sets[:, a] * 7 + sets[:, b], minlength=49)
        assert (pairs[expected == 0] == 0).all()
        assert chisquare(pairs[expected > 0].numpy(), (expected[expected > 0] * COUNT).numpy()).pvalue > 1e-4


def test_the_ends_of_the_interval_are_the_ends_of_each_camera() -> None:
    """Draws of 0 and of the last double before 1 find the first and the last that may be drawn, none of weight zero beside them."""
    weights = torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    cameras = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    last = 1 - 2.0 ** -53
    draws = torch.tensor([[[0.0, 0.0, last], [last, 0.0, last]]], dtype=torch.float64)
    assert draw_minimal_sets(mixed(weights, 0.0), draws).tolist() == [[[1, 1, 6], [6, 1, 6]]]
    assert draw_minimal_sets(mixed(weights, 0.0), draws, cameras).tolist() == [[[1, 1, 2], [6, 5, 6]]]


def test_the_seed_decides(device: str) -> None:
    assert torch.equal(drawn(WEIGHTS, 0.1, 5, device=device), drawn(WEIGHTS, 0.1, 5, device=device))
    assert not torch.equal(drawn(WEIGHTS, 0.1, 5, device=device), drawn(WEIGHTS, 0.1, 6, device=device))


def test_an_image_of_a_batch_has_the_sets_that_it_has_alone() -> None:
    weights = torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = draw_minimal_sets(mixed(weights, 0.1), uniform_draws([4, 5, 6], 200))
    for image in range(3):
        assert torch.equal(together[image], drawn(weights[image], 0.1, 4 + image, 200))


def test_a_confident_wrong_cell_cannot_hold_all_draws() -> None:
    weights = torch.ones(1000, dtype=torch.float64)
    weights[0] = 1e12
    sets = drawn(weights, 0.1)
    assert 0.09 < (sets != 0).double().mean() < 0.11  # 6,000 of 60,000; 4 sigma are 0.005
    assert (drawn(weights, 0.0) == 0).all()


@pytest.mark.parametrize('cameras', [None, CAMERAS])
@pytest.mark.parametrize('weights', [torch.zeros(7, dtype=torch.float64), torch.full((7,), torch.nan, dtype=torch.float64)])
def test_nothing_usable_raises_nothing(weights: torch.Tensor, cameras: torch.Tensor | None) -> None:
    sets = drawn(weights, 0.1, count=100, cameras=cameras)
    assert sets.shape == (100, 3) and sets.min() >= 0 and sets.max() < 7
