"""End-to-end training of a map: the loss is that of the pose, through sampling, solvers, selection and refinement (dsac_ros.endtoend).

Everything random is drawn from the seed and the number of the step, and the schedule is one of steps, so that a training that was killed
and resumed ends with the same weights, bit for bit, on one machine. docs/end_to_end.md has what was tried.
"""
from __future__ import annotations

import csv
import math
import shutil
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsac_ros.config import FinetuningOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.endtoend.expectation import expected_loss, followed_alpha, over_draws
from dsac_ros.endtoend.losses import pose_loss
from dsac_ros.endtoend.pools import solve_pools
from dsac_ros.errors import ConfigError, Interrupted, MapError
from dsac_ros.geometry import se3
from dsac_ros.localizer import resolve_device
from dsac_ros.maps.bundle import MapBundle, check_place, load_map, save_map
from dsac_ros.maps.editing import exchange_expert
from dsac_ros.maps.site import open_site
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.expert import Expert
from dsac_ros.progress import progress_bar
from dsac_ros.training.budget import Budget, Clock
from dsac_ros.training.calibration import FALLBACK_FACTORS, calibrate
from dsac_ros.training.episodes import Episodes, encode, frames_of, moved
from dsac_ros.training.gating import train_gating
from dsac_ros.training.head import one_cycle
from dsac_ros.training.localising import ESTIMATOR, localised, predict
from dsac_ros.training.state import State, checkpoint_of, hash_of, new_state, resumed, save_state
from dsac_ros.training.team import Team, team_of
from dsac_ros.training.watching import Progress, Watch, Wish, unwatched

MEASURED_STEPS = 5  # after the first, that tell how many there is time for
CALIBRATION_SHARE = 0.1  # of the time
ALPHA_RATE = 0.1  # at which the inverse temperature follows the scores
# Augmented ones of each held-out frame: the frames lie between mapped views, where a map that was just made is at its best.
WATCHED_VIEWS = 4
MAX_GRADIENT = 1.0  # norm: a step is one of a few images, some of them hopeless


def finetune(map_path: str | Path, sources: list[FrameSource], out: str | Path, options: FinetuningOptions = FinetuningOptions(),
             device: str = 'auto', overwrite: bool = False, resume: bool = False, watch: Watch = unwatched,
             quiet: bool = False, clock: Clock = time.monotonic) -> MapBundle | None:
    """Train the head of a map on the poses of the sources and write the best state, its cells calibrated anew, to `out`.

    Of a map of several sub-maps that of options.expert is trained, on the frames that are nearest to it, and `out` is a map of all of them;
    with options.gating prototypes are trained after the head, on all frames. The folder OUT.finetuning holds the checkpoint while it lasts,
    and the log. Of several processes (torchrun) the first one writes, and the others return None. Raises
    ConfigError, DataError, MapError; Interrupted where it was left, or ended before it had begun to train.

    Args:
        sources: recordings of one camera with poses in the frame of the map. resume: go on from the checkpoint.
        clock: what options.minutes are measured by.
    """
    out, whole = Path(out), Budget(60 * options.minutes, clock)
    if options.bits >= math.log2(options.hypotheses):
        raise ConfigError(f'bits={options.bits:g}: a choice among {options.hypotheses} hypotheses has less than '
                          f'{math.log2(options.hypotheses):g} bits; set fewer bits or more hypotheses')
    check_place(out, overwrite)
    checkpoint = checkpoint_of(out)
    if resume and not checkpoint.is_file():
        raise MapError(f'{checkpoint}: missing; there is nothing to resume, start without --resume')
    if not resume and checkpoint.is_file() and not overwrite:
        raise MapError(f'{checkpoint.parent}: a training of this map was interrupted; go on with --resume, or start again with --overwrite')
    if checkpoint.parent.exists() and not checkpoint.parent.is_dir():
        raise MapError(f'{checkpoint.parent}: is no folder, and the checkpoint goes there; move it away, or choose another --out')
    site = open_site(map_path)
    if len(site.entries) > 1 and not options.expert:
        raise MapError(f'{map_path}: a map of {len(site.entries)} sub-maps; say with `expert` which one is trained: '
                       f'{", ".join(entry.name for entry in site.entries)}')
    if options.gating and len(site.entries) == 1:
        raise MapError(f'{map_path}: has one sub-map; there is no gating to train')
    bundle = load_map(map_path, options.expert or None)
    with team_of(resolve_device(device)) as team:
        first = team.rank == 0
        watch, quiet, where = watch if first else unwatched, quiet or not first, team.device

        def tell(progress: Progress) -> None:
            if watch(progress) != Wish.GO_ON:
                raise Interrupted(f'{out}: ended before the training began; there is nothing to keep')

        tell(Progress('read'))
        map_from_site = np.linalg.inv(bundle.entry.site_from_map_44)
        training, held_out = (moved(part, map_from_site) for part in frames_of(sources, site, options, bundle.entry.name))
        views = len(training) * (1 + options.augmented) + len(held_out) * (1 + WATCHED_VIEWS)
        with progress_bar('encode', views, quiet) as bar:
            numbers = count(1)

            def encoded() -> None:
                bar.update()
                tell(Progress('encode', next(numbers), views))

            encoder = shared_encoder(str(where))
            episodes = encode(training, encoder, options.augmented, options.seed, where, encoded)
            watched = encode(held_out, encoder, WATCHED_VIEWS, options.seed, where, encoded)
        recording = hash_of(training + held_out)
        state = (resumed(checkpoint, bundle, recording, options, team) if resume
                 else begin(bundle, recording, options, episodes, watched, team, clock))
        train(state, episodes, watched, options, checkpoint, team, watch, quiet)
    if not first:
        return None
    state.best.eval().requires_grad_(False)
    try:
        write_log(checkpoint.parent, state.log)
    except OSError as error:
        raise MapError(f'{checkpoint.parent}: cannot be written: {error.strerror}; then go on with --resume') from error
    watch(progress_of(state, 'calibrate'))
    # Landmarks are not trained, but where they were never measured they may be now; no depth tells nothing of poses with depth.
    with_depth = any(frame.depth is not None for frame in held_out)
    kept = ['landmarks'] * (bundle.covariance_factors['landmarks'] != FALLBACK_FACTORS['landmarks']) + ['rgbd'] * (not with_depth)
    factors, errors = calibrate(state.best, bundle.landmarks, held_out, bundle.frame_id, bundle.entry.centre, bundle.entry.extent, where,
                                with_depth, Budget(60 * options.minutes * CALIBRATION_SHARE, clock),
                                {key: bundle.covariance_factors[key] for key in kept})
    record = {**bundle.training, 'finetuned': {
        'from': str(map_path), 'expert_sha256': bundle.entry.sha256, 'sources': [str(getattr(s, 'path', 'frames')) for s in sources],
        'options': asdict(options), 'processes': team.size, 'steps': state.step, 'best_step': state.best_step,
        'held_out_loss': round(state.best_loss, 4), 'frames': len(training), 'held_out_frames': len(held_out),
        'seconds': round(whole.spent(), 1), 'held_out': errors}}
    alone = out if len(site.entries) == 1 else checkpoint.with_name(out.name)
    finished = save_map(alone, bundle.frame_id, bundle.entry.name, state.best.cpu(), bundle.landmarks, factors, bundle.entry.centre,
                        bundle.entry.extent, record, overwrite or alone != out, bundle.prototypes)
    if alone != out:
        heads = checkpoint.with_name('heads.dsacmap') if options.gating else out
        exchange_expert(Path(map_path), bundle.entry.name, alone, heads, overwrite or options.gating)
        shutil.rmtree(alone)
    if options.gating:
        train_gating(heads, sources, out, options, str(where), overwrite, quiet)
        shutil.rmtree(heads)
        finished = load_map(out, bundle.entry.name)
    checkpoint.unlink(missing_ok=True)
    return finished


