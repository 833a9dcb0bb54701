"""Gating: which sub-maps an image may be of, from the encoder's features, which are there already.

An image is described by the mean of its features, a sub-map by some prototypes of its frames' descriptors: a new one needs no training of
the others.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

PROTOTYPES = 16  # of one expert, at the most
ITERATIONS = 20  # of k-means
TEMPERATURE = 0.02  # of the similarity to the nearest prototype
NONE_LOGIT = 0.6 / TEMPERATURE


def describe(maps_CHW: Tensor) -> Tensor:
    """(D,) unit-length descriptor of an image from the encoder's features (C, H, W); of fixed shape, waits for no device."""
    return normalize(maps_CHW.float().mean((1, 2)), dim=0)


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
    """p(expert | image) of E experts, and of none of them."""

    def __init__(self, prototypes: Sequence[Prototypes], temperature: float = TEMPERATURE, none_logit: float = NONE_LOGIT) -> None:
        self.descriptors_SD = torch.cat([each.descriptors_MD for each in prototypes])
        owners = [torch.full((len(each.descriptors_MD),), index) for index, each in enumerate(prototypes)]
        self.owners_S = torch.cat(owners).to(self.descriptors_SD.device)
        self.experts, self.temperature, self.none_logit = len(prototypes), temperature, none_logit

    def probabilities(self, descriptor_D: Tensor, prior_E: Tensor | None = None) -> Tensor:
        """(E + 1,), the last one of none; prior_E: of the experts, before the image, where it is one of them."""
        similarity_S = self.descriptors_SD @ descriptor_D
        best_E = torch.full((self.experts,), -1.0, device=similarity_S.device).scatter_reduce_(0, self.owners_S, similarity_S, 'amax')
        logits = torch.cat([best_E / self.temperature, torch.full_like(best_E[:1], self.none_logit)])
        gated = logits.softmax(0)
        if prior_E is None:
            return gated
        experts_E = gated[:-1] * prior_E
        return torch.cat([experts_E * ((1 - gated[-1]) / experts_E.sum().clamp(min=1e-12)), gated[-1:]])
