"""An expert: the small head of one sub-map. Features of a cell -> scene coordinate and its uncertainty.

The coordinate is a soft choice among cluster centres of the sub-map plus an offset (coarse to fine as in HSCNet, Li et al. 2020,
with the choice left soft); the uncertainty is the scale of an isotropic Laplace error, in metres. It serves as the sampling weight of
NG-RANSAC (Brachmann & Rother 2019), as the weight in the refinement and as the input of the covariance.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dsac_ros.networks.encoder import LAST_CHANNELS, LastInput

WIDTH = 128
CLUSTERS = 64
MIN_SCALE, MAX_SCALE = 2e-3, 10.0


class Expert(nn.Module):
    """Rows of features (N, channels) -> coordinates (N, 3) [m, map frame], scales (N,) [m], cluster logits (N, CLUSTERS).

    A network over cells, not over images: one forward serves the shuffled buffer of mapping and the grid of a frame alike. last_stage:
    that of the encoder, where this sub-map has one of its own; its features take the place of the encoder's, the last ones of a row.
    """

    def __init__(self, channels: int, width: int = WIDTH, clusters: int = CLUSTERS) -> None:
        super().__init__()
        self.register_buffer('feature_mean', torch.zeros(channels))
        self.register_buffer('feature_scale', torch.ones(channels))
        self.register_buffer('centres', torch.zeros(clusters, 3))
        self.register_buffer('offset_scale', torch.ones(()))
        self.first = nn.Linear(channels, width)
        self.residual = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        self.last = nn.Linear(width, clusters + 4)
        self.last_stage: nn.Module | None = None

    def forward(self, features_NC: Tensor, last: LastInput | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """last: of the same images as the features, (N, channels) of one or (B, N, channels); not needed without a last_stage."""
        if self.last_stage is not None:
            own = last.features(self.last_stage).reshape(*features_NC.shape[:-1], LAST_CHANNELS)
            features_NC = torch.cat([features_NC[..., :-LAST_CHANNELS], own], -1)
        x = torch.relu(self.first((features_NC - self.feature_mean) * self.feature_scale))
        for block in self.residual:
            x = x + block(x)
        x = self.last(x)
        logits_NM, offsets_N3, log_scales_N = x[..., :-4], x[..., -4:-1], x[..., -1]
        coordinates_N3 = logits_NM.softmax(-1) @ self.centres + offsets_N3 * self.offset_scale
        # Far beyond the limit exp and its gradient are infinite, and the zero of clamp times that is no number.
        scales_N = (log_scales_N - 2).clamp(max=math.log(2 * MAX_SCALE)).exp().clamp(MIN_SCALE, MAX_SCALE)
        return coordinates_N3, scales_N, logits_NM


def predict(experts: Sequence[Expert], features_NC: Tensor, last: LastInput | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates (E, N, 3) and scales (E, N) of several experts for the same cells, in one batch where they are of one shape and see the
    same features."""
    if len(experts) > 1 and _alike(experts):
        parameters, buffers = stack_module_state(list(experts))
        return vmap(lambda own: functional_call(experts[0], own, (features_NC,))[:2])({**parameters, **buffers})
    coordinates, scales = zip(*(expert(features_NC, last)[:2] for expert in experts))
    return torch.stack(coordinates), torch.stack(scales)


def _alike(experts: Sequence[Expert]) -> bool:
    shapes = {tuple(value.shape for value in expert.state_dict().values()) for expert in experts}
    return len(shapes) == 1 and all(expert.last_stage is None for expert in experts)
