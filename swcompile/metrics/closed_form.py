"""Expected C, L and S of the wiring `kernel` over p, from the densities of links between layers, without drawing a graph.

    rho(a, b)          expected share of the pairs (channel of a, channel of b) that are linked: in a chain 1 - p for neighbours
                       and min(1, p n_(a+1) / sum_(m >= a+2) n_m) for the others (SWANN, Algorithm 1)
    C_b                sum_am n_a n_m rho_ba rho_bm rho_am / E[k_b (k_b - 1)],  E[k (k - 1)] = (sum n rho)^2 - sum n rho^2
    q_k(a, b)          P(distance > k) = (1 - rho_ab) prod_m (1 - rho_am (1 - q_(k-1)(m, b)))^(n_m - [m = b]),  q_0 = 1
    L                  sum_k sum_ab (q_k - q_oo) / sum_ab (1 - q_oo), over pairs of channels

exact where all densities are 0 or 1 (p = 0) and where they are large. Links are taken as independent and all channels of a
producer as alike. So the figures deviate where that is far from true: at small p, where long-range links are too few to be
independent; with slices, groups and shuffles, whose channels are averaged; and in residual streams, whose addends are read
together. min_in_degree is left out: it moves a few links of the first layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Layer, LayerGraph, Run, Tap, unreadable
from swcompile.metrics.reference import NEGLIGIBLE, expected_path, small_world

Floats = NDArray[np.float64]

CERTAIN = 40.0
"""A pair with so many expected paths is joined: exp(-40) is below all rounding."""
SETTLED = 1e-10


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """Expected figures of the channel graph at one p. `unreachable` is the share of pairs that no path joins."""

    p: float
    V: int
    E: float
    C: float
    L: float
    S: float
    unreachable: float = 0.0

    @property
    def density(self) -> float:
        return 2 * self.E / (self.V * (self.V - 1)) if self.V > 1 else 0.0


def closed_form(graph: LayerGraph, p: float, *, reads: Mapping[str, Sequence[Tap]] | None = None) -> ClosedForm:
    """Return the expected figures of the network after wiring `kernel` with probability p.

    `reads[layer]` says what a layer reads before any link moves, its whole feature where it is not named.

    >>> from swcompile.graph import GraphBuilder
    >>> build = GraphBuilder("chain")
    >>> x = build.input("x", 2)
    >>> for name in ("a", "b", "c"):
    ...     x = build.layer(name, build.feature(f"{name} reads", x, (1, 2, 4, 4)), 2)
    >>> closed_form(build.finish(), 0.0).L
    1.7142857142857142
    """
    return closed_forms(graph, (p,), reads=reads)[0]


def closed_forms(
    graph: LayerGraph, ps: Sequence[float], *, reads: Mapping[str, Sequence[Tap]] | None = None
) -> tuple[ClosedForm, ...]:
    """Return the expected figures at each p: a sweep, whose densities are computed together."""
    sizes, densities = block_densities(graph, np.asarray(ps, np.float64), reads or {})
    return tuple(_figures(float(p), sizes, density) for p, density in zip(ps, densities, strict=True))


@dataclass(frozen=True)
class _Reading:
    """Who reads what, source by source.

    A source is a producer and how many slots hold each of its channels (1, or more where a map is flattened). `share[s, b]` is
    the share of the source's slots that each output channel of layer b reads, `readable[s, b]` whether the layer could.
    """

    sources: tuple[tuple[int, int], ...]
    share: Floats
    readable: NDArray[np.bool_]


def block_densities(graph: LayerGraph, ps: Floats, reads: Mapping[str, Sequence[Tap]]) -> tuple[Floats, Floats]:
    """Return the sizes of inputs and layers, and at each p the symmetric densities of links between them: (p, from, to)."""
    reading = _reading(graph, reads)
    linked = _moved(graph, reading, ps)
    nodes = [place for place, made in enumerate(graph.producers) if made.kind in ("input", "layer")]
    row = {place: number for number, place in enumerate(nodes)}
    column = [row[layer.producer] for layer in graph.layers]
    free = np.ones((len(ps), len(nodes), len(nodes)))
    for (producer, copies), density in zip(reading.sources, linked, strict=True):
        for origin, cover in _origins(graph, producer).items():
            free[:, row[origin], column] *= (1 - cover * density.T) ** copies
    made = 1 - free * free.transpose(0, 2, 1)
    return np.array([graph.producers[place].channels for place in nodes], np.float64), made


def _origins(graph: LayerGraph, producer: int) -> dict[int, float]:
    """Return the inputs and layers whose channels a producer's are, and the share of their channels: a sum as its addends."""
    width: dict[int, int] = {}
    for run in graph.base_runs(producer):
        if graph.producers[run.producer].kind != "opaque":
            width[run.producer] = width.get(run.producer, 0) + run.width
    return {origin: min(1.0, count / graph.producers[origin].channels) for origin, count in width.items()}


