"""Against enumeration of all that can be drawn, and by drawing often: values, both gradients, baselines, and the entropy asked for."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from dsac_ros.endtoend.expectation import (
    Expectation,
    alpha_for_bits,
    expected_loss,
    followed_alpha,
    log_likelihood,
    over_draws,
    over_experts,
    over_pools,
    systematic_log_likelihood,
)
from dsac_ros.errors import ConfigError
from dsac_ros.ransac.sampling import draw_minimal_sets, systematic_draws

ALPHA, EMPTY = 0.7, 5.0
GUIDANCE = torch.tensor([0.3, -0.5, 0.9, 0.1], dtype=torch.float64)  # logits of four correspondences
COORDINATES = torch.tensor([0.2, 1.1, -0.4, 2.0], dtype=torch.float64)  # what scores and losses depend on
GATING = torch.tensor([0.8, -0.3, 0.1], dtype=torch.float64)
SAMPLES = 40000


def random_pools(*shape: int, seed: int = 0, share: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, losses, valid: the first hypothesis of each pool always."""
    generator = torch.Generator().manual_seed(seed)
    scores, losses = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    valid = torch.rand(*shape, generator=generator) < share
    valid[..., 0] = True
    return 3 * scores, losses.square(), valid


def by_hand(scores: np.ndarray, losses: np.ndarray, valid: np.ndarray, alpha: float) -> float:
    """The expectation of one pool, written again."""
    total = weight = 0.0
    for score, loss, good in zip(scores, losses, valid):
        if good:
            weight += math.exp(alpha * score)
            total += math.exp(alpha * score) * loss
    return total / weight if weight else EMPTY


def slope(function: Callable[[np.ndarray], float], place: Tensor) -> Tensor:
    """Gradient by central differences."""
    steps = 1e-5 * np.eye(len(place))
    return torch.tensor([(function(place.numpy() + step) - function(place.numpy() - step)) / 2e-5 for step in steps], dtype=torch.float64)


# The expectation over a pool.

def test_expectation_is_the_mean_over_all_choices() -> None:
    scores, losses, valid = random_pools(6, 5)
    valid[3] = False
    expectation = expected_loss(scores, losses, valid, ALPHA, EMPTY)
    expected = [by_hand(*pool, ALPHA) for pool in zip(scores.numpy(), losses.numpy(), valid.numpy())]
    torch.testing.assert_close(expectation.loss, torch.tensor(expected, dtype=torch.float64))
    assert expectation.loss[3] == EMPTY
    for pool in range(6):
        weights = np.where(valid[pool], np.exp(ALPHA * scores[pool].numpy()), 0.0)
        if pool != 3:
            np.testing.assert_allclose(expectation.probabilities[pool], weights / weights.sum(), atol=1e-12)
            assert expectation.entropy_bits[pool] == pytest.approx(scipy_entropy(weights, base=2), abs=1e-12)
    assert (expectation.probabilities[3] == 0).all() and expectation.entropy_bits[3] == 0


