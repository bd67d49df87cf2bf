"""wiring.alive: on the networks of the zoo, and on graphs by hand, no plan leaves a layer, norm or gate without a reader."""

from __future__ import annotations

import functools
import itertools

import block_nets as nets
import pytest
import still_alive

from swcompile.graph import GraphBuilder, LayerGraph
from swcompile.plan import Options
from swcompile.trace import trace_structure
from swcompile.wiring.alive import live_layers
from swcompile.wiring.block import wire_block
from tests.zoo import ZOO, build


@functools.cache
def zoo_graph(name: str) -> LayerGraph:
    return trace_structure(*build(name)).graph


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("block", ["auto", "producer"])
def test_nothing_in_the_zoo_is_left_unread(name: str, block: str) -> None:
    graph = zoo_graph(name)
    for density, dead in itertools.product((1.0, 0.5, 0.25), ("auto", "forbid", "allow")):
        at_zero = wire_block(graph, Options(p=0.0, density=density, dead=dead, block=block))
        for p in (0.1, 0.3, 0.7, 1.0):
            still_alive.check(graph, wire_block(graph, Options(p=p, density=density, dead=dead, block=block)), at_zero)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_gate_keeps_every_channel_where_dead_ones_are_forbidden(density: float) -> None:
    graph = nets.gated(4, 16)
    plan, at_zero = (wire_block(graph, Options(p=p, density=density, dead="forbid")) for p in (1.0, 0.0))
    gates = {producer for producer, made in enumerate(graph.producers) if made.name.endswith("gate")}
    before, after = (still_alive.alive(graph, made.taps()).channels for made in (at_zero, plan))
    assert {channel for channel in before if channel[0] in gates} <= after
    assert plan.promise.moved


def test_a_layer_is_live_if_a_path_leads_to_a_sink() -> None:
    build_ = GraphBuilder("branches")
    x = build_.layer("stem", build_.feature("x", build_.input("x", 3), (1, 3, 8, 8)), 8)
    y = build_.layer("dead end", build_.feature("a", x, (1, 8, 8, 8)), 8)
    build_.layer("end", build_.feature("b", y, (1, 8, 8, 8)), 8)
    z = build_.layer("live", build_.feature("a", x, (1, 8, 8, 8)), 8)
    graph = build_.finish()
    assert live_layers(graph) == {"stem", "dead end", "end", "live"}  # nothing tells which ends are outputs
    build_.sink(z)
    assert live_layers(build_.finish()) == {"stem", "live"}


def test_blocks_as_wide_as_producers_are_no_exception() -> None:
    for graph in (nets.unet(), nets.inception(), nets.densenet((4,), size=32)):
        for p in (0.3, 1.0):
            plan = wire_block(graph, Options(p=p, block="producer", dead="allow"))
            still_alive.check(graph, plan, wire_block(graph, Options(p=0.0, block="producer")))
