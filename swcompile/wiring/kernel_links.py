"""The links that the wiring `kernel` moves: their sources, who can read them, and the draw of new readers.

A source is one channel as it is read: two features that carry the same channel of the same producer (a map before and after a
pooling, a slice of a concatenation) are one source, and the slots of a flattened map are one source each. A node is an output
channel of a layer. A link joins a source to a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Feature, Layer, LayerGraph, unreadable
from swcompile.wiring.draw import Draw

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

AT_ONCE = 1 << 24
"""How many (source, node) pairs one draw looks at: 16 MB of marks. Part of the stream: another value gives other plans."""


def ranks(values: Ints) -> Ints:
    """Number equal values in order of appearance.

    >>> ranks(np.array([5, 7, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    fresh = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.zeros(0, np.int64)
    made = np.empty(len(values), np.int64)
    made[order] = np.arange(len(values)) - np.repeat(fresh, np.diff(np.r_[fresh, len(values)]))
    return made


def number_sources(graph: LayerGraph) -> tuple[dict[str, Ints], int]:
    """Return the source of every channel of every feature, and how many sources there are."""
    starts = np.cumsum([0, *(producer.channels for producer in graph.producers)])
    keys: dict[str, Ints] = {}
    for feature in graph.features:
        parts = [starts[run.producer] + run.first + run.step * np.arange(run.width) for run in feature.runs]
        made = np.concatenate(parts).astype(np.int64)
        keys[feature.name] = made + starts[-1] * ranks(made)
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *keys.values()]))
    return {name: np.searchsorted(known, key) for name, key in keys.items()}, len(known)


def tappable(graph: LayerGraph, feature: Feature, layer: Layer, conv_to_linear: bool) -> bool:
    """Say whether the layer can read the feature: as it is, resampled, or pooled to a vector where that was asked for."""
    return unreadable(graph, feature, layer, conv_to_linear=conv_to_linear) is None


@dataclass(frozen=True)
class Sources:
    """Which source each feature's channels are, and through which feature each layer could read each source.

    `via[layer, source]` is the number of a feature, or -1 where the layer cannot read the source, or reads it from the start.
    `nodes` are the first node of each layer, and the number of all nodes.
    """

    ids: dict[str, Ints]
    via: NDArray[np.int32]
    nodes: Ints

    @staticmethod
    def of(graph: LayerGraph, columns: Sequence[Bools | None], conv_to_linear: bool) -> Sources:
        """Number the sources. `columns` marks the input channels that a layer reads at the start; None is no target at all."""
        ids, count = number_sources(graph)
        via = np.full((len(graph.layers), count), -1, np.int32)
        for row, layer, live in zip(via, graph.layers, columns, strict=True):
            if live is not None:
                for place in _by_preference(graph, layer, conv_to_linear):
                    row[ids[graph.features[place].name]] = place
                row[ids[layer.feature][live]] = -1
        return Sources(ids, via, np.cumsum([0, *(layer.out_channels for layer in graph.layers)]))


def _by_preference(graph: LayerGraph, layer: Layer, conv_to_linear: bool) -> list[int]:
    """Return the features that a layer can read, the best last.

    Best is its own, then the smallest that is not smaller than the reader's resolution (a map that was pooled on the way is
    cheaper and loses nothing), then the largest of the smaller ones; among equals the latest, which carries the most channels.
    """
    own = graph.feature_by_name[layer.feature]
    wanted = int(np.prod(own.spatial, dtype=np.int64))

    def rank(place: int) -> tuple[bool, bool, int, int]:
        feature = graph.features[place]
        size = int(np.prod(feature.spatial, dtype=np.int64))
        return feature is own, size >= wanted, -size if size >= wanted else size, place

    found = (
        place for place, feature in enumerate(graph.features) if feature is own or tappable(graph, feature, layer, conv_to_linear)
    )
    return sorted(found, key=rank)


@dataclass
class Moves:
    """What one layer keeps of its links, and where the others went.

    `kept` has the shape (out_channels, in_channels). Link number i of the moved ones left (out[i], column[i]) for node[i].
    """

    kept: Bools
    out: NDArray[np.int32]
    column: NDArray[np.int32]
    node: NDArray[np.int32]
    stuck: int = 0
    repaired: int = 0
    balanced: int = 0

    def undo(self, which: Bools) -> Ints:
        """Take the marked moves back, and return the nodes that lose them."""
        lost = self.node[which].astype(np.int64)
        self.kept[self.out[which], self.column[which]] = True
        self.out, self.column, self.node = self.out[~which], self.column[~which], self.node[~which]
        return lost


