"""Convolve over channels of a map where each cluster of outputs reads blocks of its own; as a 1x1 convolution, a linear layer.

    y[n, i, j, o] = out_act( out_norm( sum over r, s and the inputs k that o's cluster reads of
                        act(norm(map[n, i * stride + r - padding, j * stride + s - padding, channel(k)])) * weight[o, r, s, k]
                    + bias[o] ) + residual )                      zero where that pixel lies outside, whatever the norm

One dense product a cluster, over its own inputs alone: at a quarter of the blocks a quarter of the multiplications. What its
outputs do not read has weights, which are not looked at. An implicit product: no map of patches is written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from swkernels import launch
from swkernels._triton import jit, tl
from swkernels.affine import NO_NORM, Norm, activate, activated, finished, folded, norm_of
from swkernels.checks import check_behind, check_made, check_read, rows
from swkernels.gather_mm import Tiles
from swkernels.taps import Taps, known

Run = tuple[int, int]


@dataclass(frozen=True)
class Cluster:
    """Outputs [start, stop) that read the same inputs: runs [start, stop) of them."""

    start: int
    stop: int
    reads: tuple[Run, ...]


@dataclass(frozen=True)
class Support:
    """What each output of a layer reads: clusters that follow one another and cover the outputs.

    >>> support = Support((Cluster(0, 16, ((0, 8), (24, 32))), Cluster(16, 32, ((8, 16),))))
    >>> support.outputs, support.mask(32).sum().item()
    (32, 384)
    """

    clusters: tuple[Cluster, ...]

    def __post_init__(self) -> None:
        ends = [0, *(cluster.stop for cluster in self.clusters)]
        if not self.clusters or any(cluster.start != end for cluster, end in zip(self.clusters, ends, strict=False)):
            raise ValueError(f"Clusters must follow one another from output 0; got {self.clusters}.")
        if any(cluster.start >= cluster.stop or any(a >= b for a, b in cluster.reads) for cluster in self.clusters):
            raise ValueError(f"Clusters and what they read are not empty; got {self.clusters}.")

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return self.clusters[-1].stop

    def mask(self, inputs: int) -> Tensor:
        """Return True at (output, input) where the output reads the input."""
        live = torch.zeros(self.outputs, inputs, dtype=torch.bool)
        for cluster in self.clusters:
            for start, stop in cluster.reads:
                live[cluster.start : cluster.stop, start:stop] = True
        return live

    def transposed(self, inputs: int) -> Support:
        """Return which outputs read each of the inputs: clusters of inputs that the same outputs read.

        >>> Support((Cluster(0, 16, ((0, 8), (24, 32))), Cluster(16, 32, ((4, 8),)))).transposed(32).clusters[:2]
        (Cluster(start=0, stop=4, reads=((0, 16),)), Cluster(start=4, stop=8, reads=((0, 32),)))
        """
        borders = sorted({0, inputs, *(border for cluster in self.clusters for run in cluster.reads for border in run)})
        turned: list[Cluster] = []
        for low, high in pairwise(borders):
            readers = [one for one in self.clusters if any(start <= low < stop for start, stop in one.reads)]
            reads = _joined([(one.start, one.stop) for one in readers])
            if turned and turned[-1].reads == reads:
                low = turned.pop().start
            turned.append(Cluster(low, high, reads))
        return Support(tuple(turned))

    def flat(self) -> list[int]:
        """Return the clusters in one list, as operators take them: start, stop, count of runs, and the runs."""
        return [
            number
            for cluster in self.clusters
            for number in (cluster.start, cluster.stop, len(cluster.reads), *(place for run in cluster.reads for place in run))
        ]

    @staticmethod
    def of_flat(numbers: Sequence[int]) -> Support:
        """Return what `flat` was taken from."""
        clusters, place = [], 0
        while place < len(numbers):
            start, stop, count = numbers[place : place + 3]
            runs = numbers[place + 3 : place + 3 + 2 * count]
            clusters.append(Cluster(start, stop, tuple(zip(runs[::2], runs[1::2], strict=True))))
            place += 3 + 2 * count
        return Support(tuple(clusters))


def _joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Join runs where one goes on from the other."""
    joined: list[Run] = []
    for start, stop in runs:
        joined.append((joined.pop()[0] if joined and joined[-1][1] == start else start, stop))
    return tuple(joined)


