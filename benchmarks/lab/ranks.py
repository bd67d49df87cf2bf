"""The processes that train one run together, as torchrun starts them; or the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

Way = Literal["ddp", "fsdp"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Share:
    """One of `ranks` equal shares of each batch, and where its images lie."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = CPU

    def whole(self, batch: int) -> int:
        """Return a batch size that can be shared out; raise SystemExit where it cannot."""
        if batch % self.ranks:
            raise SystemExit(f"A batch of {batch} cannot be shared by {self.ranks} processes; start a number that divides it.")
        return batch

    def of(self, batch: int) -> slice:
        """Return this rank's part of a batch."""
        mine = batch // self.ranks
        return slice(self.rank * mine, (self.rank + 1) * mine)


class Ranks:
    """All processes of a run as one of them sees them. With one, every method does nothing."""

    def __init__(self, share: Share, way: Way = "ddp", control: Any = None) -> None:
        self.share, self.way, self.control = share, way, control

    @property
    def many(self) -> bool:
        """Whether there is more than one."""
        return self.share.ranks > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.share.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model so that its gradients are those of the whole batch; statistics of norms are, too, on GPUs.

        On CPUs torch has no synchronised norm: there each rank's norms see its own share of the batch.
        """
        if not self.many:
            return model
        if self.share.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.way == "fsdp":
            return fully_shard(model)
        return DistributedDataParallel(model)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over ranks."""
        return self.total(value) / self.share.ranks if self.many else value

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over ranks."""
        if self.many:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def same_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first one's running statistics, so that it does not matter whose are tested or kept."""
        if self.many:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def told(self, value: int) -> int:
        """Return what the first rank says. It goes over the CPUs, so no GPU is waited for."""
        if not self.many:
            return value
        message = torch.tensor([int(value)])
        dist.broadcast(message, 0, group=self.control)
        return int(message)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.many:
            dist.barrier(group=self.control)


ALONE = Ranks(Share())


def is_launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def ranks(way: Way = "ddp") -> Iterator[Ranks]:
    """Join the other processes; without any, be the only one, on the GPU where there is one."""
    accelerated = torch.cuda.is_available()
    if not is_launched():
        yield Ranks(Share(device=torch.device("cuda") if accelerated else CPU), way)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if accelerated else CPU
    if accelerated:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if accelerated else "gloo")
    try:
        control = dist.new_group(backend="gloo") if accelerated else None
        yield Ranks(Share(dist.get_rank(), dist.get_world_size(), device), way, control)
        dist.barrier(group=control)  # gloo aborts a process whose peer leaves before it has heard from it
    finally:
        dist.destroy_process_group()
