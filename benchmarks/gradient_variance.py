"""Bias and noise of gradients through what is drawn: our estimators beside those of the reference systems, with equal budgets.

    python -m benchmarks.gradient_variance

Guidance: pairs of 64 points, 40 % of them on a line, drawn by imperfect weights, make pools of 16 lines (NG-RANSAC). Gating: of seven
experts one is right and one sees a place that looks alike; they share pools of 16 hypotheses (ESAC), or one of them is chosen for a pool.
Every estimate has four pools. The true gradients come from no estimator here: they sum over all that one hypothesis, division or choice
can be.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsac_ros.endtoend.expectation import (
    Expectation,
    alpha_for_bits,
    expected_loss,
    log_likelihood,
    over_draws,
    over_experts,
    over_pools,
    systematic_log_likelihood,
)
from dsac_ros.ransac.sampling import draw_minimal_sets, systematic_draws
from examples.line_fitting import LineProblem, border_ends

POOLS, HYPOTHESES, BITS, EMPTY_LOSS = 4, 16, 3.0, 32.0
POINTS, EXPERTS, OUTCOMES, TOP = 64, 7, 200, 4
CHUNK = 500  # estimates at once
TRUTH = 5  # times as many draws for the true gradient as estimates
Surrogate = Callable[[Tensor, torch.Generator], Tensor]  # logits (R, N) -> (R,), to be differentiated


@dataclass(frozen=True)
class Problem:
    """All M hypotheses that can be drawn, and log_probability (..., N) -> (..., M) of each by the logits (N,)."""

    log_probability: Callable[[Tensor], Tensor]
    logits: Tensor
    scores: Tensor
    losses: Tensor
    valid: Tensor

    def draw(self, logits: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
        """(R, *shape) indices of hypotheses."""
        draws = torch.rand(len(logits), *shape, dtype=torch.float64, generator=generator)
        return draw_minimal_sets(self.log_probability(logits.detach()).exp(), draws.flatten(1)[..., None]).view_as(draws)

    def alpha(self) -> Tensor:
        drawn = self.draw(self.logits[None], torch.Generator().manual_seed(0), 1000, HYPOTHESES)
        return alpha_for_bits(self.scores[drawn], self.valid[drawn], BITS)[0]

    def expectation(self, drawn: Tensor, alpha: Tensor) -> Expectation:
        return expected_loss(self.scores[drawn], self.losses[drawn], self.valid[drawn], alpha, EMPTY_LOSS)


def guidance_problem() -> Problem:
    """4096 lines through pairs of points."""
    generator = torch.Generator().manual_seed(0)
    normal, offset = torch.tensor([0.6, 0.8]), torch.tensor(5.0)
    ends = border_ends(normal[None], offset[None])[0]
    along, noise, confidence = torch.rand(3, POINTS, 1, generator=generator)
    inlier = torch.arange(POINTS)[:, None] < 0.4 * POINTS
    clutter = 64 * torch.rand(POINTS, 2, generator=generator) - 32
    points = torch.where(inlier, ends[0] + along * (ends[1] - ends[0]) + 3 * (noise - 0.5) * normal, clutter)
    logits = (inlier + 2 * confidence)[:, 0].double()
    lines = LineProblem(points[None].double(), logits[None], ends[None].double())
    pairs = torch.cartesian_prod(torch.arange(POINTS), torch.arange(POINTS))
    hypotheses, valid = lines.solve(pairs[None])

    def log_probability(logits: Tensor) -> Tensor:
        single = logits.log_softmax(-1)
        return (single[..., :, None] + single[..., None, :]).flatten(-2)
    return Problem(log_probability, logits, lines.score(hypotheses)[0], lines.loss(lines.refine(hypotheses))[0], valid[0])


def gating_problem() -> Problem:
    """200 hypotheses of each of seven experts. The first is right; the second fits as often, elsewhere; the others fit nowhere."""
    luck, score, loss = torch.rand(3, EXPERTS, OUTCOMES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fits = luck < torch.tensor([0.4, 0.3] + [0.02] * (EXPERTS - 2))[:, None]
    right = fits & (torch.arange(EXPERTS) == 0)[:, None]
    logits = torch.tensor([0.5, 1.0, 0.0, -0.4, 0.3, -0.8, -0.2], dtype=torch.float64)
    return Problem(lambda logits: of_experts(logits.log_softmax(-1)), logits, (torch.where(fits, 0.3, 0.05) + 0.1 * score).flatten(),
                   torch.where(right, loss, 10 + 20 * loss).flatten(), (luck < 0.9).flatten())


def of_experts(log_probabilities: Tensor) -> Tensor:
    """(..., E) -> (..., E * OUTCOMES): an expert's hypotheses are equally likely."""
    return (log_probabilities[..., None] - torch.tensor(OUTCOMES).log()).expand(*log_probabilities.shape, OUTCOMES).flatten(-2)


