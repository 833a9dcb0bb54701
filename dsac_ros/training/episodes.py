"""Views for end-to-end training: whole images with their pose, encoded once, since the encoder stays as it is."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dsac_ros.cell_grid import cell_depths, cell_grid
from dsac_ros.errors import DataError
from dsac_ros.exposure import brightened
from dsac_ros.geometry.camera import bearings, cell_centres
from dsac_ros.networks.encoder import CHANNELS, STRIDE, Encoder, LastInput, image_to_tensor
from dsac_ros.networks.gating import describe
from dsac_ros.records import Frame
from dsac_ros.training.augmentation import augmented_view, clean_view


@dataclass(frozen=True)
class Episodes:
    """V views of N cells each, of one camera. features_VNC: fp16. last: what the encoder's last stage is given, fp16. descriptors_VD: for
    gating. bearings_VN3: unit rays [camera frame], NaN outside of the source image. depths_VN: [m] along the axis, 0 where there is none.
    map_from_camera_V44. cell_rad: angle that a cell takes up."""

    features_VNC: Tensor
    last: LastInput
    descriptors_VD: Tensor
    bearings_VN3: Tensor
    depths_VN: Tensor
    map_from_camera_V44: Tensor
    cell_rad: float

    def __len__(self) -> int:
        return len(self.features_VNC)

    def some(self, index_B: Tensor) -> Episodes:
        """A batch."""
        tensors = {f.name: getattr(self, f.name)[index_B] for f in fields(self) if f.name not in ('last', 'cell_rad')}
        return replace(self, **tensors, last=replace(self.last, maps_BCHW=self.last.maps_BCHW[index_B]))


def encode(frames: list[Frame], encoder: Encoder, augmented: int, seed: int, device: torch.device,
           progress: Callable[[], object]) -> Episodes:
    """Every frame as the localizer sees it, and `augmented` times through a random homography, brighter or darker.

    A homography moves cells about the image and leaves the camera where it is: what counts is the ray that each of them shows. Raises
    DataError where the frames are not of one camera.
    """
    camera = frames[0].camera
    for frame in frames:
        if frame.camera != camera:
            raise DataError(f'expected frames of one camera, found {frame.camera} beside {camera}; fine-tune on the bags of one camera')
    grid, rng = cell_grid(camera), np.random.default_rng(seed)
    cells, chosen = cell_centres(grid.width, grid.height, STRIDE), grid.cells_N.numpy()
    cells_N = grid.cells_N.to(device).clone()  # the grid may have been made in inference mode, and gradients go through this index
    last_inputs, descriptors, rays, depths, poses = [], [], [], [], []
    # The bulk of the memory: as a list and then as one tensor it would be there twice.
    features = torch.empty(len(frames) * (1 + augmented), len(chosen), CHANNELS, dtype=torch.float16, device=device)
    for frame in frames:
        image = brightened(frame.image)
        for number in range(1 + augmented):
            view = (augmented_view(image, grid.width, grid.height, cells, camera.fx, rng) if number
                    else clean_view(image, grid.width, grid.height, cells))
            pixels = view.source_px.reshape(-1, 2)[chosen]
            inside = ((pixels > -0.5) & (pixels < [camera.width - 0.5, camera.height - 0.5])).all(-1)
            with torch.inference_mode():
                maps_BCHW, last_input = encoder.with_last_input(image_to_tensor(view.image).to(device))
                maps = maps_BCHW[0]
                descriptors.append(describe(maps))
            features[len(poses)] = maps.flatten(1).T[cells_N]
            last_inputs.append(last_input.half())
            seen = np.where(inside[:, None], pixels, 0.0)
            rays.append(np.where(inside[:, None], bearings(camera, seen), np.nan))
            measured = 0.0 if frame.depth is None else cell_depths(frame.depth, np.rint(seen).astype(int))
            depths.append(np.where(inside, measured, 0.0))
            poses.append(frame.map_from_camera)
            progress()
    rays_VN3, depths_VN, poses_V44 = (torch.from_numpy(np.stack(values)).to(device) for values in (rays, depths, poses))
    last = LastInput(torch.cat(last_inputs), cells_N, grid.height // STRIDE, grid.width // STRIDE)
    return Episodes(features, last, torch.stack(descriptors), rays_VN3, depths_VN, poses_V44, STRIDE / grid.focal)