def test_both_terms_of_the_gradient() -> None:
    """By finite differences, and term by term as the papers state it: p for the losses, alpha p (loss - E) for the scores."""
    scores, losses, valid = random_pools(5)
    scores.requires_grad_(), losses.requires_grad_()
    expectation = expected_loss(scores, losses, valid, ALPHA, EMPTY)
    by_score, by_loss = torch.autograd.grad(expectation.loss, [scores, losses])
    torch.testing.assert_close(by_loss, expectation.probabilities)
    torch.testing.assert_close(by_score, ALPHA * expectation.probabilities * (losses - expectation.loss) * valid)
    plain_scores, plain_losses = scores.detach(), losses.detach()
    torch.testing.assert_close(by_score, slope(lambda s: by_hand(s, plain_losses.numpy(), valid.numpy(), ALPHA), plain_scores),
                               atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(by_loss, slope(lambda v: by_hand(plain_scores.numpy(), v, valid.numpy(), ALPHA), plain_losses),
                               atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_is_not_valid_counts_for_nothing(bad: float, dtype: torch.dtype) -> None:
    scores, losses, valid = random_pools(4, 8)
    valid[2] = False
    scores, losses = scores.to(dtype), losses.to(dtype)
    clean = expected_loss(scores, losses, valid, ALPHA, EMPTY)
    scores = torch.where(valid, scores, bad).requires_grad_()
    losses = torch.where(valid, losses, bad).requires_grad_()
    expectation = expected_loss(scores, losses, valid, ALPHA, EMPTY)
    for name in ('loss', 'probabilities', 'entropy_bits', 'loss_without'):
        assert torch.equal(getattr(clean, name), getattr(expectation, name)), name
    (expectation.loss.sum() + expectation.entropy_bits.sum()).backward()
    for gradient in (scores.grad, losses.grad):
        assert gradient is not None and gradient.isfinite().all()
        assert (gradient[~valid] == 0).all() and (gradient[0][valid[0]] != 0).all()


def test_loss_without_a_hypothesis_is_that_of_a_pool_that_never_had_it() -> None:
    scores, losses, valid = random_pools(6, 5, share=0.5)
    valid[4], valid[5] = False, torch.tensor([True, False, False, False, False])
    without = expected_loss(scores, losses, valid, ALPHA, EMPTY).loss_without
    for pool, left_out in itertools.product(range(6), range(5)):
        kept = [h for h in range(5) if h != left_out]
        expected = by_hand(scores[pool, kept].numpy(), losses[pool, kept].numpy(), valid[pool, kept].numpy(), ALPHA)
        assert without[pool, left_out] == pytest.approx(expected, rel=1e-12)


def test_loss_without_the_one_that_is_certain() -> None:
    """With p = 1 to the last digit of float32, (E - p L) / (1 - p) would be 0 / 0."""
    without = expected_loss(torch.tensor([200.0, 3.0, 3.0]), torch.tensor([1.0, 4.0, 6.0]), torch.ones(3, dtype=torch.bool), 1.0,
                            EMPTY).loss_without
    torch.testing.assert_close(without, torch.tensor([5.0, 1.0, 1.0]))


# Entropy.

def pool_entropy(alpha: float, scores: np.ndarray) -> float:
    return float(scipy_entropy(np.exp(alpha * (scores - scores.max())), base=2))


@pytest.mark.parametrize('bits', [0.5, 3.0, 6.0, 7.99])
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_alpha_reaches_the_bits(bits: float, scale: float) -> None:
    scores = scale * random_pools(10, 256)[0]
    alpha = alpha_for_bits(scores[:, None], torch.ones(10, 1, 256, dtype=torch.bool), bits)
    for pool in range(10):
        values = scores[pool].numpy()
        assert pool_entropy(float(alpha[pool]), values) == pytest.approx(bits, abs=1e-5)
        found = brentq(lambda a, v=values: pool_entropy(a, v) - bits, 1e-4 / scale, 1e3 / scale, rtol=1e-12)
        assert float(alpha[pool]) == pytest.approx(found, rel=2e-6)


def test_pools_that_share_alpha_have_the_bits_in_the_mean() -> None:
    scores = random_pools(7, 256)[0] * torch.linspace(0.2, 5, 7)[:, None]
    alpha = float(alpha_for_bits(scores, torch.ones(7, 256, dtype=torch.bool), 6.0))
    entropies = [pool_entropy(alpha, pool) for pool in scores.numpy()]
    assert np.mean(entropies) == pytest.approx(6, abs=1e-5) and np.ptp(entropies) > 1


def test_a_pool_with_holes_keeps_the_same_share_of_its_entropy() -> None:
    scores, _, valid = random_pools(256, share=0.25)
    alpha = float(alpha_for_bits(torch.where(valid, scores, torch.nan)[None], valid[None], 6.0))
    count = int(valid.sum())
    assert 40 < count < 90
    assert pool_entropy(alpha, scores[valid].numpy()) == pytest.approx(6 / 8 * math.log2(count), abs=1e-5)


def test_pools_without_a_preference_have_no_say() -> None:
    scores, _, valid = random_pools(4, 64, share=1.0)
    alone = alpha_for_bits(scores[:1], valid[:1], 4.0)
    scores[1], valid[2], valid[3] = 2.5, False, torch.arange(64) == 7
    torch.testing.assert_close(alpha_for_bits(scores, valid, 4.0), alone)
    assert alpha_for_bits(scores[1:], valid[1:], 4.0) == 0


@pytest.mark.parametrize('bits', [0.0, -1.0, 4.0, 6.0, math.nan])
def test_bits_that_a_pool_cannot_have_are_refused(bits: float) -> None:
    with pytest.raises(ConfigError, match='pool of 16 hypotheses: expected more than 0 and less than 4 bit'):
        alpha_for_bits(torch.randn(1, 16), torch.ones(1, 16, dtype=torch.bool), bits)


def test_followed_alpha_settles_where_pools_have_the_bits_and_ignores_blind_ones() -> None:
    alpha, every = torch.tensor(100.0, dtype=torch.float64), torch.ones(2, 8, 256, dtype=torch.bool)
    for step in range(60):
        alpha = followed_alpha(alpha, random_pools(2, 8, 256, seed=step)[0], every, 6.0, 0.1)
    fresh = random_pools(64, 256, seed=1000)[0]
    assert np.mean([pool_entropy(float(alpha), pool) for pool in fresh.numpy()]) == pytest.approx(6, abs=0.05)
    assert followed_alpha(alpha, torch.zeros(2, 8, 256), every, 6.0, 0.1) == alpha
    wanted = alpha_for_bits(fresh, every[:1, :1].expand(1, 64, 256)[0], 6.0)
    torch.testing.assert_close(followed_alpha(2 * wanted, fresh[None], every[:1, :1].expand(1, 64, 256), 6.0, 0.25), 2 ** 0.75 * wanted)


def test_no_gradient_flows_through_alpha() -> None:
    scores = random_pools(1, 64)[0].requires_grad_()
    every = torch.ones(1, 64, dtype=torch.bool)
    assert not alpha_for_bits(scores, every, 4.0).requires_grad
    given = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    expected_loss(scores, scores, every, given, EMPTY).loss.sum().backward()
    assert given.grad is None and scores.grad is not None


# Guidance: minimal sets of two out of four correspondences, two hypotheses a pool.

def hypotheses(coordinates: Tensor, sets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, losses and validity of sets (..., 2): some function of what the sets hold. A set with a repeat is no hypothesis."""
    first, second = coordinates[sets[..., 0]], coordinates[sets[..., 1]]
    return 2 * (first - 0.3 * second).sin(), (first + second).square() + second, sets[..., 0] != sets[..., 1]


def all_pools() -> Tensor:
    """(256, 2, 2) all that two hypotheses of two draws can be."""
    return torch.tensor(list(itertools.product(range(4), repeat=4))).view(-1, 2, 2)


def true_guided_loss(guidance: np.ndarray, coordinates: np.ndarray) -> float:
    probabilities = np.exp(guidance) / np.exp(guidance).sum()
    scores, losses, valid = (t.numpy() for t in hypotheses(torch.from_numpy(coordinates), all_pools()))
    likelihoods = probabilities[all_pools().numpy()].prod((1, 2))
    return sum(p * by_hand(*pool, ALPHA) for p, *pool in zip(likelihoods, scores, losses, valid))


def in_sample(losses: Tensor, log_likelihoods: Tensor) -> Tensor:
    """The reference systems' baseline: the mean of all pools, the own one included."""
    above = (losses - losses.mean(-1, keepdim=True)).detach()
    return losses.mean(-1) + (above * (log_likelihoods - log_likelihoods.detach())).mean(-1)


def guided(estimator: str, guidance: Tensor, coordinates: Tensor, sets: Tensor) -> Tensor:
    """(B,) surrogate loss for sets (B, P, K, 2)."""
    likelihoods = log_likelihood(guidance.log_softmax(-1), sets)
    expectation = expected_loss(*hypotheses(coordinates, sets), ALPHA, EMPTY)
    if estimator == 'over_draws':
        return over_draws(expectation, likelihoods).mean(-1)
    return {'over_pools': over_pools, 'in_sample': in_sample}[estimator](expectation.loss, likelihoods.sum(-1))


def enumerated_guidance(estimator: str) -> tuple[Tensor, Tensor, Tensor]:
    """Exact expectation of an estimator's value and gradients, over all 65,536 pairs of pools."""
    guidance, coordinates = GUIDANCE.clone().requires_grad_(), COORDINATES.clone().requires_grad_()
    first, second = torch.cartesian_prod(torch.arange(256), torch.arange(256)).T
    sets = torch.stack([all_pools()[first], all_pools()[second]], 1)
    weights = guidance.detach().softmax(-1)[sets].prod(-1).prod(-1).prod(-1)
    surrogate = (weights * guided(estimator, guidance.expand(len(sets), -1), coordinates, sets)).sum()
    by_guidance, by_coordinates = torch.autograd.grad(surrogate, [guidance, coordinates])
    return surrogate.detach(), by_guidance, by_coordinates


@pytest.mark.parametrize('estimator', ['over_pools', 'over_draws'])
def test_gradient_for_guidance_is_that_of_all_that_can_be_drawn(estimator: str) -> None:
    value, by_guidance, by_coordinates = enumerated_guidance(estimator)
    assert float(value) == pytest.approx(true_guided_loss(GUIDANCE.numpy(), COORDINATES.numpy()), rel=1e-12)
    torch.testing.assert_close(by_guidance, slope(lambda g: true_guided_loss(g, COORDINATES.numpy()), GUIDANCE), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(by_coordinates, slope(lambda c: true_guided_loss(GUIDANCE.numpy(), c), COORDINATES), atol=1e-8, rtol=1e-6)


def test_the_references_baseline_halves_the_gradient_of_two_pools() -> None:
    _, by_guidance, by_coordinates = enumerated_guidance('in_sample')
    _, right, right_coordinates = enumerated_guidance('over_pools')
    torch.testing.assert_close(by_guidance, right / 2)
    torch.testing.assert_close(by_coordinates, right_coordinates)


def standardised(gradients: Tensor, expected: Tensor) -> float:
    """Largest deviation of the mean of gradients (samples, N) in standard errors."""
    error = gradients.std(0) / len(gradients) ** 0.5
    return float(((gradients.mean(0) - expected) / error).abs().max())


def drawn_guidance(estimator: str, pools: int, seed: int) -> Tensor:
    """(SAMPLES, 4) gradients of the guidance's logits, each of its own draws."""
    guidance = GUIDANCE.expand(SAMPLES, -1).clone().requires_grad_()
    draws = torch.rand(SAMPLES, pools * 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sets = draw_minimal_sets(guidance.detach().softmax(-1), draws).unflatten(1, (pools, 2))
    guided(estimator, guidance, COORDINATES, sets).sum().backward()
    assert guidance.grad is not None
    return guidance.grad


@pytest.mark.parametrize('estimator, pools', [('over_pools', 2), ('over_pools', 4), ('over_draws', 1), ('over_draws', 4)])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_drawn_gradients_for_guidance_are_unbiased(estimator: str, pools: int, seed: int) -> None:
    """Four components, twelve runs: 4.5 standard errors are passed by chance once in 3,000 times."""
    expected = slope(lambda g: true_guided_loss(g, COORDINATES.numpy()), GUIDANCE)
    assert standardised(drawn_guidance(estimator, pools, seed), expected) < 4.5


@pytest.mark.parametrize('pools', [2, 4])
def test_drawing_finds_the_references_bias(pools: int) -> None:
    expected = slope(lambda g: true_guided_loss(g, COORDINATES.numpy()), GUIDANCE)
    gradients = drawn_guidance('in_sample', pools, 0)
    assert standardised(gradients, expected) > 10
    assert standardised(gradients, (pools - 1) / pools * expected) < 4.5


def test_a_pool_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match='expected 2 or more pools, found 1'):
        over_pools(torch.ones(3, 1), torch.zeros(3, 1))


def test_likelihoods_of_sets_are_products() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], dtype=torch.float64)
    sets = torch.tensor([[[[0, 2]], [[1, 1]]], [[[0, 0]], [[2, 1]]]])
    torch.testing.assert_close(log_likelihood(probabilities.log(), sets).exp()[..., 0],
                               torch.tensor([[0.07, 0.04], [0.25, 0.0625]], dtype=torch.float64))


# Gating: three hypotheses for three experts, each of which has a good and a bad one to draw, with equal chance.

CHANCES = torch.tensor(list(itertools.product(range(2), repeat=3)))  # (8, 3)


def of_experts(experts: Tensor, chances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.3, -0.2]], dtype=torch.float64)
    losses = torch.tensor([[0.5, 3.0], [2.5, 0.7], [1.0, 4.0]], dtype=torch.float64)
    return scores[experts, chances], losses[experts, chances], (experts != 2) | (chances == 0)


