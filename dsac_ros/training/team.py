"""Several processes that train one map, started by torchrun: what they share goes through torch.distributed."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

# Its functions keep whatever group there is when it is imported, as a default. DistributedDataParallel imports it on the way: then the
# group would outlive destroy_process_group, and its threads would end with the interpreter, which aborted one process in some dozens.
import torch.distributed.nn  # noqa: F401
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """This process among `size`. The first one, rank 0, writes and tells; all of them hold the same weights after every step."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device('cpu')
    modules: list[DistributedDataParallel] = field(default_factory=list, compare=False)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are then the mean over all processes; as long as the team lasts."""
        if self.size == 1:
            return module
        self.modules.append(DistributedDataParallel(module, broadcast_buffers=False))
        return self.modules[-1]

    def gathered(self, tensor_B: Tensor) -> Tensor:
        """The same tensor of every process, one after the other along the first dimension; without gradient."""
        if self.size == 1:
            return tensor_B
        parts = [torch.empty_like(tensor_B) for _ in range(self.size)]
        dist.all_gather(parts, tensor_B.detach().contiguous())
        return torch.cat(parts)

    def told(self, value: int) -> int:
        """What the first process says."""
        if self.size == 1:
            return value
        said = torch.tensor(value, device=self.device)
        dist.broadcast(said, 0)
        return int(said)


@contextmanager
def team_of(device: torch.device) -> Iterator[Team]:
    """The processes that torchrun has started, each with a GPU of its own where they are on GPUs; else this one alone."""
    if not dist.is_torchelastic_launched():
        yield Team(device=device)
        return
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    team = Team(dist.get_rank(), dist.get_world_size(), device)
    try:
        yield team
    finally:
        # Whoever holds the group last ends it and waits for its threads. A module does so under the interpreter's lock, which one of these
        # threads may want for a tensor that it lets go: then both wait for ever. destroy_process_group ends it without the lock.
        for module in team.modules:
            module.reducer = module.logger = module.process_group = None
        dist.destroy_process_group()
