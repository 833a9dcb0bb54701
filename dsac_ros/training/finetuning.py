"""End-to-end training of a map: the loss is that of the pose, through sampling, solvers, selection and refinement (dsac_ros.endtoend).

Everything random is drawn from the seed and the number of the step, and the schedule is one of steps, so that a training that was killed
and resumed ends with the same weights, bit for bit, on one machine. docs/end_to_end.md has what was tried.
"""
from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dsac_ros.config import EstimatorOptions, FinetuningOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.endtoend.expectation import expected_loss, followed_alpha, over_draws
from dsac_ros.endtoend.losses import pose_loss
from dsac_ros.endtoend.pools import solve_pools
from dsac_ros.errors import DataError, MapError
from dsac_ros.geometry import se3
from dsac_ros.localizer import resolve_device
from dsac_ros.maps.bundle import MapBundle, check_place, load_map, save_map
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.expert import Expert
from dsac_ros.progress import progress_bar
from dsac_ros.ransac.cells import cell_problem, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.estimator import estimate
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import calibrate
from dsac_ros.training.checkpoint import load_checkpoint, save_checkpoint
from dsac_ros.training.episodes import Episodes, encode
from dsac_ros.training.head import one_cycle
from dsac_ros.training.mapping import read_frames

CHECKPOINT = 'checkpoint.safetensors'
ESTIMATOR = EstimatorOptions()  # the one that the localizer has unless told otherwise
NUMBERS = ('iterations', 'step', 'best_loss', 'best_step', 'recent', 'log')  # of a State, besides tensors
FREE = ('minutes', 'checkpoint_seconds')  # options that a resumed training may have otherwise
MEASURED_STEPS = 5  # after the first, that tell how many there is time for
EMPTY_LOSS = 100.0  # of a pool without any hypothesis: as bad as a metre
CALIBRATION_SHARE = 0.1  # of the time
ALPHA_RATE = 0.1  # at which the inverse temperature follows the scores
FIRST_ALPHA = 0.1
MAX_GRADIENT = 1.0  # norm: a step is one of a few images, some of them hopeless


@dataclass
class State:
    """All that a training is: what it continues from is what it has written down, and nothing else."""

    expert: Expert
    best: Expert
    optimiser: torch.optim.AdamW
    alpha: Tensor
    iterations: int
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    recent: list[dict[str, float]] = field(default_factory=list)  # of the steps since the last look
    log: list[dict[str, float]] = field(default_factory=list)  # of the looks


def finetune(map_path: str | Path, sources: list[FrameSource], out: str | Path, options: FinetuningOptions = FinetuningOptions(),
             device: str = 'auto', overwrite: bool = False, resume: bool = False, stopped: Callable[[], bool] = lambda: False,
             quiet: bool = False) -> MapBundle:
    """Train the head of a map on the poses of the sources and write the best state, calibrated anew, to `out`.

    The folder OUT.finetuning holds the checkpoint while it lasts, and the log. Raises DataError, MapError.

    Args:
        sources: recordings of one camera with poses in the frame of the map. resume: go on from the checkpoint. stopped: asked after each
            step; true ends the training as if its time were up.
    """
    out, begun = Path(out), time.monotonic()
    work = out.with_name(out.name + '.finetuning')
    check_place(out, overwrite)
    if resume and not (work / CHECKPOINT).is_file():
        raise MapError(f'{work / CHECKPOINT}: missing; there is nothing to resume, start without --resume')
    if not resume and (work / CHECKPOINT).is_file() and not overwrite:
        raise MapError(f'{work}: a training of this map was interrupted; go on with --resume, or start again with --overwrite')
    bundle, where = load_map(map_path), resolve_device(device)
    training, held_out = frames_of(sources, bundle, options)
    with progress_bar('encode', len(training) * (1 + options.augmented) + len(held_out), quiet) as progress:
        encoder = shared_encoder(str(where))
        episodes = encode(training, encoder, options.augmented, options.seed, where, progress.update)
        watched = encode(held_out, encoder, 0, options.seed, where, progress.update)
    work.mkdir(parents=True, exist_ok=True)
    state = resumed(work / CHECKPOINT, bundle, options, where) if resume else begin(bundle, options, episodes, watched, where)
    train(state, episodes, watched, options, work / CHECKPOINT, stopped, quiet)
    state.best.eval().requires_grad_(False)
    write_log(work, state.log)
    factors, errors = calibrate(state.best, bundle.landmarks, held_out, bundle.frame_id, bundle.entry.centre, bundle.entry.extent, where,
                                not options.rgb_only, Budget(60 * options.minutes * CALIBRATION_SHARE))
    if options.rgb_only:  # what was not trained for was not looked at either
        factors['rgbd'] = bundle.covariance_factors['rgbd']
    record = {**bundle.training, 'finetuned': {
        'from': str(map_path), 'expert_sha256': bundle.entry.sha256, 'sources': [str(getattr(s, 'path', 'frames')) for s in sources],
        'options': asdict(options), 'steps': state.step, 'best_step': state.best_step, 'held_out_loss': round(state.best_loss, 4),
        'frames': len(training), 'held_out_frames': len(held_out), 'seconds': round(time.monotonic() - begun, 1), 'held_out': errors}}
    finished = save_map(out, bundle.frame_id, bundle.entry.name, state.best.cpu(), bundle.landmarks, factors, bundle.entry.centre,
                        bundle.entry.extent, record, overwrite, bundle.prototypes)
    (work / CHECKPOINT).unlink(missing_ok=True)
    return finished


