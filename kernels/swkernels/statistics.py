"""Mean and variance of each channel of a map, as a batch norm takes them in train mode, and what comes back through them.

The statistics of a channel do not depend on who reads it, so they are taken once for all its readers. What comes back through them
is, summed over the readers j with their own weight and eps, where M is the number of rows,

    dx[m, c] = sum over j of scale_j[c] * g_j[m, c]  -  A[c]  -  (x[m, c] - mean[c]) * B[c]
    A = sum over j of  scale_j * dbias_j / M            scale_j = weight_j / sqrt(var + eps_j)
    B = sum over j of  scale_j * dweight_j / sqrt(var + eps_j) / M

so that each reader adds its first term alone, and `centered` takes the other two off once, when all have.

Kernels that make a map can take its statistics on the way, and save the pass that `statistics` is: each program stores what
`described` says of its tile, and `join` makes one of the parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.checks import check_made, rows

TILE = 64
"""Rows, and channels at most, of what a program holds at a time."""
LEAST_ROWS = 512
PROGRAMS = 1024
"""A program takes no fewer rows, and there are no more programs than this, however many rows there are."""
AT_ONCE = 128
"""How many groups of rows one program joins: what is left is joined again. One program that walked through the 6,272 tiles of
256x56x56 rows would wait for 3 ms at half a microsecond a load, where reading 128 channels takes 0.05 (estimates: not timed)."""


def statistics_reference(source: Tensor) -> tuple[Tensor, Tensor]:
    """Do in plain torch what `statistics` does, in any floating type.

    In two passes: torch.var_mean takes 10 to 40 times as long over rows (64x32x32 of 12 channels in float32 on one core: 8.4 ms,
    this 0.6).
    """
    wide, all_rows = source if source.dtype == torch.float64 else source.float(), tuple(range(source.dim() - 1))
    mean = wide.mean(all_rows)
    return mean, (wide - mean).square_().mean(all_rows)


def put_reference(into: Sequence[Tensor], source: Tensor) -> None:
    """Write what `statistics_reference` returns to where statistics are asked for, if they are."""
    for made, found in zip(into, statistics_reference(source) if into else (), strict=True):
        made.copy_(found)


@jit
def described(x, there, count):
    """Return the mean of each column of a float32 tile, and the summed squares of distances from it.

    Over the rows that are `there`, of which there are `count`.
    """
    mean = tl.sum(tl.where(there[:, None], x, 0.0), 0) / tl.maximum(count, 1.0)
    away = tl.where(there[:, None], x - mean[None, :], 0.0)
    return mean, tl.sum(away * away, 0)


@jit
def _partial(source, means, squares, height, width, stride, share, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    tiles = tl.cdiv(width, CHANNELS)
    group = tl.program_id(0) // tiles
    channel = (tl.program_id(0) % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    live = channel < width
    count = tl.zeros((CHANNELS,), tl.float32)
    mean = tl.zeros((CHANNELS,), tl.float32)
    square = tl.zeros((CHANNELS,), tl.float32)
    start = group.to(tl.int64) * share
    # Sums are of distances from the first row: those of great values would round away what differs.
    pivot = tl.load(source + start * stride + channel, mask=live, other=0.0).to(tl.float32)
    for first in range(0, share, ROWS):
        row = start + first + tl.arange(0, ROWS)
        there = row < height
        x = tl.load(source + row[:, None] * stride + channel[None, :], mask=there[:, None] & live[None, :], other=0.0)
        some = tl.sum(there.to(tl.float32), 0)
        middle, away = described(x.to(tl.float32) - pivot[None, :], there, some)
        # Two sets of rows joined (Chan, Golub and LeVeque 1979).
        distance, ratio = middle - mean, some / tl.maximum(count + some, 1.0)
        mean += distance * ratio
        square += away + distance * distance * count * ratio
        count += some
    tl.store(means + group * width + channel, pivot + mean, mask=live)
    tl.store(squares + group * width + channel, square, mask=live)


@jit
def _joined(
    means, squares, mean, square, groups, height, width, share, ENDS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    tiles = tl.cdiv(width, CHANNELS)
    first = (tl.program_id(0) // tiles) * GROUPS
    group = first + tl.arange(0, GROUPS)
    channel = (tl.program_id(0) % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    live = channel < width
    mask = (group < groups)[:, None] & live[None, :]
    count = tl.where(group < groups, tl.minimum(share, height - group * share), 0).to(tl.float32)
    whole = tl.sum(count, 0)
    pivot = tl.load(means + first * width + channel, mask=live, other=0.0)
    place = group[:, None] * width + channel[None, :]
    away = tl.load(means + place, mask=mask, other=0.0) - pivot[None, :]
    middle = tl.sum(away * count[:, None], 0) / whole
    away -= middle[None, :]
    total = tl.sum(tl.load(squares + place, mask=mask, other=0.0) + away * away * count[:, None], 0)
    into = (tl.program_id(0) // tiles) * width + channel
    tl.store(mean + into, pivot + middle, mask=live)
    tl.store(square + into, total / whole if ENDS else total, mask=live)


def join(parts: Sequence[Tensor], into: Sequence[Tensor], height: int, share: int) -> None:
    """Join what is known of groups of rows into mean and variance of all, in an order that is always the same.

    Args:
        parts: mean, and summed squares of distances from it, of each group, (groups, C) each, in float32.
        into: mean and variance, (C,) each, which are written.
        height: how many rows there are.
        share: how many of them a group has; the last one has those that are left.
    """
    groups, width = parts[0].shape
    wholes, wide = launch.ceil_div(groups, AT_ONCE), launch.power_of_two(width, 16, 32)
    found = into if wholes == 1 else empty_parts(parts[0], wholes, width)
    launch.run(
        _joined, wholes * launch.ceil_div(width, wide), *parts, *found, groups, height, width, share,
        ENDS=wholes == 1, GROUPS=AT_ONCE, CHANNELS=wide, num_warps=4,
    )  # fmt: skip
    if wholes > 1:
        join(found, into, height, share * AT_ONCE)


def empty_parts(like: Tensor, groups: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return where kernels write mean and summed squares of groups of rows: (groups, channels) each, on the device of `like`."""
    return like.new_empty((groups, channels), dtype=torch.float32), like.new_empty((groups, channels), dtype=torch.float32)


