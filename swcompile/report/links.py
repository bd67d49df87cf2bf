"""The network as a line of stops, and who reads whom before and after a plan: what the pictures show.

A *stop* is an input of the network or a layer, in the order in which they run. Every other value has the stop at which it is
complete: a sum that of its last addend. So a residual network is a line, with shortcuts that join stops, and each layer reads
mostly the stop in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.plan import LayerWiring, Plan, channel_ids

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """What the layer at the stop `reader` reads of the values complete at the stop `source`, in input channels of the reader.

    `kept` are read before and after, `came` after only, `gone` before only. A channel that a mask leaves to some of the layer's
    outputs counts by their share.
    """

    source: int
    reader: int
    kept: float
    came: float
    gone: float

    @property
    def before(self) -> float:
        return self.kept + self.gone

    @property
    def after(self) -> float:
        return self.kept + self.came


@dataclass(frozen=True)
class Shortcut:
    """An addend of a sum that is complete at the stop `target`, made at an earlier one; `removed` where the plan bypasses it."""

    source: int
    target: int
    channels: int
    removed: bool = False


def stops(graph: LayerGraph) -> NDArray[np.int64]:
    """Return the stop of each producer: inputs and layers have one each, in order; other values that of the last they are made of.

    >>> from swcompile.graph import GraphBuilder
    >>> build = GraphBuilder("a shortcut around one layer")
    >>> first = build.layer("first", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 3)
    >>> second = build.layer("second", build.feature("first", first, (1, 3, 8, 8)), 3)
    >>> _ = build.layer("head", build.feature("sum", build.add("sum", first, second), (1, 3, 8, 8)), 10)
    >>> stops(build.finish()).tolist()
    [0, 1, 2, 2, 3]
    """
    found: list[int] = []
    last = -1
    for producer in graph.producers:
        if producer.kind in ("input", "layer"):
            last += 1
            found.append(last)
        else:
            parts = [found[run.producer] for part in producer.parts for run in part]
            found.append(max(parts, default=max(last, 0)))
    return np.array(found, np.int64)


def links(graph: LayerGraph, plan: Plan | None) -> tuple[Link, ...]:
    """Return the links of a network under a plan (none: as it stands), by reader and then by source."""
    at = stops(graph)
    wirings: Mapping[str, LayerWiring] = {} if plan is None else {wiring.layer: wiring for wiring in plan.layers}
    return tuple(link for layer in graph.layers for link in _of_layer(graph, layer, wirings.get(layer.name), at))


def _of_layer(graph: LayerGraph, layer: Layer, wiring: LayerWiring | None, at: NDArray[np.int64]) -> Iterator[Link]:
    own = channel_ids(graph.feature_by_name[layer.feature].runs)
    count = int(at[-1]) + 1
    before = _by_stop(own, np.ones(len(own)), at, count)
    kept, came = (before, np.zeros(count)) if wiring is None else _after(graph, own, wiring, at, count)
    gone = np.maximum(before - kept, 0.0)
    for source in np.flatnonzero((before > 0) | (came > 0)).tolist():
        yield Link(source, int(at[layer.producer]), float(kept[source]), float(came[source]), float(gone[source]))


def _after(
    graph: LayerGraph, own: NDArray[np.int64], wiring: LayerWiring, at: NDArray[np.int64], count: int
) -> tuple[Floats, Floats]:
    """Return how many channels of each stop the layer still reads, and how many it reads anew."""
    ids, share = _columns(graph, wiring.taps, wiring.mask)
    known = np.isin(ids, own)
    kept, came = (_by_stop(ids[some], share[some], at, count) for some in (known, ~known))
    if wiring.grown:
        ids, share = _columns(graph, wiring.grown, None)
        came = came + _by_stop(ids, share, at, count)
    return kept, came


def _columns(graph: LayerGraph, taps: Sequence[Tap], mask: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], Floats]:
    """Return each channel that taps read, and which share of the layer's outputs has it."""
    ids = channel_ids(graph.runs_of(taps))
    return ids, np.ones(len(ids)) if mask is None else mask.mean(axis=0)


def _by_stop(ids: NDArray[np.int64], share: Floats, at: NDArray[np.int64], count: int) -> Floats:
    return np.asarray(np.bincount(at[ids >> 32], share, minlength=count), np.float64)


def shortcuts(graph: LayerGraph, plan: Plan | None) -> tuple[Shortcut, ...]:
    """Return the addends that sums have from earlier stops than their own, each once."""
    at = stops(graph)
    bypassed = {} if plan is None else dict(plan.bypassed)
    found: dict[tuple[int, int], Shortcut] = {}
    for place, producer in enumerate(graph.producers):
        if producer.kind != "sum":
            continue
        target = int(at[place])
        for number, part in enumerate(producer.parts):
            removed = producer.name in bypassed and bypassed[producer.name] != number
            for source in sorted({int(at[run.producer]) for run in part} - {target}):
                found.setdefault((source, target), Shortcut(source, target, producer.channels, removed))
    return tuple(found.values())
