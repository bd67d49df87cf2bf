"""What comes back through `block_sparse_conv2d`, without norm and activation: to the map that it read, and to its weight.

    y[n, i, j, o] = sum over r, s and the inputs k that o's cluster reads of
                        map[n, i * stride + r - padding, j * stride + s - padding, channel(k)] * weight[o, r, s, k]

    data      d[n, y, x, k] = sum over r, s and the outputs o that read k of
                        dy[n, (y + padding - r) / stride, (x + padding - s) / stride, o] * weight[o, r, s, k]
    weight    dweight[o, r, s, k] = sum over n, i, j of dy[n, i, j, o] * map[n, i * stride + r - padding, .., channel(k)]

Both are block-sparse like what they come back through. The data's clusters are inputs that the same outputs read (the transposed
support); where the stride leaves pixels of a map between those that a tap meets, each program takes pixels that meet the same taps,
and no other tap. Each sum over rows of the weight's is made of parts in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from swkernels import block_sparse, launch
from swkernels._triton import jit, tl
from swkernels.block_sparse import Support, Tables, check_convolved, known_support, listed, tables
from swkernels.checks import check_made, check_read, rows
from swkernels.gather_mm import Tiles
from swkernels.gather_mm_backward import LEAST_ROWS, PROGRAMS
from swkernels.taps import WIDEST, Taps, known


class BlockSparseGradients(NamedTuple):
    """The gradients of `block_sparse_conv2d`: of the gathered map (N, H, W, K), and of weight (O, R, S, K).

    That of the map is of its type, that of the weight a sum in float32 (in float64 for maps of float64, which only references
    take). Weights that the support leaves out have zeros.
    """

    source: Tensor
    weight: Tensor


def block_sparse_conv2d_backward_reference(
    grad: Tensor, source: Tensor, taps: Taps, weight: Tensor, support: Support, *, stride: int = 1, padding: int = 0
) -> BlockSparseGradients:
    """Do in plain torch what `block_sparse_conv2d_backward` does, tap by tap of the kernel, in any floating type."""
    read = taps.take([source])
    wide = torch.float64 if read.dtype == torch.float64 else torch.float32
    given, around = grad.to(wide), functional.pad(read.to(wide), (0, 0, padding, padding, padding, padding))
    live = support.mask(len(taps)).to(weight.device)
    behind, of_weight = torch.zeros_like(around), torch.zeros(weight.shape, dtype=wide, device=weight.device)
    for r in range(weight.shape[1]):
        for s in range(weight.shape[2]):
            met = (slice(None), _met(r, stride, grad.shape[1]), _met(s, stride, grad.shape[2]))
            filters = torch.where(live, weight[:, r, s], weight.new_zeros(())).to(wide)
            behind[met] += given @ filters
            of_weight[:, r, s] = torch.where(live, given.flatten(0, 2).T @ around[met].flatten(0, 2), 0.0)
    height, width = source.shape[1:3]
    inner = behind[:, padding : padding + height, padding : padding + width]
    return BlockSparseGradients(inner.to(read.dtype, memory_format=torch.contiguous_format), of_weight)


def _met(tap: int, stride: int, count: int) -> slice:
    """Return the places, of height or width with its padding, that a tap of a kernel meets for so many results."""
    return slice(tap, tap + stride * (count - 1) + 1, stride)


SHIPPED = {
    "wide": Tiles(64, 64, 128, 8, 3),
    "half": Tiles(64, 64, 64, 4, 3),
    "few": Tiles(64, 16, 64, 4, 4),
    "float32": Tiles(32, 32, 32, 8, 3),  # with 4 warps 255 registers
}
"""Rows, outputs and inputs of a program that makes the weight's gradient."""
SHIPPED_DATA = block_sparse.SHIPPED | {"float32": Tiles(32, 32, 32, 4, 3)}  # twice the rows spill on sm_80
"""Rows, inputs and outputs of one that makes the map's."""