def begin(bundle: MapBundle, recording: str, options: FinetuningOptions, episodes: Episodes, watched: Episodes, team: Team,
          clock: Clock) -> State:
    """A fresh state; the number of iterations is fixed here, once, so that resuming does not depend on how fast the machine is then."""
    state = new_state(bundle, recording, options, team, 1)
    iterations = options.iterations
    if not iterations:
        trial = new_state(bundle, recording, options, team, 1000)
        one_step(trial, episodes, options, team)
        start = clock()
        for _ in range(MEASURED_STEPS):
            one_step(trial, episodes, options, team)
        step = (clock() - start) / MEASURED_STEPS
        start = clock()
        held_out_losses(trial.expert, watched, options)
        iterations = max(1, int(60 * options.minutes / (step + (clock() - start) / options.check_every)))
    state.iterations = team.told(iterations)
    return state


def train(state: State, episodes: Episodes, watched: Episodes, options: FinetuningOptions, checkpoint: Path, team: Team, watch: Watch,
          quiet: bool) -> None:
    """Until the iterations are done, nothing got better for long, or somebody ends it. Raises Interrupted where it was left."""
    written, worked, from_step = -math.inf, 0.0, state.step  # a first checkpoint at once: from here on a training can be resumed
    layout = '{l_bar}{bar}| {elapsed}<{remaining}{postfix}'
    with progress_bar('finetune', state.iterations, quiet, initial=state.step, bar_format=layout) as bar:
        while True:
            begun = time.monotonic()
            due = state.step % options.check_every == 0 or state.step == state.iterations
            if due and (not state.log or state.log[-1]['step'] < state.step):
                look(state, watched, options)
                numbers = {name: value for name, value in state.log[-1].items() if name != 'step'}
                bar.set_postfix_str(', '.join(f'{name} {value:.2f}' for name, value in numbers.items()), refresh=False)
            if team.rank == 0 and time.monotonic() - written > options.checkpoint_seconds:
                save_state(checkpoint, state, options, team)
                written = time.monotonic()
            worked += time.monotonic() - begun
            each = worked / (state.step - from_step) if state.step > from_step else math.nan
            wish = team.told(watch(progress_of(state, 'train', each * (state.iterations - state.step))))
            if wish == Wish.FINISH and state.log[-1]['step'] < state.step:
                look(state, watched, options)  # the last state may be the best
            waited = state.step - state.best_step
            if wish != Wish.GO_ON or state.step >= state.iterations or waited >= options.patience * options.check_every:
                break
            begun = time.monotonic()
            state.recent.append(one_step(state, episodes, options, team))
            worked += time.monotonic() - begun
            bar.update()
    if team.rank == 0:
        save_state(checkpoint, state, options, team)
    if wish == Wish.LEAVE:
        raise Interrupted(f'{checkpoint.parent}: left at step {state.step} of {state.iterations}; go on with --resume')


