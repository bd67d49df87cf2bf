"""The channel graph: a node for every origin channel, an edge for every pair that a layer links.

    layer reads a[0:4], a[4:8]           classes  a[0:8] x 8  --  layer[0:16] x 16
    another layer reads a[0:4] only      classes  a[0:4] x 4, a[4:8] x 4, ...

Nodes that have the same neighbours by construction are kept as one class with a multiplicity (swcompile.metrics.cells), so the
graph of a network with a hundred thousand channels has some hundred classes. Opaque operations have no origin: no nodes, no
edges. A sum is no node either: who reads it reads all of its addends. Parallel links count once, as the published figures need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.metrics.bits import Words, from_pairs, pack, transpose, weigh, words_for
from swcompile.metrics.cells import Cells, Ints, Pieces, distinct, make_cells, merged, pieces_of, pointers, spans

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Readers:
    """Who reads what: a reader is one group of an unmasked layer, and all outputs of the group read the same.

    `layer` (readers) is the reader's layer; reader r reads the cells `cell[pointer[r]:pointer[r + 1]]`; `of` (cells) is the
    reader whose outputs a cell holds, -1 where there is none (inputs, sums, masked layers).
    """

    layer: Ints
    pointer: Ints
    cell: Ints
    of: Ints

    @property
    def owner(self) -> Ints:
        """The reader of each entry of `cell`."""
        return np.repeat(np.arange(len(self.layer), dtype=np.int64), np.diff(self.pointer))


@dataclass(frozen=True, eq=False)
class Classes:
    """A simple undirected graph whose nodes are classes of unconnected nodes with the same neighbours.

    `rows` (classes, words) is the adjacency, `weight` (classes) how many nodes each class stands for.
    """

    rows: Words
    weight: Ints

    @property
    def count(self) -> int:
        return len(self.weight)

    @cached_property
    def degrees(self) -> Ints:
        """How many neighbours a node of each class has."""
        return weigh(self.rows, self.weight)


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The channel graph of a network under a wiring, made by `channel_graph`.

    `original` is the network as it stands, `graph` the same without the bypassed sums; `reads[i]` are the taps of layer i and
    `masks[i]` its live links, where it has a mask. Classes of channels are the cells of inputs and layers, in topological order.
    """

    original: LayerGraph
    graph: LayerGraph
    reads: tuple[tuple[Tap, ...], ...]
    masks: Mapping[int, Mask]
    pieces: Pieces
    cells: Cells
    readers: Readers

    @cached_property
    def weight(self) -> Ints:
        """How many channels each class has."""
        return self.cells.size[self.cells.number >= 0]

    @property
    def nodes(self) -> int:
        return int(self.weight.sum())

    @cached_property
    def inward(self) -> Words:
        """The classes from which each class has a link: (classes, words)."""
        return _inward_rows(self)

    @cached_property
    def in_degrees(self) -> Ints:
        """How many channels link to a channel of each class."""
        return weigh(self.inward, self.weight)

    @cached_property
    def edges(self) -> int:
        return int(self.in_degrees @ self.weight)

    @cached_property
    def classes(self) -> Classes:
        """The undirected graph."""
        return Classes(self.inward | transpose(self.inward, len(self.weight)), self.weight)


