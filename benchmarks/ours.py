"""Our estimator behind the face of the peers."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bounds import fit_points, fit_rays
from benchmarks.peers import Estimator
from benchmarks.problems import Problem
from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.cells import finished_by_angle, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws

DEFAULT_HYPOTHESES = (256,)
MODALITIES = {'rgb': '{}', 'rgb+w': '{} guided', 'rgbd': '{} RGB-D'}
ROUNDS = EstimatorOptions(rounds=10, early_out=True)
MOST = 131072  # sets in all rounds, 256 in the first


def ours(hypotheses: Sequence[int] = DEFAULT_HYPOTHESES, device: str = 'cpu', compiled: bool = False) -> list[Estimator]:
    """RGB, RGB with sampling weights, RGB-D: in rounds until the pose is found for sure, and with each fixed number of minimal sets.

    Args:
        compiled: the fixed numbers also as compiled programs, which takes minutes for each shape of problem.
    """
    found = [_estimator(name.format('ours'), modality, MOST, ROUNDS, device, _program) for modality, name in MODALITIES.items()]
    for maker, suffix in ((_program, ''), (_compiled, ' compiled'))[:1 + compiled]:
        found += [_estimator(name.format(f'ours {sets}{suffix}'), modality, sets, EstimatorOptions(), device, maker)
                  for sets in hypotheses for modality, name in MODALITIES.items()]
    return found


def oracles() -> list[Estimator]:
    """No estimators: the least-squares fits to the true inliers, which show what the noise leaves."""
    return [Estimator('(true inliers)', 'rgb', lambda problem: problem, fit_rays),
            Estimator('(true inliers) RGB-D', 'rgbd', lambda problem: problem, fit_points)]


def correspondences(problem: Problem, modality: str, device: str) -> tuple[Correspondences, Tensor]:
    """A batch of one, and its sampling weights (1, N): all alike where the modality has none."""
    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)[None].to(device)

    bearings_N3, scales_N = problem.bearings_N3(), problem.scales_N
    angles_N = np.full(len(scales_N), problem.pixel_noise_px / problem.camera.fx)
    ranges_BN = range_noise_BN = None
    if modality == 'rgbd':
        along_N = np.linalg.norm(problem.rays_N3(), axis=1)
        ranges_BN, range_noise_BN = tensor(problem.depths_N * along_N), tensor(problem.depth_noise_N * along_N)
    weights_N = problem.weights_N if modality == 'rgb+w' else np.ones_like(scales_N)
    return Correspondences(tensor(problem.points_N3), tensor(bearings_N3), tensor(scales_N), tensor(angles_N),
                           tensor(np.ones(len(scales_N), bool)), ranges_BN, range_noise_BN), tensor(weights_N)


class Program(nn.Module):
    """Tensors in, camera_from_map_B44 out; cells of a network, whose noise is stated, as the localizer solves them."""

    def __init__(self, options: EstimatorOptions, free_scale: bool) -> None:
        super().__init__()
        self.options, self.free_scale = options, free_scale

    def forward(self, problem: dict[str, Tensor], weights_BN: Tensor, draws_BK3: Tensor) -> Tensor:
        given = Correspondences(**problem)
        if self.free_scale:
            return estimate(given, weights_BN, draws_BK3, self.options, free_scale=True).camera_from_map_B44
        found = estimate(searched_by_angle(given, self.options), weights_BN, draws_BK3, self.options)
        return finished_by_angle(given, found, self.options)[0]


def _program(options: EstimatorOptions, free_scale: bool, example: tuple[Any, ...]) -> Callable[..., Tensor]:
    return Program(options, free_scale)


def _compiled(options: EstimatorOptions, free_scale: bool, example: tuple[Any, ...]) -> Callable[..., Tensor]:
    """Exported first: torch.compile cannot see through cached properties."""
    return torch.compile(torch.export.export(Program(options, free_scale), example).module(), dynamic=False)


def _estimator(name: str, modality: str, sets: int, options: EstimatorOptions, device: str,
               maker: Callable[..., Callable[..., Tensor]]) -> Estimator:
    programs: dict[tuple[bool, int], Callable[..., Tensor]] = {}
    draws_1K3 = uniform_draws([0], sets, device)  # the same for all problems, as the seeds of the peers are

    def prepare(problem: Problem) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        made, weights_BN = correspondences(problem, modality, device)
        tensors = {f.name: getattr(made, f.name) for f in fields(made) if getattr(made, f.name) is not None}
        key = (not problem.scales_known, len(problem.points_N3))
        if key not in programs:
            programs[key] = maker(options, key[0], (tensors, weights_BN, draws_1K3))
            solve((programs[key], (tensors, weights_BN)))  # nobody is timed on compiling
        return programs[key], (tensors, weights_BN)

    @torch.inference_mode()
    def solve(prepared: tuple[Callable[..., Tensor], tuple[Any, ...]]) -> np.ndarray:
        program, arguments = prepared
        return program(*arguments, draws_1K3)[0].cpu().numpy()

    return Estimator(name, modality, prepare, solve)
