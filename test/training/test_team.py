"""Several processes, as torchrun starts them, do what one does with their batches together."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rooms
import torch
from safetensors.torch import load_file

from dsac_ros.config import FinetuningOptions
from dsac_ros.maps.bundle import load_map
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.training.episodes import encode
from dsac_ros.training.finetuning import finetune, one_step
from dsac_ros.training.state import checkpoint_of, new_state
from dsac_ros.training.team import Team

OPTIONS = FinetuningOptions(iterations=3, batch=2, hypotheses=32, bits=3.0, augmented=0, check_every=2, held_out_share=0.25)
CPU = torch.device('cpu')
# Every process computes in one thread, so that two of them fit on two cores.
BEGIN = '''
import sys
from pathlib import Path
sys.path[:0] = [{test!r}, {test!r} + '/training']
import rooms, torch
from safetensors.torch import save_file
from test_team import CPU, OPTIONS, gradients
from dsac_ros.errors import Interrupted
from dsac_ros.training.finetuning import finetune
from dsac_ros.training.team import team_of
from dsac_ros.training.watching import Wish
torch.set_num_threads(1)
'''
GRADIENTS = BEGIN + '''
with team_of(CPU) as team:
    assert team.size == 2
    kept = team.parallel(torch.nn.Linear(2, 2))  # whoever goes on to hold a module does not hold the group
    save_file(gradients({map!r}, OPTIONS, team), f'{out}/{{team.rank}}.safetensors')
threads = [file.read_text().strip() for file in Path('/proc/self/task').glob('*/comm')]
assert not [name for name in threads if 'gloo' in name], threads  # left to the end of the interpreter they abort it now and then
'''
# Left at step 1, and gone on with in the same processes: the whole life of a training.
TRAINING = BEGIN + '''
def run(resume, wish):
    return finetune({map!r}, [rooms.ListSource(rooms.tiny_frames())], Path({out!r}) / 'm.dsacmap', OPTIONS, 'cpu', resume=resume,
                    watch=lambda told: wish if (told.stage, told.step) == ('train', 1) else Wish.GO_ON, quiet=True)
import os
if {resume!r}:
    bundle = run(True, Wish.GO_ON)
    assert (bundle is None) == (os.environ['RANK'] != '0')
else:
    try:
        run(False, Wish.LEAVE)
    except Interrupted as error:
        print(error)
    else:
        raise AssertionError('not left')
'''


def gradients(path: str, options: FinetuningOptions, team: Team) -> dict[str, torch.Tensor]:
    """Of the first step, and what else every process has to agree on."""
    episodes = encode(list(rooms.tiny_frames()[:6]), shared_encoder('cpu'), 0, 0, CPU, lambda: None)
    state = new_state(load_map(path), '', options, team, 10)
    told = one_step(state, episodes, options, team)
    found = {name: parameter.grad.clone() for name, parameter in state.expert.named_parameters()}
    return found | {'alpha': state.alpha.reshape(1), 'loss': torch.tensor([told['loss']], dtype=torch.float64)}


def torchrun(code: str, **values: object) -> str:
    code = code.format(test=str(Path(__file__).parents[1]), map=str(rooms.tiny_map()[0]), **values)
    script = Path(str(values['out'])) / 'script.py'
    script.write_text(code)
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_have_the_gradient_of_one_with_the_double_batch(tmp_path: Path) -> None:
    torchrun(GRADIENTS, out=str(tmp_path))
    first, second = (load_file(tmp_path / f'{rank}.safetensors') for rank in range(2))
    alone = gradients(str(rooms.tiny_map()[0]), replace(OPTIONS, batch=4), Team())
    half = gradients(str(rooms.tiny_map()[0]), OPTIONS, Team())

    def distance(other: dict[str, torch.Tensor]) -> float:
        one, two = (torch.cat([found[name].flatten().double() for name in sorted(found)]) for found in (alone, other))
        return float((one - two).norm() / one.norm())

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert distance(first) < 1e-5 < 1e-2 < distance(half), (distance(first), distance(half))
    for name in alone:
        assert (alone[name] - first[name]).norm() <= 1e-5 * alone[name].norm() + 1e-9, name


@pytest.mark.slow
def test_a_training_of_two_processes_is_left_and_resumed_and_has_one_result(tmp_path: Path) -> None:
    assert 'step 1 of 3' in torchrun(TRAINING, out=str(tmp_path), resume=False)
    out = tmp_path / 'm.dsacmap'
    assert checkpoint_of(out).is_file() and not out.exists()
    with pytest.raises(Exception, match='processes=2, now 1'):
        finetune(rooms.tiny_map()[0], [rooms.ListSource(rooms.tiny_frames())], out, OPTIONS, 'cpu', resume=True, quiet=True)
    torchrun(TRAINING, out=str(tmp_path), resume=True)
    record = load_map(out).training['finetuned']
    assert record['processes'] == 2 and record['steps'] == 3 and not checkpoint_of(out).exists()
    alone = finetune(rooms.tiny_map()[0], [rooms.ListSource(rooms.tiny_frames())], tmp_path / 'alone.dsacmap', replace(OPTIONS, batch=4),
                     'cpu', quiet=True)
    assert record['held_out_loss'] == pytest.approx(alone.training['finetuned']['held_out_loss'], rel=1e-3)
