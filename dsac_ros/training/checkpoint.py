"""The state of a training in one safetensors file, written so that there is always a whole one, whenever the process is killed."""
from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dsac_ros.errors import MapError


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Beside its place first, flushed to the disk, then renamed. values: what JSON can hold. Raises MapError where that fails, and leaves
    the one that was there."""
    temporary = path.with_name(f'.{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {'values': json.dumps(values)})
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise MapError(f'{path}: cannot be written: {error}') from error


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What save_checkpoint wrote. Raises MapError for anything else."""
    try:
        with safe_open(path, 'pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()['values'])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MapError(f'{path}: no checkpoint of a training: {error}; start again without --resume') from error
