"""Wire in tiles, (output block x input block): outputs fall into clusters, and each reads a few blocks of its own choice.

    four clusters of 16 outputs, eight blocks of input, density .5, p = .25: which block is read by which cluster

        own input   0 1 2 3 4 5 6 7   far
        cluster 0   x x x . . . . .   x
        cluster 1   . . . x x x . .   x
        cluster 2   x . . . . . x x   x
        cluster 3   . x x x . . . .   x

Between the other two: finer than `block`, whose outputs all read the same, and coarser than `kernel`, whose links lie where no
dense kernel finds them. At most half of the tiles stay, for above that every way to run them is slower than the dense layer;
that neighbouring outputs share their blocks makes of each cluster one dense product over a gathered input. Live weights count;
the layer is stored as a masked one over the union of what its clusters read. Links that stay keep their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.plan import BUDGETS, MOST_TILES, LayerWiring, Note, Options, Plan, Promise, promised_change
from swcompile.wiring.apportion import apportion
from swcompile.wiring.blocks import Atlas, Piece, power_of_two
from swcompile.wiring.budget import Budget, Slots, is_loose
from swcompile.wiring.draw import Draw
from swcompile.wiring.eligible import Site, find_sites
from swcompile.wiring.kernel import MASKABLE
from swcompile.wiring.sources import draw_pieces, fill, weights_of

CLUSTERS = 4
"""Into how many clusters a layer's outputs fall, where there are as many blocks of them."""
NARROWEST = 4
"""The fewest outputs of a cluster."""
OTHER = 1 << 32
"""Channel c of feature number f has the key (f + 1) * OTHER + c; the layer's own have the key c, and so come first."""


def wire_tile(graph: LayerGraph, options: Options) -> Plan:
    """Decide which tiles of which layers stay, and which of these read from far. Pure: the same arguments give the same plan."""
    return TileWiring(graph, options).plan(options.number)


