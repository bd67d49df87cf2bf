"""A block-sparse convolution that trains: only what is live is multiplied, forward and backward, and only the maps are saved.

Plain torch trains such a layer as a dense one times its mask: all its zeros are multiplied, three times a step. Here each cluster
of outputs is one dense convolution over what it reads, in plain torch, or all of them together are one kernel; what was gathered
is gathered anew for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from swkernels.block_sparse import Run, Support, block_sparse_conv2d, known_support
from swkernels.block_sparse_backward import block_sparse_conv2d_backward
from swkernels.checks import DTYPES
from swkernels.taps import Tap, Taps, known, maps


def trained_block_sparse_conv2d(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor,
    support: Support,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: Tensor | None = None,
    by_kernel: bool = True,
) -> Tensor:
    """Do what `block_sparse_conv2d` does, differentiably: by the maps, the weight and the bias.

    Args:
        source: a map (N, H, W, C), or several that differ in C alone. The kernels take channels side by side, and several maps are
            gathered into one for them; plain torch takes maps as they lie.
        taps: which channels of them are the layer's inputs, in what order; K in all.
        weight: (O, R, S, K), of the source's type, in any layout. What the support leaves out is not looked at; its gradient is 0.
        support: which of the K inputs each of the O outputs reads.
        stride, padding: of the convolution, alike in height and width.
        bias: (O,).
        by_kernel: False computes in plain torch on any device; so do types that the kernels do not take.

    Returns:
        (N, H', W', O), in plain torch as the first map lies, channels first or last. Its gradient cannot be differentiated again.
    """
    made: Tensor = _trained(maps(source), taps.flat(), weight, support.flat(), stride, padding, bias, by_kernel)
    return made


@torch.library.custom_op("swkernels::trained_block_sparse_conv2d", mutates_args=())
def _trained(
    sources: Sequence[Tensor],
    runs: Sequence[int],
    weight: Tensor,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    bias: Tensor | None,
    by_kernel: bool,
) -> Tensor:
    taps, support = known(tuple(runs)), known_support(tuple(clusters))
    if _kernels_take(by_kernel, sources[0]):
        source, read = _one(sources, taps)
        return block_sparse_conv2d(source, read, weight, support, stride=stride, padding=padding, bias=bias)
    made = _new(sources[0], weight, stride, padding)
    for rows, reads, runs_read in _parts(support, taps):
        y = made[..., rows]
        if not reads:
            y.copy_(weight.new_zeros(()) if bias is None else bias[rows])
            continue
        filters, added = _columns(weight[rows], reads), None if bias is None else bias[rows]
        y.copy_(_convolved(_taken(sources, runs_read), filters, added, stride, padding))
    return made


@_trained.register_fake
def _(
    sources: Sequence[Tensor],
    runs: Sequence[int],
    weight: Tensor,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    bias: Tensor | None,
    by_kernel: bool,
) -> Tensor:
    made = _new(sources[0], weight, stride, padding)
    return made.new_empty(made.shape) if _kernels_take(by_kernel, sources[0]) else made


@torch.library.custom_op("swkernels::trained_block_sparse_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor,
    sources: Sequence[Tensor],
    runs: Sequence[int],
    weight: Tensor,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    by_kernel: bool,
) -> list[Tensor]:
    taps, support = known(tuple(runs)), known_support(tuple(clusters))
    back, of_weight = [torch.zeros_like(source) for source in sources], torch.zeros_like(weight)
    if _kernels_take(by_kernel, sources[0]):
        source, read = _one(sources, taps)
        found = block_sparse_conv2d_backward(grad.contiguous(), source, read, weight, support, stride=stride, padding=padding)
        _add(back, taps.runs, found.source)
        return [*back, of_weight.copy_(found.weight)]
    for rows, reads, runs_read in _parts(support, taps):
        if reads:
            x, filters = _taken(sources, runs_read), _columns(weight[rows], reads)
            behind, found_weight = _convolved_backward(grad[..., rows], x, filters, stride, padding)
            _add(back, runs_read, behind)
            for (start, stop), piece in zip(reads, found_weight.split([stop - start for start, stop in reads], -1), strict=True):
                of_weight[rows, ..., start:stop] = piece
    return [*back, of_weight]


@_backward.register_fake
def _(grad: Tensor, sources: Sequence[Tensor], runs: Sequence[int], weight: Tensor, *_: object) -> list[Tensor]:
    return [torch.empty_like(value) for value in (*sources, weight)]


def _kernels_take(by_kernel: bool, source: Tensor) -> bool:
    return by_kernel and source.dtype in DTYPES


def _one(sources: Sequence[Tensor], taps: Taps) -> tuple[Tensor, Taps]:
    """Return one map, which is what the kernels read, and the taps of it."""
    return (sources[0], taps) if len(sources) == 1 else (taps.take(sources).contiguous(), Taps.of((0, len(taps))))


def _add(back: Sequence[Tensor], runs: Sequence[Tap], found: Tensor) -> None:
    """Add the gradient of what was gathered to those of the maps that it was gathered from."""
    place = 0
    for owner, start, stop in runs:
        back[owner][..., start:stop] += found[..., place : place + stop - start]
        place += stop - start


# In plain torch, a cluster at a time. Maps are (N, H, W, C) to us, and lie as they come; torch's convolutions go by that.


def _parts(support: Support, taps: Taps) -> Iterator[tuple[slice, tuple[Run, ...], tuple[Tap, ...]]]:
    """Yield each cluster's outputs, the runs of inputs that they read, and the runs of maps where these lie."""
    for cluster in support.clusters:
        yield slice(cluster.start, cluster.stop), cluster.reads, taps.within(cluster.reads)


