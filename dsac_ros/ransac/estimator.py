"""The robust estimator: generate, score, refine, with a fixed budget. Correspondences in, the best pose and its evidence out.

Everything is batched over images and hypotheses, of fixed shapes, and waits for no device; random numbers are inputs.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import PRODUCTS, SHAPE, Correspondences, Whitened
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.minimal import hypotheses_from_points, hypotheses_from_rays
from dsac_ros.ransac.sampling import draw_minimal_sets, mixed

ROOTS = 2  # of P3P kept for each set, in the mean; a set has 4 at most, 1.3 (noise) to 1.9 (exact points) in the mean
SCORED_FIRST = 128  # correspondences on which every hypothesis is scored, or a SCORED_SHARE of all
SCORED_SHARE = 1 / 32
SCORED_NEXT = 600  # on which the best of them are scored again, and refined
SHORTLIST = 32  # or SHORTLIST_SHARE of all hypotheses of the round: a right one among thousands has few of the first correspondences
SHORTLIST_SHARE = 1 / 16
LARGEST_ROUND = 2048  # sets, where there are several rounds: those of 65,536 spend more than half of their time on getting memory
ASSUMED_SHARE = 0.3  # of inliers, while there is no pose to tell
FREE_SCALES = (0.03, 0.008)  # noise of the points tried when it is not known, over the spread of the points
NEAR_SHARE = 0.5  # of the sets of a further round that are drawn near the best hypothesis
INVALID = -1e9  # score of what is no hypothesis
MISSED = 1e-3  # probability of having drawn no set of inliers alone, below which further rounds are left out
FINAL_STEPS = 3  # of refinement on all correspondences
REFINED_PER_ROUND = 16  # hypotheses of each round after the first, before they are compared with those of other rounds
ROUND_STEPS = 4  # of that refinement
SCALE_LIMITS = (1e-4, 0.3)  # of the noise found, over the spread of the points
SHARE_LIMITS = (0.01, 0.99)


@dataclass(frozen=True)
class Prior:
    """What is known of rig_from_map before the frame: mean_B44, information_B66 of a left perturbation (rotation, translation)."""

    mean_B44: Tensor
    information_B66: Tensor


@dataclass(frozen=True)
class Solution:
    """The best pose of each of B problems.

    camera_from_map_B44: rig_from_map for a rig. hessian_B66: information for a left perturbation (rotation, translation) if all residuals
    were independent. weights_BN: posterior probability of being an inlier; inliers_B: their sum. score_B: logarithm of the likelihood
    ratio to "all are outliers". scale_B: factor on the noise of the points; where it is found, it is that of the t distribution, 0.89 of a
    normal standard deviation. share_B: of inliers. margin_B: by how much the score is ahead of the best candidate that is another place,
    infinite where there is none; modes_B66: spread of the refined candidates around the best one by their posterior, as a covariance of
    the perturbation; entropy_B [bit]: of the posterior over the hypotheses of the last round.
    """

    camera_from_map_B44: Tensor
    hessian_B66: Tensor
    weights_BN: Tensor
    inliers_B: Tensor
    score_B: Tensor
    scale_B: Tensor
    share_B: Tensor
    margin_B: Tensor
    modes_B66: Tensor
    entropy_B: Tensor


@dataclass(frozen=True)
class Candidates:
    """K poses of each problem on their way to the optimum: vectors_BK13 (ransac.correspondences), scale_BK (factor on the noise of the
    points), share_BK of inliers, score_BK as a hypothesis."""

    vectors_BK13: Tensor
    scale_BK: Tensor
    share_BK: Tensor
    score_BK: Tensor

    def take(self, index_BK: Tensor) -> Candidates:
        return Candidates(_take(self.vectors_BK13, index_BK), self.scale_BK.gather(1, index_BK), self.share_BK.gather(1, index_BK),
                          self.score_BK.gather(1, index_BK))

    def joined(self, other: Candidates) -> Candidates:
        return Candidates(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(Candidates)))


def estimate(problem: Correspondences, weights_BN: Tensor, draws_BK3: Tensor, options: EstimatorOptions, *, free_scale: bool = False,
             starts_BS44: Tensor | None = None, prior: Prior | None = None) -> Solution:
    """The pose that explains the correspondences best.

    Args:
        weights_BN: learned guidance for drawing, zero for what may not be drawn.
        draws_BK3: random numbers in [0, 1) for K minimal sets (sampling.uniform_draws); with depth two of three are of measured points.
        free_scale: scales_BN are known up to a common factor, which is found with the pose.
        starts_BS44: poses that compete with the hypotheses.
        prior: enters as a hypothesis and as a term of the refinement.
    """
    kernel = Kernel(None if free_scale else options.inlier_sigmas)
    drawn_by_BN = torch.where(problem.known_BN, weights_BN, torch.zeros_like(weights_BN))
    guided_BN = probabilities_BN = mixed(drawn_by_BN, options.uniform_share)
    extra = [poses for poses in (starts_BS44, None if prior is None else prior.mean_B44[:, None]) if poses is not None]
    candidates = entropy_B = None
    rounds = in_rounds(draws_BK3, options.rounds)
    for number, draws in enumerate(rounds):
        poses_BK44, valid_BK = generate(problem, probabilities_BN, draws)
        if extra and number == 0:
            poses_BK44 = torch.cat([poses_BK44, *extra], 1)
            valid_BK = torch.cat([valid_BK, *(torch.ones_like(poses[..., 0, 0], dtype=torch.bool) for poses in extra)], 1)
        found, entropy_B = shortlist(problem, poses_BK44, valid_BK, kernel, prior)
        if candidates is not None:
            found = candidates.joined(refined_by_part(problem, found, kernel, prior))
        candidates = worth_refining(problem, found, options)
        if number + 1 == len(rounds):
            break
        inlier_BN = probable_inliers(problem, candidates, kernel)
        # Sets drawn near a hypothesis agree with it, right or wrong: only the others tell what may have been missed.
        near = sum(NEAR_SHARE * drawn.shape[1] for drawn in rounds[1:number + 1])
        if options.early_out and found_for_sure(guided_BN, inlier_BN, sum(drawn.shape[1] for drawn in rounds[:number + 1]) - near):
            break
        if number == 0:  # what comes now is refined before it is compared
            candidates = refined_by_part(problem, candidates, kernel, prior)
        # Half of the next sets come from what agrees with the best hypothesis so far, which has rarely all of the inliers.
        near_BN = drawn_by_BN * inlier_BN
        near_BN = near_BN / near_BN.sum(1, keepdim=True).clamp(min=1e-12)
        probabilities_BN = (1 - NEAR_SHARE) * guided_BN + NEAR_SHARE * near_BN
    # Where the noise is found, the one that suits a hypothesis best is wide enough already.
    widening = 1.0 if free_scale else options.refine_widening
    return refine_and_choose(problem, candidates, options, kernel, widening, prior, entropy_B, among_all=number > 0)


def refined_by_part(problem: Correspondences, candidates: Candidates, kernel: Kernel, prior: Prior | None) -> Candidates:
    """The best ones after some steps on a part of the correspondences, scored on all of them.

    Among very many hypotheses of few inliers a right one that is only as good as its three points is not the best (locally optimised
    RANSAC, Chum, Matas & Kittler 2003), nor is it always by a part of the correspondences.
    """
    index_BK = candidates.score_BK.topk(min(REFINED_PER_ROUND, candidates.score_BK.shape[1])).indices
    near = refine(problem.subset(SCORED_NEXT), candidates.take(index_BK), ROUND_STEPS, 1.0, kernel, prior)
    invalid_BK = near.score_BK <= INVALID / 2
    return replace(near, score_BK=torch.where(invalid_BK, INVALID, _scores(problem, near, kernel, prior)))


def in_rounds(draws_BK3: Tensor, rounds: int) -> list[Tensor]:
    """The draws in parts, each as large as all before it, LARGEST_ROUND at the most: an easy frame stops early, and a hard one is not held
    up by many rounds. All at once where one round is asked for."""
    ends = sorted({max(1, draws_BK3.shape[1] >> left) for left in range(rounds)})
    parts = draws_BK3.tensor_split(ends[:-1], 1)
    return [draws_BK3] if rounds == 1 else [piece for part in parts for piece in part.split(LARGEST_ROUND, 1)]


def probable_inliers(problem: Correspondences, candidates: Candidates, kernel: Kernel) -> Tensor:
    """(B, N) probability of being an inlier of the best candidate as it is, not refined."""
    best = candidates.take(candidates.score_BK.argmax(1, keepdim=True))
    white = problem.whitened(problem.residuals(best.vectors_BK13), best.scale_BK)
    return kernel.expectation(problem, white, best.share_BK)[0][:, 0].double()


def found_for_sure(probabilities_BN: Tensor, inlier_BN: Tensor, sets: float) -> bool:
    """Whether so many sets have missed a better pose with less than MISSED, in every problem: a pose has this share of the draws for it,
    or more. Waits for the device."""
    share_B = (probabilities_BN * inlier_BN).sum(1)
    return bool(((1 - share_B.pow(3)).pow(sets) < MISSED).all())


def refine_from(problem: Correspondences, poses_BK44: Tensor, options: EstimatorOptions, widening: float,
                narrowing: float = 1.0) -> Solution:
    """The optimum near given poses; widening, narrowing: as in refine."""
    scale_BK = torch.ones_like(poses_BK44[..., 0, 0])
    candidates = Candidates(problem.vectors(poses_BK44), scale_BK, torch.full_like(scale_BK, ASSUMED_SHARE), torch.zeros_like(scale_BK))
    return refine_and_choose(problem, candidates, options, Kernel(options.inlier_sigmas), widening, narrowing=narrowing)


def generate(problem: Correspondences, probabilities_BN: Tensor, draws_BK3: Tensor) -> tuple[Tensor, Tensor]:
    """Hypotheses (B, M, 4, 4) of all minimal sets, M at most ROOTS K, and the mask (B, M) of valid ones."""
    if problem.ranges_BN is None:
        return valid_roots(*hypotheses_from_rays(problem, draw_minimal_sets(probabilities_BN, draws_BK3, problem.cameras_BN)))
    for_rays, for_points = shared_out(draws_BK3)
    rays = valid_roots(*hypotheses_from_rays(problem, draw_minimal_sets(probabilities_BN, for_rays, problem.cameras_BN)))
    points = hypotheses_from_points(problem, draw_minimal_sets(with_depth(problem, probabilities_BN), for_points))
    return torch.cat([rays[0], points[0]], 1), torch.cat([rays[1], points[1]], 1)


def shared_out(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Random numbers (..., K, 3) for sets of rays, and for the two thirds of measured points: these give the better hypotheses for next to
    no time, rays find what has no depth."""
    return draws[..., ::3, :], torch.cat([draws[..., 1::3, :], draws[..., 2::3, :]], -2)


