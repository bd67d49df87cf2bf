"""Cut what layers read, and what they could read instead, into blocks of consecutive channels.

Channels of all producers are numbered through, so that a *map* is a number and a range of maps a pair (low, high). A Piece is a
range of columns of a feature together with the maps it consists of: two pieces of different features with common maps are the
same data, before or after a pooling, and no layer should read both.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Feature, Layer, LayerGraph, Run

WHOLE = sys.maxsize
"""The block size that cuts nothing: block="producer"."""
LARGEST = 64
"""The largest block that "auto" chooses: kernels like 64 channels, and at least 32."""
PARTS = 8
"""Into how many blocks "auto" cuts a layer at least: a layer of 16 channels must still have something to choose."""
SLIVER = 4
"""Runs narrower than a block by this factor are joined: a shuffle of channels leaves runs of one channel each."""

Maps = tuple[tuple[int, int], ...]
Kind = tuple[int, int, int, str, tuple[int, ...] | None]


class Piece(NamedTuple):
    """Columns [start, stop) of a feature (its place in graph.features), and the ranges of maps they are."""

    feature: int
    start: int
    stop: int
    maps: Maps

    @property
    def width(self) -> int:
        return self.stop - self.start


def kind_of(feature: Feature) -> Kind:
    """Return what two features must have in common for a reader of the one to read the other (graph.unreadable)."""
    return (len(feature.shape), feature.axis, feature.shape[0], feature.dtype, None if feature.is_map else feature.spatial)


def block_size(layer: Layer, block: int | str) -> int | None:
    """Return how many channels a block of the layer has, or None where its groups are too narrow for blocks.

    In grouped layers the size divides the group, and a group holds at least two blocks; "auto" takes none below 4 channels
    there, for a layer of 32 groups would fall into 64 taps of 2.
    """
    if isinstance(block, str):
        size = WHOLE if block == "producer" else min(LARGEST, power_of_two(max(1, layer.in_channels // PARTS)))
    else:
        size = block
    if layer.groups == 1:
        return size
    width = layer.in_channels // layer.groups
    if block == "auto":
        size = min(size, width & -width, power_of_two(max(1, width // 2)))
        return size if size >= 4 else None
    return size if width % size == 0 and width > size else None


def power_of_two(number: int) -> int:
    """Return the largest power of two up to `number`."""
    return 1 << (number.bit_length() - 1)


class Atlas:
    """Number the maps of a graph through and look up columns of features as maps, and maps as columns."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.offsets = [0, *accumulate(producer.channels for producer in graph.producers)]
        self.names = [feature.name for feature in graph.features]
        self.place = {feature.name: index for index, feature in enumerate(graph.features)}
        self._starts = [[run.start for run in feature.runs] for feature in graph.features]
        self._views: dict[Kind, dict[int, list[tuple[int, Run]]]] = {}
        self._fresh: dict[Kind, list[tuple[int, list[Run]]]] = {}
        by_kind: dict[Kind, list[int]] = {}
        for index, feature in enumerate(graph.features):
            by_kind.setdefault(kind_of(feature), []).append(index)
        for kind, indices in by_kind.items():
            self._collect(kind, indices)

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def producer(self, channel: int) -> int:
        """Return which producer makes a map."""
        return bisect_right(self.offsets, channel) - 1

    def span(self, run: Run) -> tuple[int, int]:
        """Return the maps of a run: one where the run repeats it."""
        low = self.offsets[run.producer] + run.first
        return low, low + (run.width if run.step else 1)

    def piece(self, feature: int, start: int, stop: int) -> Piece:
        """Return columns [start, stop) of a feature with their maps."""
        run = self.graph.features[feature].runs[bisect_right(self._starts[feature], start) - 1]
        if stop <= run.stop:  # nearly always: blocks are cut inside runs
            low = self.offsets[run.producer] + run.first + (start - run.start) * run.step
            return Piece(feature, start, stop, ((low, low + (stop - start if run.step else 1)),))
        return Piece(feature, start, stop, tuple(self.span(run) for run in self.runs(feature, start, stop)))

    def runs(self, feature: int, start: int, stop: int) -> list[Run]:
        """Return the runs of columns [start, stop) of a feature."""
        runs, starts = self.graph.features[feature].runs, self._starts[feature]
        return [run.cut(start, stop) for run in runs[bisect_right(starts, start) - 1 : bisect_left(starts, stop)]]

    def split(self, piece: Piece, width: int) -> tuple[Piece, Piece]:
        """Cut a piece after `width` columns."""
        middle = piece.start + width
        if len(piece.maps) == 1 and piece.maps[0][1] - piece.maps[0][0] == piece.width:
            low, high = piece.maps[0]
            return piece._replace(stop=middle, maps=((low, low + width),)), piece._replace(
                start=middle, maps=((low + width, high),)
            )
        return self.piece(piece.feature, piece.start, middle), self.piece(piece.feature, middle, piece.stop)

    @cached_property
    def _parents(self) -> dict[int, list[tuple[int, Run]]]:
        """For each producer the sums that it is part of, and as which of their channels."""
        found: dict[int, list[tuple[int, Run]]] = {}
        for index, producer in enumerate(self.graph.producers):
            for run in (run for part in producer.parts for run in part) if producer.kind == "sum" else ():
                found.setdefault(run.producer, []).append((index, run))
        return found

    def sums_of(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return the ranges of maps that are sums of maps [low, high) of one producer and others."""
        producer = self.producer(low)
        found: list[tuple[int, int]] = []
        for index, run in self._parents.get(producer, ()):
            first, last = self.span(run)
            if first < high and low < last:
                start = self.offsets[index] + run.start
                found.append(
                    (start + max(low - first, 0), start + min(high, last) - first) if run.step else (start, start + run.width)
                )
        return found

    def _collect(self, kind: Kind, indices: Sequence[int]) -> None:
        """List the maps of one kind where they first appear, and every resolution at which they can be had.

        Gates, pooled vectors and values of train mode only are no sources.
        """
        seen = np.zeros(self.size, np.bool_)
        fresh: list[tuple[int, list[Run]]] = []
        views: dict[int, list[tuple[int, Run]]] = {}
        known: set[tuple[int, int, int, int, tuple[int, ...]]] = set()
        for index in indices:
            feature = self.graph.features[index]
            if feature.train_only or feature.written or feature.mixed or (feature.is_map and max(feature.spatial) == 1):
                continue
            found: list[Run] = []
            for run in feature.runs:
                found.extend(self._unseen(run, seen))
                key = (run.producer, run.first, run.width, run.step, feature.spatial)
                if run.step and key not in known:
                    known.add(key)
                    views.setdefault(run.producer, []).append((index, run))
            fresh.append((index, found))
        self._fresh[kind] = fresh
        self._views[kind] = views

    def _unseen(self, run: Run, seen: NDArray[np.bool_]) -> list[Run]:
        low, high = self.span(run)
        old = seen[low:high]
        if not old.any():
            old[:] = True
            return [run]
        if old.all() or not run.step:
            return []
        edges = np.flatnonzero(np.diff(np.concatenate([[True], old, [True]]))).tolist()
        old[:] = True
        return [run.cut(run.start + a, run.start + b) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def cut(self, feature: int, runs: Sequence[Run], size: int) -> list[Piece]:
        """Cut runs of a feature into blocks of `size` channels."""
        return [self.piece(feature, start, stop) for start, stop in borders(runs, size)]

    def fresh(self, kind: Kind) -> list[tuple[int, list[Run]]]:
        """Return, per feature of a kind, the runs of it that no earlier feature of that kind has."""
        return self._fresh.get(kind, [])

    def best_view(self, piece: Piece, kind: Kind, layer: Layer) -> tuple[int, int, int]:
        """Return the feature and columns through which a reader gets a piece at the least cost.

        The reader's own resolution first, then the next larger one, then the next smaller; the earliest feature among equals.
        """
        if len(piece.maps) > 1 or piece.maps[0][1] - piece.maps[0][0] != piece.width:
            return piece[:3]
        low, high = piece.maps[0]
        producer = self.producer(low)
        first, last = low - self.offsets[producer], high - self.offsets[producer]
        views = self._views[kind].get(producer, [])
        fit = [
            (index, run)
            for index, run in views
            if run.first <= first and last <= run.first + run.width and self.graph.features[index].position < layer.reads_at
        ]
        if len(fit) > 1:
            wanted = self.graph.feature_by_name[layer.feature].spatial
            fit.sort(key=lambda view: (*_cost(self.graph.features[view[0]].spatial, wanted), view[0]))
        if not fit:
            return piece[:3]
        index, run = fit[0]
        start = run.start + first - run.first
        return index, start, start + piece.width


def _cost(spatial: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, int]:
    if all(have >= want for have, want in zip(spatial, wanted, strict=True)):
        return 0, int(np.prod(spatial, dtype=np.int64))
    return 1, -int(np.prod(spatial, dtype=np.int64))


def borders(runs: Sequence[Run], size: int) -> Iterator[tuple[int, int]]:
    """Yield the columns of each block: runs cut every `size` channels, slivers and narrow flattened maps joined.

    >>> list(borders([Run(0, 12, 0, 0), Run(12, 24, 1, 0)], 8))
    [(0, 8), (8, 12), (12, 20), (20, 24)]
    """
    begun = end = -1
    for run in runs:
        narrow = size != WHOLE and run.width < size and (run.step == 0 or run.width * SLIVER <= size)
        if begun >= 0 and (not narrow or run.start != end):
            yield begun, end
            begun = -1
        if narrow:
            begun, end = (run.start if begun < 0 else begun), run.stop
            if end - begun >= size:
                yield begun, end
                begun = -1
        else:
            step = min(size, run.width)
            yield from ((start, min(start + step, run.stop)) for start in range(run.start, run.stop, step))
    if begun >= 0:
        yield begun, end


class Catalogue:
    """The blocks that readers of one kind and block size may tap, in the order in which they become available.

    No map is in two pieces, however many features show it, so that a draw over pieces is a draw over maps.
    """

    def __init__(self, atlas: Atlas, kind: Kind, size: int) -> None:
        features = atlas.graph.features
        self.pieces = [piece for index, runs in atlas.fresh(kind) for piece in atlas.cut(index, runs, size)]
        self.positions = np.array([features[piece.feature].position for piece in self.pieces], np.int64)
        self.widths = np.array([piece.width for piece in self.pieces], np.int64)
        self.total = np.concatenate([[0], np.cumsum(self.widths)])
        self.producers = np.array([atlas.producer(piece.maps[0][0]) for piece in self.pieces], np.int64)
        self._first = np.full(atlas.size, -1, np.int64)
        self._last = np.full(atlas.size, -1, np.int64)
        for index in range(len(self.pieces)):
            for low, high in self.pieces[index].maps:
                self._last[low:high] = index
        for index in range(len(self.pieces) - 1, -1, -1):
            for low, high in self.pieces[index].maps:
                self._first[low:high] = index

    def available(self, position: int) -> int:
        """Return how many pieces there are in front of a position in the network."""
        return int(np.searchsorted(self.positions, position))

    def holding(self, spans: Sequence[tuple[int, int]], count: int) -> NDArray[np.int64]:
        """Return which of the first `count` pieces have maps in `spans`, ascending."""
        if not spans:
            return np.zeros(0, np.int64)
        first = np.concatenate([self._first[low:high] for low, high in spans])
        last = np.concatenate([self._last[low:high] for low, high in spans])
        found = [np.arange(a, b + 1) for a, b in zip(first[first < last], last[first < last], strict=True)]
        indices = np.unique(np.concatenate([first, *found]))
        return indices[(indices >= 0) & (indices < count)]