def mean_over_chances(experts: Tensor) -> float:
    pools = of_experts(experts.expand(8, 3), CHANCES)
    return float(np.mean([by_hand(*pool, ALPHA) for pool in zip(*(t.numpy() for t in pools))]))


def true_multinomial_loss(gating: np.ndarray) -> float:
    probabilities = np.exp(gating) / np.exp(gating).sum()
    return sum(probabilities[list(chosen)].prod() * mean_over_chances(torch.tensor(chosen))
               for chosen in itertools.product(range(3), repeat=3))


def divisions(gating: np.ndarray) -> list[tuple[float, float]]:
    """Intervals of the offset between the places where one of the three points passes an end of the cumulated probabilities."""
    ends = (np.exp(gating) / np.exp(gating).sum()).cumsum()[:-1]
    places = sorted(end * 3 % 1 for end in ends)
    return list(zip([0.0, *places], [*places, 1.0]))


def systematic_experts(gating: np.ndarray, offset: float) -> Tensor:
    cumulated = (np.exp(gating) / np.exp(gating).sum()).cumsum()
    return torch.tensor([int((cumulated <= (offset + i) / 3).sum()) for i in range(3)])


def true_systematic_loss(gating: np.ndarray) -> float:
    return sum((high - low) * mean_over_chances(systematic_experts(gating, (low + high) / 2)) for low, high in divisions(gating))


