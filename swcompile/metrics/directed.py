"""What the forward pass sees: path lengths from input to output, dead channels, and how far links reach.

One sweep over the producers in topological order, on cells (swcompile.metrics.cells): a sum is visited once, not once for each
of its readers, so the cost is linear in layers however deep the residual stream is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import UNREACHABLE, LayerGraph
from swcompile.metrics.cells import Ints, distinct
from swcompile.metrics.channels import ChannelGraph

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Directed:
    """Directed figures of a channel graph.

    `mean_path`: layers on the shortest path from an input channel to an output channel, the mean over pairs that a path joins.
    `effective_depth`: layers on a path that walks backwards from an output channel and takes every link into a node with the
    same probability, the mean over walks. `dead_channels`: how many channels nothing reads. `long_range` and `new` are shares
    of links: those whose source lies at a layer distance of 2 or more, and those whose source the layer did not read before.
    """

    mean_path: float
    effective_depth: float
    dead_channels: int
    long_range: float
    new: float


def directed(made: ChannelGraph, sweep: Sweep | None = None) -> Directed:
    """Return the directed figures of a channel graph; a sweep that has been made is used."""
    sweep = sweep or Sweep(made)
    long_range, new = reach(made)
    return Directed(*sweep.means(), dead_channels(made), long_range, new)


class Sweep:
    """The sweep from inputs to outputs.

    `nearest` (cells, inputs) is the fewest layers from a cell of the input to each cell; `links` (cells) how many channels a
    reader of the whole cell links to, a sum counting each of its addends; `depth` (cells) the sum of their mean path lengths;
    `inward` (cells) how many links a channel of the cell has, where a channel added twice into one sum counts twice.
    """

    def __init__(self, made: ChannelGraph) -> None:
        self.made, self.cells = made, made.cells
        kinds = np.array([producer.kind == "input" for producer in made.graph.producers], np.bool_)
        self.inputs = np.flatnonzero(kinds[self.cells.producer])
        self.nearest = np.full((len(self.cells.size), len(self.inputs)), UNREACHABLE, np.int32)
        self.nearest[self.inputs, np.arange(len(self.inputs))] = 0
        self.links = self.cells.size.astype(np.float64)
        self.depth = np.zeros(len(self.cells.size))
        self.inward = np.zeros(len(self.cells.size))
        self.layer_of = {layer.producer: index for index, layer in enumerate(made.graph.layers)}
        self.slots = masked_slots(made)
        self._run()

    def _run(self) -> None:
        first_child = np.searchsorted(self.cells.child_of, np.arange(len(self.cells.size) + 1))
        for index, producer in enumerate(self.made.graph.producers):
            own = self.cells.of_producer(index)
            if producer.kind == "sum":
                pointer = first_child[own.start : own.stop + 1]
                self._add(own, self.cells.child[pointer[0] : pointer[-1]], pointer[:-1] - pointer[0])
            elif producer.kind == "opaque":
                self._see_through(index, own)
            elif producer.kind == "layer":
                layer = self.layer_of[index]
                if layer in self.made.masks:
                    self._masked(layer, own)
                elif self.made.readers.matched[own.start] >= 0:
                    self._matched(own)
                else:
                    self._layer(own)

    def _add(self, own: slice, children: Ints, pointer: Ints) -> None:
        if len(children):
            self.nearest[own] = np.minimum.reduceat(self.nearest[children], pointer)
            self.links[own] = np.add.reduceat(self.links[children], pointer)
            self.depth[own] = np.add.reduceat(self.depth[children], pointer)

    def _layer(self, own: slice) -> None:
        readers, of = self.made.readers, self.made.readers.of[own]
        low, high = int(of[0]), int(of[-1]) + 1
        pointer = readers.pointer[low : high + 1]
        source = readers.cell[pointer[0] : pointer[-1]]
        if not len(source):
            self.depth[own] = 0
            return
        at = pointer[:-1] - pointer[0]
        self._arrive(
            own,
            np.minimum.reduceat(self.nearest[source], at)[of - low],
            np.add.reduceat(self.links[source], at)[of - low],
            np.add.reduceat(self.depth[source], at)[of - low],
        )

    def _matched(self, own: slice) -> None:
        """Enter a layer that reads channel by channel."""
        source = self.made.readers.matched[own]
        size = self.cells.size[source]
        self._arrive(own, self.nearest[source], self.links[source] / size, self.depth[source] / size)

    def _masked(self, layer: int, own: slice) -> None:
        """Enter a masked layer: one product for the means and the shortest distance, more for outputs that this one misses."""
        mask, cell = self.made.masks[layer], self.made.cells.of[self.slots[layer]]
        near = self.nearest[cell]
        levels = distinct(near.ravel())
        live = mask.astype(np.float32)
        sums = live @ np.column_stack([self.links[cell], self.depth[cell], near == levels.min(initial=UNREACHABLE)]).astype(
            np.float32
        )
        nearest = np.full((len(mask), len(self.inputs)), UNREACHABLE, np.int32)
        nearest[sums[:, 2:] > 0] = levels.min(initial=UNREACHABLE)
        for distance in levels[1:]:
            open_ = np.flatnonzero((nearest == UNREACHABLE).any(axis=1))
            if not len(open_):
                break
            hit = live[open_] @ (near == distance).astype(np.float32) > 0
            nearest[open_] = np.minimum(nearest[open_], np.where(hit, distance, UNREACHABLE))
        self._arrive(own, nearest, sums[:, 0].astype(np.float64), sums[:, 1].astype(np.float64))

    def _arrive(self, own: slice, nearest: NDArray[np.int32], links: Floats, depth: Floats) -> None:
        """Enter what the outputs of a layer read; an output that reads nothing ends the walk."""
        self.nearest[own] = np.minimum(nearest + 1, UNREACHABLE)
        mean = np.divide(depth, links, out=np.full_like(depth, -1.0), where=links > 0) + 1
        self.depth[own] = mean * self.cells.size[own]
        self.inward[own] = links

    def _see_through(self, index: int, own: slice) -> None:
        """Let every channel of an opaque operation depend on all that the operation reads, at no length."""
        offset, of = self.cells.offset, self.cells.of
        runs = [run for part in self.made.graph.producers[index].parts for run in part]
        if not runs:
            return
        ends = [(offset[r.producer] + r.first, offset[r.producer] + r.first + (r.width - 1) * r.step) for r in runs]
        source = distinct(np.concatenate([np.arange(of[low], of[high] + 1) for low, high in ends]))
        self.nearest[own] = self.nearest[source].min(axis=0)
        links = self.links[source].sum()
        self.depth[own] = self.cells.size[own] * (self.depth[source].sum() / links if links else 0.0)

    def means(self) -> tuple[float, float]:
        """Return the mean shortest path and the effective depth."""
        heads = [layer.producer for layer in self.made.original.layers if layer.name in self.made.original.heads]
        out = np.concatenate([np.arange(len(self.cells.size))[self.cells.of_producer(head)] for head in heads] or [self.inputs[:0]])
        weight = np.outer(self.cells.size[out], self.cells.size[self.inputs])
        away = self.nearest[out].astype(np.float64)
        weight[away >= UNREACHABLE] = 0
        joined, channels = weight.sum(), self.cells.size[out].sum()
        mean = float((away * weight).sum() / joined) if joined else 0.0
        return mean, float(self.depth[out].sum() / channels) if channels else 0.0

    def outward(self) -> Floats:
        """Return how many links go out of a channel of each cell, counted as in `inward`."""
        readers, made = self.made.readers, np.zeros(len(self.cells.size))
        fed = readers.of >= 0
        outputs = np.bincount(readers.of[fed], self.cells.size[fed], len(readers.layer))
        np.add.at(made, readers.cell, outputs[readers.owner])
        np.add.at(made, readers.matched[readers.matched >= 0], 1.0)
        for layer, slots in self.slots.items():
            np.add.at(made, self.cells.of[slots], self.made.masks[layer].sum(axis=0, dtype=np.float64))
        for above, below in zip(self.cells.child_of[::-1].tolist(), self.cells.child[::-1].tolist(), strict=True):
            made[below] += made[above]
        return made


def masked_slots(made: ChannelGraph) -> dict[int, Ints]:
    """Return, for each masked layer, the channel (numbered through) that each of its slots reads."""
    pieces = made.pieces
    slots = {index: np.zeros(mask.shape[1], np.int64) for index, mask in made.masks.items()}
    for place in np.flatnonzero(np.isin(pieces.layer, list(slots))) if slots else ():
        start, width = int(pieces.slot[place]), int(pieces.width[place])
        slots[int(pieces.layer[place])][start : start + width] = pieces.first[place] + pieces.step[place] * np.arange(width)
    return slots


def dead_channels(made: ChannelGraph) -> int:
    """Return how many channels of inputs and layers neither a layer nor a sink reads, alone or in a sum."""
    cells, producers = made.cells, made.graph.producers
    read = np.zeros(cells.offset[-1], np.bool_)
    touched = np.zeros(len(cells.size), np.bool_)
    touched[made.readers.cell] = True
    touched[made.readers.matched[made.readers.matched >= 0]] = True
    read |= touched[cells.of]
    for layer, slots in masked_slots(made).items():
        read[slots[made.masks[layer].any(axis=0)]] = True
    for run in made.graph.sinks:
        _mark(read, int(cells.offset[run.producer]) + run.first, run.width, run.step)
    for index in range(len(producers) - 1, -1, -1):
        if producers[index].kind != "sum":
            continue
        base = int(cells.offset[index])
        for run in (run for part in producers[index].parts for run in part):
            at, first = base + run.start, int(cells.offset[run.producer]) + run.first
            if run.step == 0:
                read[first] |= read[at : at + run.width].any()
            else:
                read[first : first + run.width] |= read[at : at + run.width]
    return int((~read & (cells.number[cells.of] >= 0)).sum())


def _mark(read: NDArray[np.bool_], first: int, width: int, step: int) -> None:
    read[first : first + (width if step else min(width, 1))] = True


def reach(made: ChannelGraph) -> tuple[float, float]:
    """Return the shares of links that are long-range, and whose source the layer did not read before.

    A source is at distance 1 where the layer's original input contains it, or, for a sum, any of its addends. Whether it was read
    before is decided channel by channel for what the layer reads directly, producer by producer inside sums.
    """
    pieces, graph = made.pieces, made.original
    links = _links(made)
    source = np.searchsorted(made.cells.offset, pieces.first, "right") - 1
    base, near = _bases(graph)
    key = pieces.layer * len(graph.producers) + source
    pairs, inverse = np.unique(key, return_inverse=True)
    far, unread = np.zeros(len(pairs), np.bool_), np.zeros(len(pairs), np.bool_)
    before: dict[int, tuple[int, int]] = {}
    for place, pair in enumerate(pairs.tolist()):
        layer, producer = divmod(pair, len(graph.producers))
        if layer not in before:
            runs = graph.feature_by_name[graph.layers[layer].feature].runs
            before[layer] = (_union(near, {run.producer for run in runs}), _union(base, {run.producer for run in runs}))
        far[place] = not base[producer] & before[layer][0]
        unread[place] = not base[producer] & before[layer][1]
    fresh = np.where(unread[inverse], 1.0, 0.0)
    _refine(made, source, fresh)
    total = links.sum()
    return (float(links @ far[inverse] / total), float(links @ fresh / total)) if total else (0.0, 0.0)


def _links(made: ChannelGraph) -> Floats:
    """Return how many live links each run carries."""
    pieces = made.pieces
    outputs = np.array([layer.out_channels // layer.groups for layer in made.graph.layers], np.float64)
    links = pieces.width * outputs[pieces.layer]
    for layer, mask in made.masks.items():
        per_slot = np.concatenate([[0], np.cumsum(mask.sum(axis=0, dtype=np.int64))])
        own = pieces.layer == layer
        links[own] = per_slot[(pieces.slot + pieces.width)[own]] - per_slot[pieces.slot[own]]
    return links


def _bases(graph: LayerGraph) -> tuple[list[int], list[int]]:
    """Return, as bits of producers, what each producer is the sum of, and what is in it without a layer in between."""
    base: list[int] = []
    near: list[int] = []
    for index, producer in enumerate(graph.producers):
        parts = {run.producer for part in producer.parts for run in part}
        base.append(_union(base, parts) if producer.kind == "sum" else 1 << index)
        near.append(1 << index | _union(near, parts))
    return base, near


def _union(sets: list[int], members: set[int]) -> int:
    made = 0
    for member in members:
        made |= sets[member]
    return made


def _refine(made: ChannelGraph, source: Ints, fresh: Floats) -> None:
    """Correct `fresh` for producers of which the layer read a part only: by the share of a run's channels that is new."""
    pieces, graph = made.pieces, made.original
    partial: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, layer in enumerate(graph.layers):
        if made.reads[number] == graph.reads(layer) and number not in made.masks:
            continue
        spans: dict[int, list[tuple[int, int]]] = {}
        for run in graph.feature_by_name[layer.feature].runs:
            spans.setdefault(run.producer, []).append((run.first, run.first + (run.width if run.step else 1)))
        for producer, held in spans.items():
            if sum(stop - start for start, stop in held) < graph.producers[producer].channels:
                partial[number, producer] = held
    if not partial:
        return
    extent = pieces.extent
    for place, (layer_number, producer) in enumerate(zip(pieces.layer.tolist(), source.tolist(), strict=True)):
        if (layer_number, producer) in partial:
            first = int(pieces.first[place] - made.cells.offset[producer])
            stop = first + int(extent[place])
            known = sum(max(0, min(stop, high) - max(first, low)) for low, high in partial[layer_number, producer])
            fresh[place] = 1 - min(1.0, known / (stop - first))
