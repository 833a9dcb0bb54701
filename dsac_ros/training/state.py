"""All that an end-to-end training is, and how it goes to a checkpoint and back."""
from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsac_ros.config import FinetuningOptions
from dsac_ros.errors import MapError
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.expert import Expert
from dsac_ros.records import Frame
from dsac_ros.training.checkpoint import load_checkpoint, save_checkpoint
from dsac_ros.training.team import Team

CHECKPOINT = 'checkpoint.safetensors'
NUMBERS = ('iterations', 'step', 'best_loss', 'best_step', 'recent', 'log')  # of a State, besides tensors
FREE = ('minutes', 'checkpoint_seconds')  # options that a resumed training may have otherwise
FIRST_ALPHA = 0.1


def checkpoint_of(out: Path) -> Path:
    """Where the checkpoint of a training lies while it lasts."""
    return out.with_name(out.name + '.finetuning') / CHECKPOINT


@dataclass
class State:
    """All that a training is: what it continues from is what it has written down, and nothing else."""

    expert: Expert
    model: nn.Module  # the expert as a step calls it: alone, or beside those of other processes
    best: Expert
    optimiser: torch.optim.AdamW
    alpha: Tensor
    iterations: int
    source: str  # hash of the expert that the training began with
    recording: str  # hash of the frames that it is trained and watched on
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    recent: list[dict[str, float]] = field(default_factory=list)  # of the steps since the last look
    log: list[dict[str, float]] = field(default_factory=list)  # of the looks


def hash_of(frames: list[Frame]) -> str:
    """What tells these frames from those of another recording, or from others of the same."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr((frame.stamp_ns, frame.camera)).encode())
        digest.update(np.ascontiguousarray(frame.map_from_camera).tobytes())
    return digest.hexdigest()


def new_state(bundle: MapBundle, recording: str, options: FinetuningOptions, team: Team, iterations: int) -> State:
    expert = copy.deepcopy(bundle.expert).to(team.device).train().requires_grad_(True)
    if options.last_stage and expert.last_stage is None:
        expert.last_stage = shared_encoder(str(team.device)).own_last_stage().requires_grad_(True)
    if expert.last_stage is not None:
        expert.last_stage.requires_grad_(options.last_stage)
    optimiser = torch.optim.AdamW([p for p in expert.parameters() if p.requires_grad], lr=options.learning_rate, weight_decay=0.0)
    alpha = torch.tensor(FIRST_ALPHA, dtype=torch.float64, device=team.device)
    return State(expert, team.parallel(expert), copy.deepcopy(expert), optimiser, alpha, iterations, bundle.entry.sha256, recording)


def save_state(path: Path, state: State, options: FinetuningOptions, team: Team) -> None:
    tensors = {f'{name}.{key}': value for name, module in (('expert', state.expert), ('best', state.best))
               for key, value in module.state_dict().items()}
    tensors |= {f'optimiser.{index}.{key}': value for index, values in state.optimiser.state_dict()['state'].items()
                for key, value in values.items()}
    values = {name: getattr(state, name) for name in NUMBERS} | {'options': made_with(state.source, state.recording, options, team)}
    save_checkpoint(path, tensors | {'alpha': state.alpha.reshape(1)}, values)


def made_with(source: str, recording: str, options: FinetuningOptions, team: Team) -> dict[str, object]:
    """What has to be the same when a training is resumed."""
    chosen = {name: value for name, value in asdict(options).items() if name not in FREE}
    return chosen | {'processes': team.size, 'map': source[:12], 'recording': recording[:12]}


def resumed(path: Path, bundle: MapBundle, recording: str, options: FinetuningOptions, team: Team) -> State:
    """The state of a checkpoint. Raises MapError where it was made with other options, on other frames, or from another map."""
    tensors, values = load_checkpoint(path)
    for name, value in made_with(bundle.entry.sha256, recording, options, team).items():
        if values['options'].get(name) != value:
            raise MapError(f'{path}: made with {name}={values["options"].get(name)!r}, now {value!r}; resume with the same map, '
                           'recordings and options, or start again with --overwrite (the node: remove the folder)')
    state = new_state(bundle, recording, options, team, values['iterations'])
    for name, module in (('expert', state.expert), ('best', state.best)):
        module.load_state_dict({key.removeprefix(f'{name}.'): value for key, value in tensors.items() if key.startswith(f'{name}.')})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith('optimiser.'):
            _, index, name = key.split('.')
            moments.setdefault(int(index), {})[name] = value
    state.optimiser.load_state_dict({'state': moments, 'param_groups': state.optimiser.state_dict()['param_groups']})
    state.alpha = tensors['alpha'].to(team.device)[0]
    for name in NUMBERS:
        setattr(state, name, values[name])
    return state
