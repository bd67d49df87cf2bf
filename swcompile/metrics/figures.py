"""All figures of a channel graph at once, as frozen data that can be printed and saved."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from swcompile.metrics import reference
from swcompile.metrics.cells import Ints
from swcompile.metrics.channels import ChannelGraph
from swcompile.metrics.clustering import clustering
from swcompile.metrics.directed import Sweep, directed
from swcompile.metrics.paths import paths
from swcompile.metrics.sampled import SOURCES, sample_clustering, sample_paths
from swcompile.metrics.sampling import PRECISION, Intervals, Stream
from swcompile.metrics.spread import Spread
from swcompile.metrics.twins import without_twins

MOST_NODES = 50_000
"""Beyond so many nodes C and L are sampled, and said to be ..."""
MOST_CLASSES = 4_096
"""... unless there are no more than so many classes of equal nodes: then they are exact all the same."""

MOST_LAYERS, DEEP_SOURCES, DEEP_PRECISION = 1_500, 64, 0.02
"""In a plain chain every step of a search is one level, and there are as many as layers: exact path lengths would take time
quadratic in them. Deeper networks are sampled: L from as many sources as one word holds, C to DEEP_PRECISION."""


@dataclass(frozen=True)
class Degrees:
    """The least, the mean and the greatest number of links per channel."""

    least: int
    mean: float
    greatest: int

    def __str__(self) -> str:
        return f"{self.least} to {self.greatest}, mean {self.mean:.1f}"


@dataclass(frozen=True)
class Figures:
    """The figures of a channel graph (definitions: each stage's own module).

    `V`, `E`: nodes and edges of the simple undirected graph. `C`, `L`: mean local clustering, mean path length over connected
    pairs; `C_rand`, `L_rand` those of a random graph of the same V and E; `S` their quotient, above 1 for a small world.
    `unreachable`: the share of pairs that no path joins. `exact`: whether C, L, transitivity and unreachable were computed, or
    estimated: then `interval` holds the true C and L, with 95% confidence each. The rest is of the directed
    graph (swcompile.metrics.directed); in-degrees over layers' channels, out-degrees over all but the output layers' channels.
    The last four are None unless asked for (swcompile.metrics.reference).
    """

    V: int
    E: int
    C: float
    L: float
    S: float
    C_rand: float
    L_rand: float
    graph_density: float
    transitivity: float
    unreachable: float
    exact: bool
    interval: Intervals | None
    mean_path: float
    effective_depth: float
    dead_channels: int
    long_range: float
    new: float
    in_degree: Degrees
    out_degree: Degrees
    C_degree: float | None = None
    L_degree: float | None = None
    omega: float | None = None
    propensity: float | None = None

    @property
    def small_world(self) -> bool:
        return self.S > 1

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain numbers, lists and dictionaries, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        made = [f"{field.name:15} {_shown(getattr(self, field.name))}" for field in dataclasses.fields(self)]
        return "\n".join(line for line in made if not line.endswith(" None"))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Undirected:
    """Clustering and path lengths, computed or estimated."""

    C: float
    L: float
    transitivity: float
    unreachable: float
    interval: Intervals | None = None


def measure(channels: ChannelGraph, *, extended: bool = False, seed: int = 0) -> Figures:
    """Return all figures of a channel graph; `extended` adds those that need a random graph of the same degrees.

    >>> from swcompile.graph import GraphBuilder
    >>> from swcompile.metrics import channel_graph
    >>> build = GraphBuilder("one layer")
    >>> build.sink(build.layer("conv", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 16))
    >>> made = measure(channel_graph(build.finish()))
    >>> made.V, made.E, made.C, round(made.L, 4)
    (19, 48, 0.0, 1.7193)
    """
    V = channels.nodes
    deep = len(channels.graph.layers) > MOST_LAYERS
    exact = not deep and (V <= MOST_NODES or len(channels.weight) <= MOST_CLASSES)
    if not exact:
        channels = channels.by_channel()
    sweep = Sweep(channels)
    if exact:
        shape = _exact(channels)
        inward, outward = channels.in_degrees, channels.classes.degrees - channels.in_degrees
    else:
        shape = _sampled(channels, seed, *((DEEP_SOURCES, DEEP_PRECISION) if deep else (SOURCES, PRECISION)))
        origin = channels.cells.number >= 0
        inward, outward = sweep.inward[origin].astype(np.int64), sweep.outward()[origin].astype(np.int64)
    degrees = _degrees(channels, inward, outward)
    E = int(inward @ channels.weight)
    C_rand, L_rand = reference.density(V, E), reference.random_path(V, E, seed)
    more = reference.extended(channels.classes, shape.C, shape.L, E, seed) if extended and shape.interval is None else None
    return Figures(
        V=V,
        E=E,
        C=shape.C,
        L=shape.L,
        S=reference.small_world(shape.C, shape.L, C_rand, L_rand),
        C_rand=C_rand,
        L_rand=L_rand,
        graph_density=C_rand,
        transitivity=shape.transitivity,
        unreachable=shape.unreachable,
        exact=shape.interval is None,
        interval=shape.interval,
        **dataclasses.asdict(directed(channels, sweep)),
        in_degree=degrees[0],
        out_degree=degrees[1],
        **({} if more is None else more._asdict()),
    )


def _exact(channels: ChannelGraph) -> Undirected:
    graph = without_twins(channels.classes)
    C, transitivity, _ = clustering(graph)
    L, unreachable = paths(graph)
    return Undirected(C, L, transitivity, unreachable)


def _sampled(channels: ChannelGraph, seed: int, sources: int, precision: float) -> Undirected:
    spread, weight = Spread(channels), channels.weight
    near = sample_clustering(spread, weight, Stream(seed, "wedges"), precision)
    far = sample_paths(spread, weight, Stream(seed, "sources"), sources)
    return Undirected(near.C, far.L, near.transitivity, far.unreachable, Intervals(near.interval, far.interval))


def _degrees(channels: ChannelGraph, inward: Ints, outward: Ints) -> tuple[Degrees, Degrees]:
    producers, heads = channels.graph.producers, channels.original.heads
    made = channels.cells.producer[channels.cells.number >= 0]
    is_input = np.array([producer.kind == "input" for producer in producers], np.bool_)[made]
    is_head = np.isin(made, [layer.producer for layer in channels.graph.layers if layer.name in heads])
    return _summary(inward, channels.weight, ~is_input), _summary(outward, channels.weight, ~is_head)


def _summary(degree: Ints, weight: Ints, chosen: np.typing.NDArray[np.bool_]) -> Degrees:
    degree, weight = degree[chosen], weight[chosen]
    if not len(degree):
        return Degrees(0, 0.0, 0)
    return Degrees(int(degree.min()), float(degree @ weight / weight.sum()), int(degree.max()))
