"""Gather channels of maps, norm, activate and pool them, into a map of their own or into a slice of another.

    out[n, h, w, k] = pool over i, j of  act(norm(map(k)[n, h * ph + i, w * pw + j, channel(k)]))

One pass over what is read and one over what is written, where plain torch takes a pass for each of cat, norm, activation and
pooling. With all channels and a slice of a slab for `out` it puts a new map into the slab; with a layer's channels of a slab
it makes the input of a convolution that must have one (3x3). Statistics of what is written, where they are asked for, take no pass
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.affine import NO_NORM, Norm, activate, activated, folded, norm_of
from swkernels.checks import check_made, check_read, rows
from swkernels.statistics import check_statistics, described, empty_parts, join, put_reference
from swkernels.taps import Taps, known, maps, places, pointers

Window = tuple[int, int]
_POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: x.amax((2, 4)),
    "avg": lambda x: x.mean((2, 4)),
    "first": lambda x: x[:, :, 0, :, 0],
}
POOLS = tuple(_POOLS)
"""How a window becomes one value; "first" is subsampling."""


def gather_reference(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    pool: str = "max",
    window: Window = (1, 1),
) -> Tensor:
    """Do in plain torch what `gather` does, differentiably and in any floating type."""
    values = activated(taps.take(maps(source)), norm, activation)
    if window == (1, 1):
        return values
    batch, height, width, count = values.shape
    high, wide = height // window[0], width // window[1]
    cut = values[:, : high * window[0], : wide * window[1]]
    wanted = cut.dtype if cut.dtype == torch.float64 else torch.float32
    return _POOLS[pool](cut.to(wanted).view(batch, high, window[0], wide, window[1], count)).to(values.dtype)


@jit(do_not_specialize=["apart"])
def _gather(
    source, apart, starts, strides, mean, var, weight, bias, out, means, squares,
    pixels, channels, width, height, source_width, source_height, source_stride, out_stride, eps,
    GROUP: tl.constexpr, SCATTERED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, POOL: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    STATISTICS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(channels, CHANNELS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    live = channel < channels
    mask = (row < pixels)[:, None] & live[None, :]
    if HIGH * WIDE == 1:
        corner = row
    else:
        line = row // width
        corner = ((line // height) * source_height + (line % height) * HIGH) * source_width + (row % width) * WIDE
    pooled = tl.full((ROWS, CHANNELS), 0.0 if POOL == "avg" else float("-inf"), tl.float32)
    for step in range(1 if POOL == "first" else HIGH * WIDE):
        pixel = corner + (step // WIDE) * source_width + step % WIDE
        read = pointers(source, apart, starts, strides, pixel, channel, live, source_stride, GROUP, SCATTERED)
        x = tl.load(read, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            scale, shift = folded(mean, var, weight, bias, channel, live, eps, WEIGHT, BIAS)
            x = x * scale[None, :] + shift[None, :]
        x = activate(x, ACTIVATION).to(out.dtype.element_ty).to(tl.float32)  # rounded, as the map would have been kept
        pooled = pooled + x if POOL == "avg" else tl.maximum(pooled, x, propagate_nan=tl.PropagateNan.ALL)
    if POOL == "avg":
        pooled = pooled / (HIGH * WIDE)
    rounded = pooled.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * out_stride + channel[None, :], rounded, mask=mask)
    if STATISTICS:
        group = tl.program_id(0) // tiles
        count = tl.minimum(pixels - group * ROWS, ROWS).to(tl.float32)
        middle, square = described(rounded.to(tl.float32), row < pixels, count)
        tl.store(means + group * channels + channel, middle, mask=live)
        tl.store(squares + group * channels + channel, square, mask=live)


def gather(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    pool: str = "max",
    window: Window = (1, 1),
    out: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gather channels of maps, norm, activate and pool them.

    Args:
        source: a map (N, H, W, C), or (..., C) without pooling, or several such that differ in C alone; float32, float16 or
            bfloat16, channels side by side.
        taps: which channels of them are read, in what order; K in all.
        norm: a norm of K channels, in eval mode; None is none.
        activation: a name of swkernels.affine.ACTIVATIONS, applied behind the norm.
        pool: "max", "avg" or "first" of each window, applied last; values are rounded to the source's type before.
        window: height and width of what becomes one pixel; what is left over at the lower and right border is not read.
        out: where to write, (..., K); a slice of a wider map if wanted; None makes a new map.
        statistics: where to write mean and variance of each of the K channels of what is made, over all rows, as
            `swkernels.statistics` takes them, (K,) each, in float32; None takes none.

    Returns:
        (N, H // window[0], W // window[1], K), or (..., K): `out`, where it was given.

    Raises:
        TypeError: a type that the kernels do not take.
        ValueError: shapes that do not fit, rows that lie at no one distance, or statistics of no rows.
    """
    sources = maps(source)
    check_read(sources, taps, norm, activation)
    wanted = (*_size(sources[0], pool, window), len(taps))
    check_made("out", out, wanted, sources[0])
    made = sources[0].new_empty(wanted) if out is None else out
    check_statistics(statistics, made)
    _gather_into(sources, taps.flat(), *(norm or NO_NORM), activation, pool, list(window), made, statistics or ())
    return made


