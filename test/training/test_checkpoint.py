"""There is always a whole checkpoint, and nothing else is taken for one."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsac_ros.errors import MapError
from dsac_ros.training import checkpoint
from dsac_ros.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    tensors = {'a': torch.randn(3, 4), 'b.c': torch.randn(5, dtype=torch.float64), 'n': torch.tensor(7.0)}
    values = {'step': 12, 'loss': 0.1 + 0.2, 'log': [{'step': 0, 'held_out': 1.5}]}
    save_checkpoint(tmp_path / 'c', tensors, values)
    loaded, numbers = load_checkpoint(tmp_path / 'c')
    assert numbers == values and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'c'
    save_checkpoint(path, {'a': torch.ones(2)}, {'step': 1})

    def half(tensors: dict[str, torch.Tensor], place: Path, metadata: dict[str, str]) -> None:
        Path(place).write_bytes(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint, 'save_file', half)
    with pytest.raises(MapError, match='c: cannot be written.*space'):
        save_checkpoint(path, {'a': torch.zeros(2)}, {'step': 2})
    assert load_checkpoint(path)[1] == {'step': 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', bytes(range(256)) * 9])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'c').write_bytes(content)
    with pytest.raises(MapError, match='no checkpoint'):
        load_checkpoint(tmp_path / 'c')