def gated(estimator: str, gating: Tensor, experts: Tensor, chances: Tensor, offsets: Tensor | None = None) -> Tensor:
    """(B,) surrogate loss for experts (B, P, 3); offsets (B, P) of systematic draws."""
    expectation = expected_loss(*of_experts(experts, chances), ALPHA, EMPTY)
    if estimator == 'systematic':
        assert offsets is not None
        return over_pools(expectation.loss, systematic_log_likelihood(gating.log_softmax(-1), offsets, 3))
    return gated_loss(estimator, expectation, gating, experts)


def gated_loss(estimator: str, expectation: Expectation, gating: Tensor, experts: Tensor) -> Tensor:
    likelihoods = log_likelihood(gating.log_softmax(-1), experts[..., None])
    if estimator == 'over_draws':
        return over_draws(expectation, likelihoods).mean(-1)
    if estimator == 'one_sample':  # ESAC's code: no baseline
        total = likelihoods.sum(-1)
        return (expectation.loss + expectation.loss.detach() * (total - total.detach())).mean(-1)
    return over_pools(expectation.loss, likelihoods.sum(-1))


def test_gradient_for_gating_is_that_of_all_that_can_be_drawn() -> None:
    """Over each of the 216 pools by itself, and over all pairs of them."""
    expected = slope(true_multinomial_loss, GATING)
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    experts, chances = every.repeat_interleave(8, 0)[:, None], CHANCES.repeat(27, 1)[:, None]
    gating = GATING.clone().requires_grad_()
    weights = gating.detach().softmax(-1)[experts].prod(-1).prod(-1) / 8
    surrogate = gated('over_draws', gating.expand(len(experts), -1), experts, chances)
    (gradient,) = torch.autograd.grad((weights * surrogate).sum(), gating)
    assert (weights * surrogate).sum().item() == pytest.approx(true_multinomial_loss(GATING.numpy()), rel=1e-12)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)

    first, second = torch.cartesian_prod(torch.arange(216), torch.arange(216)).T
    pairs, pair_chances = torch.cat([experts[first], experts[second]], 1), torch.cat([chances[first], chances[second]], 1)
    pair_weights = weights[first] * weights[second]
    surrogate = gated('over_pools', gating.expand(len(pairs), -1), pairs, pair_chances)
    (gradient,) = torch.autograd.grad((pair_weights * surrogate).sum(), gating)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)


