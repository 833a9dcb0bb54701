"""Views for end-to-end training: whole images with their pose, encoded once, since the encoder stays as it is."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dsac_ros.cell_grid import cell_grid, depths_at
from dsac_ros.config import FinetuningOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DataError
from dsac_ros.exposure import brightened
from dsac_ros.geometry.camera import bearings, cell_centres
from dsac_ros.maps.site import Site
from dsac_ros.networks.encoder import CHANNELS, STRIDE, Encoder, LastInput, image_to_tensor
from dsac_ros.networks.gating import describe
from dsac_ros.records import Frame
from dsac_ros.training.augmentation import augmented_view, clean_view
from dsac_ros.training.mapping import MIN_FRAMES, read_frames


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
            inside = camera.contains(pixels)
            with torch.inference_mode():
                maps_BCHW, last_input = encoder.with_last_input(image_to_tensor(view.image).to(device))
                maps = maps_BCHW[0]
                descriptors.append(describe(maps))
            features[len(poses)] = maps.flatten(1).T[cells_N]
            last_inputs.append(last_input.half())
            seen = np.where(inside[:, None], pixels, 0.0)
            rays.append(np.where(inside[:, None], bearings(camera, seen), np.nan))
            measured = 0.0 if frame.depth is None else depths_at(frame.depth, np.rint(seen).astype(int))
            depths.append(np.where(inside, measured, 0.0))
            poses.append(frame.map_from_camera)
            progress()
    rays_VN3, depths_VN, poses_V44 = (torch.from_numpy(np.stack(values)).to(device) for values in (rays, depths, poses))
    last = LastInput(torch.cat(last_inputs), cells_N, grid.height // STRIDE, grid.width // STRIDE)
    return Episodes(features, last, torch.stack(descriptors), rays_VN3, depths_VN, poses_V44, STRIDE / grid.focal)


def frames_of(sources: list[FrameSource], site: Site, options: FinetuningOptions,
              expert: str = '') -> tuple[list[Frame], list[Frame]]:
    """Frames for training and held out, of all sources, of which no other sub-map than `expert` is the nearest.

    DataError where poses are in another frame than the map's, and where too few frames are left.
    """
    training, held_out = [], []
    for source in sources:
        if source.map_frame != site.frame_id:
            raise DataError(f'{getattr(source, "path", "the data")}: poses in frame {source.map_frame!r}, the map is in '
                            f'{site.frame_id!r}; use a recording localised in the frame of the map, or --map-frame')
        parts = read_frames(source, options)
        training += parts[0]
        held_out += parts[1]
    if expert:
        index = [entry.name for entry in site.entries].index(expert)
        mine = [[frame for frame in part if is_nearest(site, index, frame)] for part in (training, held_out)]
        if len(mine[0]) + len(mine[1]) < MIN_FRAMES or not all(mine):
            raise DataError(f'{len(mine[0])} of {len(training)} frames for training and {len(mine[1])} of {len(held_out)} held-out ones '
                            f'lie nearest to the sub-map {expert!r}; {MIN_FRAMES} in all and one of each are needed: use a recording of '
                            'that place')
        training, held_out = mine
    return training, held_out


def is_nearest(site: Site, index: int, frame: Frame) -> bool:
    """Whether no other sub-map's points are nearer to the camera; in the boxes of several it is near to all of these."""
    distances_E = site.distances(frame.map_from_camera[:3, 3])
    return bool(distances_E[index] <= distances_E.min())


def moved(frames: list[Frame], other_from_map: np.ndarray) -> list[Frame]:
    """With their poses in another frame."""
    return [replace(frame, map_from_camera=other_from_map @ frame.map_from_camera) for frame in frames]
