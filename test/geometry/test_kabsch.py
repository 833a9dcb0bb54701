"""Triangles against SciPy's align_vectors; degenerate ones have to be masked."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.geometry.kabsch import align_triangles


def problems(count: int, n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, targets and the transforms between them."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(count, n, 3)) * rng.uniform(0.2, 5, (count, 1, 1)) + rng.normal(size=(count, 1, 3)) * 4
    transform = np.tile(np.eye(4), (count, 1, 1))
    transform[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    transform[:, :3, 3] = rng.normal(size=(count, 3)) * 3
    target = source @ transform[:, :3, :3].transpose(0, 2, 1) + transform[:, None, :3, 3] + noise * rng.normal(size=source.shape)
    return source, target, transform


def by_scipy(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    w = weights / weights.sum()
    centre_s, centre_t = w @ source, w @ target
    rotation = Rotation.align_vectors(target - centre_t, source - centre_s, weights=weights)[0].as_matrix()
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, centre_t - rotation @ centre_s
    return out


@pytest.mark.parametrize('noise', [0.0, 0.05, 3.0])
def test_triangles_are_aligned_by_least_squares_as_scipy_does(noise: float) -> None:
    """Up to triangles that have nothing to do with each other; the rotation is determined up to eps over their angle and their likeness."""
    source, target, transform = problems(300, 3, noise, 10)
    ours, valid = align_triangles(torch.from_numpy(source), torch.from_numpy(target))
    assert valid.double().mean() > 0.98
    weights, errors = np.ones(3), []
    for k in np.flatnonzero(valid.numpy()):
        best = by_scipy(source[k], target[k], weights)
        costs = [np.linalg.norm(source[k] @ pose[:3, :3].T + pose[:3, 3] - target[k]) for pose in (ours[k].numpy(), best)]
        assert costs[0] <= costs[1] + 1e-9
        errors.append(np.abs(ours[k].numpy() - best).max())
    assert np.quantile(errors, 0.98) < 1e-9 and max(errors) < 1e-6, np.sort(errors)[-5:]
    if noise == 0.0:
        np.testing.assert_allclose(ours[valid].numpy(), transform[valid.numpy()], atol=1e-9)


def test_float32_is_good_to_a_tenth_of_a_millimetre() -> None:
    """Coordinates of some 10 m have 1e-6 m in float32, a lever of 10 over the smallest triangles that count."""
    source, target, transform = problems(500, 3, 0.0, 3)
    ours, valid = align_triangles(torch.from_numpy(source).float(), torch.from_numpy(target).float())
    error = np.abs(ours.double().numpy() - transform).max((1, 2))[valid.numpy()]
    assert valid.double().mean() > 0.98 and np.median(error) < 1e-5 and np.quantile(error, 0.95) < 1e-3


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_degenerate_sets_are_masked_and_do_not_spoil_their_neighbours(dtype: torch.dtype) -> None:
    source, target, transform = problems(9, 3, 0.0, 6)
    source[1] = [[0, 0, 0], [1, 2, 3], [2, 4, 6]]  # on a line
    target[1] = source[1] + 1
    source[2] = target[2] = 1.5  # one point
    source[3, 1] = source[3, 0]  # a repeated index
    target[3, 1] = target[3, 0]
    source[4, 0, 0] = np.nan
    target[5, 2, 1] = np.inf
    source[6] = target[6] = 0
    target[7] = 2.0  # all measured at one place
    ours, valid = align_triangles(torch.from_numpy(source).to(dtype), torch.from_numpy(target).to(dtype))
    assert valid.tolist() == [True] + [False] * 7 + [True]
    assert ours.isfinite().all()
    assert torch.equal(ours[1:8], torch.eye(4, dtype=dtype).expand(7, 4, 4))
    np.testing.assert_allclose(ours[[0, 8]].double().numpy(), transform[[0, 8]], atol=1e-12 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize(('dtype', 'size'), [(torch.float64, 1e9), (torch.float64, 1e30), (torch.float32, 1e6), (torch.float32, 1e25)])
def test_huge_coordinates_are_solved_or_masked(dtype: torch.dtype, size: float) -> None:
    source, target, _ = problems(20, 3, 0.0, 7)
    ours, valid = align_triangles(torch.from_numpy(source * size).to(dtype), torch.from_numpy(target * size).to(dtype))
    assert ours.isfinite().all() and valid.dtype == torch.bool


def test_leading_dimensions() -> None:
    source, target, transform = problems(12, 3, 0.0, 8)
    ours, valid = align_triangles(torch.from_numpy(source).view(3, 4, 3, 3), torch.from_numpy(target).view(3, 4, 3, 3))
    assert ours.shape == (3, 4, 4, 4) and valid.shape == (3, 4)
    np.testing.assert_allclose(ours.view(12, 4, 4).numpy(), transform, atol=1e-9)
    none, mask = align_triangles(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3))
    assert none.shape == (0, 4, 4) and mask.shape == (0,)
