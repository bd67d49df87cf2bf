"""Layer graphs for tests and benchmarks, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from swcompile.graph import GraphBuilder, LayerGraph, Tap
from swcompile.metrics import ChannelGraph, channel_graph

VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def chain(widths: Sequence[int], *, size: int = 8) -> LayerGraph:
    """Return a plain chain of 3x3 convolutions; `widths[0]` is the network's input."""
    build = GraphBuilder("chain")
    value, name = build.input("x", widths[0]), "x"
    for number, width in enumerate(widths[1:], 1):
        feature = build.feature(name, value, (1, widths[number - 1], size, size))
        name = f"conv{number}"
        value = build.layer(name, feature, width, kernel_size=(3, 3), positions=size * size)
    build.sink(value)
    return build.finish()


def residual(blocks: int, width: int = 8, *, size: int = 8, inputs: int = 3) -> LayerGraph:
    """Return a stem and `blocks` residual blocks of two convolutions each, with identity shortcuts."""
    build = GraphBuilder("residual")
    shape = (1, width, size, size)
    options: dict[str, Any] = {"kernel_size": (3, 3), "positions": size * size}
    value = build.layer("stem", build.feature("x", build.input("x", inputs), (1, inputs, size, size)), width, **options)
    name = "stem"
    for number in range(1, blocks + 1):
        inner = build.layer(f"a{number}", build.feature(name, value, shape), width, **options)
        outer = build.layer(f"b{number}", build.feature(f"a{number}", inner, shape), width, **options)
        name = f"add{number}"
        value = build.add(name, value, outer)
    last = build.layer("head", build.feature(name, value, shape), 10, kind="Linear")
    build.sink(last)
    return build.finish()


def dense(layers: int, growth: int = 4, *, start: int = 6, size: int = 8) -> LayerGraph:
    """Return a dense block: every layer reads the concatenation of all earlier maps."""
    build = GraphBuilder("dense")
    value, name = build.input("x", start), "x"
    for number in range(1, layers + 1):
        feature = build.feature(name, value, (1, value[-1].stop, size, size))
        made = build.layer(f"conv{number}", feature, growth, kernel_size=(3, 3), positions=size * size)
        value, name = build.cat(value, made), f"cat{number}"
    build.sink(value)
    return build.finish()


def by_algorithm_1(widths: Sequence[int], p: float, seed: int = 0) -> ChannelGraph:
    """Return the channel graph of a chain rewired link by link as published (SWANN, IEEE JETCAS 11(4), 2021, Algorithm 1).

    Each link moves with probability p: it keeps its source and goes to a free node beyond the next layer.
    """
    rng = np.random.default_rng(seed)
    graph = chain(widths)
    ends = np.cumsum([0, *widths])
    linked = np.zeros((ends[-1], ends[-1]), np.bool_)
    for at in range(len(widths) - 1):
        linked[ends[at] : ends[at + 1], ends[at + 1] : ends[at + 2]] = True
    for at in range(len(widths) - 2):
        own, near, far = slice(ends[at], ends[at + 1]), slice(ends[at + 1], ends[at + 2]), slice(ends[at + 2], None)
        moved = rng.random((widths[at], widths[at + 1])) < p
        count = np.minimum(moved.sum(axis=1), ends[-1] - ends[at + 2])
        linked[own, near] = ~moved
        linked[own, far] = rng.random((widths[at], ends[-1] - ends[at + 2])).argsort(axis=1).argsort(axis=1) < count[:, None]
    names = [layer.feature for layer in graph.layers]
    taps = {y.name: [Tap(names[at], 0, widths[at]) for at in range(index + 1)] for index, y in enumerate(graph.layers)}
    masks = {y.name: np.ascontiguousarray(linked[: ends[at], ends[at] : ends[at + 1]].T) for at, y in enumerate(graph.layers, 1)}
    return channel_graph(graph, taps, masks)


def inverted(blocks: int, width: int) -> LayerGraph:
    """Inverted residual blocks: a layer of `width` channels, a depthwise one, a layer back to 8, added to the block's input."""
    build = GraphBuilder("inverted")
    value = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 8)
    for number in range(1, blocks + 1):
        wide = build.layer(f"expand{number}", build.feature(f"in{number}", value, (1, 8, 8, 8)), width)
        deep = build.layer(f"depthwise{number}", build.feature(f"expand{number}", wide, (1, width, 8, 8)), width, groups=width)
        narrow = build.layer(f"project{number}", build.feature(f"depthwise{number}", deep, (1, width, 8, 8)), 8)
        value = build.add(f"add{number}", value, narrow)
        mixed = build.layer(f"mix{number}", build.feature(f"add{number}", value, (1, 8, 8, 8)), 8, groups=8)
        value = build.add(f"mixed{number}", value, mixed)
    build.sink(value)
    return build.finish()