def tiles_for(outputs: int, inputs: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles by the outputs of the widest cluster, and by how many inputs one reads at most, without a measurement."""
    if dtype == torch.float32:
        return SHIPPED["float32"]
    return SHIPPED["few" if outputs <= 16 else "half" if inputs <= 64 else "wide"]


def data_tiles_for(inputs: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles by the inputs of the widest cluster that the same outputs read, without a measurement."""
    if dtype == torch.float32:
        return SHIPPED_DATA["float32"]
    return block_sparse.tiles_for(inputs, dtype)


@functools.cache
def _transposed(support: Support, inputs: int) -> Support:
    """Return `support.transposed`, remembered."""
    return support.transposed(inputs)


@functools.cache
def _weight_tables(taps: Taps, support: Support, tiles: Tiles, device: torch.device) -> Tables:
    """Return the lists of a kernel each of whose programs makes a tile of a cluster, outputs by what they read."""
    found = listed(taps, support)
    groups = tiles.channels // found.group
    places = [
        (start, min(start + tiles.columns, cluster.stop), group, min(group + groups, last))
        for cluster, (first, last) in zip(support.clusters, found.spans, strict=True)
        for start in range(cluster.start, cluster.stop, tiles.columns)
        for group in range(first, last, groups)
    ]
    return Tables.of(found, places, device)


def _group(support: Support) -> int:
    """Return how many neighbouring outputs go together, so that no cluster begins or ends between them; the last one may."""
    return math.gcd(WIDEST, *(cluster.start for cluster in support.clusters))


@jit
def _block_sparse_data_gradient(
    grad, tiles, outputs, starts, weight, into,
    pixels, tile_count, made, channels, width, height, source_width, source_height, padding, grad_stride, into_stride,
    GROUP: tl.constexpr, COLUMN_GROUP: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tile = tiles + (tl.program_id(0) % tile_count) * 4
    part = tl.program_id(0) // tile_count
    phase = part % (STRIDE * STRIDE)  # the pixels of one phase lie a stride apart, and meet the same taps
    down, right = phase // STRIDE, phase % STRIDE
    row = (part // (STRIDE * STRIDE)).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    across, along = tl.cdiv(source_width, STRIDE), tl.cdiv(source_height, STRIDE)
    line, image = row // across, row // across // along
    x, y = (row % across) * STRIDE + right, (line % along) * STRIDE + down
    in_rows = (row < pixels) & (y < source_height) & (x < source_width)
    column = tl.multiple_of(tl.load(tile), COLUMN_GROUP) + tl.arange(0, COLUMNS)
    end = tl.cdiv(tl.load(tile + 1), COLUMN_GROUP)
    in_columns = (column // COLUMN_GROUP < end) & (column < channels)
    first, last = tl.load(tile + 2), tl.load(tile + 3)
    top, left = (down + padding) % STRIDE, (right + padding) % STRIDE  # the first taps that the phase meets
    taps_across = tl.cdiv(WIDE - left, STRIDE)
    taps = tl.cdiv(HIGH - top, STRIDE) * taps_across
    low, near = (y + padding) // STRIDE, (x + padding) // STRIDE
    chunks = tl.cdiv((last - first) * GROUP, CHANNELS)
    lane = tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(taps * chunks):
        tap, place = step // chunks, (step % chunks) * CHANNELS + lane
        i, j = tap // taps_across, tap % taps_across
        above, beside = low - i, near - j
        inside = in_rows & (above >= 0) & (above < height) & (beside >= 0) & (beside < width)
        group = first + place // GROUP
        live = group < last
        output = tl.multiple_of(tl.load(outputs + group, mask=live, other=0), GROUP) + place % GROUP
        start = tl.multiple_of(tl.load(starts + group, mask=live, other=0), GROUP) + place % GROUP
        there = live & (output < made)
        pixel = (image * height + above) * width + beside
        g = tl.load(grad + pixel[:, None] * grad_stride + start[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        at = (top + i * STRIDE) * WIDE + left + j * STRIDE
        w_place = (output[:, None] * (HIGH * WIDE) + at) * channels + column[None, :]
        w = tl.load(weight + w_place, mask=there[:, None] & in_columns[None, :], other=0.0)
        total = tl.dot(g, w, total, input_precision="ieee")
    write = into + ((image * source_height + y) * source_width + x)[:, None] * into_stride + column[None, :]
    tl.store(write, total.to(into.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@jit
def _block_sparse_weight_gradient(
    source, tiles, inputs, starts, grad, into,
    pixels, tile_count, outputs, channels, width, height, source_width, source_height, padding, source_stride, grad_stride, share,
    GROUP: tl.constexpr, COLUMN_GROUP: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tile = tiles + (tl.program_id(0) % tile_count) * 4  # the tiles of the same rows run side by side, and find them in the cache
    tap = tl.program_id(0) // tile_count % (HIGH * WIDE)
    part = tl.program_id(0) // (tile_count * HIGH * WIDE)
    output = tl.multiple_of(tl.load(tile), COLUMN_GROUP) + tl.arange(0, COLUMNS)
    made = (output // COLUMN_GROUP < tl.cdiv(tl.load(tile + 1), COLUMN_GROUP)) & (output < outputs)
    lane = tl.arange(0, CHANNELS)
    group = tl.load(tile + 2) + lane // GROUP
    live = group < tl.load(tile + 3)
    channel = tl.multiple_of(tl.load(inputs + group, mask=live, other=0), GROUP) + lane % GROUP
    start = tl.multiple_of(tl.load(starts + group, mask=live, other=0), GROUP) + lane % GROUP
    read = live & (channel < channels)
    total = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    for first in range(0, share, ROWS):
        row = part.to(tl.int64) * share + first + tl.arange(0, ROWS)
        there = row < pixels
        line = row // width
        y, x = (line % height) * STRIDE + tap // WIDE - padding, (row % width) * STRIDE + tap % WIDE - padding
        inside = there & (y >= 0) & (y < source_height) & (x >= 0) & (x < source_width)
        pixel = (line // height * source_height + y) * source_width + x
        value = tl.load(source + pixel[:, None] * source_stride + start[None, :], mask=inside[:, None] & read[None, :], other=0.0)
        g = tl.load(grad + row[:, None] * grad_stride + output[None, :], mask=there[:, None] & made[None, :], other=0.0)
        total = tl.dot(tl.trans(value), g, total, input_precision="ieee")
    place = ((part * outputs + output[None, :]) * (HIGH * WIDE) + tap) * channels + channel[:, None]
    tl.store(into + place, total, mask=read[:, None] & made[None, :])


def block_sparse_conv2d_backward(
    grad: Tensor, source: Tensor, taps: Taps, weight: Tensor, support: Support, *, stride: int = 1, padding: int = 0
) -> BlockSparseGradients:
    """Return the gradients of `block_sparse_conv2d(source, taps, weight, support, stride=stride, padding=padding)`.

    Args:
        grad: (N, H', W', O), the gradient of its result, of the source's type, channels side by side.
        source: the map that it read, (N, H, W, C).
        taps: which of its channels are the layer's inputs; K in all.
        weight: (O, R, S, K), of the source's type. Another layout than that is copied at each call.
        support: which of the K inputs each of the O outputs reads.
        stride, padding: of the convolution, alike in height and width.

    Returns:
        The gradients, of the gathered map and of the weight.

    Raises:
        TypeError: a type that the kernels do not take.
        ValueError: shapes that do not fit, or rows that lie at no one distance.
    """
    check_read([source], taps, None, "none")
    size = check_convolved(source, taps, weight, support, stride, padding)
    check_made("grad", grad, size, source)
    made = source.new_empty((*source.shape[:-1], len(taps)))
    of_weight = _block_sparse_conv2d_backward_into(grad, source, taps.flat(), weight, support.flat(), stride, padding, made)
    return BlockSparseGradients(made, of_weight)


@torch.library.custom_op("swkernels::block_sparse_conv2d_backward_into", mutates_args=("into",))
def _block_sparse_conv2d_backward_into(
    grad: Tensor,
    source: Tensor,
    runs: Sequence[int],
    weight: Tensor,
    clusters: Sequence[int],
    stride: int,
    padding: int,
    into: Tensor,
) -> Tensor:
    taps, support = known(tuple(runs)), known_support(tuple(clusters))
    if not launch.on_kernels(source):
        found = block_sparse_conv2d_backward_reference(grad, source, taps, weight, support, stride=stride, padding=padding)
        into.copy_(found.source)
        return found.weight
    _data_gradient(grad, weight, support, stride, padding, into)
    return _weight_gradient(grad, source, taps, weight, support, stride, padding)


def _data_gradient(grad: Tensor, weight: Tensor, support: Support, stride: int, padding: int, into: Tensor) -> None:
    given, made = rows(grad, "grad"), rows(into, "into")
    (outputs, high, wide, channels), (batch, source_height, source_width, _) = weight.shape, into.shape
    turned = _transposed(support, channels)
    tiles = data_tiles_for(max(cluster.stop - cluster.start for cluster in turned.clusters), grad.dtype)
    lists = tables(Taps.of((0, outputs)), turned, tiles.columns, grad.device)
    pixels = batch * launch.ceil_div(source_height, stride) * launch.ceil_div(source_width, stride)
    launch.run(
        _block_sparse_data_gradient, launch.ceil_div(pixels, tiles.rows) * stride**2 * lists.count,
        given, lists.tiles, lists.inputs, lists.starts, weight.contiguous(), made,
        pixels, lists.count, outputs, channels, grad.shape[2], grad.shape[1], source_width, source_height, padding,
        given.stride(0), made.stride(0),
        GROUP=lists.group, COLUMN_GROUP=_group(turned), HIGH=high, WIDE=wide, STRIDE=stride,
        ROWS=tiles.rows, COLUMNS=tiles.columns, CHANNELS=tiles.channels, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _weight_gradient(
    grad: Tensor, source: Tensor, taps: Taps, weight: Tensor, support: Support, stride: int, padding: int
) -> Tensor:
    given, flat = rows(grad, "grad"), rows(source, "source")
    outputs, high, wide, channels = weight.shape
    widest = max(cluster.stop - cluster.start for cluster in support.clusters)
    most = max(sum(stop - start for start, stop in cluster.reads) for cluster in support.clusters)
    tiles = tiles_for(widest, most, grad.dtype)
    lists = _weight_tables(taps, support, tiles, grad.device)
    programs, pixels = lists.count * high * wide, len(given)
    share = max(min(LEAST_ROWS, pixels), launch.ceil_div(pixels, max(1, PROGRAMS // max(1, programs))))
    share = launch.ceil_div(share, tiles.rows) * tiles.rows
    parts = launch.ceil_div(pixels, share)
    products = grad.new_zeros((parts, *weight.shape), dtype=torch.float32)  # what no cluster reads is not written
    if programs:
        launch.run(
            _block_sparse_weight_gradient, parts * programs,
            flat, lists.tiles, lists.inputs, lists.starts, given, products,
            pixels, lists.count, outputs, channels, grad.shape[2], grad.shape[1], source.shape[2], source.shape[1], padding,
            flat.stride(0), given.stride(0), share,
            GROUP=lists.group, COLUMN_GROUP=_group(support), HIGH=high, WIDE=wide, STRIDE=stride,
            ROWS=tiles.rows, COLUMNS=tiles.columns, CHANNELS=tiles.channels, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return products.sum(0)


@_block_sparse_conv2d_backward_into.register_fake
def _(grad: Tensor, source: Tensor, runs: Sequence[int], weight: Tensor, *_: object) -> Tensor:
    return torch.empty(weight.shape, dtype=torch.float64 if grad.dtype == torch.float64 else torch.float32, device=weight.device)
