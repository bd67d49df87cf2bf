"""What the forward pass sees."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from swcompile.graph import GraphBuilder, Tap
from swcompile.metrics import channel_graph, measure
from tests.graphs import by_algorithm_1, chain, dense, residual


def test_the_walk_through_a_dense_block_takes_every_link_alike() -> None:
    made = measure(channel_graph(dense(2, 4, start=6)))
    assert made.mean_path == 1
    assert made.effective_depth == pytest.approx(1 + 4 / 10)  # of the only head: six channels at once, four through conv1


def test_the_walk_through_a_residual_stack_counts_each_addend() -> None:
    made = measure(channel_graph(residual(1, 4, inputs=3)))
    assert made.mean_path == 2  # stem, head
    assert made.effective_depth == pytest.approx((2 + 4) / 2)


def test_the_path_is_that_of_networkx_under_masks() -> None:
    graph = by_algorithm_1([3, 6, 6, 5, 5], 0.6)
    straight = nx.DiGraph()
    offset = graph.cells.offset
    for index, mask in graph.masks.items():
        start = 0
        for tap in graph.reads[index]:
            source = graph.original.feature_by_name[tap.feature].runs[0].producer
            for out, slot in np.argwhere(mask[:, start : start + tap.width]).tolist():
                straight.add_edge(int(offset[source]) + slot, int(offset[graph.original.layers[index].producer]) + out)
            start += tap.width
    away = dict(nx.all_pairs_shortest_path_length(straight))
    found = [away[i][o] for i in range(3) for o in range(20, 25) if i in away and o in away[i]]
    assert measure(graph).mean_path == pytest.approx(np.mean(found))


def test_channels_that_nothing_reads_are_dead() -> None:
    taps = {"conv2": [Tap("x", 0, 3), Tap("conv1", 0, 5)]}
    assert measure(channel_graph(chain([3, 8, 8]), taps)).dead_channels == 3
    mask = np.zeros((8, 8), np.bool_)
    mask[0, :2] = True
    assert measure(channel_graph(chain([3, 8, 8]), masks={"conv2": mask})).dead_channels == 6


def test_a_channel_that_only_a_sum_reads_lives() -> None:
    build = GraphBuilder("sum")
    x = build.input("x", 4)
    value = build.layer("conv", build.feature("x", x, (1, 4, 8, 8)), 4)
    build.sink(build.add("add", x, value))
    assert measure(channel_graph(build.finish())).dead_channels == 0
    assert measure(channel_graph(build.finish(), bypassed=[("add", 0)])).dead_channels == 4


def test_long_range_links_skip_a_layer_and_new_ones_were_not_read_before() -> None:
    taps = {"conv3": [Tap("conv1", 0, 2), Tap("conv2", 0, 6)]}
    made = measure(channel_graph(chain([3, 8, 8, 8]), taps))
    assert made.long_range == made.new == pytest.approx(2 * 8 / (3 * 8 + 64 + 64))
    assert measure(channel_graph(chain([3, 8, 8, 8]))).long_range == 0


def test_an_addend_of_the_sum_that_was_read_is_neither_far_nor_new() -> None:
    graph = residual(3, 4)
    read = {"a3": [Tap("stem", 0, 4)]}
    assert measure(channel_graph(graph, read)).long_range == 0
    far = measure(channel_graph(graph, {"a3": [Tap("a1", 0, 4)]}))
    assert far.long_range == far.new > 0


def test_the_other_half_of_a_split_map_is_new_but_not_far() -> None:
    build = GraphBuilder("split")
    value = build.layer("conv", build.feature("x", build.input("x", 2), (1, 2, 8, 8)), 8)
    build.feature("whole", value, (1, 8, 8, 8))
    half = build.feature("half", build.cat(tuple(run.cut(0, 4) for run in value)), (1, 4, 8, 8))
    build.sink(build.layer("after", half, 4))
    build.sink(value)
    made = measure(channel_graph(build.finish(), {"after": [Tap("whole", 2, 6)]}))
    assert made.long_range == 0
    assert made.new == pytest.approx(8 / (16 + 16))
