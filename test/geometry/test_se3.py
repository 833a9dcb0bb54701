"""Rigid transforms against SciPy and the matrix exponential."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.geometry import se3


def random_transforms(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    out = np.tile(np.eye(4), (count, 1, 1))
    out[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    out[:, :3, 3] = rng.normal(size=(count, 3)) * 5
    return torch.from_numpy(out)


# Angles on both sides of the switch to the series (1e-4 rad), at pi and beyond a whole turn.
ANGLES = (0.0, 1e-12, 1e-6, 0.99e-4, 1.01e-4, 1e-3, 0.1, 1.0, 3.0, np.pi - 1e-9, np.pi, 4.0, 2 * np.pi, 7.0)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_so3_exp_is_that_of_scipy_and_of_the_matrix_exponential(dtype: torch.dtype, tolerance: float) -> None:
    """A few ulp of 1 in float64; float32 loses digits in 1 - cos near the switch, and in sin(7 rad)."""
    axes = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(1).normal(size=(40, 3))), dim=-1)
    omega = (axes[:, None] * torch.tensor(ANGLES, dtype=torch.float64)[:, None]).to(dtype)
    ours = se3.so3_exp(omega)
    assert ours.dtype == dtype and ours.shape == (40, len(ANGLES), 3, 3)
    scipy = Rotation.from_rotvec(omega.double().reshape(-1, 3).numpy()).as_matrix().reshape(ours.shape)
    np.testing.assert_allclose(ours.double().numpy(), scipy, atol=tolerance)
    np.testing.assert_allclose(ours.double().numpy(), torch.matrix_exp(se3.skew(omega.double())).numpy(), atol=tolerance + 3e-14)


def test_so3_exp_has_the_gradient_of_the_matrix_exponential_also_at_zero() -> None:
    for scale in (0.0, 1e-6, 1e-4, 0.5):
        omega = scale * torch.tensor([0.3, -0.8, 0.52], dtype=torch.float64)
        ours = torch.autograd.functional.jacobian(se3.so3_exp, omega)
        expected = torch.autograd.functional.jacobian(lambda w: torch.matrix_exp(se3.skew(w)), omega)
        assert ours.isfinite().all()
        # Beside the switch the coefficient (1 - cos) / angle^2 keeps 1e-8, and its derivative, times angle^2, 1e-9.
        torch.testing.assert_close(ours, expected, atol=1e-8, rtol=0)


def test_skew_is_the_cross_product() -> None:
    v, x = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close((se3.skew(v) @ x[..., None])[..., 0], torch.linalg.cross(v, x), atol=1e-15, rtol=0)


def test_rotation_angle_is_exact_near_zero_and_near_half_a_turn() -> None:
    axes = Rotation.random(30, random_state=3).apply([0.0, 0.0, 1.0])
    for angle in (0.0, 1e-9, 1e-5, 0.3, 2.0, np.pi - 1e-6, np.pi):
        ours = se3.rotation_angle(torch.from_numpy(Rotation.from_rotvec(angle * axes).as_matrix()))
        # acos of the trace would be off by 1e-8 at both ends
        np.testing.assert_allclose(ours.numpy(), angle, atol=1e-14)


def test_inverse_and_composition() -> None:
    transforms = random_transforms(50)
    np.testing.assert_allclose(se3.inverse(transforms).numpy(), np.linalg.inv(transforms.numpy()), atol=1e-13)
    torch.testing.assert_close(se3.inverse(transforms) @ transforms, torch.eye(4, dtype=torch.float64).expand(50, 4, 4), atol=1e-13, rtol=0)
    rebuilt = se3.from_rotation_translation(transforms[..., :3, :3], transforms[..., :3, 3])
    assert torch.equal(rebuilt, transforms)


def test_retract_moves_a_point_as_documented() -> None:
    transforms = random_transforms(20, 1)
    rng = np.random.default_rng(2)
    tangent, x = rng.normal(size=(20, 6)), rng.normal(size=(20, 3))
    moved = se3.retract(transforms, torch.from_numpy(tangent)).numpy()
    first = np.einsum('kij,kj->ki', transforms[:, :3, :3].numpy(), x) + transforms[:, :3, 3].numpy()
    expected = Rotation.from_rotvec(tangent[:, :3]).apply(first) + tangent[:, 3:]
    np.testing.assert_allclose(np.einsum('kij,kj->ki', moved[:, :3, :3], x) + moved[:, :3, 3], expected, atol=1e-13)
    np.testing.assert_array_equal(moved[:, 3], np.tile([0.0, 0, 0, 1], (20, 1)))


def test_nearest_rotation_is_the_closest_of_all() -> None:
    rng = np.random.default_rng(4)
    exact = Rotation.random(20, random_state=5).as_matrix()
    matrices = exact + 0.05 * rng.normal(size=exact.shape)
    matrices[0] = np.diag([1.0, 1.0, -0.9])  # closer to a reflection
    ours = se3.nearest_rotation(torch.from_numpy(matrices)).numpy()
    np.testing.assert_allclose(ours @ ours.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-14)
    assert (np.linalg.det(ours) > 0).all()
    distance = np.linalg.norm(ours - matrices, axis=(1, 2))
    for _ in range(300):
        other = Rotation.from_rotvec(0.02 * rng.normal(size=(20, 3))).as_matrix() @ ours
        assert (np.linalg.norm(other - matrices, axis=(1, 2)) >= distance - 1e-12).all()