def empty_statistics(like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return where to write mean and variance of each channel, (channels,) each: in float32, or in float64 for a map of that."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(channels, dtype=dtype), like.new_empty(channels, dtype=dtype)


def check_statistics(found: tuple[Tensor, Tensor] | None, made: Tensor) -> None:
    """Raise ValueError where mean and variance of a map that is made cannot be written to two tensors, or there is no row."""
    if found is None:
        return
    if not made.numel():
        raise ValueError(f"A map of shape {tuple(made.shape)} has no values to take statistics of.")
    like = empty_statistics(made, 0)
    for name, vector, kind in zip(("mean", "var"), found, like, strict=True):
        check_made(f"statistics' {name}", vector, (made.shape[-1],), kind)
        if not vector.is_contiguous():
            raise ValueError(f"statistics' {name} has strides {vector.stride()}; its values must lie side by side.")


def statistics(source: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each channel over all rows, each (C,), in float32.

    Args:
        source: a map (..., C) of at least one row; float32, float16 or bfloat16, channels side by side.

    Returns:
        Mean and variance, the latter divided by the number of rows, as batch norms normalise by it. Not differentiable: what
        comes back through them is the business of `centered`.

    Raises:
        TypeError: a type that the kernel does not take.
        ValueError: no rows, or rows that lie at no one distance.
    """
    if not source.numel():
        raise ValueError(f"A map of shape {tuple(source.shape)} has no values to take statistics of.")
    rows(source, "the map")
    mean, var = _statistics(source.detach())
    return mean, var


@torch.library.custom_op("swkernels::statistics", mutates_args=())
def _statistics(source: Tensor) -> tuple[Tensor, Tensor]:
    if not launch.on_kernels(source):
        return statistics_reference(source)
    flat = rows(source, "the map")
    height, width = flat.shape
    share = max(LEAST_ROWS, launch.ceil_div(height, PROGRAMS))
    share = launch.ceil_div(share, TILE) * TILE
    groups, wide = launch.ceil_div(height, share), launch.power_of_two(width, 16, TILE)
    parts, made = empty_parts(source, groups, width), empty_statistics(source, width)
    launch.run(
        _partial, groups * launch.ceil_div(width, wide), flat, *parts, height, width, flat.stride(0), share,
        ROWS=TILE, CHANNELS=wide, num_warps=4,
    )  # fmt: skip
    join(parts, made, height, share)
    return made


@_statistics.register_fake
def _(source: Tensor) -> tuple[Tensor, Tensor]:
    return empty_statistics(source, source.shape[-1])


def centered_reference(grad: Tensor, source: Tensor, mean: Tensor, level: Tensor, tilt: Tensor) -> Tensor:
    """Do in plain torch what `centered` does, in any floating type."""
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    away = source.to(wide) - mean.to(wide)
    return (grad.to(wide) - level.to(wide) - away * tilt.to(wide)).to(grad.dtype)


@jit
def _centered(
    grad, source, mean, level, tilt, out, height, width, grad_stride, source_stride, out_stride,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, CHANNELS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    live = channel < width
    mask = (row < height)[:, None] & live[None, :]
    g = tl.load(grad + row[:, None] * grad_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    x = tl.load(source + row[:, None] * source_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    middle = tl.load(mean + channel, mask=live, other=0.0)
    a = tl.load(level + channel, mask=live, other=0.0)
    b = tl.load(tilt + channel, mask=live, other=0.0)
    g = g - a[None, :] - (x - middle[None, :]) * b[None, :]
    tl.store(out + row[:, None] * out_stride + channel[None, :], g.to(out.dtype.element_ty), mask=mask)


def centered(grad: Tensor, source: Tensor, mean: Tensor, level: Tensor, tilt: Tensor) -> Tensor:
    """Take off a map's gradient what comes back through its statistics: grad - level - (source - mean) * tilt.

    Args:
        grad: (..., C), what all readers of the map have given, of its type; a slice of a slab, or a map of its own.
        source: the map (..., C).
        mean: (C,), in float32, of the map.
        level: (C,), in float32: A of this file's head.
        tilt: (C,), in float32: B of this file's head.

    Returns:
        (..., C), contiguous.

    Raises:
        TypeError: a type that the kernel does not take.
        ValueError: shapes that do not fit, or rows that lie at no one distance.
    """
    for name, vector in (("mean", mean), ("level", level), ("tilt", tilt)):
        check_made(name, vector, (source.shape[-1],), mean)
    check_made("grad", grad, tuple(source.shape), source)
    for name, value in (("grad", grad), ("the map", source)):
        rows(value, name)
    made: Tensor = _centered_apart(grad, source, mean, level, tilt)
    return made


@torch.library.custom_op("swkernels::centered", mutates_args=())
def _centered_apart(grad: Tensor, source: Tensor, mean: Tensor, level: Tensor, tilt: Tensor) -> Tensor:
    if not launch.on_kernels(source):
        return centered_reference(grad, source, mean, level, tilt).contiguous()
    given, read = rows(grad, "grad"), rows(source, "the map")
    made = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    height, width = read.shape
    wide = launch.power_of_two(width, 16, TILE)
    high = 2048 // wide  # two 16-byte loads a thread
    launch.run(
        _centered, launch.ceil_div(height, high) * launch.ceil_div(width, wide),
        given, read, mean, level, tilt, rows(made, "the result"), height, width, given.stride(0), read.stride(0), width,
        ROWS=high, CHANNELS=wide, num_warps=4,
    )  # fmt: skip
    return made


@_centered_apart.register_fake
def _(grad: Tensor, *_: object) -> Tensor:
    return grad.new_empty(grad.shape)
