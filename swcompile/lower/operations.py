"""What a gather costs in each form, as operations whose rates a table holds (swcompile.lower.rates).

plain    what the model does: cat, norm, activation, product, each a pass over the maps, channels "first" or "last"
torch    put the maps into a slab, then norm and activate a view of it, then a product with that
triton   the kernels of swkernels: one pass

A product is a 1x1 convolution or a linear layer. The sizes are rows (pixels or samples), channels that are read, outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from swcompile.lower import run
from swkernels.affine import NO_NORM, NormParts


@dataclass(frozen=True)
class Size:
    """A batch of square maps: `channels` are read, `outputs` made by a product, which is 0 where there is none."""

    batch: int
    side: int
    channels: int
    outputs: int = 0

    @property
    def rows(self) -> int:
        return self.batch * self.side**2


class Inputs:
    """What the operations work on, of one size."""

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device, layout: str) -> None:
        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device).to(dtype)

        order = torch.channels_last if layout == "last" else torch.contiguous_format
        channels, half = size.channels, size.channels // 2
        self.map = random(size.batch, channels, size.side, size.side).contiguous(memory_format=order)
        self.halves = [part.contiguous(memory_format=order) for part in (self.map[:, :half], self.map[:, half:])]
        self.slab = random(size.batch, size.side, size.side, channels + 32)
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype).eval()
        self.parts: NormParts = (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, self.norm.eps)
        self.weight = random(size.outputs, channels, 1, 1).contiguous(memory_format=order)
        self.runs = (0, 0, channels)


def _apart(x: Inputs) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Return two maps and the runs that read all of both."""
    halves = run.beside(*x.halves, axis=1)
    return halves, (0, 0, halves[0].shape[-1], 1, 0, halves[1].shape[-1])


MAPS: dict[str, Callable[[Inputs], object]] = {
    "cat": lambda x: torch.cat(x.halves, 1),
    "norm": lambda x: x.norm(x.map),
    "activation": lambda x: functional.relu(x.map),
    "put": lambda x: run.put(x.slab, x.map, 0, 1),
}
"""Operations over maps in the model's own layout."""
PRODUCTS: dict[str, Callable[[Inputs], object]] = {"product": lambda x: functional.conv2d(x.map, x.weight)}
SLAB_MAPS: dict[str, Callable[[Inputs], object]] = {
    "torch map": lambda x: run.read_map(x.slab, x.runs, 1, x.parts, "relu"),
}
"""Operations over slabs, which always have their channels last."""
SLAB_PRODUCTS: dict[str, Callable[[Inputs], object]] = {
    "torch product": lambda x: run.product(x.slab, x.runs, 1, NO_NORM, "none", x.weight, None, NO_NORM, "none"),
}
KERNEL_MAPS: dict[str, Callable[[Inputs], object]] = {
    "triton put": lambda x: run.put_by_kernel(x.slab, x.map, 0, 1),
    "triton map": lambda x: run.read_map_by_kernel(*_apart(x), 1, x.parts, "relu"),
}
KERNEL_PRODUCTS: dict[str, Callable[[Inputs], object]] = {
    "triton product": lambda x: run.product_by_kernel(*_apart(x), 1, x.parts, "relu", x.weight, None, NO_NORM, "none"),
}
