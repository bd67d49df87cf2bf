"""What a step of training through a gather costs, forward and backward, as operations whose rates a table holds.

trained plain    as the model does it: cat, norm in train mode, activation, maybe a product; autograd keeps what each made
shared           a map comes to its readers: its statistics, and what comes back through them
trained torch    a reader of shared maps in plain torch, which adds to what the readers behind it have given
trained triton   the same by the kernels of swkernels

Whole steps, and not their parts, since what autograd keeps and adds up does not come apart. The sizes are those of
swcompile.lower.operations: rows, channels that are read, outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from swcompile.lower import run_training
from swcompile.lower.operations import Inputs, Size
from swkernels import Shared


class TrainedInputs(Inputs):
    """What the operations work on, of one size; what is differentiated by is a leaf."""

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device, layout: str) -> None:
        super().__init__(size, dtype, device, layout)
        self.norm.float().train()  # as under autocast
        for leaf in (self.map, *self.halves, self.weight):
            leaf.requires_grad_()
        with torch.no_grad():
            self.grad = torch.rand_like(functional.conv2d(self.map, self.weight) if size.outputs else self.map)
            self.behind = [torch.rand_like(half).movedim(1, -1) for half in self.halves]
        self._shared: dict[bool, list[Shared]] = {}

    @torch.enable_grad()
    def plain(self, weight: Tensor | None) -> object:
        """Step through cat, norm and activation, and a product where there is a weight."""
        made = functional.relu(self.norm(torch.cat(self.halves, 1)))
        made = made if weight is None else functional.conv2d(made, weight)
        return torch.autograd.grad(made, (*self.halves, *self._parameters(weight)), self.grad)

    @torch.enable_grad()
    def share(self, by_kernel: bool) -> object:
        """Step through what brings a map to its readers."""
        shared = run_training.shared(self.map, 1, True, by_kernel)
        made = [part for part in shared[1:] if part is not None]
        return torch.autograd.grad(made, self.map, [torch.zeros_like(part) for part in made])

    @torch.enable_grad()
    def read(self, weight: Tensor | None, by_kernel: bool) -> object:
        """Step through a reader of two maps that others read behind it."""
        if by_kernel not in self._shared:
            self._shared[by_kernel] = [_as_leaves(run_training.shared(half, 1, True, by_kernel)) for half in self.halves]
        maps = self._shared[by_kernel]
        half, whole = self.halves[0].shape[1], self.map.shape[1]
        runs = (0, 0, half, 1, 0, whole - half)
        made, after, *_ = run_training.train(maps, (), runs, 1, self.norm, "relu", weight, None, by_kernel)
        by = (*(part for one in maps for part in one[1:] if part is not None), *self._parameters(weight))
        return torch.autograd.grad([made, *(one.token for one in after)], by, [self.grad, *self.behind])

    def _parameters(self, weight: Tensor | None) -> tuple[Tensor, ...]:
        return (*self.norm.parameters(), *(() if weight is None else (weight,)))


def _as_leaves(one: Shared) -> Shared:
    moments = None if one.moments is None else one.moments.detach().requires_grad_()
    return Shared(one.map.detach(), one.token.detach().requires_grad_(), moments)


TRAINED_MAPS: dict[str, Callable[[TrainedInputs], object]] = {
    "trained plain map": lambda x: x.plain(None),
    "shared torch": lambda x: x.share(False),
    "trained torch map": lambda x: x.read(None, False),
}
TRAINED_PRODUCTS: dict[str, Callable[[TrainedInputs], object]] = {
    "trained plain product": lambda x: x.plain(x.weight),
    "trained torch product": lambda x: x.read(x.weight, False),
}
KERNEL_TRAINED_MAPS: dict[str, Callable[[TrainedInputs], object]] = {
    "shared triton": lambda x: x.share(True),
    "trained triton map": lambda x: x.read(None, True),
}
KERNEL_TRAINED_PRODUCTS: dict[str, Callable[[TrainedInputs], object]] = {
    "trained triton product": lambda x: x.read(x.weight, True),
}
