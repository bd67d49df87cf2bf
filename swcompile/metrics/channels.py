"""The channel graph: a node for every origin channel, an edge for every pair that a layer links.

    layer reads a[0:4], a[4:8]           classes  a[0:8] x 8  --  layer[0:16] x 16
    another layer reads a[0:4] only      classes  a[0:4] x 4, a[4:8] x 4, ...

Nodes that have the same neighbours by construction are kept as one class with a multiplicity (swcompile.metrics.cells), so the
graph of a network with a hundred thousand channels has some hundred classes. A depthwise layer links channel i of a class with
channel i of another: such classes are *matched*. Opaque operations have no origin: no nodes, no
edges. A sum is no node either: who reads it reads all of its addends. Parallel links count once, as the published figures need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.metrics.bits import Words, from_pairs, pack, transpose, weigh, words_for
from swcompile.metrics.cells import Cells, Ints, Pieces, distinct, make_cells, merged, pieces_of, pointers, spans

Mask = NDArray[np.bool_]
NO_MATCHES: Ints = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Readers:
    """Who reads what: a reader is one group of an unmasked layer, and all outputs of the group read the same.

    `layer` (readers) is the reader's layer; reader r reads the cells `cell[pointer[r]:pointer[r + 1]]`; `of` (cells) is the
    reader whose outputs a cell holds, -1 where there is none (inputs, sums, masked and matched layers). `matched` (cells) is, for
    the outputs of matched layers, the cell that they read channel by channel, else -1.
    """

    layer: Ints
    pointer: Ints
    cell: Ints
    of: Ints
    matched: Ints

    @property
    def owner(self) -> Ints:
        """The reader of each entry of `cell`."""
        return np.repeat(np.arange(len(self.layer), dtype=np.int64), np.diff(self.pointer))


@dataclass(frozen=True, eq=False)
class Classes:
    """A simple undirected graph whose nodes are classes of unconnected nodes with the same neighbours.

    `rows` (classes, words) is the adjacency, `weight` (classes) how many nodes each class stands for. `matches` (matches, 2),
    sorted, are pairs of classes of the same weight of which node i of one is linked with node i of the other, in both directions;
    such classes are not adjacent in `rows`.
    """

    rows: Words
    weight: Ints
    matches: Ints = field(default_factory=lambda: NO_MATCHES)

    @property
    def count(self) -> int:
        return len(self.weight)

    @cached_property
    def degrees(self) -> Ints:
        """How many neighbours a node of each class has."""
        return weigh(self.rows, self.weight) + np.bincount(self.matches[:, 0], minlength=self.count)


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
        """The classes from whose every node each class has a link: (classes, words)."""
        return _inward_rows(self)

    @cached_property
    def matches(self) -> Ints:
        """Pairs of a class and another of which each of its nodes has one link: (matches, 2), sorted."""
        out, source = _matched_classes(self)
        several = self.weight[out] > 1
        return np.column_stack([out[several], source[several]])

    @cached_property
    def in_degrees(self) -> Ints:
        """How many channels link to a channel of each class."""
        return weigh(self.inward, self.weight) + np.bincount(self.matches[:, 0], minlength=len(self.weight))

    @cached_property
    def edges(self) -> int:
        return int(self.in_degrees @ self.weight)

    @cached_property
    def classes(self) -> Classes:
        """The undirected graph."""
        both = np.concatenate([self.matches, self.matches[:, ::-1]])
        rows = self.inward | transpose(self.inward, len(self.weight))
        return Classes(rows, self.weight, both[np.lexsort((both[:, 1], both[:, 0]))])

    def by_channel(self) -> ChannelGraph:
        """Return the same graph without matched classes: a class for each channel of a depthwise layer."""
        return _build(self.original, self.graph, self.reads, self.masks, match=False)


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
    return _build(graph, current, reads, live, match=True)


def _build(
    original: LayerGraph, current: LayerGraph, reads: tuple[tuple[Tap, ...], ...], live: Mapping[int, Mask], *, match: bool
) -> ChannelGraph:
    widths = np.array([sum(tap.width for tap in taps) for taps in reads], np.int64)
    offset = np.concatenate([[0], np.cumsum([made.channels for made in current.producers], dtype=np.int64)])
    pieces = pieces_of(current, reads, offset)
    matched = _matched_layers(current.layers, widths, pieces, live) if match else frozenset()
    first_reader, layer_of = _number_readers(current.layers, live.keys() | matched)
    groups = np.array([layer.groups for layer in current.layers], np.int64)
    masked, alone = (np.isin(pieces.layer, np.fromiter(some, np.int64, len(some))) for some in (live, matched))
    parts, group = _where(pieces, ~masked & ~alone).split(np.maximum(widths // groups, 1))
    who, start, stop = merged(first_reader[parts.layer] + group, parts.first, parts.extent, int(offset[-1]) + 1)
    borders = np.zeros(offset[-1] + 1, np.bool_)
    borders[start] = borders[stop] = True
    _cut_outputs(borders, current.layers, offset, live, matched)
    _cut_every_channel(borders, _where(pieces, masked))
    matches = _matches(current.layers, offset, _where(pieces, alone))
    cells = make_cells(current, offset, borders, matches)
    owner, place = spans(cells.of[stop - 1] - cells.of[start] + 1)
    readers = Readers(
        layer=layer_of,
        pointer=pointers(who[owner], len(layer_of)),
        cell=cells.of[start][owner] + place,
        of=_reader_of_cells(current.layers, cells, first_reader, live.keys() | matched),
        matched=_matched_cells(cells, matches),
    )
    return ChannelGraph(original, current, reads, live, pieces, cells, readers)


def _matched_layers(layers: Sequence[Layer], widths: Ints, pieces: Pieces, live: Mapping[int, Mask]) -> frozenset[int]:
    """Return the layers whose output channel i reads channel i of the input alone, no channel standing for several."""
    flat = set(pieces.layer[(pieces.step == 0) & (pieces.width > 1)].tolist())
    return frozenset(
        index
        for index, layer in enumerate(layers)
        if layer.groups == layer.out_channels == widths[index] and layer.groups > 1 and index not in live and index not in flat
    )


def _matches(layers: Sequence[Layer], offset: Ints, pieces: Pieces) -> Ints:
    """Return the runs that matched layers read as rows of first output, first channel read, length."""
    producer = np.array([layer.producer for layer in layers], np.int64)
    return np.column_stack([offset[producer[pieces.layer]] + pieces.slot, pieces.first, pieces.width])


def _matched_cells(cells: Cells, matches: Ints) -> Ints:
    made = np.full(len(cells.size), -1, np.int64)
    for out, source, length in matches.tolist():
        low, high = cells.of[out], cells.of[out + length - 1] + 1
        first, last = cells.of[source], cells.of[source + length - 1] + 1
        assert np.array_equal(cells.size[low:high], cells.size[first:last]), "matched cells are of one size"
        made[low:high] = np.arange(first, last)
    return made


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


def _number_readers(layers: Sequence[Layer], without: AbstractSet[int]) -> tuple[Ints, Ints]:
    """Return the first reader of each layer, and the layer of each reader: masked and matched layers have none."""
    counts = np.array([0 if index in without else layer.groups for index, layer in enumerate(layers)], np.int64)
    return np.cumsum(counts) - counts, np.repeat(np.arange(len(layers), dtype=np.int64), counts)


def _cut_outputs(
    borders: NDArray[np.bool_], layers: Sequence[Layer], offset: Ints, live: Mapping[int, Mask], matched: AbstractSet[int]
) -> None:
    for index, layer in enumerate(layers):
        if index in live or (layer.groups > 1 and index not in matched):
            step = 1 if index in live else max(layer.out_channels // layer.groups, 1)
            borders[offset[layer.producer] : offset[layer.producer + 1] : step] = True


def _cut_every_channel(borders: NDArray[np.bool_], pieces: Pieces) -> None:
    for first, extent in zip(pieces.first.tolist(), pieces.extent.tolist(), strict=True):
        borders[first : first + extent + 1] = True


def _reader_of_cells(layers: Sequence[Layer], cells: Cells, first_reader: Ints, without: AbstractSet[int]) -> Ints:
    made = np.full(len(cells.size), -1, np.int64)
    for index, layer in enumerate(layers):
        if index not in without:
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
    out, source = _matched_classes(made)
    single = made.weight[out] == 1
    np.bitwise_or.at(inward, (out[single], source[single] >> 6), np.uint64(1) << (source[single] & 63).astype(np.uint64))
    return inward


def _matched_classes(made: ChannelGraph) -> tuple[Ints, Ints]:
    """Return the pairs of classes that matched layers link, through sums too: (output, source), sorted and distinct."""
    cells, count = made.cells, len(made.cells.size)
    out = np.flatnonzero(made.readers.matched >= 0)
    source = made.readers.matched[out]
    first_child = np.searchsorted(cells.child_of, np.arange(count + 1))
    found = [np.zeros(0, np.int64)]
    while len(out):
        direct = cells.number[source] >= 0
        found.append(cells.number[out[direct]] * count + cells.number[source[direct]])
        out, source = out[~direct], source[~direct]
        owner, place = spans(first_child[source + 1] - first_child[source])
        key = distinct(out[owner] * count + cells.child[first_child[source][owner] + place])
        out, source = key // count, key % count
    pairs = distinct(np.concatenate(found))
    return pairs // count, pairs % count


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
