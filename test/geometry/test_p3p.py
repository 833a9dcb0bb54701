"""P3P against PoseLib (Lambda Twist) and OpenCV on thousands of random problems, and on everything that is none."""
from __future__ import annotations

import cv2
import numpy as np
import poselib
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.geometry.p3p import p3p

COUNT = 10_000


def problems(count: int, seed: int, kind: str = 'room') -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit bearings (K, 3, 3), points (K, 3, 3) and camera_from_map (K, 4, 4); 'room': points 0.3 to 6 m ahead in a 63 degree view."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 6.0, (count, 3, 1))
    image = rng.uniform(-0.6, 0.6, (count, 3, 2))
    if kind == 'close':  # all within some 20 cm
        image = image[:, :1] + rng.uniform(-0.05, 0.05, (count, 3, 2))
        depth = depth[:, :1] + rng.uniform(-0.1, 0.1, (count, 3, 1))
    if kind == 'wide':
        image = rng.uniform(-3, 3, (count, 3, 2))
    seen = np.concatenate([image, np.ones((count, 3, 1))], -1) * depth
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    pose[:, :3, 3] = rng.normal(size=(count, 3)) * 3
    points = (seen - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    return seen / np.linalg.norm(seen, axis=-1, keepdims=True), points, pose


def solved(bearings: np.ndarray, points: np.ndarray, dtype: torch.dtype = torch.float64) -> tuple[np.ndarray, np.ndarray]:
    poses, valid = p3p(torch.from_numpy(bearings).to(dtype), torch.from_numpy(points).to(dtype))
    assert poses.dtype == dtype and poses.isfinite().all()
    return poses.double().numpy(), valid.numpy()


def distance(poses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Largest difference of an entry (rotation, or translation in metres)."""
    return np.abs(poses - truth).max((-1, -2))


def poselib_roots(bearings: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
    out = []
    for x, X in zip(bearings, points):
        roots = [np.vstack([pose.Rt, [0, 0, 0, 1]]) for pose in poselib.p3p(x, X)]
        out.append(np.array(roots).reshape(-1, 4, 4))
    return out


@pytest.mark.parametrize('kind', ['room', 'close', 'wide'])
def test_finds_the_true_pose_as_often_as_poselib(kind: str) -> None:
    bearings, points, truth = problems(COUNT, 1, kind)
    poses, valid = solved(bearings, points)
    ours = np.where(valid, distance(poses, truth[:, None]), np.inf).min(1)
    theirs = np.array([min(distance(roots, true), default=np.inf) for roots, true in zip(poselib_roots(bearings, points), truth)])
    for tolerance in (1e-3, 1e-5):
        # Slivers (angle below MIN_SINE) are refused on purpose: a few in ten thousand random triangles.
        assert (ours < tolerance).mean() >= (theirs < tolerance).mean() - 5e-4, (tolerance, (ours < tolerance).mean())
    assert np.median(ours) < 1e-12


def test_finds_every_root_that_poselib_finds_and_nothing_else() -> None:
    bearings, points, _ = problems(COUNT, 2)
    poses, valid = solved(bearings, points)
    missing = extra = total = 0
    for k, roots in enumerate(poselib_roots(bearings, points)):
        total += len(roots)
        missing += sum(not (distance(poses[k][valid[k]], root) < 1e-4).any() for root in roots)
        extra += sum(not (distance(roots, pose) < 1e-4).any() for pose in poses[k][valid[k]])
    # Double roots are told apart by rounding, hence either solver may have some that the other lacks.
    assert total > 1.5 * COUNT and missing <= 2e-3 * total and extra <= 2e-3 * total, (missing, extra, total)


def test_finds_the_roots_of_opencv() -> None:
    bearings, points, _ = problems(300, 3)
    poses, valid = solved(bearings, points)
    missing = total = 0
    for k in range(300):
        image = np.ascontiguousarray(bearings[k, :, :2] / bearings[k, :, 2:])
        count, turns, shifts = cv2.solveP3P(points[k], image, np.eye(3), None, cv2.SOLVEPNP_AP3P)
        for turn, shift in zip(turns[:count], shifts[:count]):
            root = np.eye(4)
            root[:3, :3], root[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
            seen = points[k] @ root[:3, :3].T + root[:3, 3]
            if (seen[:, 2] > 0).all() and np.abs(seen[:, :2] / seen[:, 2:] - image).max() < 1e-8:  # OpenCV returns false ones, too
                total += 1
                missing += not (distance(poses[k][valid[k]], root) < 1e-4).any()
    assert total > 400 and missing <= 2, (missing, total)


@pytest.mark.parametrize('kind', ['room', 'close', 'wide'])
def test_every_valid_root_is_a_rotation_that_sees_the_points(kind: str) -> None:
    bearings, points, _ = problems(COUNT, 4, kind)
    poses, valid = solved(bearings, points)
    poses, owner = poses[valid], np.nonzero(valid)[0]
    np.testing.assert_allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (len(poses), 1, 1)), atol=1e-8)
    assert (np.linalg.det(poses[:, :3, :3]) > 0).all()
    seen = points[owner] @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
    angle = np.linalg.norm(np.cross(seen / np.linalg.norm(seen, axis=-1, keepdims=True), bearings[owner]), axis=-1).max(1)
    assert ((seen * bearings[owner]).sum(-1) > 0).all()  # in front, along the bearing
    # residual < 1e-3 of the squared side is what validity promises; nearly all are exact
    assert np.quantile(angle, 0.999) < 1e-6 and angle.max() < 0.02


@pytest.mark.parametrize('kind', ['room', 'wide'])
def test_float32_finds_the_true_pose(kind: str) -> None:
    """float32 has 1e-7; near a double root, of some share of random triangles, the pose moves with its square root, hence shares."""
    bearings, points, truth = problems(COUNT, 5, kind)
    poses, valid = solved(bearings, points, torch.float32)
    error = np.where(valid, distance(poses, truth[:, None]), np.inf).min(1)
    shares = [(error < tolerance).mean() for tolerance in (1e-3, 1e-2, 1e-1)]
    assert np.median(error) < 1e-5 and shares[0] > 0.995 and shares[1] > 0.998 and shares[2] > 0.999, shares  # 0.994 without the polish


def test_the_order_of_the_points_does_not_matter() -> None:
    bearings, points, truth = problems(500, 6)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [2, 1, 0], [1, 0, 2]):
        poses, valid = solved(bearings[:, order], points[:, order])
        error = np.where(valid, distance(poses, truth[:, None]), np.inf).min(1)
        assert (error < 1e-5).mean() > 0.995


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_degenerate_sets_are_masked(dtype: torch.dtype) -> None:
    bearings, points, truth = problems(10, 7)
    points[1] = points[1, 0] + np.outer([0.0, 1.0, 2.5], [0.3, -0.2, 0.9])  # on a line
    points[2] = points[2, 0]  # one point three times
    points[3, 1], bearings[3, 1] = points[3, 0], bearings[3, 0]  # an index drawn twice
    points[4, 2, 1] = np.nan
    bearings[5, 0] = np.nan
    points[6, 0, 0] = np.inf
    points[7] = 0.0
    points[8] = points[8, 0] + 1e-30 * points[8]
    poses, valid = solved(bearings, points, dtype)
    assert not valid[1:9].any()
    np.testing.assert_array_equal(poses[1:9], np.tile(np.eye(4), (8, 4, 1, 1)))
    for k in (0, 9):
        assert distance(poses[k][valid[k]], truth[k]).min() < (1e-9 if dtype == torch.float64 else 1e-2)


def test_equal_bearings_of_different_points_are_never_solved_wrongly() -> None:
    """Two points on one ray may be seen; three on one ray may not."""
    bearings, points, _ = problems(200, 8)
    bearings[:] = bearings[:, :1]
    assert not solved(bearings, points)[1].any()


def test_points_behind_the_camera_are_not_taken_for_seen() -> None:
    """Turn every bearing round: the mirrored poses put the points along them; none may put a point against its bearing."""
    bearings, points, truth = problems(1000, 9)
    poses, valid = solved(-bearings, points)
    owner = np.nonzero(valid)[0]
    seen = points[owner] @ poses[valid][:, :3, :3].transpose(0, 2, 1) + poses[valid][:, None, :3, 3]
    assert ((seen * -bearings[owner]).sum(-1) > 0).all()
    assert not (distance(poses, truth[:, None])[valid] < 1e-6).any()


@pytest.mark.parametrize(('dtype', 'size'), [(torch.float64, 1e-6), (torch.float64, 1e9), (torch.float64, 1e60), (torch.float64, 1e160),
                                             (torch.float32, 1e5), (torch.float32, 1e15), (torch.float32, 1e30)])
def test_scale_is_solved_or_masked(dtype: torch.dtype, size: float) -> None:
    bearings, points, truth = problems(200, 10)
    poses, valid = solved(bearings, points * size, dtype)  # asserts that all is finite
    if size in (1e-6, 1e9):
        scaled = truth.copy()
        scaled[:, :3, 3] *= size
        units = np.array([1, 1, 1, size])
        error = np.where(valid, np.abs((poses - scaled[:, None]) / units).max((-1, -2)), np.inf).min(1)
        assert (error < 1e-5).mean() > 0.99


def test_gradient_is_finite_and_right() -> None:
    """The next issue differentiates through P3P; away from double roots it equals finite differences already."""
    bearings, points, truth = problems(20, 11)
    x = torch.from_numpy(points).requires_grad_()
    poses, valid = p3p(torch.from_numpy(bearings), x)
    (poses * valid[..., None, None]).sum().backward()
    assert x.grad.isfinite().all()


def test_leading_dimensions() -> None:
    bearings, points, _ = problems(6, 12)
    flat, valid = p3p(torch.from_numpy(bearings), torch.from_numpy(points))
    deep, deep_valid = p3p(torch.from_numpy(bearings).view(2, 3, 3, 3), torch.from_numpy(points).view(2, 3, 3, 3))
    assert deep.shape == (2, 3, 4, 4, 4) and torch.equal(deep.flatten(0, 1), flat) and torch.equal(deep_valid.flatten(0, 1), valid)