def progress_of(state: State, stage: str, seconds_left: float = math.nan) -> Progress:
    """What is known at this step."""
    newest = state.log[-1] if state.log else {}
    means = means_of(state.recent) or newest
    held_out = {name: newest.get(name, math.nan) for name in ('held_out', 'held_out_cm', 'held_out_deg')}
    return Progress(stage, state.step, state.iterations, seconds_left, means.get('loss', math.nan), means.get('entropy_bits', math.nan),
                    **held_out, best_loss=state.best_loss, best_step=state.best_step)


def empty_loss(cut_off: float) -> float:
    """Pose loss of a pool without any hypothesis: as bad as a metre."""
    truth_144 = torch.eye(4, dtype=torch.float64)[None]
    away_144 = truth_144.clone()
    away_144[:, 0, 3] = 1.0
    return pose_loss(away_144[:, None], truth_144, cut_off=cut_off).item()


def one_step(state: State, episodes: Episodes, options: FinetuningOptions, team: Team) -> dict[str, float]:
    """A batch forward, backward, and the weights moved. Of several processes each has its part of one large batch."""
    # From the seed and the step alone: there is no state of a generator to keep.
    generator = torch.Generator().manual_seed(1_000_003 * options.seed + state.step)
    images, mine = options.batch * team.size, slice(options.batch * team.rank, options.batch * (team.rank + 1))
    batch = episodes.some(torch.randint(len(episodes), (images,), generator=generator)[mine])
    draws_BPK3 = torch.rand(images, 1, options.hypotheses, 3, dtype=torch.float64, generator=generator)[mine]
    cells, weights_BN = predict(state.model, batch, options)
    pools = solve_pools(cells, weights_BN, draws_BPK3.to(weights_BN.device), batch.map_from_camera_V44, ESTIMATOR, options.cut_off)
    scores_BPK, valid_BPK = team.gathered(pools.scores_BPK), team.gathered(pools.valid_BPK)
    state.alpha = followed_alpha(state.alpha, scores_BPK, valid_BPK, options.bits, ALPHA_RATE)
    expectation = expected_loss(pools.scores_BPK, pools.losses_BPK, pools.valid_BPK, state.alpha, empty_loss(options.cut_off))
    loss = over_draws(expectation, pools.log_likelihoods_BPK).mean()
    for group in state.optimiser.param_groups:
        group['lr'] = options.learning_rate * one_cycle(state.step / state.iterations)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.expert.parameters(), MAX_GRADIENT, error_if_nonfinite=True)
    state.optimiser.step()
    state.step += 1
    values = torch.stack([loss.detach(), expectation.entropy_bits.mean(), pools.sound_BPK.double().mean()])
    return dict(zip(('loss', 'entropy_bits', 'sound'), team.gathered(values[None]).mean(0).tolist()))


@torch.no_grad()
def held_out_losses(expert: Expert, watched: Episodes, options: FinetuningOptions) -> dict[str, float]:
    """By the cells as the localizer solves them, with the same random numbers each time: mean pose loss of the held-out frames and their
    augmented views, and the medians of what it is made of over the frames themselves."""
    losses, distances, angles = [], [], []
    for first in range(0, len(watched), options.batch):
        seeds = range(first, min(first + options.batch, len(watched)))
        batch = watched.some(torch.tensor(seeds))
        poses_B44 = localised(expert, batch, seeds, options)
        truths_B44 = batch.map_from_camera_V44
        losses.append(pose_loss(poses_B44[:, None], truths_B44, cut_off=options.cut_off))
        distances.append((poses_B44 - truths_B44)[:, :3, 3].norm(dim=-1))
        angles.append(se3.rotation_angle(truths_B44[:, :3, :3].mT @ poses_B44[:, :3, :3]))
    metres, radians = (torch.cat(values)[::1 + WATCHED_VIEWS].median().item() for values in (distances, angles))
    return {'held_out': torch.cat(losses).mean().item(), 'held_out_cm': 100 * metres, 'held_out_deg': math.degrees(radians)}


def look(state: State, watched: Episodes, options: FinetuningOptions) -> None:
    """Compare with the best state so far on the held-out frames."""
    found = held_out_losses(state.expert, watched, options)
    state.log.append({'step': state.step, **found, **means_of(state.recent)})
    state.recent.clear()
    if found['held_out'] < state.best_loss:
        state.best_loss, state.best_step = found['held_out'], state.step
        state.best.load_state_dict(state.expert.state_dict())


def means_of(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(step[name] for step in steps) / len(steps) for name in (steps[0] if steps else ())}


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
