"""Strip shortcuts and dense links before the links are moved, as SWNet does for ResNet-18 and DenseNet-40 (skips="remove")."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Layer, LayerGraph, Producer, Run, join_runs
from swcompile.wiring.ancestry import depths, upstream


def without_skips(graph: LayerGraph) -> tuple[LayerGraph, tuple[tuple[str, int], ...]]:
    """Return the graph with one addend left of each sum, and which: (sum, index of the addend).

    The addend with the longest layer path stays, the first of equals: y = f(x) + x becomes y = f(x). Producers, features and
    layers keep their names and places; a sum stays as a producer that nobody reads.
    """
    depth = depths(graph)
    producers = list(graph.producers)
    bypassed = []
    for place, made in enumerate(graph.producers):
        whole = [index for index, part in enumerate(made.parts) if sum(run.width for run in part) == made.channels]
        if made.kind == "sum" and whole and len(made.parts) > 1:
            best = max(whole, key=lambda index, parts=made.parts: (_depth(depth, parts[index]), -index))  # type: ignore[misc]
            producers[place] = dataclasses.replace(made, parts=(made.parts[best],))
            bypassed.append((made.name, best))
    return _seen_through(dataclasses.replace(graph, producers=tuple(producers))), tuple(bypassed)


def _depth(depth: list[int], runs: tuple[Run, ...]) -> int:
    return max((depth[run.producer] for run in runs), default=0)


def _seen_through(graph: LayerGraph) -> LayerGraph:
    """Replace runs of sums with a single addend by the runs of that addend."""
    single = {place for place, made in enumerate(graph.producers) if made.kind == "sum" and len(made.parts) == 1}

    def through(runs: tuple[Run, ...]) -> tuple[Run, ...]:
        while any(run.producer in single for run in runs):
            runs = tuple(part for run in runs for part in (_addend(graph, run) if run.producer in single else (run,)))
        return join_runs(runs)

    def simpler(made: Producer) -> Producer:
        return dataclasses.replace(made, parts=tuple(through(part) for part in made.parts))

    return dataclasses.replace(
        graph,
        producers=tuple(simpler(made) for made in graph.producers),
        features=tuple(dataclasses.replace(feature, runs=through(feature.runs)) for feature in graph.features),
        sinks=through(graph.sinks),
    )


def _addend(graph: LayerGraph, run: Run) -> tuple[Run, ...]:
    """Return what a run of a sum with a single addend reads of that addend, in the run's own coordinates."""
    (part,) = graph.producers[run.producer].parts
    if run.step == 0:
        (base,) = (base for base in part if base.start <= run.first < base.stop)
        return (Run(run.start, run.stop, base.producer, base.first + (run.first - base.start) * base.step, 0),)
    inside = (base for base in part if base.start < run.first + run.width and base.stop > run.first)
    return tuple(base.cut(run.first, run.first + run.width, run.start - run.first) for base in inside)


def unused(graph: LayerGraph, heads: frozenset[str]) -> frozenset[str]:
    """Return the layers from which no path leads to a head or a sink, such as the projections of removed shortcuts."""
    by_producer = {layer.producer: layer for layer in graph.layers}
    used = {run.producer for run in graph.sinks} | {layer.producer for layer in graph.layers if layer.name in heads}
    for place in range(len(graph.producers) - 1, -1, -1):
        if place in used:
            layer = by_producer.get(place)
            parts = (graph.feature_by_name[layer.feature].runs,) if layer is not None else graph.producers[place].parts
            used.update(run.producer for part in parts for run in part)
    return frozenset(layer.name for layer in graph.layers if layer.producer not in used)


def without_dense_links(graph: LayerGraph) -> dict[str, NDArray[np.bool_]]:
    """Return which input channels each layer goes on reading when it drops those that also reach it through a later piece.

    Inside a dense block that leaves the piece made last: cat(x, f(x), g(x, f(x))) is read as g alone. Parallel branches, as in
    an Inception block, are no dense links of each other and stay.
    """
    before = upstream(graph)
    return {layer.name: _last_pieces(graph, layer, before) for layer in graph.layers}


def _last_pieces(graph: LayerGraph, layer: Layer, before: list[int]) -> NDArray[np.bool_]:
    runs = graph.feature_by_name[layer.feature].runs
    behind = 0
    for producer in {run.producer for run in runs}:
        behind |= before[producer]
    kept = np.ones(layer.in_channels, bool)
    for run in runs:
        kept[run.start : run.stop] = not behind >> run.producer & 1
    return kept
