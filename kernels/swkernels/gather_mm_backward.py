"""What comes back through `gather_mm`, or `gather`: to the maps that it read, to its norm, and to its weight.

    h = act(norm(map(k)[m, channel(k)]))      y[m, n] = sum over k of h[m, k] * weight[n, k] + bias[n]

    data      d[m, k] = act'(..) * sum over n of dy[m, n] * weight[n, k];   map's gradient[m, channel(k)] += d[m, k] * scale[k]
    norm      dbias[k] = sum over m of d[m, k];   dweight[k] = sum over m of d[m, k] * normed[m, k]
    weight    dweight[n, k] = sum over m of dy[m, n] * h[m, k]

h is computed anew from the maps, in the registers of the programs that need it, and never written. Statistics count as constants:
what comes back through them is taken off once for all readers of a map (swkernels.statistics). Each sum over rows is made of parts
in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.affine import NO_NORM, Norm, activate, activated, activated_backward, folded, norm_of, slope
from swkernels.checks import check_made, check_read, rows
from swkernels.gather_mm import Tiles
from swkernels.taps import Taps, known, maps, places, pointers


class Gradients(NamedTuple):
    """The gradients of `gather_mm`: of the gathered map (..., K), of weight (N, K), and of the norm's weight and bias, each (K,).

    Without a weight, of `gather`, that of weight is (0, K).
    That of the map is of its type, the others are sums in float32 (in float64 for maps of float64, which only references take).
    """

    source: Tensor
    weight: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


def gather_mm_backward_reference(
    grad: Tensor,
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
) -> Gradients:
    """Do in plain torch what `gather_mm_backward` does, in any floating type."""
    taken = taps.take(maps(source))
    wide = torch.float64 if taken.dtype == torch.float64 else torch.float32
    given = grad.to(wide)
    behind = activated_backward(given if weight is None else given @ weight.to(wide), taken, norm, activation)
    if weight is None:
        return Gradients(behind.source.to(taken.dtype), given.new_empty(0, len(taps)), behind.weight, behind.bias)
    read = activated(taken, norm, activation).to(wide)
    product = given.flatten(0, -2).T @ read.flatten(0, -2)
    return Gradients(behind.source.to(taken.dtype), product, behind.weight, behind.bias)


SHIPPED = {
    "data": Tiles(64, 64, 64, 4, 3),
    "weight": Tiles(64, 128, 64, 8, 3),
    "float32": Tiles(32, 64, 32, 8, 3),
}
"""Rows, outputs and channels of a program that makes the map's gradient, and of one that makes the weight's."""
LEAST_ROWS = 512
PROGRAMS = 2 * 132
"""Programs that make the weight's gradient split the rows until there are so many, two for each multiprocessor of an H100."""


def tiles_for(what: str, dtype: torch.dtype) -> Tiles:
    """Choose tiles without a measurement."""
    return SHIPPED["float32" if dtype == torch.float32 else what]


