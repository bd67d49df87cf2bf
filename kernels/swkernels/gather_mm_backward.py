"""What comes back through `gather_mm`, or `gather`: to the maps that it read, to its norm, and to its weight.

    h = act(norm(map(k)[m, channel(k)]))      y[m, n] = sum over k of h[m, k] * weight[n, k] + bias[n]

    data      d[m, k] = act'(..) * sum over n of dy[m, n] * weight[n, k]
    map       gradient[m, c] = incoming[m, c] + sum over k with channel(k) = c of d[m, k] * scale[k]
    norm      dbias[k] = sum over m of d[m, k];   dweight[k] = sum over m of d[m, k] * normed[m, k]
    weight    dweight[n, k] = sum over m of dy[m, n] * h[m, k]

h is computed anew from the maps, in the registers of the programs that need it, and never written. What the other readers of a map
have given comes in, and goes on with this reader's share added, so that a map's gradient is read and written once a reader.
Statistics count as constants: what comes back through them is taken off once for all readers of a map (swkernels.statistics). Each
sum over rows is made of parts in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.affine import NO_NORM, Norm, activate, activated, activated_backward, folded, norm_of, slope
from swkernels.checks import check_made, check_read, rows
from swkernels.gather_mm import Tiles
from swkernels.taps import Places, Taps, as_one, known, maps, places, pointers


class Gradients(NamedTuple):
    """The gradients of `gather_mm`: of its maps, of weight (N, K), and of the norm's weight and bias, each (K,).

    Those of several maps are one map (..., sum of their channels), in which they lie side by side. Without a weight, of `gather`,
    that of weight is (0, K). Those of maps are of their type, the others are sums in float32 (in float64 for maps of float64,
    which only references take).
    """

    source: Tensor
    weight: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


Incoming = Sequence[Tensor | None]
"""For each map, the gradient that others of its readers have given already, of its shape and type; None where none has."""


def gather_mm_backward_reference(
    grad: Tensor,
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    incoming: Incoming = (),
) -> Gradients:
    """Do in plain torch what `gather_mm_backward` does, in any floating type."""
    sources = maps(source)
    taken = taps.take(sources)
    wide = torch.float64 if taken.dtype == torch.float64 else torch.float32
    given = grad.to(wide)
    behind = activated_backward(given if weight is None else given @ weight.to(wide), taken, norm, activation)
    widths = [one.shape[-1] for one in sources]
    back = taken.new_empty((*taken.shape[:-1], sum(widths)))
    add(passed_on(back, incoming or [None] * len(widths), taps, widths), back, behind.source)
    if weight is None:
        return Gradients(back, given.new_empty(0, len(taps)), behind.weight, behind.bias)
    read = activated(taken, norm, activation).to(wide)
    product = given.flatten(0, -2).T @ read.flatten(0, -2)
    return Gradients(back, product, behind.weight, behind.bias)


class Sum(NamedTuple):
    """Channels of maps' gradients, from `start` on, that are what came in, from its channel `first` on, and this reader's share."""

    came: Tensor | None
    first: int
    start: int
    width: int


def passed_on(into: Tensor, incoming: Incoming, taps: Taps, widths: Sequence[int]) -> list[Sum]:
    """Write maps' gradients (..., sum of widths) where no channel is read, and return the sums that are to be made where one is.

    These go by the taps. Neighbours that came as slices of one map are one sum.
    """
    _pass_unread(into, incoming, taps, widths)
    starts = _side_by_side(widths)
    lie: list[tuple[Tensor | None, int]]
    if taps.reads_twice:  # has been passed on
        lie = [(into, start) for start in starts]
    elif (one := as_one([came for came in incoming if came is not None])) is not None:
        at = iter(one[1])
        lie = [(None, start) if came is None else (one[0], next(at)) for came, start in zip(incoming, starts, strict=True)]
    else:
        lie = [(None, start) if came is None else (came, 0) for came, start in zip(incoming, starts, strict=True)]
    sums: list[Sum] = []
    for owner, start, stop in taps.runs:
        came, first = lie[owner]
        made = Sum(came, first + start, starts[owner] + start, stop - start)
        if sums and _goes_on(sums[-1], made):
            before = sums.pop()
            made = before._replace(width=before.width + made.width)
        sums.append(made)
    return sums


def _goes_on(one: Sum, other: Sum) -> bool:
    is_next = (one.first + one.width, one.start + one.width) == (other.first, other.start)
    return is_next and one.came is other.came


def add(sums: Sequence[Sum], into: Tensor, behind: Tensor, scale: Tensor | None = None, block: Any = ...) -> None:
    """Make the sums, of a block of rows: what came in, and the next channels of `behind` (..., K), times `scale` (K,)."""
    place = 0
    for came, first, start, width in sums:
        read = slice(place, place + width)
        place = read.stop
        share, made = behind[..., read], into[block][..., start : start + width]
        before = None if came is None else came[block][..., first : first + width]
        _add(made, before, share, None if scale is None else scale[read])


def _add(into: Tensor, came: Tensor | None, share: Tensor, scale: Tensor | None) -> None:
    if came is None:
        torch.mul(share, 1.0 if scale is None else scale, out=into)
    elif scale is None:
        torch.add(came, share, out=into)
    else:
        torch.addcmul(came, share, scale, out=into)


def _pass_unread(into: Tensor, incoming: Incoming, taps: Taps, widths: Sequence[int]) -> None:
    """Pass on what came in where no channel is read; everywhere, where one is read twice, so that both can be added."""
    whole = ((owner, 0, width) for owner, width in enumerate(widths))
    for owner, start, stop in whole if taps.reads_twice else taps.unread(widths):
        came, part = incoming[owner], into.split([*widths], -1)[owner][..., start:stop]
        part.zero_() if came is None else part.copy_(came[..., start:stop])


def _side_by_side(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(widths, initial=0))[:-1]


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


@jit(do_not_specialize=["apart", "came_apart"])
def _data_gradient(
    source, apart, starts, strides, mean, var, norm_weight, norm_bias, weight, grad, weight_sums, bias_sums,
    came, came_apart, came_starts, came_strides, into, into_starts,
    height, outputs, channels, source_stride, grad_stride, came_stride, into_stride, eps,
    GROUP: tl.constexpr, SCATTERED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr, ADDS: tl.constexpr, CAME_GROUP: tl.constexpr, CAME_SCATTERED: tl.constexpr,
    INTO_GROUP: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
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
        given = pointers(
            came, came_apart, came_starts, came_strides, row, channel, live, came_stride, CAME_GROUP, CAME_SCATTERED
        )  # fmt: skip
        total += tl.load(given, mask=mask, other=0.0).to(tl.float32)
    write = pointers(into, None, into_starts, None, row, channel, live, into_stride, INTO_GROUP, False)
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
    incoming: Incoming = (),
) -> Gradients:
    """Return the gradients of `gather_mm(source, taps, weight, norm=norm, activation=activation)`, or `gather` without the weight.

    Args:
        grad: (..., N), the gradient of its result, of the source's type, channels side by side.
        source: what it read, a map (..., C), or several.
        taps: which channels of them; K in all.
        weight: (N, K), of the source's type; None where there was no product, and grad is (..., K).
        norm: the norm of the K channels, its statistics constants; None is none.
        activation: the activation behind that norm.
        incoming: for each map (..., C) of its type, what others of its readers have given already, or None; none at all where
            nobody has. It is not written to.

    Returns:
        The gradients; those of the maps are what came in with this reader's share added, and zero where nothing is read and nothing
        came in. Without a norm those of its weight and bias are zeros.

    Raises:
        TypeError: a type that the kernels do not take.
        ValueError: shapes that do not fit, or rows that lie at no one distance.
    """
    sources = maps(source)
    check_read(sources, taps, norm, activation)
    like, count = sources[0], len(taps)
    outputs = count if weight is None else weight.shape[0]
    check_made("weight", weight, (outputs, count), like)
    check_made("grad", grad, (*like.shape[:-1], outputs), like)
    came = [*incoming] or [None] * len(sources)
    for place, (map_, one) in enumerate(zip(sources, came, strict=True)):
        check_made(f"incoming {place}", one, tuple(map_.shape), map_)
    back = like.new_empty((*like.shape[:-1], sum(map_.shape[-1] for map_ in sources)))
    parts = norm or NO_NORM
    sums = _gather_mm_backward_into(grad, sources, taps.flat(), *parts, activation, weight, came, back)
    return Gradients(back, *sums)


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
    incoming: Sequence[Tensor | None],
    into: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    taps, like = known(tuple(runs)), sources[0]
    if not launch.on_kernels(like):
        norm = norm_of(mean, var, norm_weight, norm_bias, eps)
        found = gather_mm_backward_reference(grad, sources, taps, weight, norm=norm, activation=activation, incoming=incoming)
        into.copy_(found.source)
        return found.weight, found.norm_weight, found.norm_bias
    lie = places([rows(source, f"map {place}") for place, source in enumerate(sources)], taps)
    given, back, parts = rows(grad, "grad"), rows(into, "into"), (mean, var, norm_weight, norm_bias)
    came = [None if one is None else rows(one, f"incoming {place}") for place, one in enumerate(incoming)]
    widths = [source.shape[-1] for source in sources]
    if taps.reads_twice:  # two programs would write to one place
        made = like.new_empty((len(given), len(taps)))
        of_norm = _map_gradients(given, lie, parts, eps, activation, weight, None, made, Taps.of((0, len(taps))))
        add(passed_on(back, came, taps, widths), back, made)
    else:
        _pass_unread(back, came, taps, widths)
        there = _places_of_incoming(came, taps, widths)
        of_norm = _map_gradients(given, lie, parts, eps, activation, weight, there, back, taps.shifted(_side_by_side(widths)))
    if weight is None:
        return like.new_empty((0, len(taps)), dtype=torch.float32), *of_norm
    return _weights_gradient(given, lie, parts, eps, activation, len(taps)), *of_norm


def _places_of_incoming(came: Sequence[Tensor | None], taps: Taps, widths: Sequence[int]) -> Places | None:
    """Return where what came in lies, for what taps read: one row of zeros where nothing did. None where nothing did for all."""
    read = {owner for owner, _, _ in taps.runs}
    there = {owner: one for owner, one in enumerate(came) if one is not None and owner in read}
    if not there:
        return None
    some = next(iter(there.values()))
    zeros = [] if len(there) == len(read) else [some.new_zeros(1, max(widths)).expand(len(some), -1)]
    number = {owner: place for place, owner in enumerate(there, start=len(zeros))}
    runs = tuple((number.get(owner, 0), start, stop) for owner, start, stop in taps.runs)
    return places([*zeros, *there.values()], Taps(runs))


Parts = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A norm's mean, variance, weight and bias."""


