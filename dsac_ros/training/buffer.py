"""The shuffled buffer of mapping: features of many cells of many views, each with what is known of where the cell lies.

Decorrelating the cells of an image by one large shuffle is what makes a head trainable in minutes (ACE, Brachmann et al. 2023;
re-implemented from the idea).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from dsac_ros.cell_grid import depths_at
from dsac_ros.geometry.camera import cell_centres, homogeneous, normalised
from dsac_ros.networks.encoder import CHANNELS, STRIDE, Encoder, image_to_tensor, input_size
from dsac_ros.networks.gating import describe
from dsac_ros.records import Frame
from dsac_ros.training.augmentation import augmented_view, clean_view
from dsac_ros.training.budget import Budget

MIN_VIEWS = 20  # however little time there is
MEASURING_SHARE = 0.05  # of it, to find out how long encoding takes
LEAST_TIMINGS, MOST_TIMINGS = 3, 5  # for that, as far as the share lasts


@dataclass
class Buffer:
    """S samples. features_SC: fp16. targets_S3: scene coordinates [m], NaN where unknown. rays_S2: (x/z, y/z) of the cell in its
    source frame; frames_S: index into camera_from_map_F44; focal_px: focal length of the encoder's input, to turn rays into pixels;
    descriptors_FD: of the frames as they are (networks.gating)."""

    features_SC: Tensor
    targets_S3: Tensor
    rays_S2: Tensor
    frames_S: Tensor
    camera_from_map_F44: Tensor
    focal_px: float
    descriptors_FD: Tensor


# (frame, pixels (N, 2) of its image) -> scene coordinates (N, 3), NaN where unknown
Targets = Callable[[int, Frame, np.ndarray], np.ndarray]


def depth_targets(index: int, frame: Frame, pixels: np.ndarray) -> np.ndarray:
    """Scene coordinates on the rays of the pixels, as far as the frame's own depth at the nearest pixel; NaN where there is no depth.

    Not on the ray of that nearest pixel: where the centres of cells lie half-way between pixels, all would be turned to the same side.
    """
    inside = frame.camera.contains(pixels)
    seen = np.where(inside[:, None], pixels, 0.0)
    z = np.where(inside, depths_at(frame.depth, np.rint(seen).astype(int)), 0).astype(np.float64)
    points = homogeneous(normalised(frame.camera, seen)) * z[:, None]
    scene = points @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
    return np.where(z[:, None] > 0, scene, np.nan)


def usable_views(frames: list[Frame], encoder: Encoder, device: torch.device, budget: Budget, augmented: int) -> tuple[list[Frame], int]:
    """As many frames, and augmented views of each, as can be encoded in the budget: all frames first, then their augmentations."""
    image = frames[0].image
    width, height = input_size(image.shape[1], image.shape[0])
    blank = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        encoder(blank)
        timer, seconds = budget.part(MEASURING_SHARE * budget.seconds), []
        while len(seconds) < LEAST_TIMINGS or (len(seconds) < MOST_TIMINGS and not timer.over()):
            begin = budget.clock()
            encoder(blank).sum().item()
            seconds.append(budget.clock() - begin)
        # The median: one hiccup of a busy machine must not decide how many frames are mapped.
        one = 1.5 * max(float(np.median(seconds)), 1e-9)  # cutting views and picking cells costs some, too
    views = max(MIN_VIEWS, int(budget.seconds / one))
    augmented = min(augmented, max(0, views // len(frames) - 1))
    keep = max(1, -(-len(frames) * (1 + augmented) // views))
    return frames[::keep], augmented


def fill(frames: list[Frame], encoder: Encoder, targets: Targets, need_target: bool, capacity: int,
         augmented: int, rng: np.random.Generator, device: torch.device, budget: Budget, progress: Callable[[], object]) -> Buffer:
    """Encode every frame once as it is and, while the budget lasts, `augmented` times augmented; keep as many cells of each view.

    Args:
        targets: called with the index of a frame in `frames`.
        need_target: keep only cells whose scene coordinate is known; else those come first and others fill up.
    """
    per_view = max(1, capacity // (len(frames) * (1 + augmented)))
    # The bulk of the memory: as a list and then as one tensor it would be there twice.
    features = torch.empty(per_view * len(frames) * (1 + augmented), CHANNELS, dtype=torch.float16, device=device)
    filled, scene, rays, owners, descriptors = 0, [], [], [], {}
    for view_index in range(1 + augmented):
        for index in rng.permutation(len(frames)):
            if view_index and budget.over():
                break
            frame = frames[index]
            width, height = input_size(frame.camera.width, frame.camera.height)
            cells = cell_centres(width, height, STRIDE)
            view = (augmented_view(frame.image, width, height, cells, frame.camera.fx, rng) if view_index
                    else clean_view(frame.image, width, height, cells))
            pixels = view.source_px.reshape(-1, 2)
            points = targets(index, frame, pixels)
            chosen = choose_cells(frame, pixels, np.isfinite(points).all(-1), need_target, per_view, rng)
            with torch.inference_mode():
                grid = encoder(image_to_tensor(view.image).to(device))[0]
                if not view_index:
                    descriptors[index] = describe(grid).clone()
            features[filled:filled + len(chosen)] = grid.flatten(1).T[torch.from_numpy(chosen).to(device)]
            filled += len(chosen)
            scene.append(points[chosen])
            rays.append(normalised(frame.camera, pixels[chosen]))
            owners.append(np.full(len(chosen), index))
            progress()
    camera = frames[0].camera
    focal = camera.resized(*input_size(camera.width, camera.height)).fx
    poses = np.stack([np.linalg.inv(frame.map_from_camera) for frame in frames])
    return Buffer(features[:filled], _tensor(scene, device), _tensor(rays, device),
                  torch.from_numpy(np.concatenate(owners)).to(device), _tensor([poses], device), focal,
                  torch.stack([descriptors[index] for index in range(len(frames))]))


def choose_cells(frame: Frame, pixels: np.ndarray, known: np.ndarray, need_target: bool, most: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most `most` cells inside of the source image, those with a known coordinate first."""
    inside = frame.camera.contains(pixels)
    chosen = rng.permutation(np.flatnonzero(inside & known))[:most]
    if not need_target:
        chosen = np.concatenate([chosen, rng.permutation(np.flatnonzero(inside & ~known))[:most - len(chosen)]])
    return np.sort(chosen)


def _tensor(parts: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).float().to(device)