def frames_of(sources: list[FrameSource], bundle: MapBundle, options: FinetuningOptions) -> tuple[list[Frame], list[Frame]]:
    """Frames for training and held out, of all sources; DataError where poses are in another frame than the map's."""
    training, held_out = [], []
    for source in sources:
        if source.map_frame != bundle.frame_id:
            raise DataError(f'{getattr(source, "path", "the data")}: poses in frame {source.map_frame!r}, the map is in '
                            f'{bundle.frame_id!r}; use a recording localised in the frame of the map, or --map-frame')
        parts = read_frames(source, options)
        training += parts[0]
        held_out += parts[1]
    return training, held_out


def begin(bundle: MapBundle, options: FinetuningOptions, episodes: Episodes, watched: Episodes, where: torch.device) -> State:
    """A fresh state; the number of iterations is fixed here, once, so that resuming does not depend on how fast the machine is then."""
    state = new_state(bundle, options, where, 1)
    iterations = options.iterations
    if not iterations:
        trial = new_state(bundle, options, where, 1000)
        one_step(trial, episodes, options)
        start = time.monotonic()
        for _ in range(MEASURED_STEPS):
            one_step(trial, episodes, options)
        step = (time.monotonic() - start) / MEASURED_STEPS
        start = time.monotonic()
        held_out_loss(trial.expert, watched, options)
        iterations = max(1, int(60 * options.minutes / (step + (time.monotonic() - start) / options.check_every)))
    state.iterations = iterations
    return state


def new_state(bundle: MapBundle, options: FinetuningOptions, where: torch.device, iterations: int) -> State:
    expert = copy.deepcopy(bundle.expert).to(where).train().requires_grad_(True)
    optimiser = torch.optim.AdamW(expert.parameters(), lr=options.learning_rate, weight_decay=0.0)
    return State(expert, copy.deepcopy(expert), optimiser, torch.tensor(FIRST_ALPHA, dtype=torch.float64, device=where), iterations)


def train(state: State, episodes: Episodes, watched: Episodes, options: FinetuningOptions, checkpoint: Path, stopped: Callable[[], bool],
          quiet: bool) -> None:
    """Until the iterations are done, nothing got better for long, or somebody stops it."""
    written = time.monotonic()
    layout = '{l_bar}{bar}| {elapsed}<{remaining}{postfix}'
    with progress_bar('finetune', state.iterations, quiet, initial=state.step, bar_format=layout) as bar:
        while True:
            due = state.step % options.check_every == 0 or state.step == state.iterations
            if due and (not state.log or state.log[-1]['step'] < state.step):
                look(state, watched, options)
                numbers = {name: value for name, value in state.log[-1].items() if name != 'step'}
                bar.set_postfix_str(', '.join(f'{name} {value:.2f}' for name, value in numbers.items()), refresh=False)
            waited = state.step - state.best_step
            if stopped() or state.step >= state.iterations or waited >= options.patience * options.check_every:
                break
            if time.monotonic() - written > options.checkpoint_seconds:
                save_state(checkpoint, state, options)
                written = time.monotonic()
            state.recent.append(one_step(state, episodes, options))
            bar.update()
    save_state(checkpoint, state, options)


def one_step(state: State, episodes: Episodes, options: FinetuningOptions) -> dict[str, float]:
    """A batch forward, backward, and the weights moved."""
    # From the seed and the step alone: there is no state of a generator to keep.
    generator = torch.Generator().manual_seed(1_000_003 * options.seed + state.step)
    batch = episodes.some(torch.randint(len(episodes), (options.batch,), generator=generator))
    draws_BPK3 = torch.rand(options.batch, 1, options.hypotheses, 3, dtype=torch.float64, generator=generator)
    cells, weights_BN = predict(state.expert, batch, options)
    pools = solve_pools(cells, weights_BN, draws_BPK3.to(weights_BN.device), batch.map_from_camera_V44, ESTIMATOR, options.cut_off)
    state.alpha = followed_alpha(state.alpha, pools.scores_BPK, pools.valid_BPK, options.bits, ALPHA_RATE)
    expectation = expected_loss(pools.scores_BPK, pools.losses_BPK, pools.valid_BPK, state.alpha, EMPTY_LOSS)
    loss = over_draws(expectation, pools.log_likelihoods_BPK).mean()
    for group in state.optimiser.param_groups:
        group['lr'] = options.learning_rate * one_cycle(state.step / state.iterations)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.expert.parameters(), MAX_GRADIENT, error_if_nonfinite=True)
    state.optimiser.step()
    state.step += 1
    values = {'loss': loss, 'entropy_bits': expectation.entropy_bits.mean(), 'sound': pools.sound_BPK.double().mean()}
    return {name: value.item() for name, value in values.items()}