def _read(lie: Places, parts: Parts, activation: str) -> dict[str, Any]:
    """Return what both kernels are compiled for."""
    normed, weighted, shifted = (parts[place] is not None for place in (0, 2, 3))
    return {
        "GROUP": lie.group, "SCATTERED": lie.strides is not None, "NORM": normed, "WEIGHT": weighted, "BIAS": shifted,
        "ACTIVATION": activation,
    }  # fmt: skip


def _map_gradients(
    grad: Tensor,
    lie: Places,
    parts: Parts,
    eps: float,
    activation: str,
    weight: Tensor | None,
    came: Places | None,
    into: Tensor,
    out: Taps,
) -> tuple[Tensor, Tensor]:
    """Write the gradients of the maps to where `out` says, and return those of the norm's weight and bias."""
    (height, outputs), channels, like = grad.shape, len(out), lie.base
    tiles = tiles_for("data", like.dtype)
    groups = launch.ceil_div(height, tiles.rows)
    shape = (groups, channels)
    sums = [None if parts[0] is None else like.new_empty(shape, dtype=torch.float32) for _ in range(2)]
    to = places([into], out)
    add = to if came is None else came
    launch.run(
        _data_gradient, groups * launch.ceil_div(channels, tiles.channels),
        *lie.maps, lie.starts, lie.strides, *parts, None if weight is None else weight.contiguous(), grad, *sums,
        *add.maps, add.starts, add.strides, into, to.starts,
        height, outputs, channels, lie.stride, grad.stride(0), add.stride, to.stride, eps,
        **_read(lie, parts, activation), PRODUCT=weight is not None, ADDS=came is not None,
        CAME_GROUP=add.group, CAME_SCATTERED=add.strides is not None, INTO_GROUP=to.group,
        ROWS=tiles.rows, OUTPUTS=tiles.columns, CHANNELS=tiles.channels, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    of_weight, of_bias = (like.new_zeros(channels, dtype=torch.float32) if one is None else one.sum(0) for one in sums)
    return of_weight, of_bias


def _weights_gradient(grad: Tensor, lie: Places, parts: Parts, eps: float, activation: str, channels: int) -> Tensor:
    """Return the gradient of the weight."""
    (height, outputs), like = grad.shape, lie.base
    tiles = tiles_for("weight", like.dtype)
    across = launch.ceil_div(channels, tiles.channels) * launch.ceil_div(outputs, tiles.columns)
    share = max(LEAST_ROWS, launch.ceil_div(height, max(1, PROGRAMS // across)))
    share = launch.ceil_div(share, tiles.rows) * tiles.rows
    groups = launch.ceil_div(height, share)
    products = like.new_empty((groups, outputs, channels), dtype=torch.float32)
    launch.run(
        _weight_gradient, groups * across,
        *lie.maps, lie.starts, lie.strides, *parts, grad, products,
        height, outputs, channels, lie.stride, grad.stride(0), share, eps,
        **_read(lie, parts, activation),
        ROWS=tiles.rows, OUTPUTS=tiles.columns, CHANNELS=tiles.channels, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return products.sum(0)


@_gather_mm_backward_into.register_fake
def _(grad: Tensor, sources: Sequence[Tensor], runs: Sequence[int], *more: Any) -> tuple[Tensor, Tensor, Tensor]:
    taps, weight = known(tuple(runs)), more[6]
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = [grad.new_empty(len(taps), dtype=dtype) for _ in range(2)]
    return grad.new_empty((0 if weight is None else grad.shape[-1], len(taps)), dtype=dtype), sums[0], sums[1]
