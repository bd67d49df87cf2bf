"""Decide which maps share a slab, and where in it each lies.

Maps that one site reads together must share one; so slabs are the connected components of "read together". A slot is free again
behind the last site that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import fx

from swcompile.lower.sites import Site
from swcompile.trace.shapes import spec_of
from swkernels.arena import Lifetime, lay_out


@dataclass(frozen=True)
class Region:
    """Sites over one slab: the maps in it in the order in which they are made, and the channel each starts at."""

    sites: tuple[Site, ...]
    maps: tuple[fx.Node, ...]
    starts: tuple[int, ...]
    width: int

    @property
    def axis(self) -> int:
        """Where the maps have their channels."""
        return self.sites[0].axis

    def runs(self, site: Site) -> tuple[int, ...]:
        """Return what a site reads of the slab, as swkernels.Taps.flat has it."""
        start = dict(zip(self.maps, self.starts, strict=True))
        return tuple(
            number for piece in site.pieces for number in (0, start[piece.source] + piece.start, start[piece.source] + piece.stop)
        )


def lay_out_regions(graph: fx.Graph, sites: Sequence[Site]) -> tuple[Region, ...]:
    """Return the regions of a graph, in the order of their first site."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    together: Any = nx.Graph()
    for site in sites:
        nx.add_path(together, [(site.axis, source) for source in site.sources])
        together.add_nodes_from((site.axis, source) for source in site.sources)
    regions = []
    for component in nx.connected_components(together):
        members = {source for _, source in component}
        axis = next(axis for axis, _ in component)
        own = tuple(site for site in sites if site.axis == axis and site.sources[0] in members)
        regions.append(_region(own, sorted(members, key=place.__getitem__), place))
    return tuple(sorted(regions, key=lambda region: place[region.sites[0].last]))


def _region(sites: tuple[Site, ...], maps: Sequence[fx.Node], place: dict[fx.Node, int]) -> Region:
    lives = []
    for source in maps:
        spec = spec_of(source)
        assert spec is not None, "sites are found among values with shapes"
        read = max(place[site.last] for site in sites if source in site.sources)  # a site stands where its last node stood
        lives.append(Lifetime(spec.shape[sites[0].axis], place[source], read))
    slab = lay_out(lives)
    return Region(sites, tuple(maps), slab.starts, slab.width)
