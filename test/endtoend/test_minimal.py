"""Derivatives of minimal solvers against finite differences of the solvers themselves, and of Kabsch by SVD."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from differences import agreement, central, pose_weights
from scipy.spatial.transform import Rotation
from torch import Tensor

from dsac_ros.endtoend.minimal import from_rays, from_triangles
from dsac_ros.geometry import se3
from dsac_ros.geometry.kabsch import align_triangles
from dsac_ros.geometry.p3p import p3p

COUNT = 300
KINDS = ('room', 'close', 'wide', 'sliver')


def problems(kind: str, count: int = COUNT) -> tuple[Tensor, Tensor, Tensor]:
    """Bearings and points (K, 3, 3) and camera_from_map (K, 4, 4). room: points 0.3 to 6 m ahead in a 63 degree view; close: within 20 cm;
    wide: of a fisheye; sliver: one point 1 % of the longest side off the line of the others."""
    rng = np.random.default_rng(KINDS.index(kind))
    depth, image = rng.uniform(0.3, 6.0, (count, 3, 1)), rng.uniform(-0.6, 0.6, (count, 3, 2))
    if kind == 'close':
        image = image[:, :1] + rng.uniform(-0.05, 0.05, (count, 3, 2))
        depth = depth[:, :1] + rng.uniform(-0.1, 0.1, (count, 3, 1))
    if kind == 'wide':
        image = rng.uniform(-3, 3, (count, 3, 2))
    seen = np.concatenate([image, np.ones((count, 3, 1))], -1) * depth
    if kind == 'sliver':
        first, side = seen[:, 0], seen[:, 1] - seen[:, 0]
        across = np.cross(side, rng.normal(size=side.shape))
        across *= 0.01 * np.linalg.norm(side, axis=1, keepdims=True) / np.linalg.norm(across, axis=1, keepdims=True)
        seen[:, 2] = first + rng.uniform(0.2, 0.8, (count, 1)) * side + across
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3] = Rotation.random(count, random_state=1).as_matrix()
    pose[:, :3, 3] = rng.normal(size=(count, 3)) * 3
    points = (seen - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    return tuple(map(torch.from_numpy, (seen / np.linalg.norm(seen, axis=-1, keepdims=True), points, pose)))


def root_near(bearings: Tensor, points: Tensor, root: Tensor) -> Tensor:
    """The root of P3P that is nearest to a given one: slots may change places."""
    poses, valid = p3p(bearings.expand_as(points), points)
    distance = (poses - root[..., None, :, :]).abs().amax((-1, -2)).masked_fill(~valid, torch.inf)
    return poses.gather(-3, distance.argmin(-1)[..., None, None, None].expand(*distance.shape[:-1], 1, 4, 4))[..., 0, :, :]


def by_backward(solve: Callable[[Tensor], Tensor], points: Tensor, weights: Tensor) -> Tensor:
    """(K, 9) gradients by the points (K, 3, 3) of weighted sums of the entries of poses."""
    leaf = points.clone().requires_grad_()
    (solve(leaf) * weights).sum().backward()
    return leaf.grad.flatten(1)


@pytest.mark.parametrize('kind', KINDS)
def test_every_root_of_p3p(kind: str) -> None:
    bearings, points, _ = problems(kind)
    poses, valid = p3p(bearings, points)
    owner, slot = valid.nonzero(as_tuple=True)
    bearings, points, poses = bearings[owner], points[owner], poses[owner, slot]
    weights = pose_weights(0, len(poses))
    ours = by_backward(lambda leaf: from_rays(poses, torch.ones_like(owner, dtype=torch.bool), bearings, leaf), points, weights)
    true = central(lambda flat: (root_near(bearings, flat.unflatten(-1, (3, 3)), poses) * weights).sum((-1, -2)), points.flatten(1), 1e-6)
    sound = (ours != 0).any(-1)
    found = agreement(ours[sound], true[sound])
    print(f'P3P {kind}: {found}; {int((~sound).sum())} of {len(sound)} roots without gradient')
    assert found.within().all() and sound.double().mean() > 0.95
    # What has none has a derivative that says little of where the points should go.
    assert sound.all() or true[~sound].norm(dim=-1).median() > 3 * true[sound].norm(dim=-1).median()


def svd_kabsch(points: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Kabsch (1976) as in the textbook, and the sign of the determinant that he has to take care of."""
    centre, seen_centre = points.mean(-2), seen.mean(-2)
    u, _, vh = torch.linalg.svd((seen - seen_centre[..., None, :]).mT @ (points - centre[..., None, :]))
    sign = torch.linalg.det(u @ vh).sign()
    rotation = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ vh
    return se3.from_rotation_translation(rotation, seen_centre - (rotation @ centre[..., None])[..., 0]), sign


