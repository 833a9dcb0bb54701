"""A camera, the landmarks that it sees, and its keypoints."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.landmarks.landmarks import Landmarks, compress

COUNT = 400


@pytest.fixture
def scene() -> dict[str, torch.Tensor]:
    """A camera that sees all landmarks, one keypoint for each with a slightly different descriptor, in another order."""
    rng = np.random.default_rng(0)
    rays = rng.uniform(-0.5, 0.5, (COUNT, 2))
    camera = np.column_stack([rays, np.ones(COUNT)]) * rng.uniform(1.5, 4, (COUNT, 1))
    camera_from_map = np.eye(4)
    camera_from_map[:3, :3], camera_from_map[:3, 3] = Rotation.from_rotvec([0.3, -0.5, 0.1]).as_matrix(), [0.4, -0.2, 0.3]
    points = (camera - camera_from_map[:3, 3]) @ camera_from_map[:3, :3]
    map_from_camera = np.linalg.inv(camera_from_map)
    centre = map_from_camera[:3, 3]
    words = np.abs(rng.normal(size=(COUNT, 128)))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    order = rng.permutation(COUNT)
    seen = np.abs(words[order] + 0.01 * rng.normal(size=words.shape))
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    landmarks = Landmarks.compressed(*(torch.from_numpy(a).float() for a in (points, centre - points, words, map_from_camera[None, :3])))
    return {'landmarks': landmarks, 'pose': torch.from_numpy(camera_from_map), 'rays': torch.from_numpy(rays[order]),
            'words': compress(torch.from_numpy(seen).float(), landmarks.basis_DC), 'order': torch.from_numpy(order)}