def top_only(logits: Tensor) -> Tensor:
    """(..., E) renormalised log-probabilities of the TOP most likely experts; others have none."""
    kept = logits >= logits.topk(TOP, -1).values[..., -1:]
    return torch.where(kept, logits, -1e3).log_softmax(-1)


def only_top(gating: Problem) -> Problem:
    return replace(gating, log_probability=lambda logits: of_experts(top_only(logits)))


# The truth.

def true_gradient(problem: Problem, alpha: Tensor, repetitions: int) -> Tensor:
    """K times the sum over all M of the gradient of the probability, times what a pool with it and K - 1 drawn others loses."""
    logits = problem.logits.clone().requires_grad_()
    probability = problem.log_probability(logits).exp()
    draws = torch.rand(repetitions, HYPOTHESES - 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.where(problem.valid, (alpha * (problem.scores - problem.scores.max())).exp(), 0.0)
    others = draw_minimal_sets(probability.detach()[None], draws.flatten(0, 1)[None])[0].view(repetitions, -1)
    mean = torch.zeros_like(weight)
    for chunk in others.split(CHUNK):
        mass = weight[chunk].sum(-1, keepdim=True) + weight
        loss = (weight * problem.losses)[chunk].sum(-1, keepdim=True) + weight * problem.losses
        mean += torch.where(mass > 0, loss / mass, EMPTY_LOSS).sum(0) / repetitions
    return torch.autograd.grad(HYPOTHESES * (probability * mean).sum(), logits)[0]


def true_systematic_gradient(problem: Problem, alpha: Tensor, repetitions: int) -> Tensor:
    """The sum over all divisions of the budget of the gradient of their probability, times the mean loss of pools so divided."""
    logits = problem.logits.clone().requires_grad_()
    ends = logits.softmax(-1).cumsum(-1)
    parts = (ends[:-1] * HYPOTHESES % 1).sort().values
    edges = torch.cat([torch.zeros(1), parts, torch.ones(1)])
    lengths, middles = edges.diff(), (edges[1:] + edges[:-1]).detach() / 2
    places = (middles[:, None] + torch.arange(HYPOTHESES)) / HYPOTHESES
    experts = (places[..., None] >= ends.detach()).sum(-1)
    return torch.autograd.grad((lengths * mean_loss(problem, alpha, experts, repetitions)).sum(), logits)[0]


def true_choice_gradient(problem: Problem, alpha: Tensor, repetitions: int) -> Tensor:
    """Of the loss of one of the TOP experts, chosen by gating, whose pool it then is."""
    logits = problem.logits.clone().requires_grad_()
    mean = mean_loss(problem, alpha, torch.arange(EXPERTS)[:, None].expand(-1, HYPOTHESES), repetitions)
    return torch.autograd.grad((top_only(logits).exp() * mean).sum(), logits)[0]


def mean_loss(problem: Problem, alpha: Tensor, experts: Tensor, repetitions: int) -> Tensor:
    """(...) of pools whose hypotheses come from given experts (..., K)."""
    generator = torch.Generator().manual_seed(1)
    return torch.stack([problem.expectation(experts * OUTCOMES + torch.randint(OUTCOMES, (CHUNK, *experts.shape), generator=generator),
                                            alpha).loss.mean(0) for _ in range(0, repetitions, CHUNK)]).mean(0)


# The reference systems' estimators, written anew.

def in_sample(losses: Tensor, log_likelihoods: Tensor) -> Tensor:
    """NG-RANSAC: the baseline is the mean of all pools, the own one included."""
    return ((losses - losses.mean(-1, keepdim=True)) * log_likelihoods).mean(-1)


def no_baseline(losses: Tensor, log_likelihoods: Tensor) -> Tensor:
    """ESAC: the loss itself."""
    return (losses * log_likelihoods).mean(-1)


# What is compared.

def by_pools(problem: Problem, alpha: Tensor, loss: Callable[[Tensor, Tensor], Tensor], group: int) -> Surrogate:
    """`loss` of groups of so many pools, with the log-likelihood of all that was drawn for each."""
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        drawn = problem.draw(logits, generator, POOLS // group, group, HYPOTHESES)
        likelihoods = log_likelihood(problem.log_probability(logits), drawn[..., None]).sum(-1)
        return loss(problem.expectation(drawn, alpha).loss, likelihoods).mean(-1)
    return surrogate


def by_draws(problem: Problem, alpha: Tensor) -> Surrogate:
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        drawn = problem.draw(logits, generator, POOLS, HYPOTHESES)
        return over_draws(problem.expectation(drawn, alpha), log_likelihood(problem.log_probability(logits), drawn[..., None])).mean(-1)
    return surrogate


def not_renormalised(problem: Problem, alpha: Tensor) -> Surrogate:
    """ESAC with a limit on the experts: drawn from the top ones, differentiated as if from all."""
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        drawn = only_top(problem).draw(logits, generator, POOLS, HYPOTHESES)
        likelihoods = log_likelihood(logits.log_softmax(-1), drawn[..., None] // OUTCOMES).sum(-1)
        return no_baseline(problem.expectation(drawn, alpha).loss, likelihoods)
    return surrogate


def systematic(problem: Problem, alpha: Tensor) -> Surrogate:
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        offsets = torch.rand(len(logits), POOLS, dtype=torch.float64, generator=generator)
        places = systematic_draws(offsets, HYPOTHESES).flatten(1)[..., None]
        experts = draw_minimal_sets(logits.detach().softmax(-1), places)[..., 0].unflatten(1, (POOLS, HYPOTHESES))
        drawn = experts * OUTCOMES + torch.randint(OUTCOMES, experts.shape, generator=generator)
        return over_pools(problem.expectation(drawn, alpha).loss, systematic_log_likelihood(logits.log_softmax(-1), offsets, HYPOTHESES))
    return surrogate


def chosen(problem: Problem, alpha: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Surrogate:
    """One expert drawn for each pool."""
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(len(logits), POOLS, 1, dtype=torch.float64, generator=generator)
        experts = draw_minimal_sets(top_only(logits.detach()).exp(), draws)
        drawn = experts * OUTCOMES + torch.randint(OUTCOMES, (*experts.shape[:2], HYPOTHESES), generator=generator)
        return loss(problem.expectation(drawn, alpha).loss, log_likelihood(top_only(logits), experts))
    return surrogate


def marginal(problem: Problem, alpha: Tensor) -> Surrogate:
    """All TOP experts run, a pool each."""
    def surrogate(logits: Tensor, generator: torch.Generator) -> Tensor:
        experts = logits.topk(TOP, -1).indices
        drawn = experts[..., None] * OUTCOMES + torch.randint(OUTCOMES, (*experts.shape, HYPOTHESES), generator=generator)
        return over_experts(logits, experts, problem.expectation(drawn, alpha).loss)
    return surrogate


@dataclass(frozen=True)
class Quality:
    """scale: of the mean estimate along the true gradient, 1 if unbiased; scale_error: its standard error. cosine of the mean to the truth.
    noise: root mean square distance from the mean, over the length of the truth."""

    scale: float
    scale_error: float
    cosine: float
    noise: float

    def row(self) -> str:
        """With the number of estimates whose average has as much noise as signal; none where it would not point the right way."""
        needed = f'{(self.noise / self.scale) ** 2:.2g}' if self.cosine > 0.9 else 'wrong way'
        return f'{self.scale:.2f} ± {self.scale_error:.2f} | {self.cosine:.3f} | {self.noise:.2f} | {needed}'


def measure(surrogate: Surrogate, logits: Tensor, truth: Tensor, repetitions: int) -> Quality:
    generator, gradients = torch.Generator().manual_seed(2), []
    for _ in range(0, repetitions, CHUNK):
        leaf = logits.expand(CHUNK, -1).clone().requires_grad_()
        gradients += torch.autograd.grad(surrogate(leaf, generator).sum(), leaf)
    gradient = torch.cat(gradients)
    mean, length = gradient.mean(0), truth.norm()
    along = gradient @ truth / length ** 2
    noise = (gradient - mean).square().sum(-1).mean().sqrt() / length
    cosine = mean @ truth / (mean.norm() * length)
    return Quality(float(along.mean()), float(along.std() / len(along) ** 0.5), float(cosine), float(noise))


def compare(repetitions: int) -> Iterator[tuple[str, str, Quality]]:
    """What is drawn, estimator, and how good it is."""
    guidance, gating = guidance_problem(), gating_problem()
    a, b, top, many = guidance.alpha(), gating.alpha(), only_top(gating), TRUTH * repetitions
    tables: list[tuple[str, Problem, Tensor, dict[str, Surrogate]]] = [
        ('guidance', guidance, true_gradient(guidance, a, many), {
            'in-sample baseline of 2 pools (NG-RANSAC)': by_pools(guidance, a, in_sample, 2),
            'in-sample baseline of 4 pools (NG-RANSAC)': by_pools(guidance, a, in_sample, 4),
            '`over_pools`, 2': by_pools(guidance, a, over_pools, 2),
            '`over_pools`, 4': by_pools(guidance, a, over_pools, 4),
            '`over_draws`': by_draws(guidance, a)}),
        ('gating', gating, true_gradient(gating, b, many), {
            'no baseline (ESAC)': by_pools(gating, b, no_baseline, 1),
            '`over_pools`': by_pools(gating, b, over_pools, 4),
            '`over_draws`': by_draws(gating, b)}),
        (f'gating, {TOP} top experts', gating, true_gradient(top, b, many), {
            'no baseline, not renormalised (ESAC)': not_renormalised(gating, b),
            '`over_pools`': by_pools(top, b, over_pools, 4),
            '`over_draws`': by_draws(top, b)}),
        ('gating, systematic', gating, true_systematic_gradient(gating, b, many), {
            '`over_pools`': systematic(gating, b)}),
        (f'choice of one of {TOP} top experts', gating, true_choice_gradient(gating, b, many), {
            'no baseline (ESAC)': chosen(gating, b, no_baseline),
            '`over_pools`': chosen(gating, b, over_pools),
            '`over_experts`': marginal(gating, b)}),
    ]
    for title, problem, truth, surrogates in tables:
        for name, surrogate in surrogates.items():
            yield title, name, measure(surrogate, problem.logits, truth, repetitions)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gradient_variance', description=__doc__.splitlines()[0])
    parser.add_argument('--repetitions', type=int, default=10000, help='estimates of each estimator')
    options = parser.parse_args(arguments)
    print('| drawn | estimator | scale | cosine of the mean | noise | estimates to average |')
    print('|---|---|---|---|---|---|')
    for title, name, quality in compare(options.repetitions):
        print(f'| {title} | {name} | {quality.row()} |', flush=True)


if __name__ == '__main__':
    main()
