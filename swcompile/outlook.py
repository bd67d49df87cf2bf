"""What is known in advance about who gains from rewiring: a rule of thumb from a network's structure, with what it rests on.

It rests on published numbers, not on a fit of our own. `python -m benchmarks.report` judges it on curves of slim networks, and on
models left out: five models are too few to replace it, and the one with additive shortcuts, ResNet-20, gained all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from swcompile.graph import LayerGraph
from swcompile.metrics.channels import channel_graph
from swcompile.metrics.directed import Sweep

SHORTER = 2
"""How many times as long the longest path must be as the shortest for a network to count as having shortcuts: ours to choose."""


DEEP = 7.4
"""The effective depth up to which a network may gain little: half way, as a ratio, between a slim DenseNet and a slim ResNet-20."""


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

    `normed` says whether the network has norms. Shortcuts and norms both do what long-range links do for a plain network.
    """
    found = paths(graph)
    if not normed or found.longest < SHORTER * found.shortest:
        return None
    return (
        f"It may gain little: it has norms, and shortcuts already ({found.longest} layers on its longest path, {found.shortest} on "
        "its shortest). In published data of relational-graph networks, other wirings reached the baseline's error of epoch 30 of "
        "100 a median 1.2 to 1.67 times sooner, but its final error only 1.04 to 1.10 times; SWNet reports 1.31 times for "
        "ResNet-18 (arXiv 1904.04862, without seeds). This is a rule of thumb. Of ours, trained for 7 epochs on 10,000 images, a "
        "slim DenseNet gained nothing (at most 1.04 times), a slim ResNet-20 did (1.82 times)."
    )
