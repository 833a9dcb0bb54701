"""The shuffled buffer of mapping: features of many cells of many views, each with what is known of where the cell lies.

Decorrelating the cells of an image by one large shuffle is what makes a head trainable in minutes (ACE, Brachmann et al. 2023;
re-implemented from the idea).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from dsac_ros.geometry.camera import cell_centres, normalised
from dsac_ros.networks.encoder import STRIDE, Encoder, image_to_tensor, input_size
from dsac_ros.records import Frame
from dsac_ros.training.augmentation import augmented_view, clean_view


@dataclass
class Buffer:
    """S samples. features_SC: fp16. targets_S3: scene coordinates [m], NaN where unknown. rays_S2: (x/z, y/z) of the cell in its
    source frame; frames_S: index into camera_from_map_F44; focal_px: focal length of the encoder's input, to turn rays into pixels."""

    features_SC: Tensor
    targets_S3: Tensor
    rays_S2: Tensor
    frames_S: Tensor
    camera_from_map_F44: Tensor
    focal_px: float


# (frame, pixels (N, 2) of its image) -> scene coordinates (N, 3), NaN where unknown
Targets = Callable[[int, Frame, np.ndarray], np.ndarray]


def depth_targets(index: int, frame: Frame, pixels: np.ndarray) -> np.ndarray:
    """Scene coordinates of pixels from the frame's own depth, nearest pixel; NaN where there is no depth."""
    xy = np.rint(pixels).astype(int)
    inside = ((xy >= 0) & (xy < [frame.camera.width, frame.camera.height])).all(-1)
    x, y = np.where(inside[:, None], xy, 0).T
    z = np.where(inside, frame.depth[y, x], 0).astype(np.float64)
    rays = normalised(frame.camera, np.stack([x, y], -1).astype(np.float64))
    points = np.concatenate([rays, np.ones((len(rays), 1))], 1) * z[:, None]
    scene = points @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
    return np.where(z[:, None] > 0, scene, np.nan)


def fill(frames: Iterable[Frame], count: int, encoder: Encoder, targets: Targets, need_target: bool, capacity: int,
         augmented: int, rng: np.random.Generator, device: torch.device, progress: Callable[[], None]) -> Buffer:
    """Encode every frame once as it is and `augmented` times augmented; keep an equal share of the cells of each view.

    Args:
        count: number of frames (an upper bound), to share out `capacity` samples.
        need_target: keep only cells whose scene coordinate is known.
    """
    per_view = max(1, capacity // max(1, count * (1 + augmented)))
    features, scene, rays, owners, poses = [], [], [], [], []
    focal = 0.0
    for index, frame in enumerate(frames):
        width, height = input_size(frame.camera.width, frame.camera.height)
        focal = frame.camera.resized(width, height).fx
        cells = cell_centres(width, height, STRIDE)
        poses.append(np.linalg.inv(frame.map_from_camera))
        for view_index in range(1 + augmented):
            view = (augmented_view(frame.image, width, height, cells, rng) if view_index
                    else clean_view(frame.image, width, height, cells))
            pixels = view.source_px.reshape(-1, 2)
            points = targets(index, frame, pixels)
            limit = [frame.camera.width - 0.5, frame.camera.height - 0.5]
            usable = ((pixels > -0.5) & (pixels < limit)).all(-1)
            if need_target:
                usable &= np.isfinite(points).all(-1)
            chosen = np.flatnonzero(usable)
            if len(chosen) > per_view:
                chosen = rng.choice(chosen, per_view, replace=False)
            with torch.inference_mode():
                grid = encoder(image_to_tensor(view.image).to(device))[0]
            rows = grid.flatten(1).T[torch.from_numpy(chosen).to(device)]
            features.append(rows.half().clone())
            scene.append(points[chosen])
            rays.append(normalised(frame.camera, pixels[chosen]))
            owners.append(np.full(len(chosen), index))
        progress()
    return Buffer(torch.cat(features), _tensor(scene, device), _tensor(rays, device),
                  torch.from_numpy(np.concatenate(owners)).to(device), _tensor([np.stack(poses)], device), focal)


def _tensor(parts: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).float().to(device)
