"""Gather channels of maps, norm and activate them, and put a linear layer or 1x1 convolution over them, in one pass.

    y[m, n] = out_act( out_norm( sum over k of  act(norm(map(k)[m, channel(k)])) * weight[n, k]  + bias[n] ) + residual[m, n] )

The gathered, normed, activated map of K channels is never written: plain torch moves it seven times (cat, norm and activation read
and write it, the layer reads it), this kernel once. Products are summed in float32 and rounded once, at the end. Statistics of y,
where they are asked for, are those of the rounded values, as a norm behind would take them in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.affine import NO_NORM, Norm, activate, activated, finished, folded, norm_of
from swkernels.checks import check_behind, check_made, check_read, rows
from swkernels.statistics import check_statistics, described, empty_parts, join, put_reference
from swkernels.taps import Taps, known, maps, places, pointers


def gather_mm_reference(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    out_norm: Norm | None = None,
    residual: Tensor | None = None,
    out_activation: str = "none",
) -> Tensor:
    """Do in plain torch what `gather_mm` does, differentiably and in any floating type."""
    read = activated(taps.take(maps(source)), norm, activation)
    wide = torch.float64 if read.dtype == torch.float64 else torch.float32
    y = read.to(wide) @ weight.to(wide).T
    y = y if bias is None else y + bias.to(wide)
    y = activated(y, out_norm, "none")
    y = y if residual is None else y + residual.to(wide)
    return activated(y, None, out_activation).to(read.dtype)


@dataclass(frozen=True)
class Tiles:
    """How much of the product one program makes, and by how many warps, with how many loads ahead."""

    rows: int
    columns: int
    channels: int
    warps: int
    stages: int


SHIPPED = {
    "wide": Tiles(128, 128, 32, 8, 5),  # on sm_90 two programs a multiprocessor (128 registers), one with a norm behind (138)
    "half": Tiles(128, 64, 32, 4, 5),
    "narrow": Tiles(128, 32, 64, 4, 4),
    "few rows": Tiles(64, 64, 64, 4, 5),
    "a few rows": Tiles(16, 64, 64, 4, 4),
    "float32": Tiles(64, 64, 32, 8, 3),
}
"""Every configuration that `tiles_for` can choose."""
FEW = 132 * 128
"""Fewer rows than this give an H100's 132 multiprocessors less than one program of 128 rows each."""