def test_gradient_for_systematic_gating_is_that_of_all_offsets() -> None:
    parts = divisions(GATING.numpy())
    assert len(parts) == 3 and min(high - low for low, high in parts) > 0.05
    offsets = torch.tensor([(low + high) / 2 for low, high in parts], dtype=torch.float64)
    shares = torch.tensor([high - low for low, high in parts], dtype=torch.float64)
    state = torch.cartesian_prod(torch.arange(3), torch.arange(8))
    first, second = torch.cartesian_prod(torch.arange(24), torch.arange(24)).T
    part, chance = (torch.stack([state[first, i], state[second, i]], 1) for i in (0, 1))
    experts = torch.stack([systematic_experts(GATING.numpy(), float(offset)) for offset in offsets])[part]
    weights = shares[part].prod(1) / 64
    gating = GATING.clone().requires_grad_()
    surrogate = gated('systematic', gating.expand(len(part), -1), experts, CHANCES[chance], offsets[part])
    (gradient,) = torch.autograd.grad((weights * surrogate).sum(), gating)
    assert (weights * surrogate).sum().item() == pytest.approx(true_systematic_loss(GATING.numpy()), rel=1e-12)
    expected = slope(true_systematic_loss, GATING)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)
    # The multinomial log-likelihood of the same draws is another gradient altogether.
    surrogate = gated('over_pools', gating.expand(len(part), -1), experts, CHANCES[chance])
    (wrong,) = torch.autograd.grad((weights * surrogate).sum(), gating)
    assert (wrong - expected).norm() > 0.3 * expected.norm()


