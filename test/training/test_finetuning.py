"""End-to-end training of a tiny map: it gets better, can be killed, and says what it was made from."""
from __future__ import annotations

import copy
import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
import rooms
import torch

from dsac_ros.config import FinetuningOptions, MappingOptions
from dsac_ros.endtoend.expectation import expected_loss, over_draws
from dsac_ros.endtoend.pools import solve_pools
from dsac_ros.errors import ConfigError, DataError, Interrupted, MapError
from dsac_ros.maps.bundle import MapBundle, load_map, save_map
from dsac_ros.maps.editing import problems
from dsac_ros.maps.manifest import COVARIANCE_KEYS, read_manifest
from dsac_ros.maps.site import open_site
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.expert import Expert
from dsac_ros.training import finetuning
from dsac_ros.training.episodes import Episodes, encode, frames_of
from dsac_ros.training.finetuning import empty_loss, finetune, one_step
from dsac_ros.training.localising import ESTIMATOR, predict
from dsac_ros.training.mapping import held_out
from dsac_ros.training.state import CHECKPOINT, FIRST_ALPHA, new_state
from dsac_ros.training.team import Team
from dsac_ros.training.watching import Progress, Wish

OPTIONS = FinetuningOptions(iterations=6, batch=2, hypotheses=32, bits=3.0, augmented=0, learning_rate=1e-5, check_every=3,
                            held_out_share=0.25, checkpoint_seconds=0.1)
CPU = torch.device('cpu')


def tuned(out: Path, options: FinetuningOptions = OPTIONS, **arguments: object) -> MapBundle:
    return finetune(rooms.tiny_map()[0], [rooms.ListSource(rooms.tiny_frames())], out, options, 'cpu', quiet=True, **arguments)


def weights(bundle: MapBundle) -> dict[str, torch.Tensor]:
    return bundle.expert.state_dict()


def same(one: MapBundle, two: MapBundle) -> bool:
    return all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())


def disturbed_map(path: Path) -> Path:
    """The tiny map with 8 % of noise on each weight of its head, so that a training has much to gain on its frames and on held-out ones."""
    made, noise = rooms.tiny_map()[1], torch.Generator().manual_seed(0)
    expert = copy.deepcopy(made.expert)
    with torch.no_grad():
        for weight in (weight for weight in expert.parameters() if weight.dim() > 1):
            weight.mul_(1 + 0.08 * torch.randn(weight.shape, generator=noise))
    entry = made.entry
    save_map(path, made.frame_id, entry.name, expert, made.landmarks, entry.covariance_factors, entry.centre, entry.extent, made.training)
    return path


