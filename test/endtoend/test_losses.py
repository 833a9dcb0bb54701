"""The pose loss against SciPy's angle and differences, most of all where others fail: at the truth, near half a turn, at the cut-off."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from differences import agreement, central
from scipy.spatial.transform import Rotation
from torch import Tensor

from dsac_ros.endtoend.losses import ROUNDING, pose_loss
from dsac_ros.geometry import se3

ANGLES = (1e-9, 1e-6, 1e-3, 0.3, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6)


def turned(angles: np.ndarray, metres: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Estimates (1, K, 4, 4) that are turned about random axes and shifted away from the truth (1, 4, 4)."""
    rng = np.random.default_rng(seed)
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3)
    axes, shifts = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in rng.normal(size=(2, len(angles), 3)))
    estimates = np.tile(truth, (len(angles), 1, 1))
    estimates[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * axes).as_matrix() @ truth[:3, :3]
    estimates[:, :3, 3] += metres * shifts
    return torch.from_numpy(estimates)[None], torch.from_numpy(truth)[None]


def by_tangent(estimates: Tensor, truth: Tensor, **options: float) -> Tensor:
    """(K, 6) gradient by a left perturbation."""
    tangent = torch.zeros(*estimates.shape[:2], 6, dtype=estimates.dtype, requires_grad=True)
    pose_loss(se3.retract(estimates, tangent), truth, **options).sum().backward()
    return tangent.grad[0]


def test_value_is_that_of_scipy() -> None:
    angles = np.linspace(0.01, math.pi, 30)
    estimates, truth = turned(angles, 0.2)
    expected = sum(math.hypot(value, ROUNDING) - ROUNDING for value in (7.0, 0.0)) + np.hypot(2 * np.degrees(angles), ROUNDING) - ROUNDING
    np.testing.assert_allclose(pose_loss(estimates, truth, 2.0, 35.0, 1e9)[0], expected, rtol=1e-9)


@pytest.mark.parametrize('metres', [1e-9, 1e-4, 0.03, 2.0])
@pytest.mark.parametrize('angle', ANGLES)
def test_gradient(angle: float, metres: float) -> None:
    """By differences that are small beside the distances to the truth and to half a turn, and beside the rounding."""
    estimates, truth = turned(np.full(20, angle), metres)
    step = min(1e-5, max(angle, 1e-5), 0.05 * (math.pi - angle))
    true = central(lambda flat: pose_loss(se3.retract(estimates, flat), truth).flatten(1), torch.zeros(20, 6, dtype=torch.float64), step)
    found = agreement(by_tangent(estimates, truth), true)
    assert true.norm(dim=-1).min() > 0 and found.within().all(), str(found)


def test_no_gradient_at_the_truth_and_none_that_jumps() -> None:
    """0 at the truth and proportional to the distance near it, in place of a unit vector that turns around."""
    for dtype in (torch.float32, torch.float64):
        estimates, truth = (values.to(dtype) for values in turned(np.zeros(5), 0.0))
        estimates = truth[:, None].expand(1, 5, 4, 4)
        assert (by_tangent(estimates, truth) == 0).all() and (pose_loss(estimates, truth) == 0).all()
    small, half = (by_tangent(*turned(np.full(5, size), size)) for size in (2e-5, 1e-5))
    torch.testing.assert_close(small, 2 * half, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_and_bounded_everywhere(dtype: torch.dtype) -> None:
    """In radians and metres: a degree's weight for each degree, 100 for a metre and what the lever makes of a turn."""
    angles = np.concatenate([[0.0, math.pi], math.pi - np.logspace(-16, -1, 40), np.logspace(-16, -1, 40)])
    estimates, truth = (values.to(dtype) for values in turned(angles, 0.01))
    gradient = by_tangent(estimates, truth, cut_off=1e9)
    bound = math.degrees(1) + 100 * (1 + estimates[0, :, :3, 3].norm(dim=-1))
    assert gradient.isfinite().all() and (gradient.norm(dim=-1) <= 1.01 * bound).all()


def test_beyond_the_cut_off_it_is_the_root_with_the_gradient_of_the_root() -> None:
    estimates, truth = turned(np.full(1, 0.2), 1.0)
    plain, plain_gradient = pose_loss(estimates, truth, cut_off=1e9), by_tangent(estimates, truth, cut_off=1e9)
    cut, cut_gradient = pose_loss(estimates, truth, cut_off=50.0), by_tangent(estimates, truth, cut_off=50.0)
    assert plain > 100
    torch.testing.assert_close(cut, (50 * plain).sqrt())
    torch.testing.assert_close(cut_gradient, 0.5 * (50 / plain[0])[:, None].sqrt() * plain_gradient)
    near = [pose_loss(estimates, truth, cut_off=float(plain) + shift) for shift in (-1e-6, 1e-6)]
    assert abs(float(near[0] - near[1])) < 1e-5