@jit(do_not_specialize=["apart"])
def _data_gradient(
    source, apart, starts, strides, mean, var, norm_weight, norm_bias, weight, grad, into, weight_sums, bias_sums,
    height, outputs, channels, source_stride, grad_stride, into_stride, eps,
    GROUP: tl.constexpr, SCATTERED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr, ADDS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(channels, CHANNELS)  # the tiles of the same rows run side by side, and find them in the cache
    part = tl.program_id(0) // tiles
    row = part.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    in_rows, live = row < height, channel < channels
    mask = in_rows[:, None] & live[None, :]
    if PRODUCT:
        total = tl.zeros((ROWS, CHANNELS), tl.float32)
        for first in range(0, outputs, OUTPUTS):
            output = first + tl.arange(0, OUTPUTS)
            made = output < outputs
            g = tl.load(grad + row[:, None] * grad_stride + output[None, :], mask=in_rows[:, None] & made[None, :], other=0.0)
            w = tl.load(weight + output[:, None] * channels + channel[None, :], mask=made[:, None] & live[None, :], other=0.0)
            total = tl.dot(g, w, total, input_precision="ieee")
    else:
        total = tl.load(grad + row[:, None] * grad_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM or ACTIVATION != "none":
        read = pointers(source, apart, starts, strides, row, channel, live, source_stride, GROUP, SCATTERED)
        x = tl.load(read, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            scale, shift = folded(mean, var, norm_weight, norm_bias, channel, live, eps, WEIGHT, BIAS)
            total *= slope(x * scale[None, :] + shift[None, :], ACTIVATION)
            middle = tl.load(mean + channel, mask=live, other=0.0).to(tl.float32)
            inverse = tl.rsqrt(tl.load(var + channel, mask=live, other=1.0).to(tl.float32) + eps)
            total = tl.where(mask, total, 0.0)  # rows that there are not are no zeros where the norm makes infinity of one
            place = part * channels + channel
            tl.store(bias_sums + place, tl.sum(total, 0), mask=live)
            tl.store(weight_sums + place, tl.sum(total * (x - middle[None, :]), 0) * inverse, mask=live)
            total *= scale[None, :]
        else:
            total *= slope(x, ACTIVATION)
    if ADDS:
        start = tl.multiple_of(tl.load(starts + channel // GROUP, mask=live, other=0), GROUP) + channel % GROUP
        write = into + row[:, None] * into_stride + start[None, :]
        total += tl.load(write, mask=mask, other=0.0).to(tl.float32)
    else:
        write = into + row[:, None] * into_stride + channel[None, :]
    tl.store(write, total.to(into.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["apart"])
def _weight_gradient(
    source, apart, starts, strides, mean, var, norm_weight, norm_bias, grad, into,
    height, outputs, channels, source_stride, grad_stride, share, eps,
    GROUP: tl.constexpr, SCATTERED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(channels, CHANNELS), tl.cdiv(outputs, OUTPUTS)
    part, tile = tl.program_id(0) // (across * down), tl.program_id(0) % (across * down)
    output = (tile // across) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = (tile % across) * CHANNELS + tl.arange(0, CHANNELS)
    made, live = output < outputs, channel < channels
    total = tl.zeros((OUTPUTS, CHANNELS), tl.float32)
    start = part.to(tl.int64) * share
    for first in range(0, share, ROWS):
        row = start + first + tl.arange(0, ROWS)
        there = row < height
        read = pointers(source, apart, starts, strides, row, channel, live, source_stride, GROUP, SCATTERED)
        x = tl.load(read, mask=there[:, None] & live[None, :], other=0.0)
        g = tl.load(grad + row[:, None] * grad_stride + output[None, :], mask=there[:, None] & made[None, :], other=0.0)
        if NORM or ACTIVATION != "none":
            x = x.to(tl.float32)
            if NORM:
                scale, shift = folded(mean, var, norm_weight, norm_bias, channel, live, eps, WEIGHT, BIAS)
                x = x * scale[None, :] + shift[None, :]
            x = tl.where(there[:, None], activate(x, ACTIVATION), 0.0).to(g.dtype)
        total = tl.dot(tl.trans(g), x, total, input_precision="ieee")
    place = (part * outputs + output[:, None]) * channels + channel[None, :]
    tl.store(into + place, total, mask=made[:, None] & live[None, :])


def gather_mm_backward(
    grad: Tensor,
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    into: Tensor | None = None,
) -> Gradients:
    """Return the gradients of `gather_mm(source, taps, weight, norm=norm, activation=activation)`, or `gather` without the weight.

    Args:
        grad: (..., N), the gradient of its result, of the source's type, channels side by side.
        source: what it read, a map (..., C), or several.
        taps: which channels of them; K in all.
        weight: (N, K), of the source's type; None where there was no product, and grad is (..., K).
        norm: the norm of the K channels, its statistics constants; None is none.
        activation: the activation behind that norm.
        into: (..., C), the gradient of the one map that was read, of its type: what comes back is added there, channel by channel,
            and `Gradients.source` is `into`. No channel may be read twice. None makes a gradient (..., K) of the gathered map.

    Returns:
        The gradients. Without a norm those of its weight and bias are zeros.

    Raises:
        TypeError: a type that the kernels do not take.
        ValueError: shapes that do not fit, rows that lie at no one distance, or a channel that is read twice into one place.
    """
    sources = maps(source)
    check_read(sources, taps, norm, activation)
    like, count = sources[0], len(taps)
    outputs = count if weight is None else weight.shape[0]
    check_made("weight", weight, (outputs, count), like)
    check_made("grad", grad, (*like.shape[:-1], outputs), like)
    if into is not None:
        check_made("into", into, tuple(like.shape), like)
        if len(sources) > 1 or _reads_twice(taps):
            raise ValueError("Only what reads one map, and each of its channels at most once, can add to a gradient in place.")
    made = like.new_empty((*like.shape[:-1], count)) if into is None else into
    parts = norm or NO_NORM
    of_weight, of_norm, of_bias = _gather_mm_backward_into(
        grad, sources, taps.flat(), *parts, activation, weight, made, into is not None
    )
    return Gradients(made, of_weight, of_norm, of_bias)


def _reads_twice(taps: Taps) -> bool:
    return len({(owner, channel) for owner, start, stop in taps.runs for channel in range(start, stop)}) < len(taps)


@torch.library.custom_op("swkernels::gather_mm_backward_into", mutates_args=("into",))
def _gather_mm_backward_into(
    grad: Tensor,
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    weight: Tensor | None,
    into: Tensor,
    adds: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    taps, like = known(tuple(runs)), sources[0]
    if not launch.on_kernels(like):
        norm = norm_of(mean, var, norm_weight, norm_bias, eps)
        found = gather_mm_backward_reference(grad, sources, taps, weight, norm=norm, activation=activation)
        if adds:
            into.index_add_(-1, torch.tensor(taps.starts_of(1), device=like.device), found.source)
        else:
            into.copy_(found.source)
        return found.weight, found.norm_weight, found.norm_bias
    lie = places([rows(source, f"map {place}") for place, source in enumerate(sources)], taps)
    given, made = rows(grad, "grad"), rows(into, "into")
    (height, outputs), channels, normed = given.shape, len(taps), mean is not None
    read: Any = {
        "GROUP": lie.group, "SCATTERED": lie.strides is not None, "NORM": normed, "WEIGHT": norm_weight is not None,
        "BIAS": norm_bias is not None, "ACTIVATION": activation,
    }  # fmt: skip
    high, out, deep, warps, stages = astuple(tiles_for("data", like.dtype))
    parts = launch.ceil_div(height, high)
    sums = [like.new_empty((parts, channels), dtype=torch.float32) if normed else None for _ in range(2)]
    launch.run(
        _data_gradient, parts * launch.ceil_div(channels, deep),
        *lie.maps, lie.starts, lie.strides, mean, var, norm_weight, norm_bias,
        None if weight is None else weight.contiguous(), given, made, *sums,
        height, outputs, channels, lie.stride, given.stride(0), made.stride(0), eps,
        **read, PRODUCT=weight is not None, ADDS=adds, ROWS=high, OUTPUTS=out, CHANNELS=deep, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    of_norm = [like.new_zeros(channels, dtype=torch.float32) if one is None else one.sum(0) for one in sums]
    if weight is None:
        return like.new_empty((0, channels), dtype=torch.float32), of_norm[0], of_norm[1]
    high, out, deep, warps, stages = astuple(tiles_for("weight", like.dtype))
    tiles = launch.ceil_div(channels, deep) * launch.ceil_div(outputs, out)
    share = max(LEAST_ROWS, launch.ceil_div(height, max(1, PROGRAMS // tiles)))
    share = launch.ceil_div(share, high) * high
    parts = launch.ceil_div(height, share)
    products = like.new_empty((parts, outputs, channels), dtype=torch.float32)
    launch.run(
        _weight_gradient, parts * tiles,
        *lie.maps, lie.starts, lie.strides, mean, var, norm_weight, norm_bias, given, products,
        height, outputs, channels, lie.stride, given.stride(0), share, eps,
        **read, ROWS=high, OUTPUTS=out, CHANNELS=deep, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return products.sum(0), of_norm[0], of_norm[1]


@_gather_mm_backward_into.register_fake
def _(grad: Tensor, sources: Sequence[Tensor], runs: Sequence[int], *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    taps, weight = known(tuple(runs)), more[6]
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = [grad.new_empty(len(taps), dtype=dtype) for _ in range(2)]
    return grad.new_empty((0 if weight is None else grad.shape[-1], len(taps)), dtype=dtype), sums[0], sums[1]