class Mover:
    """Move links layer by layer, and remember for sources with several readers where their links went already."""

    def __init__(self, sources: Sources, p: float, seed: int) -> None:
        self.sources, self.p, self.seed = sources, p, seed
        self._went: dict[int, list[NDArray[np.int32]]] = {}

    def move(self, place: int, layer: Layer, start: Bools) -> Moves:
        """Move each link of the layer with probability p to a uniform free node of a later layer (SWANN, Algorithm 1)."""
        draw = Draw(self.seed, layer.name)
        ids = self.sources.ids[layer.feature]
        columns = np.flatnonzero(start)
        kept = np.repeat(start[None], layer.out_channels, axis=0)
        later = int(self.sources.nodes[-1] - self.sources.nodes[place + 1])
        step = max(1, AT_ONCE // max(layer.out_channels, later, 1))
        parts, stuck = [], 0
        for low in range(0, len(columns), step):
            some = columns[low : low + step]
            chance = draw.uniforms(len(some) * layer.out_channels).reshape(len(some), -1)
            moving = chance < self.p
            wanted = moving.sum(axis=1)
            row, node = self._targets(place, ids[some], wanted, draw)
            got = np.bincount(row, minlength=len(some))
            stuck += int((wanted - got).sum())
            out = np.nonzero(moving)[1] if (got == wanted).all() else _smallest(chance, got)
            parts.append((out, some[row], node))
        moved = [np.concatenate(part).astype(np.int32) for part in zip(*parts, strict=True)]
        kept[moved[0], moved[1]] = False
        return Moves(kept, moved[0], moved[1], moved[2], stuck)

    def _targets(self, place: int, ids: Ints, wanted: Ints, draw: Draw) -> tuple[Ints, Ints]:
        """Return (row, node) for as many of the wanted links as find a free node, ascending by row."""
        allowed = self.sources.via[place + 1 :, ids] >= 0
        patterns, group = np.unique(np.packbits(allowed, axis=0), axis=1, return_inverse=True)
        rows, nodes = [], []
        for number in range(patterns.shape[1]):
            members = np.flatnonzero(group == number)
            layers = place + 1 + np.flatnonzero(allowed[:, members[0]])
            pool = self._pool(layers)
            taken = self._taken(ids[members], pool)
            count = np.minimum(wanted[members], len(pool) - taken.sum(axis=1))
            rows.append(np.repeat(members, count))
            nodes.append(pool[choose(count, taken, draw)])
        row, node = np.concatenate(rows), np.concatenate(nodes)
        order = np.argsort(row, kind="stable")
        self._remember(ids, row[order], node[order])
        return row[order], node[order]

    def _pool(self, layers: Ints) -> Ints:
        starts = self.sources.nodes
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(starts[layer], starts[layer + 1]) for layer in layers)])

    def _taken(self, ids: Ints, pool: Ints) -> Bools:
        taken = np.zeros((len(ids), len(pool)), bool)
        before = [(row, self._went[source]) for row, source in enumerate(ids.tolist()) if source in self._went]
        if before:
            place = np.full(int(self.sources.nodes[-1]), -1)
            place[pool] = np.arange(len(pool))
            for row, parts in before:
                found = place[np.concatenate(parts)]
                taken[row, found[found >= 0]] = True
        return taken

    def _remember(self, ids: Ints, row: Ints, node: Ints) -> None:
        ends = np.cumsum(np.bincount(row, minlength=len(ids)))
        for source, part in zip(ids.tolist(), np.split(node.astype(np.int32), ends[:-1]), strict=True):
            if len(part):
                self._went.setdefault(source, []).append(part)


def _smallest(chance: NDArray[np.float64], count: Ints) -> Ints:
    """Return which `count` links of each source move: those with the smallest numbers, so that stuck ones have no order."""
    order = np.argsort(chance, axis=1, kind="stable")
    return order[np.arange(chance.shape[1])[None] < count[:, None]]


def choose(count: Ints, taken: Bools, draw: Draw) -> Ints:
    """Draw `count[row]` different columns of each row that are not taken: uniform subsets, as by one uniform draw after another."""
    free = taken.shape[1] - taken.sum(axis=1)
    crowded = (2 * count > free) | (2 * free < taken.shape[1])  # else each draw succeeds with probability 1/4 at least
    row = np.repeat(np.arange(len(count)), count)
    made = np.empty(len(row), np.int64)
    made[crowded[row]] = _ordered(count[crowded], taken[crowded], draw)
    made[~crowded[row]] = _drawn(row[~crowded[row]], taken, draw)
    return made


def _ordered(count: Ints, taken: Bools, draw: Draw) -> Ints:
    keys = draw.uniforms(taken.size).reshape(taken.shape)
    keys[taken] = 2.0
    return _smallest(keys, count)


def _drawn(row: Ints, taken: Bools, draw: Draw) -> Ints:
    width = taken.shape[1]
    marks = taken.reshape(-1).copy()
    made = np.empty(len(row), np.int64)
    open_ = np.arange(len(row))
    while len(open_):
        code = row[open_] * width + draw.integers(width, len(open_))
        first = np.zeros(len(code), bool)
        first[np.unique(code, return_index=True)[1]] = True
        good = first & ~marks[code]
        marks[code[good]] = True
        made[open_[good]] = code[good] % width
        open_ = open_[~good]
    return made
