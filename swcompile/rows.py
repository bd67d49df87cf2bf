"""Which output channels of layers can go: those that nobody reads, with all that goes with them (see graph.Coupling).

A *row* is an output channel of a layer: a row of its weight. Here rows are numbered through the network, layer after layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Carrier, LayerGraph, Run, Tap

Mask = NDArray[np.bool_]
Spans = tuple[tuple[int, int], ...]
"""Disjoint ranges [start, stop), ascending."""


class Rows:
    """The rows of a network, numbered; -1 where a channel belongs to none.

    `of` holds the row of each channel of a feature, `carriers` those of the channels of each norm or depthwise convolution.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self._offsets = [0, *accumulate(producer.channels for producer in graph.producers)]
        self.of = {feature.name: self._numbers(feature.rows, feature.channels) for feature in graph.features}
        self.carriers: list[tuple[Carrier, NDArray[np.int64]]] = [
            (carrier, self._numbers(carrier.rows)) for carrier in graph.coupling.carriers
        ]
        self._filters = {carrier.name: rows for carrier, rows in self.carriers if carrier.depthwise}
        self._follow = {*self._filters, *graph.coupling.squeezes}
        """The layers whose reading keeps no row alive: they lose with it what they read."""
        self._held = np.zeros(self._offsets[-1], np.bool_)
        for runs, _ in graph.coupling.held:
            self._held[self._numbers(runs)] = True
        self._bonds: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for left, right in ((self._numbers(one), self._numbers(other)) for one, other in graph.coupling.bonds):
            both = (left >= 0) & (right >= 0)
            self._held[np.concatenate([left[~both & (left >= 0)], right[~both & (right >= 0)]])] = True
            self._bonds.append((left[both], right[both]))

    def kept(self, ids: NDArray[np.int64], live: Mask) -> Mask:
        """Return which channels of a value stay, given which row each of them is (as plan.channel_ids numbers them)."""
        producers = ids >> 32
        offsets = np.asarray(self._offsets)[np.maximum(producers, 0)]
        return _kept(np.where(producers < 0, -1, offsets + (ids & 0xFFFFFFFF)), live)

    def _numbers(self, runs: Sequence[Run], width: int | None = None) -> NDArray[np.int64]:
        """Return the row of each channel; of `width` channels without any where there are no runs."""
        if not runs:
            return np.full(width or 0, -1, np.int64)
        parts = [
            np.full(run.width, -1, np.int64)
            if run.producer < 0
            else self._offsets[run.producer] + run.first + np.arange(run.width, dtype=np.int64) * run.step
            for run in runs
        ]
        return np.concatenate(parts)

    def read(self, taps: Mapping[str, Sequence[Tap]]) -> Mask:
        """Return which rows must stay where layers read `taps`, and layers that are not among them all of their features."""
        live = self._held.copy()
        for layer in self.graph.layers:
            if layer.name not in self._follow:
                for tap in taps.get(layer.name) or self.graph.reads(layer):
                    rows = self.of[tap.feature][tap.start : tap.stop]
                    live[rows[rows >= 0]] = True
        self._spread(live)
        for layer in self.graph.layers:
            mine = self._own(layer.producer, live)
            if layer.name not in self._filters and not mine.any():  # nobody reads it at all: it is not computed, and stays whole
                mine[:] = True
        self._spread(live)
        return live

    def _spread(self, live: Mask) -> None:
        """Let rows that are bound to a live one live."""
        before = -1
        while (count := int(live.sum())) != before:
            before = count
            for bonds in (self._bonds, self._bonds[::-1]):
                for left, right in bonds:
                    either = live[left] | live[right]
                    live[left] = either
                    live[right] = either

    def _own(self, producer: int, live: Mask) -> Mask:
        return live[self._offsets[producer] : self._offsets[producer + 1]]

    def outputs(self, live: Mask) -> dict[str, Spans]:
        """Return the output channels that stay of each layer that loses some."""
        found: dict[str, Spans] = {}
        for layer in self.graph.layers:
            rows = self._filters.get(layer.name)
            kept = self._own(layer.producer, live) if rows is None else _kept(rows, live)
            if not kept.all():
                found[layer.name] = spans_of(kept)
        return found

    def columns(self, live: Mask) -> dict[str, Spans]:
        """Return the input channels that stay of each layer that loses some with the rows that make them."""
        kept = {layer.name: _kept(self.of[layer.feature], live) for layer in self.graph.layers if layer.name in self._follow}
        return {name: spans_of(mask) for name, mask in kept.items() if not mask.all()}

    def channels(self, live: Mask) -> Iterator[tuple[str, Mask]]:
        """Yield each feature with which of its channels stay."""
        for name, rows in self.of.items():
            yield name, _kept(rows, live)

    def without(self, outputs: Mapping[str, Spans]) -> Mask:
        """Return which rows stay where layers keep `outputs`, depthwise ones aside: the rows that they carry are others'."""
        live = np.ones(self._offsets[-1], np.bool_)
        for layer in self.graph.layers:
            if layer.name in outputs and layer.name not in self._filters:
                self._own(layer.producer, live)[:] = mask_of(outputs[layer.name], layer.out_channels)
        return live

    def agree(self, outputs: Mapping[str, Spans], columns: Mapping[str, Spans], taps: Mapping[str, Sequence[Tap]]) -> bool:
        """Whether layers that read `taps`, by `columns`, can lose all but `outputs`: nothing needed goes, and all that must."""
        live = self.without(outputs)
        if any(columns.get(name) != spans for name, spans in self.columns(live).items()):
            return False
        if bool((self.read(taps) & ~live).any()) or any((live[left] != live[right]).any() for left, right in self._bonds):
            return False
        return self.outputs(live) == dict(outputs)

    def stay(self, outputs: Mapping[str, Spans]) -> Iterator[tuple[Carrier, Mask]]:
        """Yield each norm or depthwise convolution that loses channels, with those that stay."""
        live = self.without(outputs)
        for carrier, rows in self.carriers:
            kept = _kept(rows, live)
            if not kept.all():
                yield carrier, kept


def _kept(rows: NDArray[np.int64], live: Mask) -> Mask:
    return (rows < 0) | live[rows]


def spans_of(mask: Mask) -> Spans:
    """Return the places that are set as ranges.

    >>> spans_of(np.array([True, True, False, True]))
    ((0, 2), (3, 4))
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]))).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def mask_of(spans: Spans, width: int) -> Mask:
    """Return the mask of `width` places in which the ranges are set."""
    made = np.zeros(width, np.bool_)
    for start, stop in spans:
        made[start:stop] = True
    return made
