"""Wire link by link, as SWNet does: `wire_kernel` moves single links of a layer to later layers, forward only.

    SWNet  Javaheripi, Rouhani, Koushanfar: SWNet, arXiv 1904.04862 (2019); SWANN, IEEE JETCAS 11(4), 2021, Algorithm 1

For l = 0..N-2, v_i in V_l and v_j in V_(l+1), with probability p the link (v_i, v_j) keeps v_i and moves to a uniform free node
of V_(l+2) u ... u V_N. The number of links and the out-degree of every source are constant, the last layer's own links stay.
What the paper leaves open is decided here so:

- V_(l+1) is the layer whose link it is, l the channels it reads, whatever they are (a sum is one source); later layers are
  those after it in topological order that can read the source's feature and do not read the source yet.
- With several features that carry a source, the target reads the smallest that is not smaller than its own resolution.
- Links that find no free node stay (which of a source's links, is drawn), and an output channel left with fewer than
  `min_in_degree` inputs takes moved links of its own back.
- A moved link has its new reader's kernel. budget="links" leaves it at that; budget="params" takes moves back at random, to
  larger kernels or to smaller ones, until the weights of the links are as many as before to within one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.plan import LayerWiring, Note, Options, Plan, Promise, promised_change
from swcompile.wiring.kernel_links import Bools, Ints, Mover, Moves, Sources
from swcompile.wiring.kernel_repair import settle
from swcompile.wiring.kernel_skips import unused, without_dense_links, without_skips

OTHER = 1 << 32
"""Input channel c of feature number f has the key (f + 1) * OTHER + c; the layer's own have the key c, and so come first."""


def wire_kernel(graph: LayerGraph, options: Options) -> Plan:
    """Move each link of the network with probability `options.p` to a later layer.

    Pure and seeded: the same graph and options give the same plan on every machine. Layers whose links all stay, and to which
    none moved, are not listed. Notes say which layers were refused, and how many links are stuck or came back.
    """
    seen, bypassed = without_skips(graph) if options.skips == "remove" else (graph, ())
    refusals = {layer.name: _refusal(seen, layer) for layer in graph.layers}
    if options.skips == "remove":
        refusals |= dict.fromkeys(unused(seen, graph.heads), "nothing reads it once the shortcuts are removed")
    start = _start(seen, options)
    columns = [start[layer.name] if refusals[layer.name] is None else None for layer in graph.layers]
    sources = Sources.of(seen, columns, options.conv_to_linear)
    mover = Mover(sources, options.number, options.seed)
    moves = {
        place: mover.move(place, layer, start[layer.name])
        for place, layer in enumerate(graph.layers)
        if refusals[layer.name] is None and (options.head or layer.name not in graph.heads)
    }
    units = sum(int(made.kept.sum()) + len(made.node) for made in moves.values())
    settle(graph, moves, sources.nodes, options)
    layers = _wirings(seen, sources, moves, columns, options)
    params, macs = promised_change(layers, graph)
    return Plan(
        fingerprint=graph.fingerprint,
        options=options,
        requested_p=options.number,
        layers=layers,
        promise=Promise(units, sum(len(made.node) for made in moves.values()), 0, params, macs),
        notes=tuple(_notes(graph, refusals, moves, options)),
        bypassed=bypassed,
    )


MASKABLE = ("Conv1d", "Conv2d", "Conv3d", "Linear")
"""Kinds of layers whose single links can be masked."""


def _refusal(graph: LayerGraph, layer: Layer) -> str | None:
    feature = graph.feature_by_name[layer.feature]
    if layer.refused is not None:
        return layer.refused
    if layer.kind not in MASKABLE:
        return f"a {layer.kind}: only {', '.join(MASKABLE)} can be masked link by link"
    if layer.rigid:
        return f"{layer.rigid}, so it cannot be masked (wiring='block' at density=1 can rewire it)"
    if layer.depthwise:
        return "depthwise: each output channel belongs to one input channel"
    if layer.groups > 1:
        return (
            f"grouped: a link of one of its {layer.groups} groups has no place in another layer's weight, nor the other way round"
        )
    if feature.is_map and max(feature.spatial) == 1:
        return "it works at 1x1 resolution, as gates and pooled vectors do"
    return None


def _start(graph: LayerGraph, options: Options) -> dict[str, Bools]:
    """Return which of its input channels each layer reads before any link moves."""
    if options.skips == "remove":
        return without_dense_links(graph)
    return {layer.name: np.ones(layer.in_channels, bool) for layer in graph.layers}


