"""Path lengths and degrees channel by channel, of which the ledger has the means: the distributions that the figures show.

From the sweep of swcompile.metrics.directed, which is linear in layers: a channel that is added twice into one sum counts twice
in a degree here, and once in the ledger's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import UNREACHABLE, LayerGraph
from swcompile.metrics import ChannelGraph, channel_graph
from swcompile.metrics.directed import Sweep
from swcompile.plan import Plan
from swcompile.shrink import shrink

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Degrees:
    """How many channels (`channels`) have each number of links (`links`, ascending)."""

    links: tuple[float, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """What the channels of a network are like.

    `distance` is, for each stop (swcompile.report.links), how many layers lie on the shortest path from an input channel to one
    of its channels, the mean over the pairs that a path joins; NaN where none does. `inward` are the degrees of layers' channels,
    `outward` those of all channels but the output layers'.
    """

    distance: tuple[float, ...]
    inward: Degrees
    outward: Degrees


def planned(graph: LayerGraph, plan: Plan | None) -> ChannelGraph:
    """Return the channel graph of a network under a plan, or as it stands."""
    if plan is None:
        return channel_graph(graph)
    left, taps = shrink(graph, plan.outputs(), plan.reads())
    return channel_graph(left, taps, plan.masks(), bypassed=plan.bypassed)


def profile(channels: ChannelGraph) -> Profile:
    """Return the path lengths and degrees of a channel graph."""
    sweep, cells = Sweep(channels), channels.cells
    kinds = np.array([producer.kind for producer in channels.graph.producers])
    origin = cells.number >= 0
    heads = [layer.producer for layer in channels.graph.layers if layer.name in channels.original.heads]
    reads, is_read = origin & (kinds[cells.producer] != "input"), origin & ~np.isin(cells.producer, heads)
    at_stops = np.flatnonzero(np.isin(kinds, ("input", "layer"))).tolist()
    return Profile(
        distance=tuple(_distance(sweep, cells.of_producer(producer)) for producer in at_stops),
        inward=_degrees(sweep.inward[reads], cells.size[reads]),
        outward=_degrees(sweep.outward()[is_read], cells.size[is_read]),
    )


def _distance(sweep: Sweep, own: slice) -> float:
    """Return the mean distance from the inputs' channels to those of some cells."""
    away = sweep.nearest[own].astype(np.float64)
    weight = np.outer(sweep.cells.size[own], sweep.cells.size[sweep.inputs]).astype(np.float64)
    weight[away >= UNREACHABLE] = 0
    total = weight.sum()
    return float((away * weight).sum() / total) if total else float("nan")


def _degrees(degree: Floats, size: NDArray[np.int64]) -> Degrees:
    links, place = np.unique(degree, return_inverse=True)
    return Degrees(tuple(links.tolist()), tuple(np.bincount(place, size, len(links)).astype(np.int64).tolist()))
