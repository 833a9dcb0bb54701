"""Gating: which sub-maps an image may be of, from the encoder's features, which are there already.

An image is described by the mean of its features, half whitened with fixed statistics (as for retrieval, Jegou & Chum 2012); a sub-map by
some prototypes of its frames' descriptors, so that a new one needs no training of the others. What was tried, and what these constants are
from: `python -m benchmarks.gating` and docs/large_places.md.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from dsac_ros.networks.encoder import CHANNELS

WEIGHTS = Path(__file__).with_name('gating.safetensors')
DIMENSIONS = CHANNELS
PROTOTYPES = 32  # of one expert, at the most
ITERATIONS = 20  # of k-means
TEMPERATURE = 0.040  # of the similarity to the nearest prototype
LOOK_ALIKE = 0.55  # mean similarity of prototypes to the nearest of another expert: 0.68 of near-twins, else 0.43 at most (20 places)
NONE_LOGIT = 0.34 / TEMPERATURE


@dataclass(frozen=True)
class Whitening:
    """mean_C and projection_CD of pooled features: to the directions in which images differ, those with large differences made smaller."""

    mean_C: Tensor
    projection_CD: Tensor

    def __call__(self, pooled_C: Tensor) -> Tensor:
        """(..., C) -> (..., D) of unit length."""
        return normalize((pooled_C - self.mean_C) @ self.projection_CD, dim=-1)


@lru_cache(maxsize=2)
def shipped_whitening(device: torch.device) -> Whitening:
    """Of images of places that no map is tested on."""
    tensors = {name: value.float().to(device) for name, value in load_file(WEIGHTS).items()}
    return Whitening(tensors['mean'], tensors['projection'])


def describe(maps_CHW: Tensor) -> Tensor:
    """(D,) unit-length descriptor of an image from the encoder's features (C, H, W); of fixed shape, waits for no device."""
    return shipped_whitening(maps_CHW.device)(maps_CHW.float().mean((1, 2)))


@dataclass(frozen=True)
class Prototypes:
    """descriptors_MD: of unit length; float32 in use, float16 in the file."""

    descriptors_MD: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """For the file of the expert."""
        return {'prototypes': self.descriptors_MD.half().cpu().contiguous()}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Prototypes:
        """The inverse of tensors()."""
        return Prototypes(normalize(tensors['prototypes'].float(), dim=1))


def prototypes(descriptors_FD: Tensor) -> Prototypes:
    """Of the descriptors of all mapped frames of one sub-map: k-means on the sphere, from frames evenly spread over the recording."""
    count = min(PROTOTYPES, len(descriptors_FD))
    centres_MD = descriptors_FD[torch.arange(count, device=descriptors_FD.device) * len(descriptors_FD) // count]
    for _ in range(ITERATIONS):
        nearest_F = (descriptors_FD @ centres_MD.T).argmax(1)
        sums_MD = torch.zeros_like(centres_MD).index_add_(0, nearest_F, descriptors_FD)
        centres_MD = torch.where(sums_MD.any(1, keepdim=True), normalize(sums_MD, dim=1), centres_MD)
    return Prototypes(centres_MD)


class Gating:
    """p(expert | image) of E experts, and of none of them.

    Args:
        temperature: of the similarity of an image to the nearest prototype of an expert. none_logit: what stands for none of them.
    """

    def __init__(self, prototypes: Sequence[Prototypes], temperature: float = TEMPERATURE, none_logit: float = NONE_LOGIT) -> None:
        self.descriptors_SD = torch.cat([each.descriptors_MD for each in prototypes])
        owners = [torch.full((len(each.descriptors_MD),), index) for index, each in enumerate(prototypes)]
        self.owners_S = torch.cat(owners).to(self.descriptors_SD.device)
        self.experts, self.temperature, self.none_logit = len(prototypes), temperature, none_logit
        self._look_alikes: dict[int, list[int]] = {}

    def look_alikes(self, expert: int) -> list[int]:
        """The other experts whose prototypes are so near to those of this one, and the other way round, that an image tells little."""
        if expert not in self._look_alikes:
            own_MD = self.descriptors_SD[self.owners_S == expert]
            nearest_S = (self.descriptors_SD @ own_MD.T).amax(1)
            counts_E = self.owners_S.bincount(minlength=self.experts)
            back_E = nearest_S.new_zeros(self.experts).index_add_(0, self.owners_S, nearest_S) / counts_E
            both_E = torch.minimum(self.similarities(own_MD).mean(0), back_E)
            both_E[expert] = -1.0
            self._look_alikes[expert] = (both_E > LOOK_ALIKE).nonzero().flatten().tolist()
        return self._look_alikes[expert]

    def similarities(self, descriptors_D: Tensor) -> Tensor:
        """(..., D) -> (..., E): of the nearest prototype of each expert."""
        all_S = descriptors_D @ self.descriptors_SD.T
        best_E = all_S.new_full((*all_S.shape[:-1], self.experts), -1.0)
        return best_E.scatter_reduce_(-1, self.owners_S.expand_as(all_S), all_S, 'amax')

    def probabilities(self, descriptor_D: Tensor) -> Tensor:
        """(E + 1,), the last one of none."""
        logits_E = self.similarities(descriptor_D) / self.temperature
        return torch.cat([logits_E, torch.full_like(logits_E[:1], self.none_logit)]).softmax(0)



def with_prior(gated_E1: np.ndarray, prior_E: np.ndarray) -> np.ndarray:
    """(E + 1,) probabilities of an image with those of the experts before it, where it is of one of them."""
    experts_E = gated_E1[:-1] * prior_E
    return np.append(experts_E * ((1 - gated_E1[-1]) / max(experts_E.sum(), 1e-12)), gated_E1[-1])
