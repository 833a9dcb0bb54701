"""What the cells of a head make of views, solved as the localizer solves them."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsac_ros.config import EstimatorOptions, FinetuningOptions
from dsac_ros.geometry import se3
from dsac_ros.networks.expert import Expert
from dsac_ros.ransac.cells import cell_problem, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.training.episodes import Episodes

ESTIMATOR = EstimatorOptions()  # the one that the localizer has unless told otherwise


def predict(expert: nn.Module, batch: Episodes, options: FinetuningOptions) -> tuple[Correspondences, Tensor]:
    """The cells of a batch as a problem, and the weights to draw them by."""
    points_BN3, scales_BN, _ = expert(batch.features_VNC.float(), batch.last)
    depths_BN = None if options.rgb_only else batch.depths_VN
    weights_BN = guidance(scales_BN if options.guidance else torch.ones_like(scales_BN))
    return cell_problem(points_BN3, scales_BN, batch.bearings_VN3, batch.cell_rad, depths_BN, ESTIMATOR), weights_BN


@torch.no_grad()
def localised(expert: Expert, batch: Episodes, seeds: Sequence[int], options: FinetuningOptions) -> Tensor:
    """map_from_camera (B, 4, 4) by the cells, as the localizer solves them."""
    cells, weights_BN = predict(expert, batch, options)
    sets = ESTIMATOR.hypotheses_rgb if options.rgb_only else ESTIMATOR.hypotheses_rgbd
    found = estimate(searched_by_angle(cells, ESTIMATOR), weights_BN, uniform_draws(seeds, sets, weights_BN.device), ESTIMATOR)
    return se3.inverse(finished_by_angle(cells, found, ESTIMATOR)[0])
