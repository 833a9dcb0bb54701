"""From tensors in to tensors out nothing waits for a device, nothing mixes devices, and no shape depends on data: hence one program."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import scenes
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.cells import finished_by_angle, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.covariance import pose_covariance, sandwich_information
from dsac_ros.ransac.estimator import Prior, Solution, estimate, refine_from
from dsac_ros.ransac.kernel import Kernel
from dsac_ros.ransac.sampling import uniform_draws

OPTIONS = EstimatorOptions(refined=3, refine_steps=1)
COUNT = 1300  # more than are scored second, so that no step is left out
SETS = 16
BATCH = 2
# The host has to wait for these on a GPU, though no tag of theirs says so.
WAITING = {'aten::_linalg_check_errors', 'aten::is_nonzero', 'aten::equal', 'aten::allclose', 'aten::linalg_solve', 'aten::linalg_inv'}


class NoWaiting(TorchDispatchMode):
    """Raises on every operation whose result, or the shape of it, the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        waits = func.name().split('.')[0] in WAITING or torch.Tag.data_dependent_output in func.tags
        if func.name().split('.')[0] in ('aten::index', 'aten::index_put_', 'aten::index_put'):
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        elif torch.Tag.dynamic_output_shape in func.tags:
            waits = True
        if waits:
            raise AssertionError(f'the host waits for {func.name()}')
        return func(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    """Raises on every operation that takes or makes a tensor elsewhere than on the device; numbers of Python may come along."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != self.device:
                raise AssertionError(f'{func.name()} takes or makes a tensor on the {leaf.device.type}')
        return out


def problem_of(kind: str, rig: bool = False) -> Correspondences:
    return scenes.stacked([scenes.scene(seed, kind, count=COUNT, outliers=0.3, noise=0.02, rig=rig).problem for seed in range(BATCH)])


def poses() -> torch.Tensor:
    """(B, 4, 4)"""
    return torch.eye(4, dtype=torch.float64).expand(BATCH, 4, 4).clone()


def with_estimate(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> Solution:
    return estimate(problem, weights, draws, OPTIONS, starts_BS44=start[:, None])


def with_free_scale(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> Solution:
    return estimate(problem, weights, draws, OPTIONS, free_scale=True)


def with_rounds(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> Solution:
    return estimate(problem, weights, draws, replace(OPTIONS, rounds=2))


def with_prior(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> Solution:
    return estimate(problem, weights, draws, OPTIONS, prior=Prior(start, torch.diag_embed(torch.ones_like(start).flatten(1)[:, :6])))


def with_refine_from(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    solution = refine_from(problem, start[:, None], OPTIONS, 30.0)
    blocks = torch.zeros_like(weights, dtype=torch.long)
    information = sandwich_information(problem, solution, Kernel(OPTIONS.inlier_sigmas), blocks, 20)
    return pose_covariance(information[0], solution.camera_from_map_B44[0])


def with_cells(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As the localizer solves them, without depth."""
    return finished_by_angle(problem, estimate(searched_by_angle(problem, OPTIONS), weights, draws, OPTIONS), OPTIONS)


CASES = [(with_estimate, 'rgb', False), (with_estimate, 'rgbd', True), (with_free_scale, 'holes', False), (with_rounds, 'rgb', False),
         (with_prior, 'holes', False), (with_refine_from, 'rgb', False), (with_refine_from, 'holes', True), (with_cells, 'rgb', False)]


@pytest.mark.parametrize(('step', 'kind', 'rig'), CASES)
def test_the_host_waits_for_nothing(step: Callable, kind: str, rig: bool, device: str) -> None:
    problem = scenes.on(device, problem_of(kind, rig))
    weights, draws, start = torch.ones_like(problem.scales_BN), uniform_draws(range(BATCH), SETS, device), poses().to(device)
    with NoWaiting():
        step(problem, weights, draws, start)


def waits_for_a_number(values: torch.Tensor) -> object:
    return values.sum().item()


def waits_for_a_branch(values: torch.Tensor) -> object:
    return values if values.sum() > 0 else -values


def waits_for_a_mask(values: torch.Tensor) -> object:
    return values[values > 0]


def waits_for_indices(values: torch.Tensor) -> object:
    return values.nonzero()


def waits_for_errors(values: torch.Tensor) -> object:
    return torch.linalg.solve(torch.eye(3, dtype=values.dtype), values)


@pytest.mark.parametrize('mistake', [waits_for_a_number, waits_for_a_branch, waits_for_a_mask, waits_for_indices, waits_for_errors])
def test_waiting_is_noticed(mistake: Callable) -> None:
    with NoWaiting(), pytest.raises(AssertionError, match='the host waits'):
        mistake(torch.randn(3, dtype=torch.float64))


def on_meta(step: Callable, kind: str, rig: bool = False) -> Any:
    """Run a step on tensors without values whose device is none of this machine's: what is made on the host, or copied there, shows.

    Fake CUDA tensors would say the same, but torch without CUDA cannot index them.
    """
    given = {name: value.to('meta') for name, value in scenes.tensors(problem_of(kind, rig)).items()}
    weights, draws, start = (torch.empty(*shape, dtype=torch.float64, device='meta') for shape in (
        (BATCH, COUNT), (BATCH, SETS, 3), (BATCH, 4, 4)))
    with OneDevice('meta'):
        return step(Correspondences(**given), weights, draws, start)


@pytest.mark.parametrize(('step', 'kind', 'rig'), CASES)
def test_every_tensor_is_on_the_device_of_the_first_ones(step: Callable, kind: str, rig: bool) -> None:
    out = on_meta(step, kind, rig)
    if isinstance(out, Solution):
        assert {getattr(out, field.name).device.type for field in fields(out)} == {'meta'}
        assert out.camera_from_map_B44.shape == (BATCH, 4, 4) and out.weights_BN.shape == (BATCH, COUNT)


def with_a_tensor_of_the_host(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return start @ torch.eye(4, dtype=torch.float64)


def with_a_number_of_the_host(problem: Correspondences, weights: torch.Tensor, draws: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return start * torch.tensor(2.0)


@pytest.mark.parametrize('mistake', [with_a_tensor_of_the_host, with_a_number_of_the_host])
def test_a_tensor_on_the_host_is_noticed(mistake: Callable) -> None:
    with pytest.raises((AssertionError, RuntimeError), match='cpu'):
        on_meta(mistake, 'rgb')


class Program(torch.nn.Module):
    """Tensors in, tensors out: what an exported encoder and head would be followed by."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, weights: torch.Tensor, draws: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        solution = estimate(Correspondences(**dict(zip(self.names, values))), weights, draws, OPTIONS)
        return tuple(getattr(solution, field.name) for field in fields(solution))


@pytest.mark.slow
def test_an_exported_program_gives_equal_results() -> None:
    """Of all kinds of tensors that there are. Traced with one frame and run with another: nothing of the first may be left in it."""
    first, second = (scenes.scene(seed, 'holes', count=600, outliers=0.3, noise=0.02, rig=True) for seed in (1, 2))
    module = Program(list(scenes.tensors(first.problem)))
    given = [(torch.ones_like(scene.problem.scales_BN), uniform_draws([seed], 64), *scenes.tensors(scene.problem).values())
             for seed, scene in enumerate((first, second))]
    program = torch.export.export(module, given[0], strict=False).module()
    for scene, arguments in zip((first, second), given):
        ours, expected = program(*arguments), module(*arguments)
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-6)
        assert scenes.pose_error(ours[0][0], scene.truth)[0] < 0.02
