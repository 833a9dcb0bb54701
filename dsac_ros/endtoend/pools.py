"""From correspondences in a graph to pools of hypotheses that can be learnt from: their scores, the losses of their refined poses, and how
likely they were drawn. One differentiable step through the estimator; endtoend.expectation makes an expected loss of it.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions
from dsac_ros.endtoend.expectation import log_likelihood
from dsac_ros.endtoend.losses import pose_loss
from dsac_ros.endtoend.minimal import from_rays, from_triangles
from dsac_ros.endtoend.refinement import constant, refined
from dsac_ros.errors import ConfigError
from dsac_ros.geometry import se3
from dsac_ros.ransac.cells import by_angle, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import ASSUMED_SHARE, INVALID, SCORED_FIRST, SCORED_NEXT, shared_out, with_depth
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.minimal import hypotheses_from_points, hypotheses_from_rays, members
from dsac_ros.ransac.sampling import draw_minimal_sets, mixed

FINAL_NOISE = 0.15  # of the ray of a cell without depth, in cells, whose optimum is differentiated


@dataclass(frozen=True)
class Pools:
    """P pools of K hypotheses of each of B images, drawn independently of each other.

    scores_BPK [nat]: of the minimal sets' poses. losses_BPK: of the refined ones. log_likelihoods_BPK: of having drawn the set. valid_BPK:
    false where a set has no pose. sound_BPK: false where refinement has no gradient (refinement.Refined).
    """

    scores_BPK: Tensor
    losses_BPK: Tensor
    log_likelihoods_BPK: Tensor
    valid_BPK: Tensor
    sound_BPK: Tensor


def solve_pools(cells: Correspondences, weights_BN: Tensor, draws_BPK3: Tensor, map_from_camera_B44: Tensor,
                options: EstimatorOptions, cut_off: float = 100.0, most: int = SCORED_NEXT) -> Pools:
    """Draw, solve and score as the localizer does with cells, and refine as it does where there is depth; else as `narrowed` says.

    Args:
        cells: with noise as stated; in a graph by points_BN3 and, with depth, scales_BN (without it they have no part; ransac.cells).
        weights_BN: guidance, zero for what may not be drawn; in a graph if it is to be learnt.
        draws_BPK3: random numbers in [0, 1) (sampling.uniform_draws). map_from_camera_B44: the truth.
        cut_off: of losses.pose_loss.
        most: cells on which hypotheses are scored and refined; the estimator refines its candidates on as many.
    """
    if cells.cameras_BN is not None:
        raise ConfigError('solve_pools: expected correspondences of single cameras, found those of a rig')
    kernel, few = Kernel(options.inlier_sigmas), cells.subset(most)
    search = searched_by_angle(few, options)
    probabilities_BN = mixed(torch.where(cells.known_BN, weights_BN, torch.zeros_like(weights_BN)), options.uniform_share)
    if cells.ranges_BN is None:
        drawn = [_from_rays(cells, search, probabilities_BN, draws_BPK3, kernel)]
    else:
        for_rays, for_points = shared_out(draws_BPK3)
        drawn = [_from_rays(cells, search, probabilities_BN, for_rays, kernel),
                 _from_points(cells, with_depth(cells, probabilities_BN), for_points)]
    poses_BPK44, valid_BPK, log_likelihoods_BPK = (torch.cat(parts, 2) for parts in zip(*drawn))
    poses_BM44 = poses_BPK44.flatten(1, 2)
    scores_BM = _scores(search, poses_BM44, kernel)
    optima = refined(narrowed(few, options), poses_BM44.detach(), options, search)
    losses_BM = pose_loss(se3.inverse(optima.poses_BK44), map_from_camera_B44, cut_off=cut_off)
    scores_BPK, losses_BPK, sound_BPK = (values.unflatten(1, valid_BPK.shape[1:]) for values in (scores_BM, losses_BM, optima.sound_BK))
    return Pools(scores_BPK, losses_BPK, log_likelihoods_BPK, valid_BPK, sound_BPK)


def narrowed(cells: Correspondences, options: EstimatorOptions) -> Correspondences:
    """The problem that refinement ends in; with depth the cells as they are.

    Without it one narrow angle stands for the one that the localizer measures anew in each step (ransac.cells), which hangs on the residual
    of a single cell and is no good to learn from.
    """
    return cells if cells.ranges_BN is not None else by_angle(cells, FINAL_NOISE / options.pixel_noise)


def _scores(problem: Correspondences, poses_BM44: Tensor, kernel: Kernel) -> Tensor:
    white = problem.whitened(problem.residuals(problem.vectors(poses_BM44)), torch.ones_like(poses_BM44[..., 0, 0]))
    return kernel.score(problem, white, ASSUMED_SHARE)


def _from_rays(cells: Correspondences, search: Correspondences, probabilities_BN: Tensor, draws_BPK3: Tensor,
               kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (B, P, K, 4, 4), valid and log-likelihoods (B, P, K): of each set the root of P3P that scores best."""
    sets_BM3 = draw_minimal_sets(probabilities_BN.detach(), draws_BPK3.flatten(1, 2))
    with torch.no_grad():
        roots, valid = hypotheses_from_rays(cells, sets_BM3)
        scores = _scores(constant(search).subset(SCORED_FIRST), roots, kernel)
        best = torch.where(valid, scores, torch.full_like(scores, INVALID)).unflatten(1, (-1, 4)).argmax(-1, keepdim=True)
        poses_BM44 = roots.unflatten(1, (-1, 4)).gather(2, best[..., None, None].expand(-1, -1, -1, 4, 4))[:, :, 0]
        valid_BM = valid.unflatten(1, (-1, 4)).any(-1)
    points, bearings, _ = members(cells, sets_BM3)
    return _pooled(from_rays(poses_BM44, valid_BM, bearings, points), valid_BM, probabilities_BN, sets_BM3, draws_BPK3)


def _from_points(cells: Correspondences, probabilities_BN: Tensor, draws_BPK3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As _from_rays, of measured points."""
    sets_BM3 = draw_minimal_sets(probabilities_BN.detach(), draws_BPK3.flatten(1, 2))
    with torch.no_grad():
        poses_BM44, valid_BM = hypotheses_from_points(cells, sets_BM3)
    points, bearings, _ = members(cells, sets_BM3)
    ranges = cells.ranges_BN.gather(1, sets_BM3.flatten(1)).view_as(sets_BM3)
    poses_BM44 = from_triangles(poses_BM44, valid_BM, points, bearings * ranges[..., None])
    return _pooled(poses_BM44, valid_BM, probabilities_BN, sets_BM3, draws_BPK3)


def _pooled(poses_BM44: Tensor, valid_BM: Tensor, probabilities_BN: Tensor, sets_BM3: Tensor,
            draws_BPK3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tiny = torch.finfo(probabilities_BN.dtype).tiny  # what is never drawn must not have an infinite derivative
    shares_BN = probabilities_BN / probabilities_BN.sum(1, keepdim=True).clamp(min=tiny)
    log_likelihoods_BM = log_likelihood(shares_BN.clamp(min=tiny).log(), sets_BM3)
    return tuple(values.unflatten(1, draws_BPK3.shape[1:3]) for values in (poses_BM44, valid_BM, log_likelihoods_BM))