def _new(source: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return a map for what a convolution makes, which lies as its source does."""
    outputs, high, wide, _ = weight.shape
    height, width = ((have + 2 * padding - size) // stride + 1 for have, size in zip(source.shape[1:3], (high, wide), strict=True))
    batch, area = source.shape[0], height * width
    strides = (area * outputs, width * outputs, outputs, 1) if _is_last(source) else (area * outputs, width, 1, area)
    return source.new_empty_strided((batch, height, width, outputs), strides)


def _is_last(x: Tensor) -> bool:
    return x.stride(-1) == 1


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def _taken(sources: Sequence[Tensor], runs: Sequence[Tap]) -> Tensor:
    """Gather channels. Torch's concat keeps the layout of maps that are given to it channels first."""
    parts = [_first(sources[owner])[:, start:stop] for owner, start, stop in runs]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).movedim(1, -1)


def _columns(weight: Tensor, reads: Sequence[Run]) -> Tensor:
    parts = [weight[..., start:stop] for start, stop in reads]
    return parts[0] if len(parts) == 1 else torch.cat([_first(part) for part in parts], 1).movedim(1, -1)


def _is_product(x: Tensor, filters: Tensor, stride: int, padding: int) -> bool:
    """Say whether a convolution is a product with the rows of a map as they lie."""
    return (*filters.shape[1:3], stride, padding) == (1, 1, 1, 0) and _is_last(x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    if _is_product(x, filters, stride, padding):
        return functional.linear(_rows(x), filters[:, 0, 0], bias).view(*x.shape[:-1], -1)
    return functional.conv2d(_first(x), _first(filters), bias, stride, padding).movedim(1, -1)


def _convolved_backward(grad: Tensor, x: Tensor, filters: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of a map and of the filters."""
    if _is_product(x, filters, stride, padding):
        given = _rows(grad)
        return (given @ filters[:, 0, 0]).view(x.shape), (given.T @ _rows(x))[:, None, None]
    of_x, of_filters, _ = torch.ops.aten.convolution_backward(
        _first(grad), _first(x), _first(filters), None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return of_x.movedim(1, -1), of_filters.movedim(1, -1)


def _saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, runs, weight, clusters, stride, padding, bias, by_kernel = inputs
    ctx.save_for_backward(*sources, weight)
    ctx.options = runs, clusters, stride, padding, by_kernel
    ctx.bias = None if bias is None else bias.dtype


def _differentiated(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *sources, weight = ctx.saved_tensors
    runs, clusters, stride, padding, by_kernel = ctx.options
    *back, of_weight = _backward(grad, sources, runs, weight, clusters, stride, padding, by_kernel)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    of_bias = None if ctx.bias is None else grad.sum((0, 1, 2), dtype=wide).to(ctx.bias)
    return back, None, of_weight, None, None, None, of_bias, None


_trained.register_autograd(_differentiated, setup_context=_saved)
