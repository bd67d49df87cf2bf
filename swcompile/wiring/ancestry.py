"""Say what lies in front of what: how deep each producer is, and what it was computed from."""

from __future__ import annotations

from collections.abc import Iterator

from swcompile.graph import LayerGraph, Run


def depths(graph: LayerGraph) -> list[int]:
    """Return how many layers lie on the longest path from an input to each producer, its own layer counted.

    A dense block reads all of its maps directly, so that the shortest path cannot tell the near from the far: this can.
    """
    depth: list[int] = []
    for is_layer, runs in _read(graph):
        depth.append(max((depth[run.producer] for run in runs), default=0) + is_layer)
    return depth


def upstream(graph: LayerGraph) -> list[int]:
    """Return for each producer the others that it was computed from, as bits of an integer."""
    found: list[int] = []
    for _, runs in _read(graph):
        bits = 0
        for producer in {run.producer for run in runs}:
            bits |= found[producer] | 1 << producer
        found.append(bits)
    return found


def _read(graph: LayerGraph) -> Iterator[tuple[bool, tuple[Run, ...]]]:
    """Yield for each producer whether it is a layer, and what it reads."""
    by_producer = {layer.producer: layer for layer in graph.layers}
    for place, made in enumerate(graph.producers):
        layer = by_producer.get(place)
        if layer is not None:
            yield True, graph.feature_by_name[layer.feature].runs
        else:
            yield False, tuple(run for part in made.parts for run in part)
