"""What end-to-end training sees of a frame is what the localizer sees, and augmented views belong to the same place and pose."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rooms
import torch

from dsac_ros.cell_grid import cell_grid
from dsac_ros.errors import DataError
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.training.episodes import Episodes, encode

CPU = torch.device('cpu')


def made(augmented: int, seed: int = 0) -> Episodes:
    return encode(list(rooms.tiny_frames()[:3]), shared_encoder('cpu'), augmented, seed, CPU, lambda: None)


def test_a_frame_as_it_is_has_the_rays_and_the_depth_of_the_localizer() -> None:
    frames, episodes = rooms.tiny_frames()[:3], made(0)
    grid = cell_grid(frames[0].camera)
    assert len(episodes) == 3 and episodes.features_VNC.shape[:2] == (3, len(grid.cells_N)) and episodes.features_VNC.dtype == torch.float16
    np.testing.assert_allclose(episodes.bearings_VN3[1].numpy(), grid.bearings_N3, atol=1e-12)
    x, y = grid.pixels_N2.T
    np.testing.assert_allclose(episodes.depths_VN[2].numpy(), frames[2].depth[y, x])
    np.testing.assert_allclose(episodes.map_from_camera_V44[2].numpy(), frames[2].map_from_camera)


def test_an_augmented_view_shows_other_cells_of_the_same_frame() -> None:
    """Each cell has the depth of the pixel that its ray goes through, to the nearest pixel; others have no ray."""
    frame, episodes = rooms.tiny_frames()[0], made(2)
    assert len(episodes) == 9
    rays, depths = episodes.bearings_VN3[1].numpy(), episodes.depths_VN[1].numpy()
    inside = np.isfinite(rays).all(1)
    assert 0.5 < inside.mean() < 1 and (depths[~inside] == 0).all()
    camera, (u, v, w) = frame.camera, rays[inside].T
    x, y = np.rint(camera.fx * u / w + camera.cx).astype(int), np.rint(camera.fy * v / w + camera.cy).astype(int)
    np.testing.assert_allclose(depths[inside], frame.depth[y, x])
    assert not np.allclose(rays[inside], cell_grid(frame.camera).bearings_N3[inside], atol=1e-3)
    assert torch.equal(episodes.map_from_camera_V44[1], episodes.map_from_camera_V44[0])


def test_the_same_seed_makes_the_same_views() -> None:
    first, again, other = (made(1, seed) for seed in (0, 0, 1))
    assert torch.equal(first.features_VNC, again.features_VNC) and not torch.equal(first.features_VNC, other.features_VNC)


def test_a_batch_is_a_part_of_all() -> None:
    episodes = made(0)
    batch = episodes.some(torch.tensor([2, 0]))
    assert len(batch) == 2 and torch.equal(batch.features_VNC[0], episodes.features_VNC[2]) and batch.cell_rad == episodes.cell_rad


def test_frames_of_two_cameras_are_refused() -> None:
    first, second = rooms.tiny_frames()[:2]
    other = replace(second, camera=replace(second.camera, fx=2 * second.camera.fx))
    with pytest.raises(DataError, match='one camera'):
        encode([first, other], shared_encoder('cpu'), 0, 0, CPU, lambda: None)