def with_depth(problem: Correspondences, probabilities_BN: Tensor) -> Tensor:
    """Those of measured points, zero for the others; they do not sum to one."""
    return torch.where(problem.measured_BN, probabilities_BN, torch.zeros_like(probabilities_BN))


def valid_roots(poses_BM44: Tensor, valid_BM: Tensor) -> tuple[Tensor, Tensor]:
    """As many of the hypotheses as ROOTS of four leaves of each set, the valid ones first, earlier sets first."""
    valid_BM, order_BM = valid_BM.sort(dim=1, descending=True, stable=True)
    kept = valid_BM.shape[1] * ROOTS // 4
    index = order_BM[:, :kept, None, None].expand(-1, -1, 4, 4)
    return poses_BM44.gather(1, index), valid_BM[:, :kept]


def shortlist(problem: Correspondences, poses_BK44: Tensor, valid_BK: Tensor, kernel: Kernel,
              prior: Prior | None = None) -> tuple[Candidates, Tensor]:
    """The best hypotheses by a part of the correspondences, scored on more of them; and entropy_B [bit] of them all."""
    scales_B1 = [torch.ones_like(problem.spread_B)[:, None]]
    if kernel.even_at is None:
        scales_B1 = [share * problem.unit_scale_B1 for share in FREE_SCALES]
    vectors_BK13 = problem.vectors(poses_BK44)
    scored = max(SCORED_FIRST, round(SCORED_SHARE * problem.points_BN3.shape[1]))
    first, second = problem.subset(scored), problem.subset(SCORED_NEXT)
    scores_BK, scale_BK = _best_scale(first, vectors_BK13, scales_B1, kernel)
    offset_BK = torch.where(valid_BK, 0.0 if prior is None else _agreement(poses_BK44, prior), INVALID)
    scores_BK = scores_BK + offset_BK
    entropy_B = _entropy(scores_BK)
    count = max(SHORTLIST, round(SHORTLIST_SHARE * scores_BK.shape[1]))
    index_BK = scores_BK.topk(min(count, scores_BK.shape[1])).indices
    vectors_BK13 = _take(vectors_BK13, index_BK)
    if second is not first:
        scores_BK, scale_BK = _best_scale(second, vectors_BK13, scales_B1, kernel)
        scores_BK = scores_BK + offset_BK.gather(1, index_BK)
    else:
        scale_BK, scores_BK = scale_BK.gather(1, index_BK), scores_BK.gather(1, index_BK)
    return Candidates(vectors_BK13, scale_BK, torch.full_like(scale_BK, ASSUMED_SHARE), scores_BK), entropy_B


