"""One budget for many sub-maps: which of them get hypotheses, and which of them is believed (ESAC, Brachmann & Rother 2019).

Hypotheses of all experts are scored by one measure. What else speaks for a sub-map, gating before and landmarks after, is a logarithm of
odds as the score is, and they add up to a posterior.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.cells import searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import ASSUMED_SHARE
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.sampling import draw_minimal_sets, systematic_draws

TINY = 1e-12  # probability that no logarithm is taken of


def parts_of_budget(probabilities_E: np.ndarray, parts: int, most: int, offset: float) -> dict[int, int]:
    """Expert -> parts of the budget, the most probable first: by systematic resampling among the `most` most probable ones.

    Args:
        probabilities_E: need not sum to one. offset: uniform in [0, 1).
    """
    kept = np.argsort(-probabilities_E, kind='stable')[:most]
    weights = torch.from_numpy(np.maximum(probabilities_E[kept], TINY))[None].double()
    chosen = draw_minimal_sets(weights, systematic_draws(torch.tensor([offset], dtype=torch.float64), parts)[..., None])
    counts = torch.bincount(chosen.flatten(), minlength=len(kept)).tolist()
    return {int(expert): count for expert, count in zip(kept, counts) if count}


def with_parts_for(wanted: Sequence[int], parts: Mapping[int, int], most: int) -> dict[int, int]:
    """The same parts with at least one for each wanted expert, the most wanted first, as long as there are `most` experts at the most and
    the first expert, which gives them, has one itself. An expert that has to go gives its parts to the first."""
    first = next(iter(parts))
    kept = list(dict.fromkeys([first, *wanted, *parts]))[:most]
    given = {expert: parts[expert] for expert in kept[1:] if expert in parts}
    count = sum(parts.values()) - sum(given.values())
    added = [expert for expert in kept[1:] if expert not in parts][:count - 1]
    shared = {**given, **dict.fromkeys(added, 1)}
    return {first: count - len(added), **{expert: shared[expert] for expert in kept[1:] if expert in shared}}


def draws_of_parts(draws_1K3: Tensor, parts: list[int], budget: int) -> Tensor:
    """(len(parts), K', 3) random numbers for as many of the K sets as each has parts of the budget, K' for the largest of them.

    The others have equal numbers: a set of one correspondence three times, which no solver takes for a hypothesis.
    """
    sets = [draws_1K3.shape[1] * count // budget for count in parts]
    draws = draws_1K3[:, :max(sets)]
    beyond = torch.arange(draws.shape[1], device=draws.device) >= torch.tensor(sets, device=draws.device)[:, None]
    return torch.where(beyond[..., None], 0.0, draws)


def agreement(cells: Correspondences, poses_B44: Tensor, options: EstimatorOptions) -> Tensor:
    """(B,) score of the cells at a pose of each problem by the angle alone, the same for all experts: by the noise that it states itself,
    an expert that is sure of nothing agrees with anything."""
    problem = searched_by_angle(replace(cells, ranges_BN=None, range_noise_BN=None), options)
    white = problem.whitened(problem.residuals(problem.vectors(poses_B44[:, None])), torch.ones_like(problem.spread_B)[:, None])
    return Kernel(options.inlier_sigmas).score(problem, white, ASSUMED_SHARE)[:, 0]


def posterior(probabilities_E1: np.ndarray, evidence: Mapping[int, float]) -> np.ndarray:
    """(E + 1,) of the experts and of none, last.

    Args:
        probabilities_E1: of the gating. evidence: expert -> logarithm of the odds to "all are outliers", which is what stands for the
            experts that did not run, and for none.
    """
    logits_E1 = np.log(np.maximum(probabilities_E1, TINY))
    for expert, odds in evidence.items():
        logits_E1[expert] += odds
    weights_E1 = np.exp(logits_E1 - logits_E1.max())
    return weights_E1 / weights_E1.sum()


def added(*evidence: Mapping[int, float]) -> dict[int, float]:
    """Evidence of several kinds, as if they were independent."""
    return {expert: sum(each.get(expert, 0.0) for each in evidence) for expert in {key for each in evidence for key in each}}


def problem_of(cells: Correspondences, row: int) -> Correspondences:
    """One problem of a batch."""
    if len(cells.points_BN3) == 1:
        return cells
    values = {f.name: getattr(cells, f.name) for f in fields(Correspondences)}
    return Correspondences(**{name: None if value is None else value[row:row + 1] for name, value in values.items()})
