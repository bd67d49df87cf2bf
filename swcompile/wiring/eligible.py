"""Decide which layers block wiring may change, into which blocks their input falls, and which maps they could read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, slice_runs
from swcompile.plan import Note, Options
from swcompile.wiring.blocks import WHOLE, Atlas, Catalogue, Kind, Piece, block_size, kind_of


@dataclass(frozen=True)
class Site:
    """A layer that may be changed: its slots, and the pieces of a catalogue that it may read instead.

    Candidates are the first `available` pieces of the catalogue but for `barred` ones, which hold maps that the layer reads in
    its own input; `room` is how many channels they have. `own` are the maps of that input, as ascending borders.
    """

    layer: Layer
    kind: Kind
    slots: tuple[Piece, ...]
    catalogue: Catalogue = field(repr=False)
    available: int
    barred: NDArray[np.int64] = field(repr=False)
    room: int
    own: tuple[int, ...] = field(repr=False)

    @property
    def candidates(self) -> int:
        return self.available - len(self.barred)

    @property
    def per_group(self) -> int:
        return len(self.slots) // self.layer.groups

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
    for layer in atlas.graph.layers:
        reason = _structural(layer, atlas.graph, options)
        size = block_size(layer, options.block)
        slots = () if reason or size is None else _slots(atlas, layer, size)
        if reason is None and (size is None or len(slots) < 2):
            reason = _too_narrow(layer, options.block, size)
            narrow.append(layer)
        if reason is None and not _has_earlier(atlas, layer):
            reason = "the stem: there is no earlier feature that it could read"
        if reason is None:
            assert size is not None
            site = _site(atlas, layer, slots, size, catalogues)
            reason = _no_candidate(site)
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
    return f"its {layer.in_channels} input channels make fewer than two blocks of {size}"


def _refuse_block(block: int, narrow: Iterable[Layer]) -> None:
    fitting = max(max((layer.in_channels // layer.groups) // 2, 1) for layer in narrow)
    raise SwnetError(
        f"block={block} is too large: no layer that could be rewired holds two blocks of {block} channels. "
        f'Sizes up to {fitting} fit at least one layer; block="auto" chooses one per layer.'
    )


def _site(atlas: Atlas, layer: Layer, slots: tuple[Piece, ...], size: int, catalogues: dict[tuple[Kind, int], Catalogue]) -> Site:
    feature = atlas.graph.feature_by_name[layer.feature]
    kind = kind_of(feature)
    if (kind, size) not in catalogues:
        catalogues[kind, size] = Catalogue(atlas, kind, size)
    catalogue = catalogues[kind, size]
    spans = [atlas.span(run) for run in slice_runs(feature.runs, 0, layer.in_channels)]
    available = catalogue.available(layer.reads_at)
    barred = catalogue.holding(spans, available)
    room = int(catalogue.total[available] - catalogue.widths[barred].sum())
    return Site(layer, kind, slots, catalogue, available, barred, room, _merged(spans))


def _merged(spans: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    merged: list[int] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1]:
            merged[-1] = max(merged[-1], high)
        else:
            merged += [low, high]
    return tuple(merged)


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
        return "no earlier feature that it could read holds other maps than its own input"
    return f"the earlier features that it could read have {site.room} other channels, too few for one block"
