"""Our estimator behind the face of the peers."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.bounds import fit_points, fit_rays
from benchmarks.peers import Estimator
from benchmarks.problems import Problem
from dsac_ros.config import EstimatorOptions
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws

DEFAULT_HYPOTHESES = (256,)
MODALITIES = {'rgb': '{}', 'rgb+w': '{} guided', 'rgbd': '{} RGB-D'}
ROUNDS = EstimatorOptions(rounds=32, early_out=True)
MOST = 4096  # sets in all rounds


def ours(hypotheses: Sequence[int] = DEFAULT_HYPOTHESES, device: str = 'cpu') -> list[Estimator]:
    """RGB, RGB with sampling weights, RGB-D: in rounds until the pose is found for sure, and with each fixed number of minimal sets."""
    kinds = [('ours', MOST, ROUNDS), *((f'ours {sets}', sets, EstimatorOptions()) for sets in hypotheses)]
    return [_estimator(name.format(kind), modality, sets, options, device)
            for kind, sets, options in kinds for modality, name in MODALITIES.items()]


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


def _estimator(name: str, modality: str, sets: int, options: EstimatorOptions, device: str) -> Estimator:
    def prepare(problem: Problem) -> tuple[Correspondences, Tensor, bool]:
        return *correspondences(problem, modality, device), not problem.scales_known

    @torch.inference_mode()
    def solve(prepared: tuple[Correspondences, Tensor, bool]) -> np.ndarray:
        *batch, free_scale = prepared
        solution = estimate(*batch, uniform_draws([0], sets, device), options, free_scale=free_scale)
        return solution.camera_from_map_B44[0].cpu().numpy()

    return Estimator(name, modality, prepare, solve)
