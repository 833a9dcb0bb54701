"""Which sub-maps a frame is tried in: those that the frames before and gating expect, read and on their device."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions, GatingOptions
from dsac_ros.errors import MapError
from dsac_ros.landmarks.positioning import Positioning, Sight, View
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.maps.site import Site, SubMaps
from dsac_ros.networks.expert import Expert
from dsac_ros.networks.gating import Gating, Prototypes, describe, with_prior
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.experts import parts_of_budget, with_parts_for
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Guess

LIKELY = 0.05  # probability from which on a sub-map is tried; draws leave a fourth one out of most frames (docs/large_places.md)
WORTH_A_SEARCH = 0.02  # probability of all sub-maps that were not tried, from which on the best of them are (docs/large_places.md)
EXPECTED = 0.5  # probability from which on a sub-map is looked at beside the encoder, before gating says which it is
NONE = ''  # the name of no sub-map, in a posterior


@dataclass
class SubMap:
    """A sub-map on its device; without positioning where it has no landmarks, or they are not asked."""

    bundle: MapBundle
    expert: Expert
    positioning: Positioning | None


@dataclass(frozen=True)
class Attempt:
    """A sub-map that may have been seen: keypoints and matches to anywhere, on their way beside the network."""

    index: int
    sub_map: SubMap
    view: Future[View] | None
    anywhere: Future[tuple[Correspondences, Tensor]] | None = None


class Choice:
    """The sub-maps of a site. gating: None where there is one."""

    def __init__(self, site: Site, device: torch.device, estimator: EstimatorOptions, options: GatingOptions) -> None:
        self.site, self.device, self.estimator, self.options = site, device, estimator, options
        self.names = [entry.name for entry in site.entries]
        self.sub_maps = SubMaps(self._made_ready, options.experts_in_memory)
        self.unreadable: set[int] = set()  # whose files turned out to be damaged: as if they were not in the map
        self.gating = None
        if len(site.entries) > 1:
            self.gating = Gating([Prototypes(each.descriptors_MD.to(device)) for each in site.prototypes])
        else:
            self.sub_maps.get(0)
        # Beside the encoder: OpenCV and torch both release the interpreter.
        self.landmark_thread = ThreadPoolExecutor(1, 'landmarks')

    @property
    def has_landmarks(self) -> bool:
        """Whether keypoints may be asked for."""
        return self.estimator.landmarks and (self.gating is not None or self.sub_maps.get(0).positioning is not None)

    def expected(self, guess: Guess | None, prior: Mapping[str, float] | None, sight: Future[Sight] | None) -> Attempt | None:
        """The sub-map that the frame is probably of, before it is looked at."""
        if self.gating is None:
            return self._attempt(0, sight)
        if guess is not None and guess.expert not in self.names:
            likely = int(np.argmin(self.site.distances(np.linalg.inv(guess.camera_from_map)[:3, 3])))
        else:
            name = guess.expert if guess is not None else max(prior, key=lambda name: prior[name]) if prior else NONE
            if guess is None and (not prior or prior[name] <= EXPECTED):
                return None
            likely = self.names.index(name)
        return None if likely in self.unreadable else self._attempt(likely, sight)

    def shared_out(self, maps_CHW: Tensor, seed: int, prior: Mapping[str, float] | None) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
        """(E + 1,) probabilities by the image, the same with the prior, and the parts of the budget that sub-maps get, the most probable
        ones first.

        The host has to know who is asked: a frame of a map of many sub-maps waits for the device here, and before landmarks are matched.
        """
        if self.gating is None:
            return np.array([1.0, 0.0]), np.array([1.0, 0.0]), {0: self.options.parts}
        by_image_E1 = self.gating.probabilities(describe(maps_CHW)).double().cpu().numpy()
        gated_E1 = by_image_E1.copy() if prior is None else with_prior(by_image_E1, np.array([prior[name] for name in self.names]))
        for index in self.unreadable:
            gated_E1[-1], gated_E1[index] = gated_E1[-1] + gated_E1[index], 0.0
        offset = uniform_draws([seed], 1)[0, 0, 0].item()
        readable = [index for index in range(len(self.names)) if index not in self.unreadable]
        if not readable:
            raise MapError('no sub-map of the map can be read; `dsac-ros maps verify` says what is wrong with each')
        parts = parts_of_budget(gated_E1[readable], self.options.parts, self.options.most_experts, offset)
        parts = {readable[index]: count for index, count in parts.items()}
        alike = [index for index in self.gating.look_alikes(next(iter(parts))) if index not in self.unreadable]
        likely = np.argsort(-gated_E1[:-1], kind='stable')[:np.count_nonzero(gated_E1[:-1] >= LIKELY)].tolist()
        return by_image_E1, gated_E1, with_parts_for(list(dict.fromkeys(alike + likely)), parts, self.options.most_experts)

    def others(self, posterior_E1: np.ndarray, tried: Collection[int]) -> dict[int, int]:
        """The budget in equal parts for the most probable sub-maps that were not tried, and for what looks like the first of them; none
        where all of these together have hardly a chance left."""
        order = np.argsort(-posterior_E1[:-1], kind='stable').tolist()
        left = [index for index in order if index not in tried and index not in self.unreadable]
        if not left or posterior_E1[left].sum() < WORTH_A_SEARCH:
            return {}
        alike = [index for index in self.gating.look_alikes(left[0]) if index in left]
        chosen = list(dict.fromkeys([left[0], *alike, *left]))[:min(self.options.most_experts, self.options.parts)]
        each, over = divmod(self.options.parts, len(chosen))
        return {index: each + (place < over) for place, index in enumerate(chosen)}

    def attempts(self, parts: Mapping[int, int], expected: Attempt | None, sight: Future[Sight] | None) -> list[Attempt]:
        """One for each sub-map that gets a part of the budget, in that order."""
        return [self.matched(expected if expected is not None and expected.index == index else self._attempt(index, sight))
                for index in parts]

    def matched(self, attempt: Attempt) -> Attempt:
        """With matches to anywhere begun."""
        if attempt.view is None or attempt.anywhere is not None:
            return attempt
        view, positioning = attempt.view, attempt.sub_map.positioning
        return replace(attempt, anywhere=self.landmark_thread.submit(lambda: positioning.anywhere(view.result())))

    def named(self, posterior_E1: np.ndarray) -> dict[str, float]:
        """Empty where there is one sub-map."""
        return {} if self.gating is None else dict(zip([*self.names, NONE], posterior_E1.tolist()))

    def preload_around(self, place_3: np.ndarray) -> dict[str, bool]:
        """Have the sub-maps near a place in the site read, nearest first; which of all are near it, empty where there is one."""
        if self.gating is None:
            return {}
        distances_E = self.site.distances(place_3)
        near_E = distances_E < self.options.preload_distance
        order = np.argsort(distances_E, kind='stable')
        self.sub_maps.preload(order[near_E[order]].tolist())
        return dict(zip(self.names, near_E.tolist()))

    def _attempt(self, index: int, sight: Future[Sight] | None) -> Attempt:
        try:
            sub_map = self.sub_maps.get(index)
        except MapError:
            self.unreadable.add(index)
            raise
        if sight is None or sub_map.positioning is None:
            return Attempt(index, sub_map, None)
        return Attempt(index, sub_map, self.landmark_thread.submit(lambda: sub_map.positioning.view(sight.result())))

    def _made_ready(self, index: int) -> SubMap:
        bundle = self.site.read(index)
        positioning = None
        if bundle.landmarks and self.estimator.landmarks:
            positioning = Positioning(bundle.landmarks, self.device, self.estimator, bundle.covariance_factors['landmarks'])
        return SubMap(bundle, bundle.expert.to(self.device), positioning)
