"""Time of one end-to-end training step without the network: draw, solve, score, refine, loss; and the way back to all cells.

    python -m benchmarks.pose_estimators make ../shared/data/kitchen --split train --frames 20 --out sets
    python -m benchmarks.training_step sets [--threads 2] [--hypotheses 64] [--cell '2 cm 50%'] [--images 1]

Real geometry, 60 x 80 cells a frame less those without depth, of which the frame with the most is taken; noise and outliers are made.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.ours import correspondences
from benchmarks.problems import NOISE_MODELS, ProblemSet
from dsac_ros.config import EstimatorOptions
from dsac_ros.endtoend.expectation import alpha_for_bits, expected_loss, over_draws
from dsac_ros.endtoend.pools import solve_pools
from dsac_ros.errors import DsacError
from dsac_ros.ransac.cells import guidance
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import SCORED_NEXT
from dsac_ros.ransac.sampling import uniform_draws

RANGE_NOISE = 0.01  # [m], of the depth
ANGLE = 0.0038  # [rad], a tenth of one of the localizer's cells, as it states the noise of bearings
BITS = 0.6  # of entropy of the choice, over what the number of hypotheses allows
EMPTY_LOSS = 100.0
LOCALIZER_CELLS = 384  # of an image 256 x 192: what the localizer takes
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """forward_ms, backward_ms of each step, and cpu_ms of both by all threads, which says more where others use the cores; sound: share
    of the hypotheses whose refinement has a gradient; gradient: of the points."""

    forward_ms: np.ndarray
    backward_ms: np.ndarray
    cpu_ms: np.ndarray
    sound: float
    gradient: Tensor


def fullest(problems: ProblemSet, cell: str, modality: str) -> tuple[Correspondences, Tensor]:
    """The frame with the most correspondences as a batch of one, with noise stated as it is, and map_from_camera (1, 4, 4)."""
    cells = {f'{cm:g} cm {share:.0%}': (noise, outlier) for noise, cm in enumerate(problems.noises_cm)
             for outlier, share in enumerate(problems.outliers)}
    if cell not in cells:
        raise DsacError(f'--cell {cell}: not in the set; known: {", ".join(cells)}')
    noise, outlier = cells[cell]
    problem = max((problems.problem(noise, outlier, frame) for frame in range(len(problems))), key=lambda one: len(one.points_N3))
    made, _ = correspondences(problem, modality, 'cpu')
    changed = {'scales_BN': torch.full_like(made.scales_BN, problems.noises_cm[noise] / 100),
               'angles_BN': torch.full_like(made.angles_BN, ANGLE)}
    if made.ranges_BN is not None:
        changed['range_noise_BN'] = torch.full_like(made.ranges_BN, RANGE_NOISE)
    return replace(made, **changed), torch.from_numpy(np.linalg.inv(problem.camera_from_map))[None]


def timed(problem: Correspondences, map_from_camera_B44: Tensor, hypotheses: int, steps: int, most: int) -> Timing:
    """Steps with other draws each; the first WARM_UP do not count."""
    forward, backward, cpu, sound = [], [], [], []
    for step in range(WARM_UP + steps):
        leaves = {name: getattr(problem, name).clone().requires_grad_() for name in ('points_BN3', 'scales_BN')}
        draws = uniform_draws(range(step, step + len(problem.points_BN3)), hypotheses)[:, None]
        begin, begin_cpu = time.perf_counter(), time.process_time()
        cells = replace(problem, **leaves)
        pools = solve_pools(cells, guidance(cells.scales_BN), draws, map_from_camera_B44, EstimatorOptions(), most=most)
        alpha = alpha_for_bits(pools.scores_BPK, pools.valid_BPK, BITS * np.log2(hypotheses))
        expectation = expected_loss(pools.scores_BPK, pools.losses_BPK, pools.valid_BPK, alpha[:, None], EMPTY_LOSS)
        loss = over_draws(expectation, pools.log_likelihoods_BPK).mean()
        middle = time.perf_counter()
        loss.backward()
        forward.append(1e3 * (middle - begin))
        backward.append(1e3 * (time.perf_counter() - middle))
        cpu.append(1e3 * (time.process_time() - begin_cpu))
        sound.append(float(pools.sound_BPK.double().mean()))
    times = (np.array(values[WARM_UP:]) for values in (forward, backward, cpu))
    return Timing(*times, float(np.mean(sound)), leaves['points_BN3'].grad)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.training_step', description=__doc__.splitlines()[0])
    parser.add_argument('sets', type=Path, help='folder that `benchmarks.pose_estimators make` has written')
    parser.add_argument('--noise-model', choices=tuple(NOISE_MODELS), default='iid')
    parser.add_argument('--cell', default='2 cm 50%', help='noise and share of outliers')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--hypotheses', type=int, default=64)
    parser.add_argument('--images', type=int, default=1, help='the same image so many times in a batch')
    parser.add_argument('--steps', type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = options.sets / f'{options.noise_model}.npz'
    print(f'{options.images} image(s), {options.hypotheses} hypotheses, {options.threads} threads, {options.steps} steps: '
          'median (least) of the milliseconds')
    print(f'{"":8}{"cells":>7}{"refined on":>12}{"forward":>18}{"backward":>18}{"CPU":>18}{"with gradient":>15}')
    try:
        if not path.is_file():
            raise DsacError(f'{path}: missing; make it with `python -m benchmarks.pose_estimators make`')
        problems = ProblemSet(path)
        for modality in ('rgb', 'rgbd'):
            problem, truth = fullest(problems, options.cell, modality)
            total = problem.points_BN3.shape[1]
            for part, most in ((problem.subset(LOCALIZER_CELLS), SCORED_NEXT), (problem, SCORED_NEXT), (problem, total)):
                batch = repeated(part, options.images)
                took = timed(batch, truth.expand(options.images, 4, 4), options.hypotheses, options.steps, most)
                times = [f'{np.median(values):.0f} ({values.min():.0f})' for values in (took.forward_ms, took.backward_ms, took.cpu_ms)]
                cells = part.points_BN3.shape[1]
                print(f'{modality:8}{cells:7}{min(most, cells):12}' + ''.join(f'{text:>18}' for text in times) + f'{took.sound:>14.0%}')
    except DsacError as error:
        print(f'training_step: {error}', file=sys.stderr)
        return 1
    return 0


def repeated(problem: Correspondences, images: int) -> Correspondences:
    """A batch of the same."""
    values = {f.name: getattr(problem, f.name) for f in fields(problem)}
    return Correspondences(**{name: None if value is None else value.expand(images, *value.shape[1:]) for name, value in values.items()})


if __name__ == '__main__':
    sys.exit(main())
