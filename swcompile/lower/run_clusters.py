"""What a lowered graph calls for a layer whose outputs fall into clusters: in plain torch one product each, in Triton one kernel.

`runs` is swkernels.Taps.flat. Weights are (outputs, channels, *kernel); what a cluster does not read of them is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from swcompile.lower.clusters import Part, Run
from swcompile.lower.run import activated, channels_back, folded, normed
from swkernels import Support, Taps, block_sparse_conv2d, block_sparse_conv2d_reference, trained_block_sparse_conv2d
from swkernels.affine import ACTIVATIONS, NormParts, norm_of
from swkernels.checks import DTYPES

_CONV: dict[int, Any] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def cluster_products(
    maps: Sequence[Tensor],
    runs: Sequence[int],
    axis: int,
    norm: NormParts,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    out_norm: NormParts,
    out_activation: str,
    parts: Sequence[Part],
    stride: int,
    padding: int,
) -> Tensor:
    """Gather what each cluster reads, from maps that lie as the model has them, and make its outputs; then put these together.

    In single and double precision the norm behind goes into the weights, which are gathered anyway, where these are fewer than what
    is made. `parts` is swcompile.lower.clusters.parts_of, of what the maps are when they are gathered for a norm or activation.
    """
    if norm[0] is not None or activation != "none":
        taken = _joined(maps, Taps.of_flat(runs).runs, axis)
        maps = [ACTIVATIONS[activation](normed(taken, norm))]
    behind = norm_of(*out_norm)
    folds = behind is not None and maps[0].dtype in (torch.float32, torch.float64) and _are_few(weight, maps[0], axis, stride)
    scale, shift = folded(behind) if behind is not None and folds else (None, None)
    made = []
    for start, stop, reads, taps in parts:
        filters, added = _columns(weight[start:stop], reads), None if bias is None else bias[start:stop]
        if scale is not None and shift is not None:
            by = scale[start:stop]
            filters = filters * by.view(-1, *(1 for _ in filters.shape[1:]))
            added = shift[start:stop] if added is None else torch.addcmul(shift[start:stop], added, by)
        made.append(_product(_joined(maps, taps, axis), filters, added, stride, padding))
    y = made[0] if len(made) == 1 else torch.cat(made, axis)
    return activated(y if behind is None or folds else normed(y, out_norm), out_activation)


def _are_few(weight: Tensor, x: Tensor, axis: int, stride: int) -> bool:
    """Say whether a layer has fewer weights than it makes values. Inside a compiler, where sizes may be symbols, it has."""
    if torch.compiler.is_compiling():
        return True
    pixels = x.numel() // (x.shape[axis] * stride ** (weight.dim() - 2))
    return bool(weight[0].numel() < pixels)


def cluster_products_by_kernel(
    slab: Tensor,
    runs: Sequence[int],
    axis: int,
    norm: NormParts,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    out_norm: NormParts,
    out_activation: str,
    clusters: Sequence[int],
    stride: int,
    padding: int,
) -> Tensor:
    """Do the same in one kernel, from a slab; `clusters` is swkernels.Support.flat."""
    how = block_sparse_conv2d if slab.dtype in DTYPES else block_sparse_conv2d_reference
    plane = weight.dim() == 4 and slab.dim() == 4
    source = slab if plane else slab.reshape(-1, slab.shape[-1])[:, None, None]
    filters = (weight.permute(0, 2, 3, 1) if plane else weight.flatten(1)[:, None, None]).to(slab.dtype)  # as autocast does
    y = how(
        source,
        Taps.of_flat(runs),
        filters,
        Support.of_flat(clusters),
        stride=stride,
        padding=padding,
        norm=norm_of(*norm),
        activation=activation,
        bias=bias,
        out_norm=norm_of(*out_norm),
        out_activation=out_activation,
    )
    return channels_back(y if plane else y.view(*slab.shape[:-1], -1), axis)


def train_clusters(
    maps: Sequence[Tensor],
    runs: Sequence[int],
    axis: int,
    weight: Tensor,
    bias: Tensor | None,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    by_kernel: bool,
) -> Tensor:
    """Do what a masked layer does in train mode, over what is live alone, and keep for the backward pass only the maps.

    Maps are as swcompile.lower.run_training.in_rows returns them. The weight and bias are cast to their type, as autocast does.
    """
    planes = maps if weight.dim() == 4 else _planes(maps)
    filters = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight.flatten(1)[:, None, None]
    dtype = maps[0].dtype
    made = trained_block_sparse_conv2d(
        planes,
        Taps.of_flat(runs),
        filters.to(dtype),
        Support.of_flat(clusters),
        stride=stride,
        padding=padding,
        bias=None if bias is None else bias.to(dtype),
        by_kernel=by_kernel,
    )
    return channels_back(made if weight.dim() == 4 else made.view(*maps[0].shape[:-1], -1), axis)


def _planes(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps (..., channels) as (1, 1, pixels, channels), whose rows torch multiplies as they lie.

    Maps (N, *spatial, channels) that lie channels first go to (N, 1, pixels, channels) instead, where no pixel is moved.
    """
    if maps[0].dim() > 2 and maps[0].stride(-1) != 1:
        return [x.movedim(-1, 1).flatten(2).movedim(1, -1)[:, None] for x in maps]
    return [x.reshape(1, 1, -1, x.shape[-1]) for x in maps]


def _joined(maps: Sequence[Tensor], taps: Sequence[tuple[int, int, int]], axis: int) -> Tensor:
    parts = [maps[source].narrow(axis, start, stop - start) for source, start, stop in taps]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _columns(weight: Tensor, reads: Sequence[Run]) -> Tensor:
    parts = [weight[:, start:stop] for start, stop in reads]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _product(x: Tensor, filters: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    if filters.dim() == 2:
        return functional.linear(x, filters, bias)
    made: Tensor = _CONV[filters.dim()](x, filters, bias, stride, padding)
    return made