@pytest.mark.parametrize('noise', [0.0, 0.02, 0.5])
@pytest.mark.parametrize('kind', KINDS)
def test_aligned_triangles(kind: str, noise: float) -> None:
    """Against differences of the textbook's Kabsch, whose sign is negative in half of all minimal sets; with 50 cm of noise the triangles
    have nothing in common."""
    _, points, pose = problems(kind)
    seen = points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    seen = seen + noise * torch.randn(seen.shape, dtype=seen.dtype, generator=torch.Generator().manual_seed(1))
    poses, valid = align_triangles(points, seen)
    assert valid.all()
    weights = pose_weights(1, len(poses))
    ours = by_backward(lambda leaf: from_triangles(poses, valid, leaf, seen), points, weights)
    true = central(lambda flat: (svd_kabsch(flat.unflatten(-1, (3, 3)), seen)[0] * weights).sum((-1, -2)), points.flatten(1), 1e-7)
    reflected = svd_kabsch(points, seen)[1] < 0
    found = agreement(ours, true)
    print(f'triangles {kind}, {noise} m: {found}; {int(reflected.sum())} of {len(points)} reflected')
    assert found.within().all() and 0.3 < reflected.double().mean() < 0.7


def test_no_gradient_on_the_danger_cylinder() -> None:
    """A camera above the circumcircle of its three points: two roots are one there, and the equations are singular (Smith 1965)."""
    angles = torch.tensor([0.3, 2.0, 4.5], dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin(), torch.zeros(3, dtype=torch.float64)], -1)
    centre = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    for lean, sound in ((0.0, False), (0.3, True)):
        seen = circle - centre - torch.tensor([lean, 0.0, 0.0], dtype=torch.float64)
        pose = se3.from_rotation_translation(torch.eye(3, dtype=torch.float64), seen[0] - circle[0])[None]
        bearings = torch.nn.functional.normalize(seen, dim=-1)[None]
        solve = partial(from_rays, pose, torch.tensor([True]), bearings)
        ours = by_backward(solve, circle[None], pose_weights(3, 1))
        assert (ours != 0).any() == sound and ours.isfinite().all()


SPOILT = {'twice the same': lambda points: points.__setitem__((slice(None), 1), points[:, 0]),
          'on a line': lambda points: points.__setitem__((slice(None), 2), 2 * points[:, 1] - points[:, 0]),
          'all the same': lambda points: points.copy_(points[:, :1].expand_as(points)),
          'no number': lambda points: points.__setitem__((0, 0, 0), torch.nan),
          'infinite': lambda points: points.__setitem__((slice(None), 2), torch.inf),
          'huge': lambda points: points.mul_(1e15)}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('spoil', SPOILT)
def test_sets_without_a_pose_have_no_gradient(spoil: str, dtype: torch.dtype) -> None:
    bearings, points, pose = (values.to(dtype) for values in problems('room', 20))
    seen = points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    spoilt = points.clone()
    SPOILT[spoil](spoilt)
    changed = ~torch.isclose(spoilt, points, equal_nan=False).flatten(1).all(1)
    weights = pose_weights(4, 20).to(dtype)
    poses, valid = p3p(bearings, spoilt)
    ours = by_backward(lambda leaf: from_rays(poses[:, 0], valid[:, 0], bearings, leaf), spoilt, weights)
    poses, valid = align_triangles(spoilt, seen)
    triangles = by_backward(lambda leaf: from_triangles(poses, valid, leaf, seen), spoilt, weights)
    assert ours.isfinite().all() and triangles.isfinite().all()
    if spoil != 'huge':  # then it is only another scene
        assert changed.any() and (ours[changed] == 0).all() and (triangles[changed] == 0).all()


@pytest.mark.parametrize('kind', KINDS)
def test_float32(kind: str) -> None:
    """Finite everywhere, and near the gradient in float64 where the solver is near its pose."""
    bearings, points, pose = problems(kind)
    seen = points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    everyone, found = torch.ones(len(points), dtype=torch.bool), {}
    for dtype in (torch.float32, torch.float64):
        rays, own, weights = bearings.to(dtype), points.to(dtype), pose_weights(5, len(points)).to(dtype)
        near, aligned = root_near(rays, own, pose.to(dtype)), align_triangles(own, seen.to(dtype))
        found[dtype] = [by_backward(partial(from_rays, near, everyone, rays), own, weights).double(),
                        by_backward(partial(from_triangles, *aligned, seen_K33=seen.to(dtype)), own, weights).double()]
    for single, double in zip(found[torch.float32], found[torch.float64]):
        assert single.isfinite().all()
        assert agreement(single, double).within().double().mean() > (0.5 if kind == 'sliver' else 0.9)
