"""Take single moves back: so that no output channel is left without input, and so that the parameters add up.

Taking back is the one repair that is always possible and keeps every count: the link returns to the output channel that it
left, so its source keeps its out-degree and the network its number of links; only the achieved p falls a little.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from swcompile.graph import LayerGraph
from swcompile.plan import Options
from swcompile.wiring.draw import Draw
from swcompile.wiring.kernel_links import Ints, Moves, ranks


def settle(graph: LayerGraph, moves: Mapping[int, Moves], nodes: Ints, options: Options) -> None:
    """Take moves back, in random order, until min_in_degree and the budget hold; `nodes` are the layers' first nodes.

    Each round only takes back, so the rounds end.
    """
    draw = Draw(options.seed, "budget of parameters")
    repair(graph, moves, nodes, options)
    while options.budget == "params" and balance(graph, moves, nodes, draw):
        repair(graph, moves, nodes, options)


def repair(graph: LayerGraph, moves: Mapping[int, Moves], nodes: Ints, options: Options) -> None:
    """Give output channels with too few inputs their own links back, and a layer without any link one.

    In topological order: a channel that loses a moved link by this lies in a later layer, whose turn is still to come.
    """
    incoming = np.zeros(int(nodes[-1]), np.int64)
    for made in moves.values():
        incoming += np.bincount(made.node, minlength=len(incoming))
    for place, made in moves.items():
        degree = made.kept.sum(axis=1) + incoming[nodes[place] : nodes[place + 1]]
        draw = Draw(options.seed, f"{graph.layers[place].name} repaired")
        need = np.minimum(np.maximum(options.min_in_degree - degree, 0), np.bincount(made.out, minlength=len(degree)))
        if not degree.any() and not need.any():
            need[made.out[draw.integer(len(made.out))]] = 1
        if need.any():
            which = _at_random(made.out.astype(np.int64), draw) < need[made.out]
            incoming -= np.bincount(made.undo(which), minlength=len(incoming))
            made.repaired += int(which.sum())


def _at_random(values: Ints, draw: Draw) -> Ints:
    """Number equal values in random order."""
    order = np.argsort(draw.uniforms(len(values)), kind="stable")
    made = np.empty(len(values), np.int64)
    made[order] = ranks(values[order])
    return made


def balance(graph: LayerGraph, moves: Mapping[int, Moves], nodes: Ints, draw: Draw) -> bool:
    """Take back moves to larger kernels where parameters have grown, to smaller ones where they have shrunk.

    Returns whether any was taken back. What is left is less than the largest kernel area.
    """
    areas = np.array([layer.kernel_area for layer in graph.layers])
    at_node = np.repeat(areas, np.diff(nodes))
    changes = [at_node[made.node] - areas[place] for place, made in moves.items()]
    change = np.concatenate([np.zeros(0, np.int64), *changes])
    excess = int(change.sum())
    helpful = np.flatnonzero(change * np.sign(excess) > 0)
    order = helpful[np.argsort(draw.uniforms(len(helpful)), kind="stable")]
    back = np.zeros(len(change), bool)
    back[order[np.cumsum(np.abs(change[order])) <= abs(excess)]] = True
    ends = np.cumsum([len(part) for part in changes], dtype=np.int64)
    for made, which in zip(moves.values(), np.split(back, ends)[:-1], strict=True):
        made.undo(which)
        made.balanced += int(which.sum())
    return bool(back.any())
