"""Losses against torch.distributions and projections written out, and their gradients where training needs them."""
from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from dsac_ros.training.losses import coordinate_loss, reprojection_loss


def test_coordinate_loss_is_the_likelihood_of_an_isotropic_laplace_error() -> None:
    """exp(-|e| / s) / s^3 integrates over space to a constant (8 pi) whatever s is: only then is s learnt without bias."""
    for scale in (0.05, 1.0, 4.0):
        def density(r: float, s: float = scale) -> float:
            points = torch.tensor([[r, 0.0, 0.0]], dtype=torch.float64)
            loss, _ = coordinate_loss(points, torch.tensor([s]), torch.zeros(1, 2).double(), torch.zeros(1, 3).double(),
                                      torch.ones(2, 3).double(), torch.tensor([True]), 0.0)
            return 4 * math.pi * r * r * math.exp(-float(loss))
        assert quad(density, 0, 60 * scale)[0] == pytest.approx(8 * math.pi, rel=1e-5)


def test_cluster_choice_is_the_nearest_centre() -> None:
    targets, centres = torch.tensor([[0.9, 0, 0], [0, 0, 5.0]]), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 4]])
    logits, known = torch.randn(2, 3), torch.tensor([True, True])
    base, _ = coordinate_loss(targets, torch.ones(2), logits, targets, centres, known, 0.0)
    loss, error = coordinate_loss(targets, torch.ones(2), logits, targets, centres, known, 0.3)
    expected = -0.3 * (logits.log_softmax(1)[0, 1] + logits.log_softmax(1)[1, 2]) / 2
    torch.testing.assert_close(loss - base, expected)
    assert error.tolist() == [0, 0]


def test_unknown_samples_count_for_nothing() -> None:
    points = torch.randn(4, 3, requires_grad=True)
    known = torch.tensor([True, False, True, False])
    targets = torch.randn(4, 3)
    arguments = torch.full((4,), 0.2), torch.zeros(4, 2)
    loss, _ = coordinate_loss(points, *arguments, targets, torch.randn(2, 3), known, 0.2)
    loss.backward()
    assert (points.grad[~known] == 0).all() and (points.grad[known] != 0).any()
    none, _ = coordinate_loss(points, *arguments, targets, torch.randn(2, 3), known & False, 0.2)
    assert none == 0


def scene(count: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points in the map, and camera_from_map for each."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = Rotation.random(count, random_state=0).as_matrix(), rng.normal(size=(count, 3))
    seen = np.column_stack([rng.uniform(-0.8, 0.8, (count, 2)), np.ones(count)]) * rng.uniform(1, 4, (count, 1))
    points = np.einsum('kji,kj->ki', poses[:, :3, :3], seen - poses[:, :3, 3])
    return torch.from_numpy(points), torch.from_numpy(poses), torch.from_numpy(seen)


@pytest.mark.parametrize('done', [0.0, 0.5, 0.999])
def test_reprojection_loss_by_opencv(done: float) -> None:
    points, poses, seen = scene()
    rays = seen[:, :2] / seen[:, 2:] + 0.01 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales, active = torch.full((40,), 0.05, dtype=torch.float64), torch.arange(40) % 4 != 0
    total, width = 0.0, 1 + 49 * math.sqrt(1 - done ** 2)
    for k in torch.nonzero(active)[:, 0]:
        turn, shift = cv2.Rodrigues(poses[k, :3, :3].numpy())[0], poses[k, :3, 3].numpy()
        image = cv2.projectPoints(points[k].numpy()[None], turn, shift, np.eye(3), None)[0]
        error = float(np.linalg.norm(image[0, 0] - rays[k].numpy()))
        total += width * math.tanh(300 * error / width) + error * float(seen[k, 2]) / 0.05 + 3 * math.log(0.05)
    ours = reprojection_loss(points, scales, rays, poses, active, 300.0, done)
    assert float(ours) == pytest.approx(total / int(active.sum()), rel=1e-9)


def test_points_behind_are_drawn_forward() -> None:
    """A step against the gradient brings a point behind the camera nearer to 3 m along its ray."""
    points, poses, seen = scene()
    behind = torch.einsum('kji,kj->ki', poses[:, :3, :3], -seen - poses[:, :3, 3]).requires_grad_()
    rays, every = seen[:, :2] / seen[:, 2:], torch.ones(40, dtype=torch.bool)
    loss = reprojection_loss(behind, torch.ones(40).double(), rays, poses, every, 300.0, 0.9)
    loss.backward()
    moved = (poses[:, :3, :3] @ (behind - 10 * behind.grad).detach()[..., None])[..., 0] + poses[:, :3, 3]
    aim = 3 * torch.cat([seen[:, :2] / seen[:, 2:], torch.ones(40, 1)], 1)
    assert ((moved - aim).norm(dim=1) < (-seen - aim).norm(dim=1)).all() and (moved[:, 2] > -seen[:, 2]).all()


def test_gradient_never_explodes() -> None:
    """Points at, just before and behind the camera centre."""
    points, poses, seen = scene()
    near = seen * torch.linspace(-0.1, 0.1, 40).double()[:, None]
    start = torch.einsum('kji,kj->ki', poses[:, :3, :3], near - poses[:, :3, 3]).requires_grad_()
    rays, every = seen[:, :2] / seen[:, 2:], torch.ones(40, dtype=torch.bool)
    reprojection_loss(start, torch.ones(40).double(), rays, poses, every, 300.0, 0.5).backward()
    assert start.grad.isfinite().all()
