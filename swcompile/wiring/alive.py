"""Say what must stay read, so that no parameter that had a gradient loses it.

A channel is live where a path of reads leads from it to an output of the model. Rewiring changes what layers read and nothing
else, so it is enough that whatever a live layer read keeps a live layer, or anything else, that reads it: then every path can be
followed on, from the output backwards. What may not be left unread:

    a map        only where dead channels are forbidden
    a producer   each layer, sum and opaque operation keeps at least one map that is read
    a feature    each value keeps a layer that reads it: a norm may have made it, which nothing else leads to
    a gate       a map that was multiplied by a gate keeps a reader behind the gate: one in front of it does not read the gate

The layer graph does not say where gates are, only that something reads their channels (its sinks). A map is taken for gated by
the first such channels after it that could be a factor of it: as many as the map has neighbours in a feature behind them, or one.
That may be too careful, and holds a few blocks in place. What it misses: a second gate of the same map, a gate that was computed
before the map, and a reader behind the gate that takes the map from in front of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Feature, Layer, LayerGraph, Run
from swcompile.wiring.blocks import Atlas

Read = tuple[int, int, int]
"""Columns [start, stop) of a feature, by its place in graph.features."""


def live_layers(graph: LayerGraph) -> frozenset[str]:
    """Return the layers from which a path leads to something other than a layer: an output of the model, a gate, an operation.

    In a graph without any such sink the layers that nobody reads are the outputs.
    """
    by_producer = {layer.producer: layer for layer in graph.layers}
    used = {run.producer for run in graph.sinks} or {graph.layer_by_name[name].producer for name in graph.heads}
    for place in range(len(graph.producers) - 1, -1, -1):
        if place in used:
            layer = by_producer.get(place)
            parts = (graph.feature_by_name[layer.feature].runs,) if layer is not None else graph.producers[place].parts
            used.update(run.producer for part in parts for run in part)
    return frozenset(layer.name for layer in graph.layers if layer.producer in used)


class Watch:
    """Which features, and which maps behind gates, have readers that could all go away, and whether they did.

    `gate` is, for each map, the position of the gate behind which it must be read, or -1; `whole` marks the maps whose gate has a
    channel for each of them.
    """

    def __init__(self, atlas: Atlas, changeable: Iterable[Layer], fixed: Iterable[Layer]) -> None:
        self._atlas = atlas
        always = {layer.feature for layer in fixed}
        features = {layer.feature for layer in changeable} - always
        self.features = frozenset(atlas.place[name] for name in features)
        self.gate, self.whole = _gates(atlas)
        self.gated = bool((self.gate >= 0).any())
        self._fixed = self._behind((atlas.place[name], 0, atlas.graph.feature_by_name[name].channels) for name in sorted(always))

    def behind(self, reads: Iterable[Read]) -> NDArray[np.bool_]:
        """Return which gated maps are read behind their gates."""
        return self._fixed | self._behind(reads)

    def _behind(self, reads: Iterable[Read]) -> NDArray[np.bool_]:
        found = np.zeros(self._atlas.size, np.bool_)
        for feature, start, stop in reads if self.gated else ():
            position = self._atlas.graph.features[feature].position
            for run in self._atlas.runs(feature, start, stop):
                low, high = self._atlas.span(run)
                gate = self.gate[low:high]
                found[low:high] |= (gate >= 0) & (gate < position)
        return found


def _gates(atlas: Atlas) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    gate = np.full(atlas.size, -1, np.int64)
    whole = np.zeros(atlas.size, np.bool_)
    factors = _factors(atlas.graph)
    for feature in atlas.graph.features if factors else ():
        for runs, width in _factored(feature, factors):
            last = max(run.producer for run in runs)
            producers, positions = factors[width]
            place = bisect_right(producers, last)
            if place < len(producers) and positions[place] < feature.position:
                for low, high in map(atlas.span, runs):
                    unset = gate[low:high] < 0
                    gate[low:high][unset] = positions[place]
                    whole[low:high] |= width > 1
    return gate, whole


def _factors(graph: LayerGraph) -> dict[int, tuple[list[int], list[int]]]:
    """Return by how many channels a sink reads: the producers of these channels, and where they are computed, both ascending."""
    at = np.zeros(len(graph.producers), np.int64)
    for layer in graph.layers:
        at[layer.producer] = layer.position
    at = np.maximum.accumulate(at)
    found: dict[int, set[int]] = {}
    for run in graph.sinks:
        found.setdefault(run.width, set()).add(run.producer)
    return {width: (sorted(made), at[sorted(made)].tolist()) for width, made in found.items()}


def _factored(feature: Feature, widths: Iterable[int]) -> Iterator[tuple[Sequence[Run], int]]:
    """Yield neighbouring runs of a feature that together are as wide as one of `widths`, and that width; each run for width 1."""
    ends = list(accumulate((run.width for run in feature.runs), initial=0))
    place = {end: index for index, end in enumerate(ends)}
    for width in widths:
        for index, run in enumerate(feature.runs):
            stop = index + 1 if width == 1 else place.get(ends[index] + width)
            if stop is not None and run.step:
                yield feature.runs[index:stop], width
