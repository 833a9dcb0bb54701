"""Maps of experts that know nothing, written in no time."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsac_ros.landmarks.keypoints import DIMENSIONS
from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.maps.bundle import MapBundle, save_map
from dsac_ros.networks.encoder import CHANNELS
from dsac_ros.networks.expert import Expert
from dsac_ros.networks.gating import Prototypes, describe

FACTORS = {'rgb': 12.5, 'rgbd': 3.25, 'landmarks': 2.0}


def expert(seed: int = 0) -> Expert:
    torch.manual_seed(seed)
    made = Expert(CHANNELS, 16, 4)
    made.centres.copy_(torch.randn(4, 3) * 50)
    made.feature_mean.normal_()
    made.offset_scale.fill_(0.31)
    return made.eval()


def landmarks(count: int = 30) -> Landmarks:
    g = torch.Generator().manual_seed(5)
    words = torch.nn.functional.normalize(torch.rand(count, DIMENSIONS, generator=g), dim=1)
    cameras = torch.eye(4)[None, :3] + torch.arange(5)[:, None, None] * torch.eye(4)[3:]  # along x = y = z
    return Landmarks.compressed(torch.randn(count, 3, generator=g) * 20, torch.randn(count, 3, generator=g), words, cameras)


def prototypes(seed: int = 0) -> Prototypes:
    size = len(describe(torch.ones(CHANNELS, 2, 2)))
    words = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    return Prototypes(torch.nn.functional.normalize(words, dim=1))


def saved(path: Path, seed: int = 0, overwrite: bool = False, **changed: Any) -> MapBundle:
    arguments = dict(frame_id='map', name='room', expert=expert(seed), landmarks=landmarks(), covariance_factors=FACTORS,
                     centre=[1.0, -2.0, 0.5], extent=[4.0, 5.0, 2.5], training={'steps': 7, 'held_out': {}}, prototypes=prototypes())
    return save_map(path, **{**arguments, **changed}, overwrite=overwrite)