def worth_refining(problem: Correspondences, candidates: Candidates, options: EstimatorOptions) -> Candidates:
    """The best ones; the last of them is the best one of another place than the first, if there is any: what the margin has to be over."""
    index_BK = candidates.score_BK.topk(min(options.refined, candidates.score_BK.shape[1])).indices
    away_BK6 = differences(candidates.vectors_BK13, _take(candidates.vectors_BK13, index_BK[:, :1]))
    other_BK = elsewhere(away_BK6, options) & (candidates.score_BK > 0)  # invalid ones have less
    rival_B1 = torch.where(other_BK, candidates.score_BK, torch.full_like(candidates.score_BK, -torch.inf)).argmax(1, keepdim=True)
    last_B1 = torch.where(other_BK.any(1, keepdim=True) & (options.refined > 1), rival_B1, index_BK[:, -1:])
    return candidates.take(torch.cat([index_BK[:, :-1], last_B1], 1))


def differences(vectors_BK13: Tensor, best_B113: Tensor) -> Tensor:
    """(B, K, 6) of pose vectors to another one: the same as of the poses, whatever centre the vectors are around."""
    return se3.difference(vectors_BK13[..., :12].unflatten(-1, (3, 4)), best_B113[..., :12].unflatten(-1, (3, 4)))