def clusters_of(layer: Layer) -> list[tuple[int, int]]:
    """Return the ranges of output channels that read alike.

    >>> clusters_of(Layer("y", "y", 0, "Conv2d", "x", 0, in_channels=8, out_channels=64))
    [(0, 16), (16, 32), (32, 48), (48, 64)]
    """
    count = max(2, min(CLUSTERS, power_of_two(max(layer.out_channels // NARROWEST, 1))))
    borders = [layer.out_channels * place // count for place in range(count + 1)]
    return [(low, high) for low, high in pairwise(borders) if low < high]


@dataclass(frozen=True)
class _Support:
    """What one cluster reads: slots of the layer's own input, and those in place of which it reads from far."""

    rows: tuple[int, int]
    own: tuple[int, ...]
    moved: tuple[int, ...]


class TileWiring:
    """Everything about a wiring that does not depend on p, so that a sweep over p pays for it once."""

    def __init__(self, graph: LayerGraph, options: Options) -> None:
        self.graph, self.asked = graph, options
        self.atlas = Atlas(graph)
        found, refused = find_sites(self.atlas, options)
        barred = [_unmaskable(site.layer) for site in found]
        self.sites = [site for site, why in zip(found, barred, strict=True) if why is None]
        self.notes = [*refused, *(Note(site.layer.name, why) for site, why in zip(found, barred, strict=True) if why)]
        self.clusters = [clusters_of(site.layer) for site in self.sites]
        self._orders = [Draw(options.seed, site.layer.name).shuffled(range(len(site.slots))) for site in self.sites]
        self._distances = {} if options.reach == "uniform" else {layer.name: vector for layer, vector in graph.distances()}
        tiles = [_as_tiles(site, len(clusters)) for site, clusters in zip(self.sites, self.clusters, strict=True)]
        asked = _of_what_may_stay(graph, options)
        self.budget = Budget(graph, asked, tiles, [[range(len(site.slots))] for site in tiles], list)
        self._kept: Slots = [list(range(len(site.slots))) for site in tiles]
        if asked.prunes:
            self.budget.counts(self)
            self._kept = self.budget.filled(self, self._kept, [()] * len(tiles))

    def settle(self, counts: Sequence[int]) -> None:
        """Keep so many tiles of each site, and one of each cluster at least."""
        self._kept = [list(range(max(count, len(some)))) for count, some in zip(counts, self.clusters, strict=True)]

    def kept_slots(self) -> Slots:
        """Return the tiles that each site keeps: only their number counts."""
        return self._kept

    def change(self, kept: Slots) -> tuple[int, int]:
        """Return by how many parameters and multiply-accumulates the model changes where sites keep so many tiles."""
        params = macs = 0
        for place, tiles in enumerate(kept):
            layer = self.sites[place].layer
            gone = (layer.links - self._live(place, len(tiles))) * layer.kernel_area
            params -= gone
            macs -= gone * layer.positions
        return params, macs

    def _live(self, place: int, tiles: int) -> int:
        """Return how many links a site has with so many tiles: what moves is as wide as the slots in whose place it is."""
        slots = self.sites[place].slots
        return sum(
            (support.rows[1] - support.rows[0]) * sum(slots[slot].width for slot in (*support.own, *support.moved))
            for support in self._supports(place, tiles, 0)
        )

    def _supports(self, place: int, tiles: int, moves: int) -> list[_Support]:
        """Deal the slots out in a circle, so that each has a reader as soon as there are tiles enough."""
        order, clusters = self._orders[place], self.clusters[place]
        at = 0
        made: list[_Support] = []
        for number, rows in enumerate(clusters):
            count, far = ((some + number) // len(clusters) for some in (tiles, moves))
            dealt = [order[(at + step) % len(order)] for step in range(count)]
            made.append(_Support(rows, tuple(dealt[: count - far]), tuple(dealt[count - far :])))
            at += count - far
        return made

    def plan(self, p: float, *, fill: bool = True) -> Plan:
        """Return the plan for one p; `fill` is as for wiring `block`, and makes no difference here."""
        tiles = list(map(len, self._kept))
        wanted, moves, wirings = self._decided(p, tiles)
        while not self.budget.is_met(promised_change(wirings, self.graph)):  # norms in front grow with what is read from far
            spare = [count - len(some) for count, some in zip(tiles, self.clusters, strict=True)]
            if max(spare) < 1:
                raise SwnetError(
                    f"{self.asked.asked_to_keep} cannot be met at p = {p:g}: norms grow with what is read from far. {_LESS}"
                )
            tiles[spare.index(max(spare))] -= 1
            wanted, moves, wirings = self._decided(p, tiles)
        change = promised_change(wirings, self.graph)
        layers = self.graph.layer_by_name
        units = sum(layers[wiring.layer].links for wiring in wirings)
        live = sum(int(wiring.mask.sum()) for wiring in wirings if wiring.mask is not None)
        far = sum(_far_links(wiring, layers[wiring.layer]) for wiring in wirings)
        notes = [*self.notes]
        for place, (asked, done) in enumerate(zip(wanted, moves, strict=True)):
            if done < asked:
                text = f"{done} of {asked} tiles moved: the others have maps that nobody else reads, or nothing to read instead"
                notes.append(Note(self.sites[place].layer.name, text))
        for site, count in zip(self.sites, tiles, strict=True):
            if count < len(site.slots):
                text = f"{len(site.slots) - count} blocks of its input are unread: it keeps fewer tiles than there are"
                notes.append(Note(site.layer.name, text))
        met = self.budget.note(change)
        notes += [] if met is None else [met]
        promise = Promise(units, far, units - live, *change)
        return Plan(self.graph.fingerprint, replace(self.asked, p=float(p)), self.asked.p, wirings, promise, tuple(notes))

    def _decided(self, p: float, tiles: Sequence[int]) -> tuple[list[int], list[int], tuple[LayerWiring, ...]]:
        """Return how many tiles of each site were to move, how many do, and the wirings."""
        wanted = apportion(p, tiles, [1] * len(tiles))
        moves = [self._movable(place, *counts) for place, counts in enumerate(zip(tiles, wanted, strict=True))]
        supports = (self._supports(place, *counts) for place, counts in enumerate(zip(tiles, moves, strict=True)))
        return wanted, moves, tuple(self._wiring(place, found) for place, found in enumerate(supports))

    def _movable(self, place: int, tiles: int, wanted: int) -> int:
        """Return how many tiles may move: each slot keeps a reader where there are tiles enough, and candidates fill the others."""
        site = self.sites[place]
        if self.asked.dead != "allow":
            wanted = min(wanted, max(tiles - len(site.slots), 0))
        while wanted and self._widest(place, tiles, wanted) > site.room:
            wanted -= 1
        return wanted

    def _widest(self, place: int, tiles: int, moves: int) -> int:
        """Return how many channels a cluster reads from far, at most."""
        slots = self.sites[place].slots
        return max(sum(slots[slot].width for slot in support.moved) for support in self._supports(place, tiles, moves))

    def _wiring(self, place: int, supports: Sequence[_Support]) -> LayerWiring:
        site = self.sites[place]
        own = self.atlas.place[site.layer.feature]
        keys = _Keys(self.atlas, site, own)
        read: list[NDArray[np.int64]] = []
        for number, support in enumerate(supports):
            columns = [np.arange(site.slots[slot].start, site.slots[slot].stop) for slot in support.own]
            if support.moved:
                draw = Draw(self.asked.seed, f"{site.layer.name} sources {number}")
                weights = weights_of(site, self.asked.reach, self._distances.get(site.layer.name))
                widths = [site.slots[slot].width for slot in support.moved]
                for pieces in fill(self.atlas, widths, draw_pieces(site, draw, weights)):
                    columns += [keys.of(piece) for piece in pieces]
            read.append(np.concatenate(columns))
        known = np.unique(np.concatenate(read))
        mask = np.zeros((site.layer.out_channels, len(known)), np.bool_)
        for support, found in zip(supports, read, strict=True):
            mask[support.rows[0] : support.rows[1], np.searchsorted(known, found)] = True
        return LayerWiring(site.layer.name, tuple(self._taps(site.layer, known)), (), mask)

    def _taps(self, layer: Layer, keys: NDArray[np.int64]) -> list[Tap]:
        """Merge ascending keys into maximal ranges of channels."""
        taps: list[Tap] = []
        for run in np.split(keys, np.flatnonzero(np.diff(keys) != 1) + 1):
            number, first = divmod(int(run[0]), OTHER)
            name = self.atlas.names[number - 1] if number else layer.feature
            taps.append(Tap(name, first, first + len(run), self.asked.resample))
        return taps


_LESS = "Take a larger budget, or a smaller p."


class _Keys:
    """Through which column of which feature a layer reads each map: one for all of its clusters."""

    def __init__(self, atlas: Atlas, site: Site, own: int) -> None:
        self.atlas, self.site, self.own = atlas, site, own
        self._known: dict[int, int] = {}

    def of(self, piece: Piece) -> NDArray[np.int64]:
        """Return the keys of a piece's channels."""
        feature, start, stop = self.atlas.best_view(piece, self.site.kind, self.site.layer)
        columns = np.arange(start, stop) + (0 if feature == self.own else (feature + 1) * OTHER)
        if len(piece.maps) > 1 or piece.maps[0][1] - piece.maps[0][0] != piece.width:
            return columns
        maps = range(*piece.maps[0])
        return np.array([self._known.setdefault(one, int(key)) for one, key in zip(maps, columns, strict=True)], np.int64)


def _of_what_may_stay(graph: LayerGraph, options: Options) -> Options:
    """Return the options with shares of the tiles that may stay, where the user names shares of all."""
    if is_loose(graph, options):
        return replace(options, **BUDGETS, wiring="block")
    keep = tuple((name, share / MOST_TILES) for name, share in options.keep)
    return replace(options, density=min(1.0, options.density / MOST_TILES), keep=keep, wiring="block")


def _unmaskable(layer: Layer) -> str | None:
    if layer.kind not in MASKABLE:
        return f"a {layer.kind}: only {', '.join(MASKABLE)} can be masked"
    if layer.groups > 1:
        return f"in {layer.groups} groups, each of which has tiles of its own already"
    return "it makes a single channel" if layer.out_channels < 2 else None


def _as_tiles(site: Site, clusters: int) -> Site:
    """Return a site whose slots are the tiles that may stay, each as wide as the narrowest block: what a budget deals with."""
    narrowest = min(site.slots, key=lambda slot: slot.width)
    return replace(site, slots=(narrowest,) * (clusters * max(1, int(len(site.slots) * MOST_TILES))))


def _far_links(wiring: LayerWiring, layer: Layer) -> int:
    assert wiring.mask is not None
    far = np.concatenate([np.full(tap.width, tap.feature != layer.feature) for tap in wiring.taps])
    return int(wiring.mask[:, far].sum())