def drawn_gating(estimator: str, pools: int, seed: int) -> Tensor:
    """(SAMPLES, 3) gradients of the gating's logits, drawn by the package's own functions."""
    generator = torch.Generator().manual_seed(seed)
    gating = GATING.expand(SAMPLES, -1).clone().requires_grad_()
    offsets = torch.rand(SAMPLES, pools, dtype=torch.float64, generator=generator)
    draws = torch.rand(SAMPLES, pools, 3, dtype=torch.float64, generator=generator)
    if estimator == 'systematic':
        draws = systematic_draws(offsets, 3)
    experts = draw_minimal_sets(gating.detach().softmax(-1), draws.flatten(1)[..., None]).view(SAMPLES, pools, 3)
    chances = torch.randint(2, experts.shape, generator=generator)
    gated(estimator, gating, experts, chances, offsets).sum().backward()
    assert gating.grad is not None
    return gating.grad


@pytest.mark.parametrize('estimator, pools', [('over_pools', 2), ('over_draws', 1), ('systematic', 2), ('one_sample', 1)])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_drawn_gradients_for_gating_are_unbiased(estimator: str, pools: int, seed: int) -> None:
    expected = slope(true_systematic_loss if estimator == 'systematic' else true_multinomial_loss, GATING)
    assert standardised(drawn_gating(estimator, pools, seed), expected) < 4.5


