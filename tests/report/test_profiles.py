"""Distances and degrees of channels: the distributions whose means the ledger has."""

from __future__ import annotations

import math

import numpy as np
import pytest

from swcompile.graph import GraphBuilder
from swcompile.metrics import channel_graph, measure
from swcompile.plan import Options
from swcompile.report.profiles import Degrees, planned, profile
from swcompile.wiring import wire
from tests.graphs import chain
from tests.report.networks import residual


def mean(degrees: Degrees) -> float:
    return float(np.average(degrees.links, weights=degrees.channels))


def test_a_chain_is_a_layer_farther_with_each_layer():
    found = profile(planned(chain([3, 8, 8, 5]), None))
    assert found.distance == (0, 1, 2, 3)
    assert found.inward == Degrees((3.0, 8.0), (8, 13))
    assert found.outward == Degrees((5.0, 8.0), (8, 11))


@pytest.mark.parametrize("p", [0.0, 0.6])
def test_means_are_those_of_the_figures(p):
    graph = chain([3, 8, 8, 8, 8, 5])
    made = planned(graph, wire(graph, Options(p=p, block=2)))
    found, figures = profile(made), measure(made)
    assert mean(found.inward) == pytest.approx(figures.in_degree.mean)
    assert mean(found.outward) == pytest.approx(figures.out_degree.mean)
    assert found.distance[-1] == pytest.approx(figures.mean_path)


def test_a_plan_shortens_the_way():
    graph = residual(6)
    before, after = (profile(planned(graph, plan)) for plan in (None, wire(graph, Options(p=0.6, block=4))))
    assert sum(after.distance) < sum(before.distance)
    assert before.distance[-1] == pytest.approx(measure(channel_graph(graph)).mean_path)


def test_what_no_input_reaches_has_no_distance():
    build = GraphBuilder("opaque")
    joined = build.layer("joined", build.feature("x", build.input("x", 4), (2, 4)), 4)
    alone = build.layer("alone", build.feature("table", build.produce("table", "opaque", 4), (2, 4)), 4)
    build.sink(build.layer("head", build.feature("both", build.cat(joined, alone), (2, 8)), 4))
    found = profile(planned(build.finish(), None)).distance
    assert (found[:2], found[3]) == ((0, 1), 2)
    assert math.isnan(found[2])
