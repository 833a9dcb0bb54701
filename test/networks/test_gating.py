"""Gating: descriptors, prototypes and probabilities, against sums done by hand and rooms that are really rendered."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import normalize

from dsac_ros.data.synthetic import SyntheticSource
from dsac_ros.networks.encoder import CHANNELS, image_to_tensor, shared_encoder
from dsac_ros.networks.gating import (
    DIMENSIONS,
    LOOK_ALIKE,
    PROTOTYPES,
    Gating,
    Prototypes,
    describe,
    prototypes,
    shipped_whitening,
    with_prior,
)


def directions(*shape: int, seed: int = 1) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize('size', [(24, 32), (32, 24), (24, 50)])
def test_a_descriptor_is_the_whitened_mean_of_the_features(size: tuple[int, int]) -> None:
    maps = torch.randn(CHANNELS, *size, generator=torch.Generator().manual_seed(2))
    described = describe(maps)
    shipped = shipped_whitening(maps.device)
    expected = (maps.numpy().mean((1, 2)) - shipped.mean_C.numpy()) @ shipped.projection_CD.numpy()
    np.testing.assert_allclose(described, expected / np.linalg.norm(expected), atol=1e-5)
    assert described.shape == (DIMENSIONS,) and float(described.norm()) == pytest.approx(1, abs=1e-5)


def test_few_frames_are_their_own_prototypes_and_many_are_groups() -> None:
    few = directions(PROTOTYPES - 3, 8)
    assert torch.allclose(prototypes(few).descriptors_MD, few, atol=1e-6)
    centres = torch.eye(DIMENSIONS)[:PROTOTYPES]
    groups = normalize(centres.repeat_interleave(5, 0) + 0.01 * directions(5 * PROTOTYPES, DIMENSIONS), dim=1)
    found = prototypes(groups).descriptors_MD
    assert found.shape == (PROTOTYPES, DIMENSIONS)
    assert torch.allclose(found, normalize(groups.reshape(PROTOTYPES, 5, -1).mean(1), dim=1), atol=1e-5)


def test_a_file_has_tens_of_kilobytes_and_gives_the_same_back() -> None:
    kept = prototypes(directions(400, DIMENSIONS))
    data = save(kept.tensors())
    assert len(data) < 60_000
    again = Prototypes.from_tensors(load(data)).descriptors_MD
    assert again.dtype == torch.float32 and torch.allclose(again, kept.descriptors_MD, atol=1e-3)
    assert torch.allclose(again.norm(dim=1), torch.ones(len(again)), atol=1e-6)


def test_probabilities_are_a_softmax_over_the_nearest_prototypes_and_none() -> None:
    sets = [directions(count, 6, seed=count) for count in (3, 1, 5)]
    image = directions(6, seed=9)
    temperature, none = 0.3, 1.2
    gating = Gating([Prototypes(each) for each in sets], temperature, none)
    logits = [max(float(row @ image) for row in each) / temperature for each in sets] + [none]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(gating.probabilities(image), expected, rtol=1e-5)
    prior = np.array([0.1, 0.7, 0.2])
    sharpened = expected[:3] * prior
    sharpened *= (1 - expected[3]) / sharpened.sum()
    np.testing.assert_allclose(with_prior(expected, prior), [*sharpened, expected[3]], rtol=1e-5)
    assert with_prior(expected, np.zeros(3))[:3].tolist() == [0, 0, 0]  # and no NaN


def test_a_new_expert_changes_no_odds_between_the_others() -> None:
    sets, image = [Prototypes(directions(4, 6, seed=seed)) for seed in range(4)], directions(6, seed=9)
    before, after = Gating(sets[:3]).probabilities(image), Gating(sets).probabilities(image)
    assert math.isclose(before[0] / before[1], after[0] / after[1], rel_tol=1e-4)
    assert math.isclose(before[0] / before[3], after[0] / after[4], rel_tol=1e-4)


@pytest.mark.slow
def test_rooms_are_told_apart_and_a_black_image_is_of_none() -> None:
    def descriptors(room: int, trajectory: int, frames: int, rate_hz: float) -> torch.Tensor:
        source = SyntheticSource(room, trajectory, frames, 256, 192, rate_hz, texels_per_metre=40)
        with torch.inference_mode():
            return torch.stack([describe(shared_encoder('cpu')(image_to_tensor(frame.image))[0]) for frame in source])
    gating = Gating([prototypes(descriptors(room, 1, 32, 0.8)) for room in (3, 4)])
    right = [int(gating.probabilities(each)[:2].argmax()) == index
             for index, room in enumerate((3, 4)) for each in descriptors(room, 2, 8, 0.5)]
    assert np.mean(right) >= 0.8
    with torch.inference_mode():
        black = describe(shared_encoder('cpu')(torch.zeros(1, 3, 192, 256, dtype=torch.uint8))[0])
    assert gating.probabilities(black)[2] > 0.5


def test_look_alikes_are_near_both_ways() -> None:
    """Two places that share all but some noise, one that has a part of the first, and one of its own."""
    first = directions(8, DIMENSIONS)
    twin = normalize(first + 0.5 * directions(8, DIMENSIONS, seed=2), dim=1)
    larger = torch.cat([first[:4], directions(28, DIMENSIONS, seed=3)])
    gating = Gating([Prototypes(each) for each in (first, larger, directions(5, DIMENSIONS, seed=4), twin)])
    assert [gating.look_alikes(expert) for expert in range(4)] == [[3], [], [], [0]]
    for expert, sets in ((3, twin), (1, larger)):
        both = min((first @ sets.T).amax(1).mean(), (sets @ first.T).amax(1).mean())
        assert (both > LOOK_ALIKE) == (expert in gating.look_alikes(0))
