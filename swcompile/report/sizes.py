"""How large each layer is, before and after a plan: channels, weights, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from swcompile.graph import Layer, LayerGraph
from swcompile.plan import LayerWiring, Plan
from swcompile.shrink import shrink
from swcompile.wiring.kernel_skips import unused, without_skips


@dataclass(frozen=True)
class Size:
    """Channels that a layer reads and makes, its groups, weights without the bias, and multiply-accumulates per sample.

    Of a masked layer, the channels that some output reads and the weights that are live count.
    """

    reads: int
    makes: int
    groups: int = 1
    weights: int = 0
    macs: int = 0


def size_of(layer: Layer) -> Size:
    """Return the size of a layer as it stands."""
    weights = layer.links * layer.kernel_area
    return Size(layer.in_channels, layer.out_channels, layer.groups, weights, weights * layer.positions)


def sizes(graph: LayerGraph, plan: Plan | None) -> Mapping[str, Size]:
    """Return the size of each layer under a plan (none: as it stands), by name."""
    if plan is None:
        return {layer.name: size_of(layer) for layer in graph.layers}
    left, _ = shrink(graph, plan.outputs(), plan.reads())
    wirings, resting = {wiring.layer: wiring for wiring in plan.layers}, idle(graph, plan)
    found = {layer.name: _wired(layer, wirings.get(layer.name)) for layer in left.layers}
    return {name: replace(size, macs=0) if name in resting else size for name, size in found.items()}


def _wired(layer: Layer, wiring: LayerWiring | None) -> Size:
    """Return the size of a layer that reads by a wiring; what it makes is in the layer already."""
    if wiring is None:
        return size_of(layer)
    own = replace(layer, in_channels=wiring.width)
    reads, links = (own.in_channels, own.links) if wiring.mask is None else (int(wiring.mask.any(0).sum()), int(wiring.mask.sum()))
    grown = sum(tap.width for tap in wiring.grown)
    weights = (links + grown * layer.out_channels) * layer.kernel_area
    return Size(reads + grown, layer.out_channels, layer.groups, weights, weights * layer.positions)


def idle(graph: LayerGraph, plan: Plan) -> frozenset[str]:
    """Return the layers that are not run any more, since only a shortcut that the plan removes read them."""
    return unused(without_skips(graph)[0], graph.heads) if plan.bypassed else frozenset()
