"""The expected loss of a RANSAC, as something to differentiate: for hypotheses of any kind, known by their scores and task losses.

DSAC (Brachmann et al. 2017) selects a hypothesis of the pool with probability softmax(alpha * score). The expectation over that choice is a
sum, so its gradient is exact: by the loss of each hypothesis and by the probability of choosing it. What the pool is made of was drawn,
by guidance (NG-RANSAC, Brachmann & Rother 2019) or gating (ESAC, Brachmann & Rother 2019), and cannot be summed over: that gradient is
estimated from log-likelihoods, each weighted with the loss above a baseline that does not depend on the draw (Williams 1992). All
estimators here are unbiased; docs/end_to_end.md has their variances. Values are expected losses, only the gradients are estimated.

Shapes: ... is any batch; K hypotheses of a pool, P pools of an image (same network output, other draws), E experts.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.errors import ConfigError

ALPHA_RANGE = (1e-3, 1e4)  # over the standard deviation of the scores: from all alike to only the best
BISECTIONS = 24  # of the 23 octaves between: alpha to a millionth


@dataclass(frozen=True)
class Expectation:
    """What to expect of a pool.

    loss (...), with both gradients: of the losses and of the selection. probabilities (..., K) of being selected, zero where not valid.
    entropy_bits (...) of the selection. loss_without (..., K): what the loss would be had that hypothesis not been drawn; no gradient.
    """

    loss: Tensor
    probabilities: Tensor
    entropy_bits: Tensor
    loss_without: Tensor


def expected_loss(scores: Tensor, losses: Tensor, valid: Tensor, alpha: Tensor | float, empty_loss: float) -> Expectation:
    """DSAC's sum of softmax(alpha * score) * loss over each pool.

    Args:
        scores, losses, valid: (..., K). Where not valid anything may stand, also NaN; it counts for nothing and gets no gradient.
        alpha: inverse temperature, broadcast over (...); larger is nearer to the best hypothesis alone. No gradient flows into it.
        empty_loss: of a pool without a valid hypothesis. As bad as a useless answer, or guidance learns to draw what cannot be solved.
    """
    logits = _logits(scores, valid, alpha)
    losses = torch.where(valid, losses, 0.0)
    probabilities = torch.where(valid, logits.softmax(-1), 0.0)
    loss = torch.where(valid.any(-1), (probabilities * losses).sum(-1), empty_loss)
    return Expectation(loss, probabilities, _entropy_bits(logits, valid),
                       _loss_without(logits.detach(), losses.detach(), valid, empty_loss))


def _logits(scores: Tensor, valid: Tensor, alpha: Tensor | float) -> Tensor:
    alpha = torch.as_tensor(alpha, dtype=scores.dtype, device=scores.device).detach()[..., None]
    return torch.where(valid, alpha * scores, torch.finfo(scores.dtype).min)


def _entropy_bits(logits: Tensor, valid: Tensor) -> Tensor:
    logarithm = torch.where(valid, logits.log_softmax(-1), 0.0)
    return -torch.where(valid, logarithm.exp() * logarithm, 0.0).sum(-1) / math.log(2)


def _loss_without(logits: Tensor, losses: Tensor, valid: Tensor, empty_loss: float) -> Tensor:
    """(..., K). A softmax for each that is left out: (loss - p * its loss) / (1 - p) is no number where p is 1 to the last digit."""
    itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others = logits[..., None, :].masked_fill(itself, torch.finfo(logits.dtype).min).softmax(-1)
    left = (valid[..., None, :] & ~itself).any(-1)
    return torch.where(left, (others * losses[..., None, :]).sum(-1), empty_loss)


def alpha_for_bits(scores: Tensor, valid: Tensor, bits: float) -> Tensor:
    """The alpha (...) with which the pools (..., P, K) keep `bits` of entropy in the mean; 64 hypotheses have a say at 6 bits.

    A pool with n of K valid is asked for the same share of what it could have, bits * log(n) / log(K). Pools that cannot be told apart by
    any alpha (fewer than two valid, or equal scores) have no say; alpha is 0 where no other is left. For an alpha of each pool give P = 1.
    Entropy falls with alpha, so it is found by bisection. Raises ConfigError where K hypotheses cannot have so many bits.
    """
    most = math.log2(scores.shape[-1])
    if not 0 < bits < most:
        raise ConfigError(f'entropy of a pool of {scores.shape[-1]} hypotheses: expected more than 0 and less than {most:.3g} bit, '
                          f'found {bits:.3g}')
    scores = torch.where(valid, scores.detach(), 0.0)
    count = valid.sum(-1).to(scores.dtype)
    mean = scores.sum(-1) / count.clamp(min=1)
    deviation = (torch.where(valid, (scores - mean[..., None]).square(), 0.0).sum(-1) / count.clamp(min=1)).sqrt()
    lowest = torch.where(valid, scores, torch.inf).amin(-1)
    says = (count > 1) & (torch.where(valid, scores, -torch.inf).amax(-1) > lowest)
    sayings = says.sum(-1).clamp(min=1)
    target = bits / most * count.clamp(min=1).log2()
    middle = torch.where(says, deviation, 0.0).sum(-1) / sayings
    low, high = (torch.full_like(middle, math.log(limit)) - middle.clamp(min=torch.finfo(middle.dtype).tiny).log() for limit in ALPHA_RANGE)
    for _ in range(BISECTIONS):
        guess = (low + high) / 2
        entropy = _entropy_bits(_logits(scores, valid, guess.exp()[..., None]), valid)
        too_low = torch.where(says, entropy - target, 0.0).sum(-1) > 0
        low, high = torch.where(too_low, guess, low), torch.where(too_low, high, guess)
    return torch.where(says.any(-1), ((low + high) / 2).exp(), 0.0)


def followed_alpha(alpha: Tensor, scores: Tensor, valid: Tensor, bits: float, rate: float) -> Tensor:
    """The alpha of the next step: geometrically by `rate` of the way to what the pools (..., K) of this step want, all together.

    One alpha for all images, as in DSAC++ (Brachmann & Rother 2018), leaves a clear image surer of its choice than an unclear one.
    """
    wanted = alpha_for_bits(scores.flatten(0, -2), valid.flatten(0, -2), bits)
    return torch.where(wanted > 0, alpha ** (1 - rate) * wanted ** rate, alpha)


def log_likelihood(log_probabilities: Tensor, draws: Tensor) -> Tensor:
    """(B, ...) log-probability of each minimal set of `draws` (B, ..., S), drawn with replacement; of experts too, with S = 1.

    Args:
        log_probabilities: (B, N), normalised over what may be drawn: over the experts that may run, where others may not. Finite, also
            where nothing may be drawn, or the gradient is no number.
    """
    return log_probabilities.gather(1, draws.flatten(1)).view_as(draws).sum(-1)


def over_pools(losses: Tensor, log_likelihoods: Tensor) -> Tensor:
    """(...) mean loss of P pools (..., P), with the gradient of its expectation over the draws: NG-RANSAC's, and ESAC's for the gating.

    The baseline of a pool is the mean of the others. The mean of all, as in the reference code, holds the pool's own loss, which shrinks
    the gradient to (P - 1) / P of what it is.

    Args:
        losses: as expected_loss gives them; their own gradients pass.
        log_likelihoods: of all that was drawn for each pool: the sum over its hypotheses.
    """
    pools = losses.shape[-1]
    if pools < 2:
        raise ConfigError(f'over_pools: expected 2 or more pools, found {pools}: a pool alone has no baseline; use over_draws')
    above = (losses - losses.mean(-1, keepdim=True)).detach() * (pools / (pools - 1))
    return losses.mean(-1) + (above * _only_gradient(log_likelihoods)).mean(-1)


def over_draws(expectation: Expectation, log_likelihoods: Tensor) -> Tensor:
    """(...) expected loss of a pool, with the gradient of its expectation over the draws, one pool being enough.

    The baseline of a hypothesis is the pool without it, which its own draw has no part in (Foerster et al. 2018, counterfactual
    baselines). So each is credited with what it changed, where over_pools credits each with what all of them did. Unbiased where
    hypotheses were drawn independently of each other, and neither alpha nor the score and loss of one depend on the others.

    Args:
        log_likelihoods: (..., K) of each hypothesis.
    """
    credit = expectation.loss.detach()[..., None] - expectation.loss_without
    return expectation.loss + (credit * _only_gradient(log_likelihoods)).sum(-1)


def _only_gradient(tensor: Tensor) -> Tensor:
    return tensor - tensor.detach()


def over_experts(logits: Tensor, experts: Tensor, losses: Tensor) -> Tensor:
    """(B,) exact expectation of ESAC where one expert is chosen: those that ran, with their probabilities renormalised.

    It is DSAC's expectation with experts for hypotheses. Nothing is drawn, so the gating adds no variance, for M expected losses instead
    of one.

    Args:
        logits: (B, E) of the gating. experts: (B, M) indices of those that ran, the most likely ones. losses: (B, M) expected loss of
            each expert's own pool.
    """
    return expected_loss(logits.gather(1, experts), losses, torch.ones_like(experts, dtype=torch.bool), 1.0, 0.0).loss


def systematic_log_likelihood(log_probabilities: Tensor, offsets: Tensor, hypotheses: int) -> Tensor:
    """(B, ...) of the division of a budget among experts (B, E) that systematic_draws with `offsets` (B, ...) makes; for over_pools.

    An expert's hypotheses end where the cumulated probability does. As the offset passes the fractional parts of these ends, in units of
    one hypothesis, one hypothesis changes hands; between two neighbours the division is the same, so its probability is the distance of
    the two. With it over_pools is unbiased for what systematic draws expect (multinomial ones expect something else), wherever no two of
    these fractional parts, 0 among them, are equal. Where they are, as for a uniform gating and a budget of equal shares, the expectation
    has a kink and its gradient no meaning. The log-likelihood of multinomial draws is no substitute: it is biased for systematic ones.
    """
    ends = log_probabilities.exp().cumsum(-1)[..., :-1] * hypotheses
    parts = (ends - ends.detach().floor()).view(len(ends), *[1] * (offsets.dim() - 1), -1)
    below = torch.where(parts <= offsets[..., None], parts, 0.0).amax(-1)
    beyond = torch.where(parts > offsets[..., None], parts, 1.0).amin(-1)
    return (beyond - below).log()