@functools.cache
def known_support(numbers: tuple[int, ...]) -> Support:
    """Return `Support.of_flat`, remembered: an operator gets the same numbers at every call."""
    return Support.of_flat(numbers)


def block_sparse_conv2d_reference(
    source: Tensor,
    taps: Taps,
    weight: Tensor,
    support: Support,
    *,
    stride: int = 1,
    padding: int = 0,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    out_norm: Norm | None = None,
    residual: Tensor | None = None,
    out_activation: str = "none",
) -> Tensor:
    """Do in plain torch what `block_sparse_conv2d` does, differentiably and in any floating type."""
    read = activated(taps.take([source]), norm, activation)
    wide = torch.float64 if read.dtype == torch.float64 else torch.float32
    live = support.mask(len(taps)).to(weight.device)[:, None, None, :]
    filters = torch.where(live, weight, weight.new_zeros(())).to(wide).permute(0, 3, 1, 2)
    y = functional.conv2d(read.to(wide).permute(0, 3, 1, 2), filters, None, stride, padding).permute(0, 2, 3, 1)
    y = y if bias is None else y + bias.to(wide)
    y = activated(y, out_norm, "none")
    y = y if residual is None else y + residual.to(wide)
    return activated(y, None, out_activation).to(read.dtype)


SHIPPED = {
    "wide": Tiles(128, 128, 32, 8, 4),
    "half": Tiles(128, 64, 32, 4, 5),
    "narrow": Tiles(128, 32, 32, 4, 5),
    "few": Tiles(64, 16, 64, 4, 4),
    "float32": Tiles(64, 32, 32, 4, 3),
}
"""Every configuration that `tiles_for` can choose."""