def predict(expert: Expert, batch: Episodes, options: FinetuningOptions) -> tuple[Correspondences, Tensor]:
    """The cells of a batch as a problem, and the weights to draw them by."""
    points_BN3, scales_BN, _ = expert(batch.features_VNC.float())
    depths_BN = None if options.rgb_only else batch.depths_VN
    weights_BN = guidance(scales_BN if options.guidance else torch.ones_like(scales_BN))
    return cell_problem(points_BN3, scales_BN, batch.bearings_VN3, batch.cell_rad, depths_BN, ESTIMATOR), weights_BN


@torch.no_grad()
def held_out_loss(expert: Expert, watched: Episodes, options: FinetuningOptions) -> float:
    """Mean pose loss of the cells as the localizer solves them, with the same random numbers each time."""
    losses = []
    for first in range(0, len(watched), options.batch):
        batch = watched.some(torch.arange(first, min(first + options.batch, len(watched))))
        cells, weights_BN = predict(expert, batch, options)
        sets = ESTIMATOR.hypotheses_rgb if options.rgb_only else ESTIMATOR.hypotheses_rgbd
        draws_BK3 = uniform_draws(range(first, first + len(batch)), sets, weights_BN.device)
        found = estimate(searched_by_angle(cells, ESTIMATOR), weights_BN, draws_BK3, ESTIMATOR)
        poses_B44 = finished_by_angle(cells, found, ESTIMATOR).camera_from_map_B44
        losses.append(pose_loss(se3.inverse(poses_B44)[:, None], batch.map_from_camera_V44, cut_off=options.cut_off))
    return float(torch.cat(losses).mean())


def look(state: State, watched: Episodes, options: FinetuningOptions) -> None:
    """Compare with the best state so far on the held-out frames."""
    loss = held_out_loss(state.expert, watched, options)
    means = {name: sum(step[name] for step in state.recent) / len(state.recent) for name in (state.recent[0] if state.recent else ())}
    state.recent.clear()
    state.log.append({'step': state.step, 'held_out': loss, **means})
    if loss < state.best_loss:
        state.best_loss, state.best_step = loss, state.step
        state.best.load_state_dict(state.expert.state_dict())


def save_state(path: Path, state: State, options: FinetuningOptions) -> None:
    tensors = {f'{name}.{key}': value for name, module in (('expert', state.expert), ('best', state.best))
               for key, value in module.state_dict().items()}
    tensors |= {f'optimiser.{index}.{key}': value for index, values in state.optimiser.state_dict()['state'].items()
                for key, value in values.items()}
    numbers = {name: getattr(state, name) for name in NUMBERS}
    save_checkpoint(path, tensors | {'alpha': state.alpha.reshape(1)}, {**numbers, 'options': asdict(options)})


def resumed(path: Path, bundle: MapBundle, options: FinetuningOptions, where: torch.device) -> State:
    """The state of a checkpoint. Raises MapError where it was made with other options."""
    tensors, values = load_checkpoint(path)
    other = [name for name, value in asdict(options).items() if values['options'].get(name) != value and name not in FREE]
    if other:
        raise MapError(f'{path}: made with {other[0]}={values["options"].get(other[0])!r}, now {asdict(options)[other[0]]!r}; '
                       'resume with the same options, or start again with --overwrite')
    state = new_state(bundle, options, where, values['iterations'])
    for name, module in (('expert', state.expert), ('best', state.best)):
        module.load_state_dict({key.removeprefix(f'{name}.'): value for key, value in tensors.items() if key.startswith(f'{name}.')})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith('optimiser.'):
            _, index, name = key.split('.')
            moments.setdefault(int(index), {})[name] = value
    state.optimiser.load_state_dict({'state': moments, 'param_groups': state.optimiser.state_dict()['param_groups']})
    state.alpha = tensors['alpha'].to(where)[0]
    for name in NUMBERS:
        setattr(state, name, values[name])
    return state


def write_log(folder: Path, log: list[dict[str, float]]) -> None:
    """log.csv and log.png: losses and entropy by step."""
    with (folder / 'log.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in log for name in row)))
        writer.writeheader()
        writer.writerows(log)
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [row['step'] for row in log]
    axes.plot(steps, [row['held_out'] for row in log], color='#0072B2', marker='o', label='held out')
    axes.plot(steps, [row.get('loss', math.nan) for row in log], color='#E69F00', label='expected, training')
    axes.set(xlabel='step', ylabel='pose loss [deg + cm]', ylim=(0, None))
    bits = axes.twinx()
    bits.plot(steps, [row.get('entropy_bits', math.nan) for row in log], color='#999999', linestyle='--', label='entropy')
    bits.set(ylabel='entropy of the choice [bit]', ylim=(0, None))
    figure.legend(loc='outside upper center', ncols=3)
    figure.savefig(folder / 'log.png', dpi=110)
