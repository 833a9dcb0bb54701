"""Hypotheses by what they have to fulfil: one of them is the truth, and all of them see their own minimal set."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch

from dsac_ros.ransac.minimal import hypotheses_from_points, hypotheses_from_rays

SETS = torch.tensor([[[0, 1, 2], [3, 4, 5], [6, 6, 7], [8, 9, 10]]])  # 5 is not usable, 6 is drawn twice


@pytest.mark.parametrize('rig', [False, True])
def test_clean_sets_are_solved_and_unusable_or_repeated_ones_masked(rig: bool, device: str) -> None:
    scene = scenes.scene(6, 'rgbd', count=40, rig=rig)
    usable = torch.ones(1, 40, dtype=torch.bool)
    usable[0, 5] = False
    problem, truth = scenes.on(device, replace(scene.problem, usable_BN=usable)), torch.from_numpy(scene.truth)
    for solve, roots in ((hypotheses_from_rays, 4), (hypotheses_from_points, 1)):
        poses, valid = (values.cpu() for values in solve(problem, SETS.to(device)))
        assert poses.shape == (1, 4 * roots, 4, 4) and poses.isfinite().all()
        valid, error = valid.view(4, roots), (poses - truth).abs().amax((2, 3)).view(4, roots)
        assert valid.any(1).tolist() == [True, False, False, True]
        assert all(error[k][valid[k]].min() < 1e-6 for k in (0, 3))


@pytest.mark.parametrize('rig', [False, True])
def test_every_valid_root_sees_its_points_along_their_rays(rig: bool) -> None:
    """Of both cameras of a rig: 400 sets, half of them in each. Near double roots P3P keeps 1e-3 of a side, all else is exact."""
    scene = scenes.scene(7, noise=0.3, rig=rig)
    rng = np.random.default_rng(0)
    sets = torch.from_numpy(np.vstack([rng.integers(0, 300, (200, 3)), rng.integers(300, 600, (200, 3))]))[None]
    poses, valid = hypotheses_from_rays(scene.problem, sets)
    values = {name: value[0].numpy() for name, value in scenes.tensors(scene.problem).items()}
    angles = []
    for row in np.flatnonzero(valid[0].numpy()):
        members = sets[0, row // 4].numpy()
        seen = scenes.moved(poses[0, row].numpy(), values['points_BN3'][members])
        seen = seen - (values['origins_BN3'][members] if rig else 0)
        rays = values['bearings_BN3'][members]
        assert ((seen * rays).sum(1) > 0).all()
        angles.append(np.linalg.norm(np.cross(seen / np.linalg.norm(seen, axis=1, keepdims=True), rays), axis=1).max())
    assert len(angles) > 400 and np.quantile(angles, 0.99) < 1e-6 and max(angles) < 0.02


def test_sets_with_a_member_without_depth_are_no_measured_sets() -> None:
    scene = scenes.scene(8, 'holes', count=40)
    depth = scene.problem.ranges_BN[0] > 0
    rng = np.random.default_rng(1)
    sets = torch.from_numpy(np.array([rng.permutation(40)[:3] for _ in range(200)]))[None]
    poses, valid = hypotheses_from_points(scene.problem, sets)
    assert torch.equal(valid[0], depth[sets[0]].all(-1)) and 5 < valid.sum() < 100
    torch.testing.assert_close(poses[valid], torch.from_numpy(scene.truth).expand(int(valid.sum()), 4, 4), atol=1e-9, rtol=0)


def test_measured_sets_may_be_of_several_cameras() -> None:
    scene = scenes.scene(9, 'rgbd', count=40, rig=True)
    poses, valid = hypotheses_from_points(scene.problem, torch.tensor([[[0, 1, 30], [35, 2, 39]]]))
    assert valid.all()
    torch.testing.assert_close(poses[0], torch.from_numpy(scene.truth).expand(2, 4, 4), atol=1e-9, rtol=0)