@dataclass(frozen=True)
class _Arrivals:
    """Moved links by their new readers: link number i comes from source[i] to output channel out[i] of the layer."""

    source: Ints
    out: Ints


def _arrivals(graph: LayerGraph, sources: Sources, moves: Mapping[int, Moves]) -> list[_Arrivals]:
    """Sort the moved links by target layer."""
    none = np.zeros(0, np.int64)
    source = [sources.ids[graph.layers[place].feature][made.column] for place, made in moves.items()]
    node = np.concatenate([none, *(made.node for made in moves.values())])
    layer = np.searchsorted(sources.nodes, node, side="right") - 1
    order = np.argsort(layer, kind="stable")
    ends = np.cumsum(np.bincount(layer, minlength=len(graph.layers)))[:-1]
    out = node - sources.nodes[layer]
    pairs = zip(np.split(np.concatenate([none, *source])[order], ends), np.split(out[order], ends), strict=True)
    return [_Arrivals(*pair) for pair in pairs]


def _wirings(
    graph: LayerGraph, sources: Sources, moves: Mapping[int, Moves], columns: Sequence[Bools | None], options: Options
) -> tuple[LayerWiring, ...]:
    """Return the wiring of each layer whose links are not exactly the original's."""
    made = []
    arrivals = _arrivals(graph, sources, moves)
    for place, (layer, live) in enumerate(zip(graph.layers, columns, strict=True)):
        if live is not None:
            kept = moves[place].kept if place in moves else np.repeat(live[None], layer.out_channels, axis=0)
            arrived = arrivals[place]
            if len(arrived.out) or not kept.all():
                keys = _keys(graph, sources, place, arrived.source)
                made.append(_wiring(graph, layer, kept, keys, arrived.out, options.resample))
    return tuple(made)


def _keys(graph: LayerGraph, sources: Sources, place: int, source: Ints) -> Ints:
    """Return the input channel through which the layer reads each source: see OTHER."""
    keys = np.empty(len(source), np.int64)
    via = sources.via[place, source]
    for number in np.unique(via).tolist():
        feature = graph.features[number].name
        order = np.argsort(sources.ids[feature])
        chosen = via == number
        slot = order[np.searchsorted(sources.ids[feature], source[chosen], sorter=order)]
        keys[chosen] = slot if feature == graph.layers[place].feature else slot + (number + 1) * OTHER
    return keys


def _wiring(graph: LayerGraph, layer: Layer, kept: Bools, keys: Ints, out: Ints, resample: str) -> LayerWiring:
    """Lay the live input channels side by side: the layer's own ones first, then other features in topological order."""
    own = np.flatnonzero(kept.any(axis=0))
    known = np.unique(np.concatenate([own, keys]))
    mask = np.zeros((layer.out_channels, len(known)), bool)
    mask[:, np.searchsorted(known, own)] = kept[:, own]
    mask[out, np.searchsorted(known, keys)] = True
    return LayerWiring(layer.name, tuple(_taps(graph, layer, known, resample)), (), mask)


def _taps(graph: LayerGraph, layer: Layer, keys: NDArray[np.int64], resample: str) -> list[Tap]:
    """Merge ascending keys into maximal ranges of channels."""
    taps = []
    for run in np.split(keys, np.flatnonzero(np.diff(keys) != 1) + 1):
        number, first = divmod(int(run[0]), OTHER)
        if number:
            taps.append(Tap(graph.features[number - 1].name, first, first + len(run), resample))
        else:
            taps.append(Tap(layer.feature, first, first + len(run)))
    return taps


def _notes(graph: LayerGraph, refusals: Mapping[str, str | None], moves: Mapping[int, Moves], options: Options) -> list[Note]:
    notes = []
    for place, layer in enumerate(graph.layers):
        reason, made = refusals[layer.name], moves.get(place)
        if reason is not None:
            notes.append(Note(layer.name, reason))
        if made is None:
            continue
        if made.stuck:
            notes.append(Note(layer.name, f"{made.stuck} links stay: no later output channel that can read them is free"))
        if made.repaired:
            few = f"an output channel had fewer than {options.min_in_degree} inputs" if options.min_in_degree else "none was left"
            notes.append(Note(layer.name, f"{made.repaired} links came back: {few}"))
        if made.balanced:
            notes.append(Note(layer.name, f"{made.balanced} links came back: budget='params' holds the number of parameters"))
    return notes
