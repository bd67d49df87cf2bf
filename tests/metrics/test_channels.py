"""The channel graph: its classes, its nodes, and what it says to a wrong request."""

from __future__ import annotations

import numpy as np
import pytest

from swcompile.errors import SwnetError
from swcompile.graph import GraphBuilder, Tap, slice_runs
from swcompile.metrics import channel_graph, measure
from swcompile.metrics.twins import without_twins
from tests.graphs import VGG16, chain, dense, inverted, residual


def test_a_plain_chain_has_a_class_for_each_layer() -> None:
    made = channel_graph(chain(VGG16))
    assert (made.nodes, made.edges, len(made.weight)) == (4_227, 1_634_496, 14)


def test_a_tap_cuts_the_producer_that_it_reads() -> None:
    made = channel_graph(chain([3, 8, 8, 8]), {"conv3": [Tap("conv1", 2, 6), Tap("conv2", 0, 4)]})
    assert made.weight.tolist() == [3, 2, 4, 2, 4, 4, 8]


def test_cells_that_turn_out_equal_are_merged() -> None:
    made = channel_graph(chain([3, 8, 8, 4]), {"conv3": [Tap("conv2", 0, 2), Tap("conv2", 4, 6), Tap("conv1", 0, 4)]})
    assert made.weight.tolist() == [3, 4, 4, 2, 2, 2, 2, 4]
    assert sorted(without_twins(made.classes).weight.tolist()) == [4, 4, 4, 4, 7]


def test_a_depthwise_layer_links_channel_to_channel() -> None:
    build = GraphBuilder("depthwise")
    value = build.layer("conv", build.feature("x", build.input("x", 2), (1, 2, 8, 8)), 3)
    value = build.layer("depthwise", build.feature("conv", value, (1, 3, 8, 8)), 6, groups=3)
    build.sink(value)
    made = channel_graph(build.finish())
    assert (made.nodes, made.edges) == (11, 2 * 3 + 6)


def test_opaque_operations_are_no_nodes() -> None:
    build = GraphBuilder("opaque")
    value = build.layer("conv", build.feature("x", build.input("x", 2), (1, 2, 8, 8)), 3)
    value = build.produce("attention", "opaque", 3, (value,))
    build.sink(build.layer("after", build.feature("attention", value, (1, 3, 8, 8)), 4))
    made = measure(channel_graph(build.finish()))
    assert (made.as_dict()["V"], made.as_dict()["E"]) == (9, 6)
    assert made.mean_path == 2
    assert made.effective_depth == 2


def test_a_bypassed_sum_is_its_remaining_addend() -> None:
    graph = residual(2, 4)
    both = channel_graph(graph, bypassed=[("add1", 1), ("add2", 1)])
    assert both.edges == channel_graph(chain([3, 4, 4, 4, 4, 4, 10])).edges
    assert channel_graph(graph).edges > both.edges


def test_a_mask_of_ones_changes_nothing() -> None:
    plain = measure(channel_graph(dense(4)))
    masks = {layer.name: np.ones((layer.out_channels, layer.in_channels), np.bool_) for layer in dense(4).layers}
    masked = measure(channel_graph(dense(4), masks=masks)).as_dict()
    for name, value in plain.as_dict().items():
        assert masked[name] == (pytest.approx(value) if isinstance(value, float | dict) else value), name


def test_a_mask_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(SwnetError, match=r"mask of conv1 is bool of shape \(8, 4\); give booleans of shape \(8, 3\)"):
        channel_graph(chain([3, 8]), masks={"conv1": np.ones((8, 4), np.bool_)})


def test_unknown_layers_and_sums_are_refused() -> None:
    with pytest.raises(SwnetError, match="no layer 'conv9' in chain"):
        channel_graph(chain([3, 8]), {"conv9": [Tap("x", 0, 3)]})
    with pytest.raises(SwnetError, match="no sum 'conv1' in chain"):
        channel_graph(chain([3, 8]), bypassed=[("conv1", 0)])


def test_depthwise_layers_cut_what_they_read_and_what_they_make_alike() -> None:
    graph = inverted(2, 16)
    made = channel_graph(graph, {"project2": [Tap("depthwise1", 0, 4), Tap("depthwise2", 4, 16)]})
    sizes = {
        name: made.cells.size[made.cells.of_producer(place)].tolist()
        for place, name in enumerate(made.name for made in graph.producers)
    }
    assert sizes["depthwise1"] == sizes["expand1"] == [4, 12]
    assert sizes["depthwise2"] == sizes["expand2"] == [4, 12]


def test_a_map_added_to_itself_one_channel_on_is_cut_into_channels() -> None:
    build = GraphBuilder("shifted")
    value = build.layer("conv", build.feature("x", build.input("x", 2), (1, 2, 8, 8)), 41)
    shifted = build.add("add", slice_runs(value, 0, 40), slice_runs(value, 1, 41))
    build.sink(build.layer("depthwise", build.feature("add", shifted, (1, 40, 8, 8)), 40, groups=40))
    made = channel_graph(build.finish())
    assert made.weight.tolist() == [1] * made.nodes
    assert made.edges == 2 * 41 + 2 * 40