@pytest.mark.parametrize('estimator, blind', [('over_pools', True), ('over_draws', True), ('one_sample', False)])
def test_a_constant_more_loss_changes_no_estimate(estimator: str, blind: bool) -> None:
    """What a baseline is for, and what ESAC's code lacks: it sees the constant times noise."""
    experts, chances = torch.randint(3, (100, 2, 3), generator=torch.Generator().manual_seed(0)), CHANCES[:2].repeat(100, 1, 1)
    scores, losses, valid = of_experts(experts, chances)
    gradients = []
    for more in (0.0, 100.0):
        gating = GATING.clone().requires_grad_()
        expectation = expected_loss(scores, losses + more, valid, ALPHA, EMPTY + more)
        gradients += torch.autograd.grad(gated_loss(estimator, expectation, gating.expand(100, -1), experts).sum(), gating)
    assert torch.allclose(*gradients) == blind


def test_systematic_draws_share_out_what_the_gating_says() -> None:
    """Every expert gets its share rounded up or down, and the share itself in the mean."""
    probabilities = torch.tensor([0.13, 0.0, 0.55, 0.32], dtype=torch.float64)
    offsets = torch.linspace(0, 1, 10001, dtype=torch.float64)[:-1]
    experts = draw_minimal_sets(probabilities.expand(len(offsets), -1), systematic_draws(offsets, 10)[..., None])[..., 0]
    counts = torch.nn.functional.one_hot(experts, 4).sum(1).double()
    assert ((counts >= (10 * probabilities).floor()) & (counts <= (10 * probabilities).ceil())).all()
    torch.testing.assert_close(counts.mean(0), 10 * probabilities, atol=1e-3, rtol=0)


def test_likelihood_of_a_systematic_division_is_how_often_it_is_made() -> None:
    logarithm = torch.tensor([[0.13, 0.2, 0.35, 0.32]], dtype=torch.float64).log()
    offsets = ((torch.arange(100000, dtype=torch.float64) + 0.5) / 100000)[None]  # never at the end of an interval
    likelihoods = systematic_log_likelihood(logarithm, offsets, 7).exp()[0]
    experts = draw_minimal_sets(logarithm.exp().expand(100000, -1), systematic_draws(offsets[0], 7)[..., None])[..., 0]
    made, which, counts = experts.unique(dim=0, return_inverse=True, return_counts=True)
    assert len(made) == 4
    torch.testing.assert_close(likelihoods, counts[which].double() / 100000, atol=3e-5, rtol=0)


# The exact marginal.

def test_marginal_over_experts_is_renormalised_and_exact() -> None:
    logits, own_losses = torch.tensor([[0.5, -1.0, 2.0, 0.1]], dtype=torch.float64), torch.tensor([3.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    experts = torch.tensor([[2, 0, 3]])

    def expected(values: np.ndarray) -> float:
        weights = np.exp(values[[2, 0, 3]])
        return float((weights / weights.sum()) @ own_losses.numpy()[[2, 0, 3]])

    gating, losses = logits.clone().requires_grad_(), own_losses[experts].requires_grad_()
    value = over_experts(gating, experts, losses)
    by_gating, by_losses = torch.autograd.grad(value.sum(), [gating, losses])
    assert value.item() == pytest.approx(expected(logits[0].numpy()), rel=1e-12)
    torch.testing.assert_close(by_gating[0], slope(expected, logits[0]), atol=1e-8, rtol=1e-6)
    assert by_gating[0, 1] == 0 and float(by_losses.sum()) == pytest.approx(1)
