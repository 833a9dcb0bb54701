"""Encoder, head and estimator as one exported program: what the localizer does between the image and the pose of the cells."""
from __future__ import annotations

import sys
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn

from dsac_ros.cell_grid import cell_grid
from dsac_ros.config import EstimatorOptions
from dsac_ros.localizer import Localizer
from dsac_ros.networks.encoder import image_to_tensor
from dsac_ros.ransac.cells import finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws

sys.path.append(str(Path(__file__).parent))
import rooms  # noqa: E402

OPTIONS = EstimatorOptions()


class Chain(nn.Module):
    """Image (1, 3, H, W) uint8 and random draws (1, K, 3) -> camera_from_map (1, 4, 4), information (1, 6, 6)."""

    def __init__(self, localizer: Localizer, cells_N: Tensor, bearings_N3: Tensor) -> None:
        super().__init__()
        self.encoder, self.expert = localizer.encoder, localizer.choice.sub_maps.get(0).expert
        self.register_buffer('cells_N', cells_N)
        self.register_buffer('bearings_1N3', bearings_N3[None])

    def forward(self, image: Tensor, draws_BK3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features_NC = self.encoder(image)[0].flatten(1)[:, self.cells_N].T
        points_N3, scales_N, _ = self.expert(features_NC)
        scales_BN = OPTIONS.scale_factor * scales_N.double()[None]
        problem = Correspondences(points_N3.double()[None], self.bearings_1N3, scales_BN, torch.full_like(scales_BN, 0.003),
                                  torch.ones_like(scales_BN, dtype=torch.bool))
        found = estimate(searched_by_angle(problem, OPTIONS), guidance(scales_N)[None], draws_BK3, OPTIONS)
        return finished_by_angle(problem, found, OPTIONS)


def test_one_program_gives_what_python_gives() -> None:
    frames = rooms.tiny_frames()
    grid = cell_grid(frames[0].camera)
    chain = Chain(Localizer.from_map(rooms.tiny_map()[0], 'cpu'), grid.cells_N, torch.from_numpy(grid.bearings_N3))
    images = [image_to_tensor(cv2.resize(frame.image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)) for frame in frames[:20:5]]
    with torch.no_grad():
        program = torch.export.export(chain, (images[0], uniform_draws([0], 64))).module()
        for seed, image in enumerate(images):
            draws = uniform_draws([seed], 64)
            for ours, expected in zip(program(image, draws), chain(image, draws)):
                torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