def channel_graph(
    graph: LayerGraph,
    taps: Mapping[str, Sequence[Tap]] | None = None,
    masks: Mapping[str, Mask] | None = None,
    *,
    bypassed: Iterable[tuple[str, int]] = (),
) -> ChannelGraph:
    """Return the channel graph of a network, or of the network under a wiring.

    `taps[layer]` replaces what the layer reads, and `masks[layer]`, of shape (out_channels, sum of tap widths), marks its live
    links. `bypassed` lists sums with the index of the addend that stays.

    >>> from swcompile.graph import GraphBuilder
    >>> build = GraphBuilder("two layers")
    >>> y = build.layer("conv1", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 16)
    >>> _ = build.layer("conv2", build.feature("conv1", y, (1, 16, 8, 8)), 16)
    >>> made = channel_graph(build.finish())
    >>> made.nodes, made.edges, len(made.weight)
    (35, 304, 3)
    """
    taps, masks = taps or {}, masks or {}
    _check_names(graph, {*taps, *masks})
    current = _without(graph, dict(bypassed))
    reads = tuple(tuple(taps.get(layer.name, current.reads(layer))) for layer in current.layers)
    live = {index: _checked(masks[y.name], y, reads[index]) for index, y in enumerate(current.layers) if y.name in masks}
    widths = np.array([sum(tap.width for tap in taps) for taps in reads], np.int64)
    offset = np.concatenate([[0], np.cumsum([made.channels for made in current.producers], dtype=np.int64)])
    pieces = pieces_of(current, reads, offset)
    first_reader, layer_of = _number_readers(current.layers, live)
    groups = np.array([layer.groups for layer in current.layers], np.int64)
    masked = np.isin(pieces.layer, np.fromiter(live, np.int64, len(live)))
    parts, group = _where(pieces, ~masked).split(np.maximum(widths // groups, 1))
    who, start, stop = merged(first_reader[parts.layer] + group, parts.first, parts.extent, int(offset[-1]) + 1)
    borders = np.zeros(offset[-1] + 1, np.bool_)
    borders[start] = borders[stop] = True
    _cut_outputs(borders, current.layers, offset, live)
    _cut_every_channel(borders, _where(pieces, masked))
    cells = make_cells(current, offset, borders)
    owner, place = spans(cells.of[stop - 1] - cells.of[start] + 1)
    readers = Readers(
        layer=layer_of,
        pointer=pointers(who[owner], len(layer_of)),
        cell=cells.of[start][owner] + place,
        of=_reader_of_cells(current.layers, cells, first_reader, live),
    )
    return ChannelGraph(graph, current, reads, live, pieces, cells, readers)


def _check_names(graph: LayerGraph, names: set[str]) -> None:
    unknown = sorted(names - graph.layer_by_name.keys())
    if unknown:
        raise SwnetError(f"There is no layer {unknown[0]!r} in {graph.name}; name layers as `LayerGraph.layers` does.")


def _checked(mask: Mask, layer: Layer, taps: Sequence[Tap]) -> Mask:
    wanted = (layer.out_channels, sum(tap.width for tap in taps))
    if mask.shape != wanted or mask.dtype != np.bool_:
        raise SwnetError(
            f"The mask of {layer.name} is {mask.dtype} of shape {mask.shape}; give booleans of shape {wanted}: "
            "output channels by the channels of its taps."
        )
    return mask


def _without(graph: LayerGraph, kept: Mapping[str, int]) -> LayerGraph:
    """Return the graph with each sum in `kept` reduced to the one addend that stays."""
    if not kept:
        return graph
    unknown = sorted(kept.keys() - {made.name for made in graph.producers if made.kind == "sum"})
    if unknown:
        raise SwnetError(f"There is no sum {unknown[0]!r} in {graph.name} that could be bypassed.")
    producers = tuple(
        dataclasses.replace(made, parts=(made.parts[kept[made.name]],)) if made.name in kept else made for made in graph.producers
    )
    return dataclasses.replace(graph, producers=producers)


def _where(pieces: Pieces, chosen: NDArray[np.bool_]) -> Pieces:
    return Pieces(*(getattr(pieces, field.name)[chosen] for field in dataclasses.fields(pieces)))


def _number_readers(layers: Sequence[Layer], live: Mapping[int, Mask]) -> tuple[Ints, Ints]:
    """Return the first reader of each layer, and the layer of each reader: masked layers have none."""
    counts = np.array([0 if index in live else layer.groups for index, layer in enumerate(layers)], np.int64)
    return np.cumsum(counts) - counts, np.repeat(np.arange(len(layers), dtype=np.int64), counts)


def _cut_outputs(borders: NDArray[np.bool_], layers: Sequence[Layer], offset: Ints, live: Mapping[int, Mask]) -> None:
    for index, layer in enumerate(layers):
        if index in live or layer.groups > 1:
            step = 1 if index in live else max(layer.out_channels // layer.groups, 1)
            borders[offset[layer.producer] : offset[layer.producer + 1] : step] = True


def _cut_every_channel(borders: NDArray[np.bool_], pieces: Pieces) -> None:
    for first, extent in zip(pieces.first.tolist(), pieces.extent.tolist(), strict=True):
        borders[first : first + extent + 1] = True


def _reader_of_cells(layers: Sequence[Layer], cells: Cells, first_reader: Ints, live: Mapping[int, Mask]) -> Ints:
    made = np.full(len(cells.size), -1, np.int64)
    for index, layer in enumerate(layers):
        if index not in live:
            own = cells.of_producer(layer.producer)
            inside = cells.begin[own] - cells.offset[layer.producer]
            made[own] = first_reader[index] + inside // max(layer.out_channels // layer.groups, 1)
    return made


def _inward_rows(made: ChannelGraph) -> Words:
    cells, readers, count = made.cells, made.readers, len(made.weight)
    closure, place = _closure(cells, count)
    owner, number = readers.owner, cells.number[readers.cell]
    direct = number >= 0
    rows = from_pairs(owner[direct], number[direct], (len(readers.layer), count))
    through = place[readers.cell]
    for reader, row in zip(owner[through >= 0].tolist(), through[through >= 0].tolist(), strict=True):
        rows[reader] |= closure[row]
    inward = np.zeros((count, words_for(count)), np.uint64)
    fed = np.flatnonzero((readers.of >= 0) & (cells.number >= 0))
    inward[cells.number[fed]] = rows[readers.of[fed]]
    for index in made.masks:
        own = cells.of_producer(made.graph.layers[index].producer)
        inward[cells.number[own]] = _masked_rows(made, index, count)
    return inward


def _closure(cells: Cells, count: int) -> tuple[Words, Ints]:
    """Return the classes that each cell of a sum is made of, as rows, and the row of each cell, -1 for others."""
    summed = distinct(cells.child_of)
    place = np.full(len(cells.size), -1, np.int64)
    place[summed] = np.arange(len(summed))
    number = cells.number[cells.child]
    direct = number >= 0
    rows = from_pairs(place[cells.child_of[direct]], number[direct], (len(summed), count))
    nested = place[cells.child] >= 0  # in topological order, so that the addend's row is complete
    for above, below in zip(place[cells.child_of[nested]].tolist(), place[cells.child[nested]].tolist(), strict=True):
        rows[above] |= rows[below]
    return rows, place


def _masked_rows(made: ChannelGraph, index: int, count: int) -> Words:
    """Return the classes that each output channel of a masked layer reads: (out_channels, words)."""
    mask, cells = made.masks[index], made.cells
    flags = np.zeros((len(mask), count), np.bool_)
    for run in made.graph.origins(made.graph.runs_of(made.reads[index])):
        low = int(cells.number[cells.of[cells.offset[run.producer] + run.first]])
        if low < 0:
            continue
        live = mask[:, run.start : run.stop]
        if run.step == 0:
            flags[:, low] |= live.any(axis=1)
        else:
            flags[:, low : low + run.width] |= live
    return pack(flags)
