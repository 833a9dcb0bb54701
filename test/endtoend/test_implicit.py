"""One Newton step has the derivative of what it leads to; what is singular has none."""
from __future__ import annotations

import pytest
import scenes
import torch

from dsac_ros.endtoend.implicit import inverse, with_gradient
from dsac_ros.geometry import se3


def test_derivative_is_that_of_the_perturbation() -> None:
    pose = torch.from_numpy(scenes.pose(0))
    tangent = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.functional.jacobian(lambda t: with_gradient(pose, t, torch.tensor(True)), tangent)
    true = torch.autograd.functional.jacobian(lambda t: se3.retract(pose, t), tangent)
    torch.testing.assert_close(ours, true)


def test_value_is_left_alone_and_unsound_ones_have_no_gradient() -> None:
    poses = torch.from_numpy(scenes.pose(1)).expand(2, 4, 4)
    tangent = torch.full((2, 6), 0.3, dtype=torch.float64)
    tangent[1] = torch.nan
    tangent.requires_grad_()
    ours = with_gradient(poses, tangent, torch.tensor([True, False]))
    assert torch.equal(ours.detach(), poses)
    ours.sum().backward()
    assert (tangent.grad[0] != 0).all() and (tangent.grad[1] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_inverse_is_sound_up_to_the_condition(dtype: torch.dtype) -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    smallest = [1.0, 1e-2, 1e-4, 1e-9, 0.0, torch.nan, torch.inf]
    matrices = torch.stack([rotation @ torch.diag(torch.tensor([1, 1, 1, 1, 1, value], dtype=torch.float64)) @ rotation.mT
                            for value in smallest]).to(dtype)
    inverted, sound = inverse(matrices, 1e4)
    assert sound.tolist() == [True, True, False, False, False, False, False]
    assert (inverted[~sound] == 0).all()
    torch.testing.assert_close(inverted[:2] @ matrices[:2], torch.eye(6, dtype=dtype).expand(2, 6, 6), atol=1e-4, rtol=0)
