"""Estimates against exact values, and one step of the spread against the adjacency."""

from __future__ import annotations

import numpy as np

from swcompile.metrics import ChannelGraph, channel_graph, measure
from swcompile.metrics.bits import unpack
from swcompile.metrics.sampled import one_hot, sample_clustering, sample_paths
from swcompile.metrics.sampling import Stream, wedges_for
from swcompile.metrics.spread import Spread
from tests.graphs import by_algorithm_1, dense, residual


def _graphs() -> list[ChannelGraph]:
    return [by_algorithm_1([3, 12, 12, 20, 20], 0.5), channel_graph(dense(8)), channel_graph(residual(6))]


def test_a_step_finds_the_neighbours() -> None:
    for graph in _graphs():
        count = len(graph.weight)
        near = Spread(graph).step(one_hot(np.arange(count), count))
        assert np.array_equal(unpack(near, count), unpack(graph.classes.rows, count))


def test_estimates_are_inside_their_intervals() -> None:
    for graph in _graphs():
        exact, spread = measure(graph).as_dict(), Spread(graph)
        near = sample_clustering(spread, graph.weight, Stream(0, "wedges"))
        far = sample_paths(spread, graph.weight, Stream(0, "sources"))
        assert near.interval.low <= exact["C"] <= near.interval.high  # type: ignore[operator]
        assert far.interval.low <= exact["L"] <= far.interval.high  # type: ignore[operator]
        assert abs(near.transitivity - exact["transitivity"]) < 0.02  # type: ignore[operator]
        assert far.unreachable == 0


def test_the_number_of_wedges_is_the_stated_one() -> None:
    assert wedges_for(0.01, 0.95) == 18_445


def test_the_same_name_draws_the_same() -> None:
    assert Stream(0, "a").integers(10**6, 4).tolist() == Stream(0, "a").integers(10**6, 4).tolist()
    assert Stream(0, "a").integers(10**6, 4).tolist() != Stream(0, "b").integers(10**6, 4).tolist()
    assert sorted(Stream(3, "order").order(50).tolist()) == list(range(50))
