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


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_cayley_turns_by_twice_the_arc_tangent_of_half_the_length(dtype: torch.dtype, tolerance: float) -> None:
    """A few ulp of 1; from nothing to nearly half a turn (|omega| = 1e4 is 0.02 mrad short of it)."""
    axes = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(1).normal(size=(40, 3))), dim=-1)
    omega = (axes[:, None] * torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 3.0, 20.0, 1e4], dtype=torch.float64)[:, None]).to(dtype)
    ours = se3.cayley(omega)
    assert ours.dtype == dtype and ours.shape == (40, 9, 3, 3)
    length = omega.double().norm(dim=-1, keepdim=True)
    vectors = omega.double() * torch.where(length > 0, 2 * torch.atan(length / 2) / length.clamp(min=1e-300), 1.0)
    expected = Rotation.from_rotvec(vectors.reshape(-1, 3).numpy()).as_matrix().reshape(ours.shape)
    np.testing.assert_allclose(ours.double().numpy(), expected, atol=tolerance)


def test_cayley_is_the_exponential_to_the_second_order() -> None:
    """2 atan(x / 2) is x - x^3 / 12; the derivatives at zero are those of the matrix exponential, too."""
    omega = torch.from_numpy(np.random.default_rng(2).normal(size=(50, 3)))
    for size in (0.1, 0.01):
        small = size * torch.nn.functional.normalize(omega, dim=-1)
        gap = (se3.cayley(small) - torch.matrix_exp(se3.skew(small))).norm(dim=(-2, -1))
        # In the Frobenius norm a turn by so little more is sqrt(2) of it.
        torch.testing.assert_close(gap, torch.full_like(gap, 2 ** 0.5 * size ** 3 / 12), rtol=0.01, atol=0)
    zero = torch.zeros(3, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda w: torch.matrix_exp(se3.skew(w)), zero)
    torch.testing.assert_close(torch.autograd.functional.jacobian(se3.cayley, zero), expected, atol=1e-15, rtol=0)


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
    length = np.linalg.norm(tangent[:, :3], axis=1, keepdims=True)
    expected = Rotation.from_rotvec(tangent[:, :3] * 2 * np.arctan(length / 2) / length).apply(first) + tangent[:, 3:]
    np.testing.assert_allclose(np.einsum('kij,kj->ki', moved[:, :3, :3], x) + moved[:, :3, 3], expected, atol=1e-13)
    np.testing.assert_array_equal(moved[:, 3], np.tile([0.0, 0, 0, 1], (20, 1)))


def test_difference_is_the_tangent_that_was_retracted() -> None:
    """Exactly, up to 3 rad: there 1 + trace keeps 1 / 200 of the digits of its terms. In kilometres, 1e3 of them go to the coordinates."""
    reference = random_transforms(200, 3)
    rng = np.random.default_rng(4)
    omega = rng.normal(size=(200, 3))
    omega *= 2 * np.tan(rng.uniform(0, 3.0, (200, 1)) / 2) / np.linalg.norm(omega, axis=1, keepdims=True)
    tangent = torch.from_numpy(np.hstack([omega, rng.normal(size=(200, 3))]))
    torch.testing.assert_close(se3.difference(se3.retract(reference, tangent), reference), tangent, atol=1e-12, rtol=1e-12)
    far = reference.clone()
    far[:, :3, 3] *= 1000
    torch.testing.assert_close(se3.difference(se3.retract(far, tangent), far), tangent, atol=1e-9, rtol=1e-9)
    assert (se3.difference(reference, reference).abs() < 1e-14).all()


def test_difference_is_that_of_the_cameras_wherever_the_map_begins() -> None:
    """The translation of a left perturbation is a shift of the camera, hence no lever of the map's origin enters."""
    first, second = random_transforms(30, 5), random_transforms(30, 6)
    origin = torch.eye(4, dtype=torch.float64)
    origin[:3, 3] = torch.tensor([1000.0, -500.0, 20.0])
    ours = se3.difference(first, second)
    torch.testing.assert_close(se3.difference(first @ origin, second @ origin), ours, atol=1e-9, rtol=1e-9)
    centres = [-(t[:, :3, :3].mT @ t[:, :3, 3:])[..., 0] for t in (first, second)]
    torch.testing.assert_close(ours[:, 3:].norm(dim=-1), (centres[0] - centres[1]).norm(dim=-1), atol=1e-12, rtol=1e-12)


def test_difference_stays_finite_at_half_a_turn() -> None:
    """Where Cayley's parameters are infinite: about three axes, and one step short of it."""
    for angle in (np.pi, np.pi - 1e-9, np.pi - 1e-3):
        for axis in np.eye(3):
            turned = torch.eye(4, dtype=torch.float64)
            turned[:3, :3] = torch.from_numpy(Rotation.from_rotvec(angle * axis).as_matrix())
            assert se3.difference(turned, torch.eye(4, dtype=torch.float64)).isfinite().all()


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