@torch.no_grad()
def expected(expert: Expert, episodes: Episodes, options: FinetuningOptions) -> float:
    """Mean loss that training lowers, over all episodes, always with the same draws and inverse temperature."""
    cells, weights_BN = predict(expert, episodes, options)
    draws_BPK3 = torch.rand(len(episodes), 1, options.hypotheses, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pools = solve_pools(cells, weights_BN, draws_BPK3, episodes.map_from_camera_V44, ESTIMATOR, options.cut_off)
    alpha = torch.tensor(FIRST_ALPHA, dtype=torch.float64)
    expectation = expected_loss(pools.scores_BPK, pools.losses_BPK, pools.valid_BPK, alpha, empty_loss(options.cut_off))
    return over_draws(expectation, pools.log_likelihoods_BPK).mean().item()


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_the_expected_loss_falls_and_the_best_state_is_kept(tmp_path: Path, modality: str) -> None:
    options = replace(OPTIONS, modality=modality, iterations=80, check_every=20)
    source, out = rooms.ListSource(rooms.tiny_frames()), tmp_path / 'm.dsacmap'
    bundle = finetune(disturbed_map(tmp_path / 'start.dsacmap'), [source], out, options, 'cpu', quiet=True)
    with (tmp_path / 'm.dsacmap.finetuning' / 'log.csv').open() as file:
        log = list(csv.DictReader(file))
    losses, held_out = [float(row['loss']) for row in log[1:]], [float(row['held_out']) for row in log]
    assert [int(row['step']) for row in log] == [0, 20, 40, 60, 80] and losses[-1] < 0.7 * losses[0], losses
    record = bundle.training['finetuned']
    assert record['held_out_loss'] == pytest.approx(min(held_out), abs=1e-3) and record['best_step'] == 20 * held_out.index(min(held_out))
    assert record['best_step'] > 0 and (tmp_path / 'm.dsacmap.finetuning' / 'log.png').stat().st_size > 5000


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_the_expected_loss_of_the_same_frames_and_draws_falls(tmp_path: Path, modality: str) -> None:
    """Before and after: rows of a log are of other frames and draws each time, and two of them may differ for that alone."""
    options = replace(OPTIONS, modality=modality, iterations=40)
    start = disturbed_map(tmp_path / 'start.dsacmap')
    frames, _ = frames_of([rooms.ListSource(rooms.tiny_frames())], open_site(start), options)
    episodes = encode(frames, shared_encoder('cpu'), 0, 0, CPU, lambda: None)
    state = new_state(load_map(start), '', options, Team(), options.iterations)
    before = expected(state.expert, episodes, options)
    for _ in range(options.iterations):
        one_step(state, episodes, options, Team())
    assert expected(state.expert, episodes, options) < 0.7 * before


def test_the_result_says_what_it_was_made_from_and_the_first_map_stays(tmp_path: Path) -> None:
    path, start = rooms.tiny_map()
    before = {file: file.read_bytes() for file in path.rglob('*') if file.is_file()}
    bundle = load_map(tuned(tmp_path / 'm.dsacmap') and tmp_path / 'm.dsacmap')
    record = bundle.training['finetuned']
    assert record['from'] == str(path) and record['expert_sha256'] == start.entry.sha256 and record['sources'] == ['the-bag']
    assert record['steps'] == 6 and record['options']['batch'] == 2 and bundle.training['steps'] == rooms.TINY['steps']
    assert bundle.frame_id == start.frame_id and bundle.entry.centre == start.entry.centre and set(record['held_out']) >= {'rgb'}
    # It was not trained for depth, but what it was trained for moves these poses, too; landmarks are not trained at all.
    assert [bundle.covariance_factors[key] == start.covariance_factors[key] for key in COVARIANCE_KEYS] == [False, False, True]
    assert record['held_out'].keys() >= {'rgb', 'rgbd'}
    kept, landmarks = load_map(path).landmarks, bundle.landmarks
    assert (landmarks.common_shift, landmarks.growth) == (kept.common_shift, kept.growth)
    assert len(landmarks.cameras_F34) and torch.equal(landmarks.cameras_F34, kept.cameras_F34)
    assert {file: file.read_bytes() for file in path.rglob('*') if file.is_file()} == before
    assert not (tmp_path / 'm.dsacmap.finetuning' / CHECKPOINT).exists()


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at step 4 by an exception, where the newest checkpoint is of any step before."""
    alone = tuned(tmp_path / 'alone.dsacmap')
    steps, real = [], finetuning.one_step

    def fails(state: finetuning.State, *arguments: object) -> dict[str, float]:
        steps.append(state.step)
        if state.step == 4:
            raise RuntimeError('power cut')
        time.sleep(0.11)  # so that each step has a checkpoint before it
        return real(state, *arguments)

    monkeypatch.setattr(finetuning, 'one_step', fails)
    with pytest.raises(RuntimeError, match='power cut'):
        tuned(tmp_path / 'm.dsacmap')
    monkeypatch.setattr(finetuning, 'one_step', real)
    with pytest.raises(MapError, match='--resume'):
        tuned(tmp_path / 'm.dsacmap')
    with pytest.raises(MapError, match='seed'):
        tuned(tmp_path / 'm.dsacmap', replace(OPTIONS, seed=1), resume=True)
    with pytest.raises(MapError, match='made with map='):
        finetune(disturbed_map(tmp_path / 'other.dsacmap'), [rooms.ListSource(rooms.tiny_frames())], tmp_path / 'm.dsacmap', OPTIONS, 'cpu',
                 resume=True, quiet=True)
    with pytest.raises(MapError, match='made with recording=.*same map, recordings and options'):
        finetune(rooms.tiny_map()[0], [rooms.ListSource(rooms.tiny_frames()[1:])], tmp_path / 'm.dsacmap', OPTIONS, 'cpu', resume=True,
                 quiet=True)
    resumed = tuned(tmp_path / 'm.dsacmap', resume=True)
    assert same(alone, resumed) and not same(alone, rooms.tiny_map()[1])
    assert resumed.training['finetuned']['held_out_loss'] == alone.training['finetuned']['held_out_loss']


def test_more_bits_than_a_choice_can_have_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='bits=6: a choice among 64 hypotheses has less than 6 bits'):
        finetune(rooms.tiny_map()[0], [], tmp_path / 'm.dsacmap', FinetuningOptions(hypotheses=64), 'cpu', quiet=True)


def test_the_encoders_last_stage_is_trained_for_this_map_alone() -> None:
    """It starts as the encoder's, moves while the encoder's does not, and stays as it is where it is not asked for any more."""
    before = {name: value.clone() for name, value in shared_encoder('cpu').state_dict().items()}
    episodes = encode(list(rooms.tiny_frames()[:4]), shared_encoder('cpu'), 0, 0, CPU, lambda: None)
    plain, own = (new_state(rooms.tiny_map()[1], '', replace(OPTIONS, last_stage=stage), Team(), 10) for stage in (False, True))
    assert one_step(plain, episodes, OPTIONS, Team())['loss'] == pytest.approx(one_step(own, episodes, OPTIONS, Team())['loss'], rel=0.02)
    moved = {name: not torch.equal(value, before[f'blocks.{len(shared_encoder("cpu").blocks) - 1}.{name}'])
             for name, value in own.expert.last_stage.state_dict().items()}
    assert plain.expert.last_stage is None and all(moved.values()) and len(moved) == 6
    assert all(torch.equal(value, before[name]) for name, value in shared_encoder('cpu').state_dict().items())
    bundle = replace(rooms.tiny_map()[1], expert=own.expert)
    again = new_state(bundle, '', OPTIONS, Team(), 10)
    one_step(again, episodes, OPTIONS, Team())
    kept = own.expert.last_stage.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.expert.last_stage.state_dict().items())
    assert not torch.equal(again.expert.last.weight, own.expert.last.weight)


def test_a_training_of_the_last_stage_that_was_left_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    options = replace(OPTIONS, last_stage=True, check_every=1)
    with pytest.raises(Interrupted):
        tuned(tmp_path / 'm.dsacmap', options,
              watch=lambda told: Wish.LEAVE if told.stage == 'train' and told.step == 3 else Wish.GO_ON)
    resumed = tuned(tmp_path / 'm.dsacmap', options, resume=True)
    assert 'last_stage.project.weight' in weights(resumed) and same(resumed, tuned(tmp_path / 'alone.dsacmap', options))
    assert same(load_map(tmp_path / 'm.dsacmap'), load_map(tmp_path / 'alone.dsacmap'))


# One process that has imported and painted everything, once, and forks one for each life of the training: it is told where each goes on
# and answers with its process, and then with how that ended.
LIVES = '''
import os, sys
sys.path[:0] = [{test!r}, {test!r} + '/training']
from dataclasses import replace
from pathlib import Path
import rooms, torch
from dsac_ros.training.finetuning import finetune
from test_finetuning import OPTIONS
torch.set_num_threads(1)  # nor are there others when it forks
import torch._dynamo  # which each life would import late, for its optimiser
frames = rooms.tiny_frames()[::2]
for line in sys.stdin:
    out = Path(line.strip())
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code = 1
    try:
        resume = (out.with_name(out.name + '.finetuning') / 'checkpoint.safetensors').is_file()
        finetune({map!r}, [rooms.ListSource(frames)], out, replace(OPTIONS, iterations=10), 'cpu', resume=resume, quiet=True)
        code = 0
    finally:
        os._exit(code)
'''


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    """kill -9, three times, somewhere between the first step and the last; benchmarks.kill_and_resume does it twenty times."""
    rng, out = torch.Generator().manual_seed(0), tmp_path / 'm.dsacmap'
    code = LIVES.format(test=str(Path(__file__).parents[1]), map=str(rooms.tiny_map()[0]))
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as lives:
        def start(out: Path) -> int:
            lives.stdin.write(f'{out}\n')
            lives.stdin.flush()
            return int(lives.stdout.readline())

        def ended() -> int:
            return int(lives.stdout.readline())

        def written() -> int:
            checkpoint = out.with_name(out.name + '.finetuning') / CHECKPOINT
            return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

        start(tmp_path / 'alone.dsacmap')
        assert ended() == 0
        kills = 0
        while not out.exists():
            seen, training = written(), start(out)
            if kills < 3:
                for _ in range(2):  # one is written before the first step, so that each life gets further than the last
                    while psutil.pid_exists(training) and written() == seen:
                        time.sleep(0.01)
                    seen = written()
                time.sleep(0.4 * float(torch.rand((), generator=rng)))
                assert psutil.pid_exists(training), 'it was done before it could be killed'
                os.kill(training, signal.SIGKILL)
                kills += 1
                assert ended() == -signal.SIGKILL
            else:
                assert ended() == 0
        lives.stdin.close()
    assert kills == 3 and same(load_map(tmp_path / 'alone.dsacmap'), load_map(out))


def test_stopping_early_keeps_the_best_state(tmp_path: Path) -> None:
    bundle = tuned(tmp_path / 'm.dsacmap', watch=lambda told: Wish.FINISH if told.step == 4 and told.stage == 'train' else Wish.GO_ON)
    assert bundle.training['finetuned']['steps'] == 4 and not (tmp_path / 'm.dsacmap.finetuning' / CHECKPOINT).exists()


def test_the_last_state_is_looked_at_wherever_it_is_ended(tmp_path: Path) -> None:
    """Between two looks; it was disturbed so much that any training makes it better."""
    start, options = disturbed_map(tmp_path / 'start.dsacmap'), replace(OPTIONS, iterations=100, check_every=50, learning_rate=1e-4)
    bundle = finetune(start, [rooms.ListSource(rooms.tiny_frames())], tmp_path / 'm.dsacmap', options, 'cpu', quiet=True,
                      watch=lambda told: Wish.FINISH if told.step == 15 and told.stage == 'train' else Wish.GO_ON)
    record = bundle.training['finetuned']
    assert record['best_step'] == record['steps'] == 15


def test_without_depth_the_factor_of_poses_with_depth_stays(tmp_path: Path) -> None:
    frames = [replace(frame, depth=None) for frame in rooms.tiny_frames()]
    path, start = rooms.tiny_map()
    bundle = finetune(path, [rooms.ListSource(frames)], tmp_path / 'm.dsacmap', OPTIONS, 'cpu', quiet=True)
    assert [bundle.covariance_factors[key] == start.covariance_factors[key] for key in COVARIANCE_KEYS] == [False, True, True]


def test_a_pool_without_hypotheses_costs_a_metre() -> None:
    """Whatever the cut-off: as a pose that is a metre away, 100 where nothing is cut off."""
    assert finetuning.empty_loss(1e6) == pytest.approx(100.0, abs=0.2)
    assert finetuning.empty_loss(20.0) == pytest.approx((20 * 100) ** 0.5, abs=0.1)


def test_what_lies_where_the_checkpoint_goes_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / 'm.dsacmap.finetuning').write_text('notes')
    with pytest.raises(MapError, match='m.dsacmap.finetuning: is no folder'):
        finetune(rooms.tiny_map()[0], [], tmp_path / 'm.dsacmap', OPTIONS, 'cpu', quiet=True)
    assert (tmp_path / 'm.dsacmap.finetuning').read_text() == 'notes'


def test_frames_held_out_of_mapping_are_those_held_out_here() -> None:
    """By the defaults of both, of one recording: no frame is watched that mapping trained on, but for one at a border."""
    for frames in (40, 100, 190, 390, 590, 2400):
        every, each = (max(1, -(-frames // options().max_frames)) for options in (MappingOptions, FinetuningOptions))
        kept, watched = (np.flatnonzero(held_out(-(-frames // step), options().held_out_share)) * step
                         for step, options in ((every, MappingOptions), (each, FinetuningOptions)))
        apart = [int(np.abs(kept - frame).min()) for frame in watched]
        assert len(watched) >= 3 and max(apart) <= each and sum(gap >= every for gap in apart) <= 3, (frames, apart)


def test_leaving_keeps_a_checkpoint_of_that_very_step(tmp_path: Path) -> None:
    out = tmp_path / 'm.dsacmap'
    rare = replace(OPTIONS, checkpoint_seconds=3600.0)
    with pytest.raises(Interrupted, match='step 4 of 6.*--resume'):
        tuned(out, rare, watch=lambda told: Wish.LEAVE if told.step == 4 and told.stage == 'train' else Wish.GO_ON)
    told: list[Progress] = []
    resumed = tuned(out, rare, resume=True, watch=lambda progress: told.append(progress) or Wish.GO_ON)
    assert [progress.step for progress in told if progress.stage == 'train'] == [4, 5, 6]
    assert same(tuned(tmp_path / 'alone.dsacmap'), resumed)


@pytest.mark.parametrize('wish', [Wish.FINISH, Wish.LEAVE])
def test_ended_before_it_trains_it_leaves_nothing(tmp_path: Path, wish: Wish) -> None:
    with pytest.raises(Interrupted, match='nothing to keep'):
        tuned(tmp_path / 'm.dsacmap', watch=lambda told: wish if (told.stage, told.step) == ('encode', 3) else Wish.GO_ON)
    assert not list(tmp_path.iterdir())


def test_who_watches_is_told_every_stage(tmp_path: Path) -> None:
    told: list[Progress] = []
    bundle = tuned(tmp_path / 'm.dsacmap', watch=lambda progress: told.append(progress) or Wish.GO_ON)
    assert list(dict.fromkeys(progress.stage for progress in told)) == ['read', 'encode', 'train', 'calibrate']
    views = rooms.FRAMES + finetuning.WATCHED_VIEWS * bundle.training['finetuned']['held_out_frames']
    assert [p.step for p in told if p.stage == 'encode'] == list(range(1, views + 1)) and told[1].steps == views
    steps = [progress for progress in told if progress.stage == 'train']
    assert [p.step for p in steps] == list(range(7)) and {p.steps for p in steps} == {6}
    assert math.isnan(steps[0].loss) and all(math.isfinite(p.loss) and p.entropy_bits > 0 for p in steps[1:])
    assert steps[-1].seconds_left == 0 < steps[1].seconds_left and math.isfinite(told[-1].held_out_cm + told[-1].held_out_deg)
    assert told[-1].best_loss == pytest.approx(bundle.training['finetuned']['held_out_loss'], abs=1e-4)


def test_guidance_learns_by_what_is_drawn_and_only_if_asked() -> None:
    """Without depth the predicted scale has no other part: its gradient is that of the draws alone."""
    frames = list(rooms.tiny_frames()[:4])
    episodes = encode(frames, shared_encoder('cpu'), 0, 0, CPU, lambda: None)
    moved = {}
    for guided in (True, False):
        options = replace(OPTIONS, guidance=guided)
        state = new_state(rooms.tiny_map()[1], '', options, Team(), 10)
        one_step(state, episodes, options, Team())
        moved[guided] = state.expert.last.weight.grad[-1].abs().max().item()
    assert moved[False] == 0 and moved[True] > 0
    with torch.no_grad():
        _, weights_BN = predict(rooms.tiny_map()[1].expert, episodes, replace(OPTIONS, guidance=False))
    assert (weights_BN == 1).all()


def test_one_sub_map_of_many_is_trained_and_the_others_stay(tmp_path: Path) -> None:
    """The second room, which lies elsewhere in the site: poses come in the frame of the site, and so does the map."""
    site, out = rooms.tiny_site(), tmp_path / 'm.dsacmap'
    source = rooms.ListSource(rooms.in_site(frame, 2) for frame in rooms.tiny_frames(2))
    with pytest.raises(MapError, match='2 sub-maps.*tiny, tiny2'):
        finetune(site, [source], out, OPTIONS, 'cpu', quiet=True)
    options = replace(OPTIONS, expert='tiny2', iterations=20, check_every=10, learning_rate=1e-4)
    bundle = finetune(site, [source], out, options, 'cpu', quiet=True)
    before, after = read_manifest(site).entries, read_manifest(out).entries
    assert after[0] == before[0] and (out / after[0].file).read_bytes() == (site / after[0].file).read_bytes()
    assert (after[1].name, after[1].site_from_map) == (before[1].name, before[1].site_from_map)
    assert problems(out) == [] and after[1].sha256 == bundle.entry.sha256 and load_map(out, 'tiny2').training['finetuned']['steps'] == 20
    assert sorted(path.name for path in (tmp_path / 'm.dsacmap.finetuning').iterdir()) == ['log.csv', 'log.png']
    with (tmp_path / 'm.dsacmap.finetuning' / 'log.csv').open() as file:
        assert float(next(csv.DictReader(file))['held_out_cm']) < 10  # by a map that lies where its poses are


def test_head_and_gating_in_one_training(tmp_path: Path) -> None:
    """Recordings of both rooms: the head sees the frames of its own alone, gating all of them."""
    site, out = rooms.tiny_site(), tmp_path / 'm.dsacmap'
    sources = [rooms.ListSource(rooms.in_site(frame, room) for frame in rooms.tiny_frames(room)) for room in (1, 2)]
    options = replace(OPTIONS, expert='tiny2', gating=True)
    bundle = finetune(site, sources, out, options, 'cpu', quiet=True)
    before, after = read_manifest(site).entries, read_manifest(out).entries
    assert problems(out) == [] and after[0].sha256 == before[0].sha256 and after[1].sha256 == bundle.entry.sha256
    finetuned, gated = bundle.training['finetuned'], bundle.training['gated']
    assert finetuned['frames'] + finetuned['held_out_frames'] == rooms.FRAMES and finetuned['steps'] == 6
    assert gated['frames'] + gated['held_out_frames'] == 2 * rooms.FRAMES and gated['after']['loss'] <= gated['before']['loss']
    assert sorted(path.name for path in (tmp_path / 'm.dsacmap.finetuning').iterdir()) == ['log.csv', 'log.png']
    with pytest.raises(DataError, match="0 of .* nearest to the sub-map 'tiny2'"):
        finetune(site, sources[:1], tmp_path / 'other.dsacmap', options, 'cpu', quiet=True)
    with pytest.raises(MapError, match='no gating to train'):
        tuned(tmp_path / 'other.dsacmap', replace(OPTIONS, gating=True))


def test_poses_in_another_frame_are_refused(tmp_path: Path) -> None:
    source = rooms.ListSource(rooms.tiny_frames())
    source.map_frame = 'odom'
    with pytest.raises(DataError, match="'odom'.*'map'"):
        finetune(rooms.tiny_map()[0], [source], tmp_path / 'm.dsacmap', OPTIONS, 'cpu', quiet=True)
    with pytest.raises(MapError, match='nothing to resume'):
        tuned(tmp_path / 'm.dsacmap', resume=True)
    assert not list(tmp_path.iterdir())


def test_the_time_becomes_a_number_of_steps(tmp_path: Path) -> None:
    bundle = tuned(tmp_path / 'm.dsacmap', replace(OPTIONS, iterations=0, minutes=0.02))
    assert 1 <= bundle.training['finetuned']['steps'] < 60


def test_the_time_is_that_of_the_clock(tmp_path: Path) -> None:
    """One that ticks when it is read: five steps take a second, as does a look at the held-out frames every three."""
    ticks = count()
    bundle = tuned(tmp_path / 'm.dsacmap', replace(OPTIONS, iterations=0, minutes=0.1), clock=lambda: float(next(ticks)))
    assert bundle.training['finetuned']['steps'] == int(6 / (1 / 5 + 1 / 3))
