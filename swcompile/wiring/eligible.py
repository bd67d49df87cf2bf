"""Decide which layers block wiring may change, into which blocks their input falls, and which maps they could read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Feature, Layer, LayerGraph, slice_runs
from swcompile.plan import Note, Options
from swcompile.wiring.alive import live_layers
from swcompile.wiring.ancestry import depths, upstream
from swcompile.wiring.blocks import WHOLE, Atlas, Catalogue, Kind, Piece, block_size, kind_of


@dataclass(frozen=True)
class Site:
    """A layer that may be changed: its slots, and the pieces of a catalogue that it may read instead.

    Candidates are the first `available` pieces of the catalogue but for `barred` ones, which hold maps that the layer reads in
    its own input; `room` is how many channels they have. `own` are the maps of that input, as ascending borders. `far` is, below
    density 1, the distance of each producer that other parts of the input were computed from, as in a dense block.
    """

    layer: Layer
    kind: Kind
    slots: tuple[Piece, ...]
    catalogue: Catalogue = field(repr=False)
    available: int
    barred: NDArray[np.int64] = field(repr=False)
    room: int
    own: tuple[int, ...] = field(repr=False)
    far: Mapping[int, int] = field(default_factory=dict, repr=False)

    @property
    def candidates(self) -> int:
        return self.available - len(self.barred)

    @property
    def per_group(self) -> int:
        return len(self.slots) // self.layer.groups

    @property
    def by_group(self) -> list[range]:
        """The slots of each group."""
        return [range(start, start + self.per_group) for start in range(0, len(self.slots), self.per_group)]

    def owns(self, low: int, high: int) -> bool:
        """Return whether any of the maps [low, high) is in the layer's own input."""
        place = bisect_right(self.own, low)
        return place % 2 == 1 or (place < len(self.own) and self.own[place] < high)


def eligible(graph: LayerGraph, options: Options) -> tuple[list[Layer], list[Note]]:
    """Return the layers that block wiring may change, and for every other layer the reason why not.

    Raises SwnetError where `options.block` is too large for every layer.
    """
    sites, notes = find_sites(Atlas(graph), options)
    return [site.layer for site in sites], notes


def find_sites(atlas: Atlas, options: Options) -> tuple[list[Site], list[Note]]:
    """Return the eligible layers with their blocks and candidates, and the reasons for the others."""
    sites: list[Site] = []
    notes: list[Note] = []
    catalogues: dict[tuple[Kind, int], Catalogue] = {}
    narrow: list[Layer] = []
    live = live_layers(atlas.graph)
    distance = _Distance(atlas) if options.prunes else None
    for layer in atlas.graph.layers:
        reason = _structural(layer, atlas.graph, options)
        size = block_size(layer, options.block)
        slots = () if reason or size is None else _slots(atlas, layer, size)
        if reason is None and (size is None or len(slots) < 2):
            reason = _too_narrow(layer, options.block, size)
            narrow.append(layer)
        if reason is None and layer.name not in live:
            reason = "nothing reads its output, so what it read in place of others would be lost"
        if reason is None and _is_stem(atlas, layer, options):
            reason = "the stem: there is no earlier feature that it could read"
        if reason is None:
            assert size is not None
            site = _site(atlas, layer, slots, size, catalogues, distance)
            reason = None if options.prunes else _no_candidate(site)
        if reason is None:
            sites.append(site)
        else:
            notes.append(Note(layer.name, reason))
    if narrow and not sites and isinstance(options.block, int):
        _refuse_block(options.block, narrow)
    return sites, notes


def _structural(layer: Layer, graph: LayerGraph, options: Options) -> str | None:
    feature = graph.feature_by_name[layer.feature]
    if layer.refused is not None:
        return layer.refused
    if layer.depthwise:
        return "depthwise: each output channel belongs to one input channel"
    if feature.is_map and max(feature.spatial) == 1:
        return "it works at 1x1 resolution, as gates and pooled vectors do"
    if layer.name in graph.heads and not options.head:
        return "a head: nothing reads its output further on (head=True includes it)"
    if layer.rigid and options.prunes:
        return f"{layer.rigid}, so it cannot lose channels (density=1 can rewire it)"
    if layer.name in graph.coupling.squeezes and options.prunes:
        return "it computes a gate for the very map that it reads, and loses the channels that the map loses"
    return _behind_opaque(graph, feature)


def _behind_opaque(graph: LayerGraph, feature: Feature) -> str | None:
    """Return the operation that the layer's channels cannot be followed through: its neighbourhood is left as it is.

    Reading something else in place of a channel without origin would compute, but nobody could say how far the link reaches.
    """
    for run in feature.runs:
        made = graph.producers[run.producer]
        if made.kind == "opaque":
            named = (", ".join(filter(None, found)) for found in graph.opaque if found[0].split(" (")[0] == made.name)
            known = next(named, made.name)
            return f"behind an operation that channels cannot be followed through ({known})"
    return None


def _slots(atlas: Atlas, layer: Layer, size: int) -> tuple[Piece, ...]:
    index = atlas.place[layer.feature]
    if layer.groups == 1:
        return tuple(atlas.cut(index, atlas.graph.features[index].runs, size))
    return tuple(atlas.piece(index, start, start + size) for start in range(0, layer.in_channels, size))