def tiles_for(cluster: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles by the outputs of the widest cluster, without a measurement."""
    if dtype == torch.float32:
        return SHIPPED["float32"]
    return SHIPPED["few" if cluster <= 16 else "narrow" if cluster <= 32 else "half" if cluster <= 64 else "wide"]


@dataclass(frozen=True)
class Listed:
    """What clusters read, group by group: each group's first input, and its channel of the map; of each cluster, which groups."""

    group: int
    inputs: tuple[int, ...]
    starts: tuple[int, ...]
    spans: tuple[Run, ...]


@functools.cache
def listed(taps: Taps, support: Support) -> Listed:
    """List what clusters read, in groups of as many neighbours as their borders allow."""
    borders = (border for cluster in support.clusters for run in cluster.reads for border in run)
    group = math.gcd(taps.group, *(border for border in borders if border != len(taps)))  # the kernels mask what is behind the last
    starts = taps.starts_of(group)
    inputs: list[int] = []
    spans: list[Run] = []
    for cluster in support.clusters:
        first = len(inputs)
        inputs += [place for start, stop in cluster.reads for place in range(start, stop, group)]
        spans.append((first, len(inputs)))
    return Listed(group, tuple(inputs), tuple(starts[k // group] for k in inputs), tuple(spans))


@dataclass(frozen=True)
class Tables:
    """A kernel's lists: `tiles` (first output, end, first group, end) of each program; each group's input and channel."""

    tiles: Tensor
    inputs: Tensor
    starts: Tensor
    count: int
    group: int

    @classmethod
    def of(cls, listed: Listed, tiles: Sequence[tuple[int, int, int, int]], device: torch.device) -> Tables:
        """Put lists on a device."""
        numbers = (tiles, listed.inputs, listed.starts)
        made, inputs, starts = (torch.tensor(one, dtype=torch.int32, device=device) for one in numbers)
        return cls(made, inputs, starts, len(tiles), listed.group)


@functools.cache
def tables(taps: Taps, support: Support, columns: int, device: torch.device) -> Tables:
    """Return the lists of a kernel whose programs make `columns` outputs of a cluster at a time."""
    found = listed(taps, support)
    tiles = [
        (start, min(start + columns, cluster.stop), *span)
        for cluster, span in zip(support.clusters, found.spans, strict=True)
        for start in range(cluster.start, cluster.stop, columns)
    ]
    return Tables.of(found, tiles, device)


@jit
def _block_sparse_conv2d(
    source, tiles, inputs, starts, mean, var, norm_weight, norm_bias, weight, bias,
    out_mean, out_var, out_weight, out_bias, residual, out,
    pixels, tile_count, channels, width, height, source_width, source_height, padding,
    source_stride, residual_stride, out_stride, eps, out_eps,
    GROUP: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, STRIDE: tl.constexpr,
    ADDS: tl.constexpr, OUT_NORM: tl.constexpr, OUT_WEIGHT: tl.constexpr, OUT_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OUT_ACTIVATION: tl.constexpr, COPIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // tile_count).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = tiles + (tl.program_id(0) % tile_count) * 4
    column = tl.load(tile) + tl.arange(0, COLUMNS)
    end = tl.load(tile + 1)
    first, last = tl.load(tile + 2), tl.load(tile + 3)
    in_rows, in_columns = row < pixels, column < end
    line = row // width
    top, left = (line % height) * STRIDE - padding, (row % width) * STRIDE - padding
    image = (line // height) * source_height
    chunks = tl.cdiv((last - first) * GROUP, CHANNELS)
    lane = tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(HIGH * WIDE * chunks):
        tap, place = step // chunks, (step % chunks) * CHANNELS + lane
        y, x = top + tap // WIDE, left + tap % WIDE
        inside = in_rows & (y >= 0) & (y < source_height) & (x >= 0) & (x < source_width)
        group = first + place // GROUP
        live = group < last
        channel = tl.multiple_of(tl.load(inputs + group, mask=live, other=0), GROUP) + place % GROUP
        start = tl.multiple_of(tl.load(starts + group, mask=live, other=0), GROUP) + place % GROUP
        read = live & (channel < channels)
        pixel = (image + y) * source_width + x
        seen = inside[:, None] & read[None, :]
        value = tl.load(source + pixel[:, None] * source_stride + start[None, :], mask=seen, other=0.0)
        w_place = (column[None, :] * (HIGH * WIDE) + tap) * channels + channel[:, None]
        w = tl.load(weight + w_place, mask=in_columns[None, :] & read[:, None], other=0.0)
        if NORM or ACTIVATION != "none":
            value = value.to(tl.float32)
            if NORM:
                scale, shift = folded(mean, var, norm_weight, norm_bias, channel, read, eps, WEIGHT, BIAS)
                value = value * scale[None, :] + shift[None, :]
            value = tl.where(seen, activate(value, ACTIVATION), 0.0).to(w.dtype)  # padding comes behind norm and activation
        total = tl.dot(value, w, total, input_precision="ieee")
    mask = in_rows[:, None] & in_columns[None, :]
    total = finished(
        total, bias, out_mean, out_var, out_weight, out_bias, residual, row, column, mask, end, residual_stride, out_eps,
        ADDS, OUT_NORM, OUT_WEIGHT, OUT_BIAS, RESIDUAL, OUT_ACTIVATION, COPIES,
    )  # fmt: skip
    tl.store(out + row[:, None] * out_stride + column[None, :], total.to(out.dtype.element_ty), mask=mask)


def check_convolved(
    source: Tensor, taps: Taps, weight: Tensor, support: Support, stride: int, padding: int
) -> tuple[int, int, int, int]:
    """Return the shape of what a convolution makes, (N, H', W', O). Raise ValueError where its shapes do not fit."""
    if source.dim() != 4 or weight.dim() != 4:
        raise ValueError(f"source and weight have four axes; got shapes {tuple(source.shape)} and {tuple(weight.shape)}.")
    count, high, wide, _ = weight.shape
    check_made("weight", weight, (support.outputs, high, wide, len(taps)), source)
    if any(stop > len(taps) for cluster in support.clusters for _, stop in cluster.reads):
        raise ValueError(f"The support reads inputs beyond the {len(taps)} that the taps bring.")
    height, width = ((have + 2 * padding - size) // stride + 1 for have, size in zip(source.shape[1:3], (high, wide), strict=True))
    if min(height, width) < 1:
        raise ValueError(f"A {high}x{wide} convolution with padding {padding} does not fit a map of {tuple(source.shape[1:3])}.")
    return source.shape[0], height, width, count


def block_sparse_conv2d(
    source: Tensor,
    taps: Taps,
    weight: Tensor,
    support: Support,
    *,
    stride: int = 1,
    padding: int = 0,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    out_norm: Norm | None = None,
    residual: Tensor | None = None,
    out_activation: str = "none",
    out: Tensor | None = None,
) -> Tensor:
    """Convolve over gathered channels where each cluster of outputs reads blocks of its own.

    Args:
        source: a map (N, H, W, C); float32, float16 or bfloat16, channels side by side.
        taps: which of its channels are the layer's inputs, in what order; K in all.
        weight: (O, R, S, K), of the source's type: a channels-last convolution weight after `.permute(0, 2, 3, 1)`. Another layout
            is copied at each call.
        support: which of the K inputs each of the O outputs reads.
        stride, padding: of the convolution, alike in height and width.
        norm, activation: of the K inputs, before the zeros of the padding.
        bias, out_norm, residual, out_activation: as for swkernels.gather_mm, of the O outputs.
        out: where to write, (N, H', W', O), a slice of a wider map if wanted; None makes a new map.

    Returns:
        (N, H', W', O): `out`, where it was given.

    Raises:
        TypeError: a type that the kernel does not take.
        ValueError: shapes that do not fit, or rows that lie at no one distance.
    """
    check_read([source], taps, norm, activation)
    wanted = check_convolved(source, taps, weight, support, stride, padding)
    check_behind(wanted[-1], bias, out_norm, out_activation)
    check_made("residual", residual, wanted, source)
    check_made("out", out, wanted, source)
    made = source.new_empty(wanted) if out is None else out
    before, behind = norm or NO_NORM, out_norm or NO_NORM
    _block_sparse_conv2d_into(
        source,
        taps.flat(),
        *before,
        activation,
        weight,
        support.flat(),
        stride,
        padding,
        bias,
        *behind,
        residual,
        out_activation,
        made,
    )
    return made


@torch.library.custom_op("swkernels::block_sparse_conv2d_into", mutates_args=("out",))
def _block_sparse_conv2d_into(
    source: Tensor,
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    weight: Tensor,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    bias: Tensor | None,
    out_mean: Tensor | None,
    out_var: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    out_eps: float,
    residual: Tensor | None,
    out_activation: str,
    out: Tensor,
) -> None:
    taps, support = known(tuple(runs)), known_support(tuple(clusters))
    if not launch.on_kernels(source):
        norm = norm_of(mean, var, norm_weight, norm_bias, eps)
        out_norm = norm_of(out_mean, out_var, out_weight, out_bias, out_eps)
        out.copy_(
            block_sparse_conv2d_reference(
                source, taps, weight, support, stride=stride, padding=padding, norm=norm, activation=activation, bias=bias,
                out_norm=out_norm, residual=residual, out_activation=out_activation,
            )
        )  # fmt: skip
        return
    flat, into = rows(source, "source"), rows(out, "out")
    added = into if residual is None else rows(residual, "residual")
    _, source_height, source_width, _ = source.shape
    _, height, width, _ = out.shape
    tiles = tiles_for(max(cluster.stop - cluster.start for cluster in support.clusters), source.dtype)
    high, wide, deep, warps, stages = astuple(tiles)
    lists = tables(taps, support, wide, source.device)
    launch.run(
        _block_sparse_conv2d, launch.ceil_div(len(into), high) * lists.count,
        flat, lists.tiles, lists.inputs, lists.starts, mean, var, norm_weight, norm_bias, weight.contiguous(), bias,
        out_mean, out_var, out_weight, out_bias, added, into,
        len(into), lists.count, len(taps), width, height, source_width, source_height, padding,
        flat.stride(0), added.stride(0), into.stride(0), eps, out_eps,
        GROUP=lists.group, NORM=mean is not None, WEIGHT=norm_weight is not None, BIAS=norm_bias is not None,
        ACTIVATION=activation, HIGH=weight.shape[1], WIDE=weight.shape[2], STRIDE=stride,
        ADDS=bias is not None, OUT_NORM=out_mean is not None,
        OUT_WEIGHT=out_weight is not None, OUT_BIAS=out_bias is not None, RESIDUAL=residual is not None,
        OUT_ACTIVATION=out_activation, COPIES=max(2, 64 * warps // wide), ROWS=high, COLUMNS=wide, CHANNELS=deep,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


@_block_sparse_conv2d_into.register_fake
def _(*_: object) -> None:
    """Nothing is made: `out` is there already."""