def _reading(graph: LayerGraph, reads: Mapping[str, Sequence[Tap]]) -> _Reading:
    of_features = [_slots(graph, feature.runs) for feature in graph.features]
    of_layers = [_slots(graph, graph.runs_of(reads.get(layer.name, graph.reads(layer)))) for layer in graph.layers]
    sources = tuple(sorted({source for slots in (*of_features, *of_layers) for source in slots}))
    row = {source: number for number, source in enumerate(sources)}
    share = np.zeros((len(sources), len(graph.layers)))
    for column, (layer, slots) in enumerate(zip(graph.layers, of_layers, strict=True)):
        for source, part in slots.items():
            share[row[source], column] = part / layer.groups
    carries = np.zeros((len(sources), len(graph.features)), np.float32)
    for column, slots in enumerate(of_features):
        carries[[row[source] for source in slots], column] = 1
    fits = [[_wirable(graph, y) and unreadable(graph, feature, y) is None for y in graph.layers] for feature in graph.features]
    return _Reading(sources, share, carries @ np.array(fits, np.float32).reshape(len(graph.features), len(graph.layers)) > 0)


def _slots(graph: LayerGraph, runs: Sequence[Run]) -> dict[tuple[int, int], float]:
    """Return the share of each source that a value holds."""
    width: dict[tuple[int, int], int] = {}
    for run in runs:
        source = (run.producer, 1 if run.step else run.width)
        width[source] = width.get(source, 0) + run.width
    return {(made, copies): min(1.0, n / (copies * graph.producers[made].channels)) for (made, copies), n in width.items()}


def _wirable(graph: LayerGraph, layer: Layer) -> bool:
    """Say whether the wiring moves links of and to the layer: the rule of swcompile.wiring.kernel."""
    feature = graph.feature_by_name[layer.feature]
    return layer.refused is None and layer.groups == 1 and not (feature.is_map and max(feature.spatial) == 1)


def _moved(graph: LayerGraph, reading: _Reading, ps: Floats) -> Floats:
    """Return the density of links from each source to each layer after the moves: (source, layer, p).

    The layers move in topological order, each source to later layers in proportion to how many of their nodes are free.
    """
    widths = np.array([layer.out_channels for layer in graph.layers], np.float64)
    density = np.repeat(reading.share[:, :, None], len(ps), axis=2)
    for place, layer in enumerate(graph.layers):
        own = np.flatnonzero(reading.share[:, place])
        if layer.name in graph.heads or not _wirable(graph, layer) or not len(own):
            continue
        later = density[own, place + 1 :]
        free = (1 - later) * reading.readable[own, place + 1 :, None]
        room = (free * widths[place + 1 :, None]).sum(axis=1)
        moved = np.minimum(ps * layer.out_channels, room) * reading.share[own, place, None]
        density[own, place] -= moved / layer.out_channels
        density[own, place + 1 :] = later + free * np.divide(moved, room, out=np.zeros_like(moved), where=room > 0)[:, None]
    return np.clip(density, 0.0, 1.0)


def _figures(p: float, sizes: Floats, density: Floats) -> ClosedForm:
    nodes = int(sizes.sum())
    edges = float(sizes @ density @ sizes) / 2
    C = float(sizes @ clustering(sizes, density)) / nodes if nodes else 0.0
    L, unreachable = path_length(sizes, density)
    return ClosedForm(p, nodes, edges, C, L, _small_world(nodes, edges, C, L), unreachable)


def _small_world(nodes: int, edges: float, C: float, L: float) -> float:
    d = 2 * edges / (nodes * (nodes - 1)) if nodes > 1 else 0.0
    near = d >= 1 or nodes * np.log1p(-d * d) < np.log(NEGLIGIBLE)
    return small_world(C, L, d, 2 - d if near else expected_path(nodes, d))


def clustering(sizes: Floats, density: Floats) -> Floats:
    """Return the expected clustering of a channel of each block."""
    weighted = density * sizes
    triangles = (weighted @ density * weighted).sum(axis=1)
    pairs = weighted.sum(axis=1) ** 2 - (weighted * density).sum(axis=1)
    mean: Floats = np.divide(triangles, pairs, out=np.zeros_like(pairs), where=pairs > 1e-12)
    return mean


def path_length(sizes: Floats, density: Floats) -> tuple[float, float]:
    """Return the expected mean distance of connected pairs of channels, and the share of pairs that no path joins."""
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    apart, far = 1 - density, np.ones_like(density)
    total = []
    while float(np.abs(far - apart).max(initial=0.0)) > SETTLED:
        total.append(float((pairs * far).sum()))
        far, apart = apart, _farther(sizes, density, apart)
    left = float((pairs * apart).sum())
    connected = float(pairs.sum()) - left
    unreachable = left / float(pairs.sum()) if pairs.sum() else 0.0
    return (sum(total) - len(total) * left) / connected if connected > 0 else 0.0, unreachable


def _farther(sizes: Floats, density: Floats, far: Floats) -> Floats:
    """Return P(distance > k + 1) of all pairs, given P(distance > k).

    log(1 - x) <= -x: pairs with many expected paths are joined without a further look, and pairs with none stay.
    """
    near = 1 - far
    paths = density @ (sizes[:, None] * near) - density * np.diag(near)
    made = np.where(paths > CERTAIN, 0.0, 1 - density)
    row, column = np.nonzero((paths > 0) & (paths <= CERTAIN) & (density < 1))
    step = max(1, (1 << 20) // max(len(sizes), 1))
    for low in range(0, len(row), step):
        a, b = row[low : low + step], column[low : low + step]
        count = np.repeat(sizes[None], len(a), axis=0)
        count[np.arange(len(b)), b] -= 1  # the far end itself is what the first factor is about
        miss = np.maximum(1 - density[a] * near.T[b], 1e-300)
        made[a, b] *= np.exp((count * np.log(miss)).sum(axis=1))
    return np.minimum(made, far)
