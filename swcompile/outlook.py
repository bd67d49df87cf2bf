"""What is known in advance about who gains from rewiring: two rules of thumb from a network's structure, with what they rest on.

Who is shallow already, by its effective depth, gains little: found on slim networks that were trained for a short time, and judged
by `python -m benchmarks.report`, also on families left out. Who has shortcuts and norms gains less when trained for long: that is
published.
"""

from __future__ import annotations

from dataclasses import dataclass

from swcompile.graph import LayerGraph
from swcompile.metrics.channels import channel_graph
from swcompile.metrics.directed import Sweep

SHORTER = 2
"""How many times as long the longest path must be as the shortest for a network to count as having shortcuts: ours to choose."""


DEEP = 7.4
"""The effective depth from which a network gains: half way, as a ratio, between the deepest that did not and the least deep that
did, of those that were known when it was chosen. Others were trained to judge it afterwards (the grid `gains` in benchmarks)."""

SHALLOW_GAINS = (1.04, 1.35)
DEEP_GAINS = (1.19, 2.90)
"""How many times as fast ours came to the original's final error below and above that depth, the least and the most of them, in
steps; a test holds them to the curves."""

LITTLE = "It may gain little"


@dataclass(frozen=True)
class Paths:
    """How many layers lie on the shortest and on the longest path from an input to the deepest output."""

    shortest: int
    longest: int


def paths(graph: LayerGraph) -> Paths:
    """Return a network's shortest and longest path; a sum or a concatenation with an earlier map makes the former shorter.

    >>> from swcompile.graph import GraphBuilder
    >>> build = GraphBuilder("a shortcut around one layer of two")
    >>> first = build.layer("first", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 3)
    >>> second = build.layer("second", build.feature("first", first, (1, 3, 8, 8)), 3)
    >>> _ = build.layer("head", build.feature("sum", build.add("sum", first, second), (1, 3, 8, 8)), 10)
    >>> paths(build.finish())
    Paths(shortest=2, longest=3)
    """
    layers = {layer.producer: layer for layer in graph.layers}
    known: list[Paths] = []
    for index, producer in enumerate(graph.producers):
        layer = layers.get(index)
        parts = producer.parts if layer is None else (graph.feature_by_name[layer.feature].runs,)
        sources = [known[run.producer] for part in parts for run in part]
        shortest = min((one.shortest for one in sources), default=0)
        longest = max((one.longest for one in sources), default=0)
        known.append(Paths(shortest + (layer is not None), longest + (layer is not None)))
    return max((known[layer.producer] for layer in graph.layers), key=lambda one: one.longest, default=Paths(0, 0))


def effective_depth(graph: LayerGraph) -> float:
    """Return the layers on a walk from an output back to the input, the mean over walks (swcompile.metrics.directed)."""
    return Sweep(channel_graph(graph)).means()[1]


def outlook(graph: LayerGraph, *, normed: bool) -> str | None:
    """Return a note where the evidence says that rewiring may gain little in steps to the final error, else None.

    `normed` says whether the network has norms.
    """
    depth, found = effective_depth(graph), paths(graph)
    if depth < DEEP:
        return (
            f"{LITTLE}: its effective depth, the layers on a random walk back from its output, is {depth:.1f} already. Of ours, "
            f"slim networks trained for 7 epochs on 10,000 images, those below {DEEP} came to the original's final error "
            f"{_times(SHALLOW_GAINS)} times as fast in steps, deeper ones {_times(DEEP_GAINS)} times. This is a rule of thumb."
        )
    if normed and found.longest >= SHORTER * found.shortest:
        return (
            f"It may gain less, the longer it is trained: it has norms, and shortcuts already ({found.longest} layers on its "
            f"longest path, {found.shortest} on its shortest). In published data of relational-graph networks, other wirings "
            "reached the baseline's error of epoch 30 of 100 a median 1.2 to 1.67 times sooner, but its final error only 1.04 to "
            "1.10 times; SWNet reports 1.31 times for ResNet-18 (arXiv 1904.04862, without seeds). This is a rule of thumb; ours "
            "were not trained for long."
        )
    return None


def _times(gains: tuple[float, float]) -> str:
    return f"{gains[0]:.2f} to {gains[1]:.2f}"