def elsewhere(away_BK6: Tensor, options: EstimatorOptions) -> Tensor:
    """(B, K) which differences to a pose make another place."""
    return (away_BK6[..., 3:].norm(dim=-1) > options.mode_distance) | (away_BK6[..., :3].norm(dim=-1) > options.mode_angle)


def _best_scale(problem: Correspondences, vectors_BK13: Tensor, scales_B1: list[Tensor], kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Score of each pose with the noise that suits it best, and that noise as a factor; (B, K) each."""
    residuals = problem.residuals(vectors_BK13)
    tried = [kernel.score(problem, problem.whitened(residuals, scale_B1), ASSUMED_SHARE) for scale_B1 in scales_B1]
    best = torch.stack(tried).max(0)
    return best.values, torch.cat(scales_B1, 1).gather(1, best.indices)


def _entropy(scores_BK: Tensor) -> Tensor:
    """(B,) [bit] of the posterior over hypotheses."""
    logarithm_BK = scores_BK.log_softmax(1)
    return -(logarithm_BK.exp() * logarithm_BK).sum(1) / math.log(2)


def refine(problem: Correspondences, candidates: Candidates, steps: int, widening: float, kernel: Kernel,
           prior: Prior | None = None, narrowing: float = 1.0, stretch: float = 1.0) -> Candidates:
    """Expectation maximisation over pose, share of inliers and, where it is free, noise; Gauss-Newton for the pose.

    Args:
        widening: how many times as large as stated, or found, the noise is taken in the first step. narrowing: the same for the last two
            steps, to which it comes down; below 1 where most of the correspondences are better than what they are scored by.
        stretch: factor on the steps, which are short since weights fall with the residual; below 2 it goes to the same optimum, sooner.
    """
    vectors, scale, share = candidates.vectors_BK13, candidates.scale_BK, candidates.share_BK
    limits = [limit * problem.unit_scale_B1 for limit in SCALE_LIMITS] if kernel.even_at is None else None
    ridge = damping(vectors)
    for step in range(steps):
        width = widening ** (1 - step / max(1, steps - 2)) if step < steps - 2 else narrowing
        white = problem.whitened(problem.residuals(vectors), scale * width)
        inlier, weight = kernel.expectation(problem, white, share)
        gradient, hessian = normal_equations(problem, white, weight, vectors, prior)
        vectors = problem.moved(vectors, stretch * damped_step(gradient, hessian, ridge))
        if kernel.even_at is None:
            share = (inlier.sum(-1) / problem.count_B1).clamp(*SHARE_LIMITS)
            dimensions = 2.0 * SHAPE - problem.single.freedom
            ratio = (weight * white.square_BKN).sum(-1) / (inlier * dimensions).sum(-1).clamp(min=1e-9)
            scale = (scale * ratio.clamp(0.04, 4.0).sqrt() * width).clamp(*limits)
    return Candidates(vectors, scale, share, candidates.score_BK)


def damping(like: Tensor) -> tuple[Tensor, Tensor]:
    """What a Hessian of 6 x 6 is multiplied by, and what is added, entry by entry, so that there is a step in any case."""
    eye = torch.eye(6, dtype=like.dtype, device=like.device)
    return 1 + 1e-6 * eye, 1e-9 * eye


def damped_step(gradient_BK6: Tensor, hessian_BK66: Tensor, ridge: tuple[Tensor, Tensor]) -> Tensor:
    """(B, K, 6) of Gauss and Newton, half a metre and radian at the most; ridge: of damping()."""
    relative, absolute = ridge
    damped = torch.addcmul(absolute, hessian_BK66, relative)
    return torch.linalg.solve_ex(damped, -gradient_BK6)[0].nan_to_num(0).clamp(-0.5, 0.5)


def normal_equations(problem: Correspondences, white: Whitened, weight_BKN: Tensor, vectors_BK13: Tensor,
                     prior: Prior | None = None, pull_BK13: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradient (B, K, 6) and Gauss-Newton Hessian (B, K, 6, 6) of half the weighted sum of squares, for a left perturbation.

    Args:
        pull_BK13: what is added to the gradient, by the entries of the pose vector.
    """
    # bmm, with images and poses as one batch: a product written with @ is six calls of torch in place of one.
    sums = torch.bmm((weight_BKN * white.across_BKN).double(), problem.products_across_BNP)
    if white.along_BKN is not None:
        sums = torch.nn.functional.pad(sums, (0, PRODUCTS - sums.shape[-1]))
        sums = sums + torch.bmm((weight_BKN * white.along_BKN).double(), problem.products_along_BNP)
    flat = vectors_BK13.flatten(0, 1)
    moves = problem.moves(flat)
    entries = 13 if sums.shape[-1] == PRODUCTS else 12  # where no row has a constant there is nothing for the last one
    both = torch.cat([moves, flat[..., None]], -1)[:, :entries]  # (B K, 13 or 12, 7)
    normal = sums.flatten(0, 1)[:, problem.layout[:, :entries]]
    weighted = moves[:, :12].mT.bmm(normal).bmm(both).unflatten(0, vectors_BK13.shape[:2])
    hessian, gradient = weighted[..., :6], weighted[..., 6]
    if pull_BK13 is not None:
        gradient = gradient + torch.bmm(pull_BK13.flatten(0, 1)[:, None], moves).view_as(gradient)
    if prior is None:
        return gradient, hessian
    information = prior.information_B66[:, None]
    away = se3.difference(problem.poses(vectors_BK13), prior.mean_B44[:, None])
    return gradient + (information @ away[..., None])[..., 0], hessian + information


def refine_and_choose(problem: Correspondences, candidates: Candidates, options: EstimatorOptions, kernel: Kernel, widening: float,
                      prior: Prior | None = None, entropy_B: Tensor | None = None, narrowing: float = 1.0,
                      among_all: bool = False) -> Solution:
    """Refine all candidates on a part of the correspondences, choose the best one afterwards, and finish it on all of them.

    Args:
        among_all: choose by all correspondences, not by that part: for hard frames.
    """
    part = problem.subset(SCORED_NEXT)
    candidates = refine(part, candidates, options.refine_steps, widening, kernel, prior, narrowing)
    scores_BK = _scores(problem if among_all else part, candidates, kernel, prior)
    best_B1 = scores_BK.argmax(1, keepdim=True)
    winner = candidates.take(best_B1)
    margin_B, modes_B66 = _rivals(differences(candidates.vectors_BK13, winner.vectors_BK13), scores_BK, options)
    if part is not problem:
        winner = refine(problem, winner, FINAL_STEPS, narrowing, kernel, prior, narrowing)
    white = problem.whitened(problem.residuals(winner.vectors_BK13), winner.scale_BK)
    inlier, weight = kernel.expectation(problem, white, winner.share_BK)
    _, hessian = normal_equations(problem, white, weight, winner.vectors_BK13, prior)
    entropy_B = torch.zeros_like(margin_B) if entropy_B is None else entropy_B
    return Solution(problem.poses(winner.vectors_BK13)[:, 0], hessian[:, 0], inlier[:, 0], inlier[:, 0].sum(1),
                    scores_BK.gather(1, best_B1)[:, 0], winner.scale_BK[:, 0], winner.share_BK[:, 0], margin_B, modes_B66, entropy_B)


def _scores(problem: Correspondences, candidates: Candidates, kernel: Kernel, prior: Prior | None) -> Tensor:
    """(B, K) score of each candidate with its own noise and share of inliers."""
    white = problem.whitened(problem.residuals(candidates.vectors_BK13), candidates.scale_BK)
    score_BK = kernel.score(problem, white, candidates.share_BK)
    return score_BK if prior is None else score_BK + _agreement(problem.poses(candidates.vectors_BK13), prior)


def _agreement(poses_BK44: Tensor, prior: Prior) -> Tensor:
    """(B, K) logarithm of the prior at each pose over that at its mean."""
    away_BK6 = se3.difference(poses_BK44, prior.mean_B44[:, None])
    return -(away_BK6 * (prior.information_B66[:, None] @ away_BK6[..., None])[..., 0]).sum(-1) / 2


def _rivals(away_BK6: Tensor, scores_BK: Tensor, options: EstimatorOptions) -> tuple[Tensor, Tensor]:
    """margin_B and modes_B66 as in Solution, by the differences to the best one."""
    other_BK = elsewhere(away_BK6, options)
    margin_B = scores_BK.amax(1) - torch.where(other_BK, scores_BK, torch.full_like(scores_BK, -torch.inf)).amax(1)
    weighted = away_BK6 * scores_BK.softmax(1)[..., None]
    return margin_B, weighted.mT @ away_BK6


def _take(values_BKC: Tensor, index_BK: Tensor) -> Tensor:
    return values_BKC.gather(1, index_BK[..., None].expand(*index_BK.shape, values_BKC.shape[-1]))
