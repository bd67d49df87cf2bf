"""Who reads whom: stops on a line, links before and after, counted again by the ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import swnet
from swcompile.graph import GraphBuilder, Tap
from swcompile.plan import LayerWiring, Options, Plan, Promise
from swcompile.record import record
from swcompile.report.links import Link, Shortcut, links, shortcuts, stops
from tests import zoo
from tests.report.networks import residual


def planned(*wirings: LayerWiring, bypassed: tuple[tuple[str, int], ...] = ()) -> Plan:
    return Plan("", Options(p=0.5), 0.5, wirings, Promise(), bypassed=bypassed)


def chain():
    build = GraphBuilder("chain")
    x = build.input("x", 4)
    for name in ("a", "b", "c"):
        x = build.layer(name, build.feature(f"into {name}", x, (2, 4, 8, 8)), 4)
    build.sink(x)
    return build.finish()


def test_a_chain_reads_the_stop_in_front():
    assert links(chain(), None) == tuple(Link(place, place + 1, 4.0, 0.0, 0.0) for place in range(3))


def test_a_sum_stands_where_its_last_addend_is_made():
    graph = residual(1)
    assert stops(graph).tolist() == [0, 1, 2, 3, 3, 4]
    assert shortcuts(graph, None) == (Shortcut(1, 3, 16),)
    assert links(graph, None)[-1] == Link(3, 4, 16.0, 0.0, 0.0)
    assert shortcuts(graph, planned(bypassed=(("add0", 1),))) == (Shortcut(1, 3, 16, removed=True),)


def test_taps_stay_come_and_go():
    wiring = LayerWiring("c", (Tap("into c", 0, 1), Tap("into a", 0, 3)), ((0, 4),))
    assert links(chain(), planned(wiring))[2:] == (Link(0, 3, 0.0, 3.0, 0.0), Link(2, 3, 1.0, 0.0, 3.0))


def test_masked_channels_count_by_the_share_of_outputs_that_read_them():
    mask = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], np.bool_)
    wiring = LayerWiring("c", (Tap("into c", 0, 1), Tap("into b", 2, 3)), (), mask)
    assert links(chain(), planned(wiring))[2:] == (Link(1, 3, 0.0, 0.75, 0.0), Link(2, 3, 0.25, 0.0, 3.75))


def test_what_is_added_on_top_came():
    wiring = LayerWiring("c", (Tap("into c", 0, 4),), ((0, 4),), grown=(Tap("into a", 0, 2),))
    assert links(chain(), planned(wiring))[2:] == (Link(0, 3, 0.0, 2.0, 0.0), Link(2, 3, 4.0, 0.0, 0.0))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "block": (zoo.resnet_basic, {"p": 0.5}),
    "pruned": (zoo.densenet, {"p": 0.3, "density": 0.5}),
    "kernel": (zoo.mlp, {"p": 0.4, "wiring": "kernel"}),
    "tile": (zoo.resnet_basic, {"p": 0.3, "wiring": "tile", "density": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_ledger_counts_the_same_links(case):
    """The picture is made from the plan, the ledger read off the module: both say the same of every layer."""
    build, options = CASES[case]
    module = swnet.transform(build(), **options)
    found, ledger = record(module), swnet.ledger(module)
    counts = {count.layer: count for count in ledger.layers}
    at = stops(found.graph)
    outs = {wiring.layer: wiring.out(found.graph.layer_by_name[wiring.layer]) for wiring in found.plan.layers}
    drawn = links(found.graph, found.plan)
    for layer in found.graph.layers:
        out = max(outs.get(layer.name, layer.out_channels) // layer.groups, 1)
        read = [link for link in drawn if link.reader == at[layer.producer]]
        kept, came = (round(sum(getattr(link, side) for link in read) * out) for side in ("kept", "came"))
        assert (kept, came) == (counts[layer.name].kept, counts[layer.name].moved), layer.name
        assert sum(link.before for link in read) == pytest.approx(layer.in_channels)
    assert ledger.links_moved > 0