def _too_narrow(layer: Layer, block: int | str, size: int | None) -> str:
    if size is None:
        width = layer.in_channels // layer.groups
        wanted = "blocks of 4 or more" if block == "auto" else "whole runs" if block == "producer" else f"blocks of {block}"
        return f"narrower groups: {width} channels a group do not divide into two or more {wanted}"
    if size == WHOLE:
        return "its input is a single run of one producer, so there is no second block to keep (set a block size)"
    fewer = "" if block == "auto" else ' (block="auto" takes smaller ones)'
    return f"its {layer.in_channels} input channels make fewer than two blocks of {size}{fewer}"


def _refuse_block(block: int, narrow: Iterable[Layer]) -> None:
    fitting = max(max((layer.in_channels // layer.groups) // 2, 1) for layer in narrow)
    raise SwnetError(
        f"block={block} is too large: no layer that could be rewired holds two blocks of {block} channels. "
        f'Sizes up to {fitting} fit at least one layer; block="auto" chooses one per layer.'
    )


class _Distance:
    """How far the slots of a layer's own input are from it, where it reads both a map and what was computed from that map."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.depth = depths(atlas.graph)
        self.before = upstream(atlas.graph)

    def far(self, layer: Layer) -> dict[int, int]:
        """Return the distance of each producer that is not among the nearest: one more for each layer between."""
        own = sorted({run.producer for run in self.atlas.graph.feature_by_name[layer.feature].runs})
        behind = 0
        for producer in own if len(own) > 1 else ():
            behind |= self.before[producer]
        nearest = max(self.depth[producer] for producer in own)
        return {producer: 1 + max(1, nearest - self.depth[producer]) for producer in own if behind >> producer & 1}


def _site(
    atlas: Atlas,
    layer: Layer,
    slots: tuple[Piece, ...],
    size: int,
    catalogues: dict[tuple[Kind, int], Catalogue],
    distance: _Distance | None,
) -> Site:
    feature = atlas.graph.feature_by_name[layer.feature]
    kind = kind_of(feature)
    if (kind, size) not in catalogues:
        catalogues[kind, size] = Catalogue(atlas, kind, size)
    catalogue = catalogues[kind, size]
    spans = [atlas.span(run) for run in slice_runs(feature.runs, 0, layer.in_channels)]
    available = catalogue.available(layer.reads_at)
    barred = catalogue.holding(spans, available)
    room = int(catalogue.total[available] - catalogue.widths[barred].sum())
    far = distance.far(layer) if distance is not None else {}
    return Site(layer, kind, slots, catalogue, available, barred, room, _merged(spans), far)


def narrowed(atlas: Atlas, site: Site, kept: Sequence[int], gone: Mapping[str, NDArray[np.bool_]]) -> Site:
    """Return the site with other candidates: the far maps that it no longer reads are some, as all earlier maps are, and maps are
    none that nobody reads and that go (`gone`, by feature).
    """
    if not site.far and not gone:
        return site
    spans = [atlas.span(run) for run in atlas.graph.feature_by_name[site.layer.feature].runs]
    own = [span for span in spans if atlas.producer(span[0]) not in site.far] if site.far else spans
    own += [span for slot in kept for span in site.slots[slot].maps]
    barred = site.catalogue.holding(own, site.available)
    if gone:
        barred = np.union1d(barred, _showing(atlas, site, gone))
    room = int(site.catalogue.total[site.available] - site.catalogue.widths[barred].sum())
    return replace(site, barred=barred, room=room, own=_merged(own))


def _showing(atlas: Atlas, site: Site, gone: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return the available pieces of a site that hold a channel that goes."""
    pieces = enumerate(site.catalogue.pieces[: site.available])
    found = [
        index
        for index, piece in pieces
        if (mask := gone.get(atlas.names[piece.feature])) is not None and mask[piece.start : piece.stop].any()
    ]
    return np.array(found, np.int64)


def _merged(spans: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    merged: list[int] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1]:
            merged[-1] = max(merged[-1], high)
        else:
            merged += [low, high]
    return tuple(merged)


def _is_stem(atlas: Atlas, layer: Layer, options: Options) -> bool:
    """Return whether a layer reads the network's input alone, or at density 1, where there is nothing but to move, no other."""
    if options.prunes:
        runs = atlas.graph.feature_by_name[layer.feature].runs
        return all(atlas.graph.producers[run.producer].kind == "input" for run in runs)
    return not _has_earlier(atlas, layer)


def _has_earlier(atlas: Atlas, layer: Layer) -> bool:
    """Return whether any feature of the layer's kind but its own is computed before it reads."""
    known = atlas.fresh(kind_of(atlas.graph.feature_by_name[layer.feature]))
    return any(
        atlas.graph.features[index].position < layer.reads_at and atlas.names[index] != layer.feature for index, _ in known[:2]
    )


def _no_candidate(site: Site) -> str | None:
    if site.room >= min(slot.width for slot in site.slots) * site.layer.groups:
        return None
    if site.room == 0:
        return "no earlier feature that it could read holds other maps than its own input (density below 1 would prune it)"
    return f"the earlier features that it could read have {site.room} other channels, too few for one block"