def tiles_for(rows: int, columns: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles by the size of the product, without a measurement."""
    if dtype == torch.float32:
        return SHIPPED["float32"]
    if rows <= 32:
        return SHIPPED["a few rows"]
    if rows < FEW:
        return SHIPPED["few rows"]
    return SHIPPED["narrow" if columns <= 32 else "half" if columns <= 64 else "wide"]


@jit(do_not_specialize=["apart"])
def _gather_mm(
    source, apart, starts, strides, mean, var, norm_weight, norm_bias, weight, bias,
    out_mean, out_var, out_weight, out_bias, residual, out, means, squares,
    height, width, channels, source_stride, residual_stride, out_stride, eps, out_eps,
    GROUP: tl.constexpr, SCATTERED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, ADDS: tl.constexpr,
    OUT_NORM: tl.constexpr, OUT_WEIGHT: tl.constexpr, OUT_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr, COPIES: tl.constexpr, STATISTICS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, COLUMNS)  # the tiles of the same rows run side by side, and find them in the cache
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < height, column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        live = channel < channels
        read = pointers(source, apart, starts, strides, row, channel, live, source_stride, GROUP, SCATTERED)
        x = tl.load(read, mask=in_rows[:, None] & live[None, :], other=0.0)
        w = tl.load(weight + column[None, :] * channels + channel[:, None], mask=in_columns[None, :] & live[:, None], other=0.0)
        if NORM or ACTIVATION != "none":
            x = x.to(tl.float32)
            if NORM:
                scale, shift = folded(mean, var, norm_weight, norm_bias, channel, live, eps, WEIGHT, BIAS)
                x = x * scale[None, :] + shift[None, :]
            x = activate(x, ACTIVATION).to(w.dtype)
        total = tl.dot(x, w, total, input_precision="ieee")
    mask = in_rows[:, None] & in_columns[None, :]
    total = finished(
        total, bias, out_mean, out_var, out_weight, out_bias, residual, row, column, mask, width, residual_stride, out_eps,
        ADDS, OUT_NORM, OUT_WEIGHT, OUT_BIAS, RESIDUAL, OUT_ACTIVATION, COPIES,
    )  # fmt: skip
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * out_stride + column[None, :], rounded, mask=mask)
    if STATISTICS:
        group = tl.program_id(0) // tiles
        count = tl.minimum(height - group * ROWS, ROWS).to(tl.float32)
        middle, square = described(rounded.to(tl.float32), in_rows, count)
        tl.store(means + group * width + column, middle, mask=in_columns)
        tl.store(squares + group * width + column, square, mask=in_columns)


def gather_mm(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    out_norm: Norm | None = None,
    residual: Tensor | None = None,
    out_activation: str = "none",
    out: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Put a linear layer over gathered channels, with a norm and an activation before and behind it.

    Args:
        source: a map (..., C), or several that differ in C alone; float32, float16 or bfloat16, channels side by side.
        taps: which channels of them are read, in what order; K in all.
        weight: (N, K), of the source's type, contiguous: that of a linear layer, or of a 1x1 convolution without its last two axes.
        norm: a norm of the K channels, in eval mode; None is none.
        activation: a name of swkernels.affine.ACTIVATIONS, applied behind that norm.
        bias: (N,).
        out_norm: a norm of the N outputs, in eval mode.
        residual: (..., N), added behind that norm; of the source's type.
        out_activation: applied last.
        out: where to write, (..., N), a slice of a wider map if wanted; None makes a new map.
        statistics: where to write mean and variance of each of the N outputs over all rows, as `swkernels.statistics` takes them
            of the result, (N,) each, in float32; None takes none.

    Returns:
        (..., N): `out`, where it was given.

    Raises:
        TypeError: a type that the kernel does not take.
        ValueError: shapes that do not fit, rows that lie at no one distance, or statistics of no rows.
    """
    sources = maps(source)
    check_read(sources, taps, norm, activation)
    count, like = weight.shape[0], sources[0]
    check_made("weight", weight, (count, len(taps)), like)
    check_behind(count, bias, out_norm, out_activation)
    wanted = (*like.shape[:-1], count)
    check_made("residual", residual, wanted, like)
    check_made("out", out, wanted, like)
    made = like.new_empty(wanted) if out is None else out
    before, behind = norm or NO_NORM, out_norm or NO_NORM
    check_statistics(statistics, made)
    into = made, statistics or ()
    _gather_mm_into(sources, taps.flat(), *before, activation, weight, bias, *behind, residual, out_activation, *into)
    return made


@torch.library.custom_op("swkernels::gather_mm_into", mutates_args=("out", "statistics"))
def _gather_mm_into(
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    out_mean: Tensor | None,
    out_var: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    out_eps: float,
    residual: Tensor | None,
    out_activation: str,
    out: Tensor,
    statistics: Sequence[Tensor],
) -> None:
    taps, source = known(tuple(runs)), sources[0]
    if not launch.on_kernels(source):
        norm = norm_of(mean, var, norm_weight, norm_bias, eps)
        out_norm = norm_of(out_mean, out_var, out_weight, out_bias, out_eps)
        out.copy_(
            gather_mm_reference(
                sources, taps, weight, norm=norm, activation=activation, bias=bias, out_norm=out_norm,
                residual=residual, out_activation=out_activation,
            )
        )  # fmt: skip
        put_reference(statistics, out)
        return
    lie = places([rows(source, f"map {place}") for place, source in enumerate(sources)], taps)
    into = rows(out, "out")
    added = into if residual is None else rows(residual, "residual")
    height, width = into.shape
    high, wide, deep, warps, stages = astuple(tiles_for(height, width, source.dtype))
    parts = empty_parts(out, launch.ceil_div(height, high), width) if statistics else ()
    launch.run(
        _gather_mm, launch.ceil_div(height, high) * launch.ceil_div(width, wide),
        *lie.maps, lie.starts, lie.strides, mean, var, norm_weight, norm_bias, weight.contiguous(), bias,
        out_mean, out_var, out_weight, out_bias, added, into, *(parts or (None, None)),
        height, width, len(taps), lie.stride, added.stride(0), into.stride(0), eps, out_eps,
        GROUP=lie.group, SCATTERED=lie.strides is not None, NORM=mean is not None, WEIGHT=norm_weight is not None,
        BIAS=norm_bias is not None, ACTIVATION=activation, ADDS=bias is not None, OUT_NORM=out_mean is not None,
        OUT_WEIGHT=out_weight is not None, OUT_BIAS=out_bias is not None, RESIDUAL=residual is not None,
        OUT_ACTIVATION=out_activation, COPIES=max(2, 64 * warps // wide), STATISTICS=bool(parts),
        ROWS=high, COLUMNS=wide, CHANNELS=deep, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if parts:
        join(parts, statistics, height, high)


@_gather_mm_into.register_fake
def _(*_: object) -> None:
    """Nothing is made: `out` is there already."""
