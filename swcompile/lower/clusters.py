"""Find what a masked layer's outputs read, cluster by cluster: one dense product each instead of one over everything.

    mask (out, in)   1 1 0 0 1      outputs 0 and 1 read inputs 0, 1 and 4: a cluster
                     1 1 0 0 1
                     0 0 1 1 0      outputs 2 and 3 read inputs 2 and 3: another one
                     0 0 1 1 0

Wiring "tile" makes such masks; those of wiring "kernel" differ from output to output, and are left to the dense layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from swcompile.modules import MASKED, MaskedConv2d, MaskedLinear
from swkernels import Cluster, Support, Taps
from swkernels.taps import Tap

NARROWEST = 4
"""How many outputs clusters have at least, on average: a product of fewer is slower than what it saves."""


Run = tuple[int, int]
Part = tuple[int, int, tuple[Run, ...], tuple[Tap, ...]]
"""A cluster's outputs, start and stop, the runs of the layer's inputs that they read, and the runs of maps where these lie."""


def support_of(module: nn.Module | None) -> Support | None:
    """Return what each cluster of a layer's outputs reads; None where it has no clusters, or is of a kind that no kernel takes."""
    if type(module) not in MASKED.values() or not _is_taken(module):
        return None
    masked: Any = module
    mask = masked.mask
    if masked.watch is not None or type(mask) is not Tensor or mask.is_meta or mask.is_inference():  # torch counts no writes to it
        return None
    live = mask.detach().flatten(1).bool().cpu()
    if not torch.equal(live, mask.detach().flatten(1).cpu() == 1) or live.all() or not live.any(1).all():
        return None
    changes = (live[1:] != live[:-1]).any(1).nonzero().flatten() + 1
    borders = [0, *changes.tolist(), len(live)]
    if NARROWEST * (len(borders) - 1) > len(live):
        return None
    return Support(tuple(Cluster(start, stop, _runs(live[start])) for start, stop in pairwise(borders)))


def parts_of(support: Support, taps: Taps) -> tuple[Part, ...]:
    """Return the clusters of a layer whose inputs are taps of maps."""
    return tuple((one.start, one.stop, one.reads, taps.within(one.reads)) for one in support.clusters)


def _is_taken(module: Any) -> bool:
    """Say whether a layer is linear, a convolution of single pixels, or one that moves alike in height and width."""
    if type(module) is MaskedLinear:
        return True
    if module.groups != 1 or module.padding_mode != "zeros" or {*module.dilation} != {1}:
        return False
    if {*module.kernel_size, *module.stride} == {1}:
        return module.padding in ("same", "valid", (0,) * len(module.kernel_size))
    return type(module) is MaskedConv2d and len({*module.stride}) == 1 and padding_of(module) is not None


def padding_of(module: Any) -> int | None:
    """Return the pixels of zeros around a map, None where height and width differ in them."""
    if not isinstance(module, nn.Conv2d):
        return 0
    if module.padding == "valid":
        return 0
    if module.padding == "same":
        both = {size // 2 for size in module.kernel_size}
        return both.pop() if len(both) == 1 and all(size % 2 for size in module.kernel_size) else None
    around = {*module.padding}
    return int(around.pop()) if len(around) == 1 else None


def _runs(row: Tensor) -> tuple[Run, ...]:
    """Return the runs [start, stop) of what is live in a row."""
    borders = (row[1:] != row[:-1]).nonzero().flatten() + 1
    ends = [0, *borders.tolist(), len(row)]
    return tuple((start, stop) for start, stop in pairwise(ends) if row[start])
