"""Training of one head on a buffer, for a stretch of time."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from dsac_ros.config import MappingOptions
from dsac_ros.errors import DataError
from dsac_ros.networks.expert import CLUSTERS, Expert
from dsac_ros.progress import progress_bar
from dsac_ros.training.budget import Budget
from dsac_ros.training.buffer import Buffer
from dsac_ros.training.losses import coordinate_loss, reprojection_loss

WARM_UP = 0.1  # share of the time in which the learning rate rises
MIN_SECONDS = 1.0  # however late it is
ENOUGH_EPOCHS = 200  # a small buffer is learnt long before the time is up


@dataclass(frozen=True)
class Head:
    """A trained expert and how far it came; median_error_m: over the last hundred batches, of cells with a known coordinate."""

    expert: Expert
    steps: int
    median_error_m: float
    interrupted: bool


def train_head(buffer: Buffer, options: MappingOptions, budget: Budget, stopped: Callable[[], bool], quiet: bool = False) -> Head:
    """AdamW with one cycle of the learning rate over the budget or MIN_SECONDS, or over options.steps: there is always a head, or a
    DataError where it has numbers that are none."""
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    expert = new_expert(buffer, options.width).to(buffer.features_SC.device)
    optimiser = torch.optim.AdamW(expert.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    samples, batch = len(buffer.features_SC), min(options.batch, len(buffer.features_SC))
    order, at, step, errors = torch.randperm(samples, generator=generator), 0, 0, []
    most = options.steps or ENOUGH_EPOCHS * max(1, samples // batch)
    schedule = Budget(max(MIN_SECONDS, budget.left()), budget.clock)
    layout = '{l_bar}{bar}| {elapsed}<{remaining}{postfix}'
    with progress_bar('train', 100, quiet, bar_format=layout) as progress:
        while not stopped():
            done = step / most if options.steps else max(step / most, schedule.share())
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group['lr'] = options.learning_rate * one_cycle(done)
            if at + batch > samples:
                order, at = torch.randperm(samples, generator=generator), 0
            rows = order[at:at + batch].to(buffer.features_SC.device)
            loss, error = batch_loss(expert, buffer, rows, done, options)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            at, step = at + batch, step + 1
            errors = errors[-99:] + [error]
            if step % 50 == 0:
                progress.set_postfix_str(f'coordinate error {100 * torch.stack(errors).nanmean().item():.1f} cm', refresh=False)
                progress.update(round(100 * done, 1) - progress.n)
    if not all(value.isfinite().all() for value in expert.state_dict().values()):
        raise DataError(f'training diverged within {step} steps; lower --set learning_rate (now {options.learning_rate:g}), '
                        'or give it more time')
    median = torch.stack(errors).nanmean().item() if errors else math.nan
    return Head(expert.eval().requires_grad_(False), step, median, stopped())


def new_expert(buffer: Buffer, width: int) -> Expert:
    """An expert whose normalisation and cluster centres fit the buffer."""
    expert = Expert(buffer.features_SC.shape[1], width)
    pick = torch.randperm(len(buffer.features_SC))[:20000].to(buffer.features_SC.device)
    sample = buffer.features_SC[pick].float().cpu()
    expert.feature_mean.copy_(sample.mean(0))
    expert.feature_scale.copy_(1 / (sample.std(0) + 1e-3))
    points = buffer.targets_S3.cpu()
    points = points[points.isfinite().all(-1)]
    points = points[torch.randperm(len(points))[:40000]]
    centres = k_means(points, CLUSTERS)
    expert.centres.copy_(centres)
    expert.offset_scale.copy_(torch.cdist(points, centres).amin(1).mean().clamp(min=1e-2))
    return expert


def k_means(points_N3: Tensor, count: int, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm from random points; an empty cluster keeps its centre."""
    centres = points_N3[torch.randperm(len(points_N3))[:count]].clone()
    centres = torch.cat([centres, centres[:1].expand(count - len(centres), 3)])
    for _ in range(rounds):
        label = torch.cdist(points_N3, centres).argmin(1)
        total = torch.zeros_like(centres).index_add_(0, label, points_N3)
        members = torch.bincount(label, minlength=count)[:, None]
        centres = torch.where(members > 0, total / members.clamp(min=1), centres)
    return centres


def batch_loss(expert: Expert, buffer: Buffer, rows: Tensor, done: float, options: MappingOptions) -> tuple[Tensor, Tensor]:
    """Loss and median coordinate error [m] of some samples: the coordinate where it is known, the reprojection where it is not."""
    points, scales, logits = expert(buffer.features_SC[rows].float())
    targets = buffer.targets_S3[rows]
    known = targets.isfinite().all(-1)
    loss, error = coordinate_loss(points, scales, logits, torch.where(known[:, None], targets, points.detach()), expert.centres, known,
                                  options.cluster_weight)
    if options.rgb_only:
        camera_from_map = buffer.camera_from_map_F44[buffer.frames_S[rows]]
        loss = loss + options.reprojection_weight * reprojection_loss(
            points, scales, buffer.rays_S2[rows], camera_from_map, ~known, buffer.focal_px, done)
    return loss, error.detach()[known].median() if known.any() else error.new_tensor(math.nan)


def one_cycle(done: float) -> float:
    """Learning rate over its peak at a share of the time: linear rise, cosine fall."""
    if done < WARM_UP:
        return 0.04 + 0.96 * done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) + 1e-3