def _size(source: Tensor, pool: str, window: Window) -> tuple[int, ...]:
    """Return the size of what is made, but for its channels."""
    if window == (1, 1):
        return tuple(source.shape[:-1])
    if source.dim() != 4:
        raise ValueError(f"Pooling needs a map (N, H, W, channels); source has shape {tuple(source.shape)}.")
    if pool not in _POOLS:
        raise ValueError(f"pool is {pool!r}; there are {', '.join(_POOLS)}.")
    batch, height, width, _ = source.shape
    high, wide = window
    if not (0 < high <= height and 0 < wide <= width):
        raise ValueError(f"A window of {high}x{wide} does not fit into a map of {height}x{width}.")
    return batch, height // high, width // wide


@torch.library.custom_op("swkernels::gather_into", mutates_args=("out", "statistics"))
def _gather_into(
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
    window: Sequence[int],
    out: Tensor,
    statistics: Sequence[Tensor],
) -> None:
    taps, source = known(tuple(runs)), sources[0]
    high, wide = window
    if not launch.on_kernels(source):
        norm = norm_of(mean, var, weight, bias, eps)
        out.copy_(gather_reference(sources, taps, norm=norm, activation=activation, pool=pool, window=(high, wide)))
        put_reference(statistics, out)
        return
    lie = places([rows(source, f"map {place}") for place, source in enumerate(sources)], taps)
    into = rows(out, "out")
    pixels = (out.shape[-2], out.shape[-3], source.shape[-2], source.shape[-3]) if high * wide > 1 else (1, 1, 1, 1)
    width = launch.power_of_two(len(taps), 16, 64)
    height = (8192 if statistics else 2048) // width  # two 16-byte loads a thread; with statistics four, and fewer parts to join
    parts = empty_parts(out, launch.ceil_div(len(into), height), len(taps)) if statistics else ()
    launch.run(
        _gather, launch.ceil_div(len(into), height) * launch.ceil_div(len(taps), width),
        *lie.maps, lie.starts, lie.strides, mean, var, weight, bias, into, *(parts or (None, None)),
        len(into), len(taps), *pixels, lie.stride, into.stride(0), eps,
        GROUP=lie.group, SCATTERED=lie.strides is not None, NORM=mean is not None, WEIGHT=weight is not None, BIAS=bias is not None,
        ACTIVATION=activation, POOL=pool, HIGH=high, WIDE=wide,
        STATISTICS=bool(parts), ROWS=height, CHANNELS=width, num_warps=8 if parts else 4,
    )  # fmt: skip
    if parts:
        join(parts, statistics, len(into), height)


@_gather_into.register_fake
def _(*_: object) -> None:
    """Nothing is made: `out` is there already."""
