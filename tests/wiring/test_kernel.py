"""wiring.kernel: Algorithm 1 of SWANN on known networks, and what any plan must keep to on graphs drawn at random."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swcompile.graph import GraphBuilder, LayerGraph, Run
from swcompile.metrics import channel_graph
from swcompile.metrics.clustering import clustering
from swcompile.metrics.paths import paths
from swcompile.plan import Options, Plan
from swcompile.verify import verify
from swcompile.wiring.kernel import wire_kernel
from swcompile.wiring.kernel_links import choose, number_sources, ranks
from swcompile.wiring.kernel_skips import unused, without_dense_links, without_skips

Value = tuple[Run, ...]

VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_SIZES = (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
RESNET18 = (3, 64, *[64] * 4, *[128] * 4, *[256] * 4, *[512] * 4, 1000)
DENSE = (16, *[12] * 12)


def kernel(p: float, **options: object) -> Options:
    return Options(wiring="kernel", p=p, **options)  # type: ignore[arg-type]


def chain(widths: tuple[int, ...], sizes: tuple[int, ...] = (), kernels: tuple[int, ...] = ()) -> LayerGraph:
    build = GraphBuilder("chain")
    value = build.input("x", widths[0])
    for number, width in enumerate(widths[1:]):
        size, side = (sizes or (8,) * len(widths))[number], (kernels or (3,) * len(widths))[number]
        feature = build.feature(f"f{number}", value, (1, widths[number], size, size))
        value = build.layer(f"conv{number + 1}", feature, width, kernel_size=(side, side), positions=size * size)
    build.sink(value)
    return build.finish()


def classified(*, flat: int = 1) -> LayerGraph:
    """Return three convolutions, then a linear layer on their pooled (flat = 1) or flattened output."""
    build = GraphBuilder("classified")
    value = build.input("x", 3)
    for number, width in enumerate((8, 8, 8)):
        feature = build.feature(f"f{number}", value, (1, value[-1].stop, 4, 4))
        value = build.layer(f"conv{number + 1}", feature, width, kernel_size=(3, 3), positions=16)
    slots = tuple(Run(flat * at, flat * at + flat, value[0].producer, at, 0) for at in range(8)) if flat > 1 else value
    build.sink(build.layer("fc", build.feature("vector", slots, (1, 8 * flat)), 10, kind="Linear"))
    return build.finish()


def live(plan: Plan, graph: LayerGraph) -> dict[str, NDArray[np.bool_]]:
    """Return the mask of every layer, of ones where it is not rewired."""
    return {layer.name: np.ones((layer.out_channels, layer.in_channels), bool) for layer in graph.layers} | plan.masks()


def out_degrees(plan: Plan, graph: LayerGraph) -> Counter[int]:
    ids, _ = number_sources(graph)
    degrees: Counter[int] = Counter()
    for layer in graph.layers:
        taps = plan.taps().get(layer.name, graph.reads(layer))
        sources = np.concatenate([ids[tap.feature][tap.start : tap.stop] for tap in taps])
        degrees.update(dict(zip(sources.tolist(), live(plan, graph)[layer.name].sum(axis=0).tolist(), strict=True)))
    return degrees


def measured(plan: Plan, graph: LayerGraph) -> tuple[int, int, float, float]:
    channels = channel_graph(graph, plan.taps(), plan.masks(), bypassed=plan.bypassed)
    return channels.nodes, channels.edges, clustering(channels.classes).C, paths(channels.classes).L


@pytest.mark.parametrize(("p", "C", "L"), [(0.1, 0.053, 1.828), (0.5, 0.176, 1.817), (0.85, 0.229, 1.817)])
def test_vgg16_has_the_published_clustering_and_path_length(p: float, C: float, L: float) -> None:
    graph = chain(VGG16, VGG16_SIZES)
    V, E, found_C, found_L = measured(wire_kernel(graph, kernel(p)), graph)
    assert (V, E) == (4227, 1_634_496)
    assert found_C == pytest.approx(C, abs=6e-4)
    assert found_L == pytest.approx(L, abs=6e-4)


@pytest.mark.parametrize(("p", "C", "L"), [(0.3, 0.0917, 1.8636), (0.85, 0.170, 1.858)])
def test_plain_resnet18_of_1000_outputs(p: float, C: float, L: float) -> None:
    graph = chain(RESNET18)
    V, E, found_C, found_L = measured(wire_kernel(graph, kernel(p)), graph)
    assert (V, E) == (4907, 1_732_800)
    assert found_C == pytest.approx(C, abs=1e-3)
    assert found_L == pytest.approx(L, abs=6e-4)
    assert found_L >= 2 - 2 * E / (V * (V - 1)), "no graph of so many edges has shorter paths"


def test_short_edges_of_a_dense_block_reach_the_published_figures_on_the_average_of_seeds() -> None:
    graph = chain(DENSE)
    found = np.array([measured(wire_kernel(graph, kernel(0.9, seed=seed)), graph) for seed in range(8)])
    assert set(map(tuple, found[:, :2])) == {(160, 1776)}
    assert found[:, 2].mean() == pytest.approx(0.165, abs=3e-3)
    assert found[:, 3].mean() == pytest.approx(1.938, abs=4e-3)


@pytest.mark.parametrize(("p", "millions"), [(0.0, 313), (0.1, 291), (0.3, 246), (0.5, 202), (0.85, 124.5)])
def test_multiplications_of_vgg16_fall_as_links_land_in_smaller_maps(p: float, millions: float) -> None:
    graph = chain(VGG16, VGG16_SIZES)
    before = sum(layer.links * layer.kernel_area * layer.positions for layer in graph.layers)
    assert (before + wire_kernel(graph, kernel(p)).promise.macs) / 1e6 == pytest.approx(millions, abs=0.6)


def test_vgg16_is_wired_within_three_seconds() -> None:
    graph = chain(VGG16, VGG16_SIZES)
    began = time.process_time()
    plan = wire_kernel(graph, kernel(0.85))
    assert time.process_time() - began < 3
    assert plan.promise.p == pytest.approx(0.85, abs=1e-3)
    assert plan.promise.units == 1_634_496 - 512 * 512, "the last layer's own links do not count"


def test_a_link_keeps_its_source_and_moves_forward_only() -> None:
    graph = chain(VGG16, VGG16_SIZES)
    plan = wire_kernel(graph, kernel(0.85))
    verify(plan, graph)
    assert out_degrees(plan, graph) == out_degrees(wire_kernel(graph, kernel(0)), graph)
    place = {feature.name: number for number, feature in enumerate(graph.features)}
    for number, layer in enumerate(graph.layers):
        mask = plan.masks()[layer.name]
        assert mask.any(axis=1).all(), "an output channel has no input"
        assert mask.any(axis=0).all(), "a tapped channel has no link"
        taps = plan.taps()[layer.name]
        assert taps[0].feature == layer.feature
        assert all(place[tap.feature] < number for tap in taps if tap.feature != layer.feature)
    assert plan.masks()["conv13"][:, :512].all(), "the last layer keeps its own links"


def test_the_stem_is_a_source_and_no_target() -> None:
    graph = chain(VGG16, VGG16_SIZES)
    plan = wire_kernel(graph, kernel(0.5))
    assert {tap.feature for tap in plan.taps()["conv1"]} == {"f0"}
    assert plan.masks()["conv1"].sum() < 192
    assert any(tap.feature == "f0" for layer, taps in plan.taps().items() if layer != "conv1" for tap in taps)


def test_targets_are_uniform_over_free_nodes() -> None:
    graph = chain((4, 40, 10, 50, 30))
    plan = wire_kernel(graph, kernel(1.0, min_in_degree=0))
    masks = live(plan, graph)
    counts = {name: int(masks[name][:, _columns(plan, name, "f0")].sum()) for name in ("conv2", "conv3", "conv4")}
    # conv1's 160 links go to 90 nodes, 10 of conv2, 50 of conv3 and 30 of conv4; one came back, since none was left
    assert sum(counts.values()) == 159
    for name, width in (("conv2", 10), ("conv3", 50), ("conv4", 30)):
        assert counts[name] == pytest.approx(159 * width / 90, abs=16)  # 3 standard deviations


def _columns(plan: Plan, layer: str, feature: str) -> list[int]:
    names = [tap.feature for tap in plan.taps()[layer] for _ in range(tap.width)]
    return [at for at, name in enumerate(names) if name == feature]


def test_nothing_changes_at_p_0() -> None:
    graph = chain(VGG16, VGG16_SIZES)
    plan = wire_kernel(graph, kernel(0))
    assert plan.layers == ()
    assert plan.promise.units == 1_634_496 - 512 * 512
    assert (plan.promise.moved, plan.promise.params, plan.promise.macs) == (0, 0, 0)


def test_the_same_seed_gives_the_same_bytes_on_every_machine() -> None:
    graph = chain((3, 8, 8, 12, 6), (8, 8, 4, 4), (3, 3, 1, 3))
    made = wire_kernel(graph, kernel(0.4, seed=3))
    assert made.to_json() == wire_kernel(graph, kernel(0.4, seed=3)).to_json()
    assert made.to_json() != wire_kernel(graph, kernel(0.4, seed=4)).to_json()
    assert Plan.from_json(made.to_json()) == made
    assert hashlib.sha256(made.to_json().encode()).hexdigest() == PINNED


PINNED = "8b27a8c6904d324296abec636fbe98338d2673087554d5f610160c7fdd278f64"


def test_links_without_a_free_node_stay_and_are_told() -> None:
    graph = chain((16, 512, 512, 10))
    plan = wire_kernel(graph, kernel(0.5))
    verify(plan, graph)
    (note,) = plan.notes
    assert note.layer == "conv2"
    stuck = int(note.reason.split()[0])
    # 512 sources with about 256 links to move each, and ten nodes that are not theirs yet
    assert stuck == pytest.approx(512 * (256 - 10), rel=0.01)
    assert note.reason.endswith("links stay: no later output channel that can read them is free")
    masks = live(plan, graph)
    assert int(masks["conv3"].sum()) > 512 * 10 + 512 * 10
    stays = masks["conv2"][:, : plan.taps()["conv2"][0].width].sum(axis=1)
    assert stays.min() > 480, "which links stay does not depend on their place"
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(layer.links for layer in graph.layers)


@pytest.mark.parametrize("least", [0, 1, 3, 20])
def test_output_channels_get_their_own_links_back(least: int) -> None:
    graph = chain((3, 64, 64, 64, 32))
    plan = wire_kernel(graph, kernel(1.0, min_in_degree=least))
    verify(plan, graph)
    assert out_degrees(plan, graph) == out_degrees(wire_kernel(graph, kernel(0)), graph)
    masks = live(plan, graph)
    for layer in graph.layers:
        assert masks[layer.name].sum(axis=1).min() >= min(least, layer.in_channels)
        assert masks[layer.name].any(), "not even with min_in_degree=0 is a layer left without any link"
    came_back = [note for note in plan.notes if "came back" in note.reason]
    assert came_back[0].layer == "conv1"
    wanted = "none was left" if not least else f"an output channel had fewer than {least} inputs"
    assert came_back[0].reason.endswith(wanted)
    if least == 3:
        assert plan.masks().get("conv1") is None, "the stem has three inputs, so that all of its links are back"


def test_the_budget_of_links_lets_parameters_change_with_the_new_kernels() -> None:
    graph = chain((3, 16, 32, 32, 32, 10), kernels=(7, 1, 3, 1, 3))
    plan = wire_kernel(graph, kernel(0.5))
    verify(plan, graph)
    assert plan.promise.params != 0
    masks = live(plan, graph)
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(layer.links for layer in graph.layers)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_the_budget_of_parameters_is_held_to_within_a_kernel(p: float) -> None:
    graph = chain((3, 16, 32, 32, 32, 10), kernels=(7, 1, 3, 1, 3))
    plan = wire_kernel(graph, kernel(p, budget="params"))
    verify(plan, graph)
    assert abs(plan.promise.params) <= 49
    assert 0 < plan.promise.moved < wire_kernel(graph, kernel(p)).promise.moved
    assert out_degrees(plan, graph) == out_degrees(wire_kernel(graph, kernel(0)), graph)
    assert any("budget='params'" in note.reason for note in plan.notes)


def residual() -> LayerGraph:
    """Return a stem, a block with an identity shortcut, one with a projection, and a classifier."""
    build = GraphBuilder("residual")
    shape = (1, 8, 4, 4)
    stem = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 4, 4)), 8, kernel_size=(3, 3), positions=16)
    a = build.layer("a", build.feature("relu", stem, shape), 8, kernel_size=(3, 3), positions=16)
    b = build.layer("b", build.feature("relu_1", a, shape), 8, kernel_size=(3, 3), positions=16)
    first = build.add("add", b, stem)
    feature = build.feature("relu_2", first, shape)
    short = build.layer("projection", feature, 8, kernel_size=(1, 1), positions=16)
    c = build.layer("c", feature, 8, kernel_size=(3, 3), positions=16)
    d = build.layer("d", build.feature("relu_3", c, shape), 8, kernel_size=(3, 3), positions=16)
    second = build.add("add_1", short, d)
    build.sink(build.layer("fc", build.feature("pool", second, (1, 8)), 10, kind="Linear"))
    return build.finish()


def test_a_sum_moves_as_one_source() -> None:
    graph = residual()
    plan = wire_kernel(graph, kernel(0.5))
    verify(plan, graph)
    assert out_degrees(plan, graph) == out_degrees(wire_kernel(graph, kernel(0)), graph)
    assert any(tap.feature == "relu_2" for tap in plan.taps()["d"])
    stuck = {note.layer for note in plan.notes if "links stay" in note.reason}
    assert "d" in stuck, "only fc comes after it, which reads vectors"


def test_a_source_with_two_readers_is_not_read_twice() -> None:
    graph = residual()
    plan = wire_kernel(graph, kernel(1.0, min_in_degree=0))
    verify(plan, graph)
    mask = plan.masks()["d"][:, _columns(plan, "d", "relu_2")]
    assert mask.all(), "both readers' links go to d, where each source has eight free nodes"
    assert out_degrees(plan, graph) == out_degrees(wire_kernel(graph, kernel(0)), graph)


def test_shortcuts_are_stripped_first() -> None:
    graph = residual()
    plain, bypassed = without_skips(graph)
    assert bypassed == (("add", 0), ("add_1", 1))
    assert plain.feature_by_name["relu_2"].runs == plain.feature_by_name["relu_2"].runs
    assert [plain.producers[plain.feature_by_name[name].runs[0].producer].name for name in ("relu_2", "pool")] == ["b", "d"]
    assert unused(plain, graph.heads) == {"projection"}
    plan = wire_kernel(graph, kernel(0.5, skips="remove"))
    verify(plan, graph)
    assert plan.bypassed == bypassed
    assert plan.fingerprint == graph.fingerprint
    assert ("projection", "nothing reads it once the shortcuts are removed") in {(n.layer, n.reason) for n in plan.notes}
    assert "projection" not in plan.taps()
    assert out_degrees(plan, plain) == out_degrees(wire_kernel(plain, kernel(0)), plain)


def test_a_chain_is_wired_as_the_residual_network_that_it_is_stripped_of() -> None:
    graph = residual()
    plain, _ = without_skips(graph)
    kept = tuple(layer for layer in plain.layers if layer.name != "projection")
    stripped = wire_kernel(graph, kernel(0.5, skips="remove"))
    by_hand = wire_kernel(replace(plain, layers=kept), kernel(0.5))
    assert stripped.masks().keys() == by_hand.masks().keys()
    assert stripped.layers == by_hand.layers


def dense_block(layers: int, growth: int, start: int) -> LayerGraph:
    build = GraphBuilder("dense")
    value = build.input("x", start)
    for number in range(layers):
        feature = build.feature(f"cat{number}", value, (1, value[-1].stop, 8, 8))
        value = build.cat(value, build.layer(f"conv{number}", feature, growth, kernel_size=(3, 3), positions=64))
    build.sink(
        build.layer("last", build.feature("cat", value, (1, value[-1].stop, 8, 8)), growth, kernel_size=(3, 3), positions=64)
    )
    return build.finish()


def test_dense_links_are_stripped_first() -> None:
    graph = dense_block(11, 12, 16)
    kept = without_dense_links(graph)
    assert [int(columns.sum()) for columns in kept.values()] == [16, *[12] * 11]
    assert all(columns[-1] for columns in kept.values()), "the piece made last stays"
    short = wire_kernel(graph, kernel(0, skips="remove"))
    verify(short, graph)
    assert measured(short, graph)[:3] == (160, 1776, 0.0)
    plan = wire_kernel(graph, kernel(0.9, skips="remove"))
    verify(plan, graph)
    V, E, C, L = measured(plan, graph)
    assert (V, E) == (160, 1776)
    assert abs(C - 0.165) < 6e-3
    assert abs(L - 1.938) < 1e-2
    assert {tap.feature for tap in plan.taps()["conv5"]} == {"cat5"}, "its own feature holds all that it reads"


def test_parallel_branches_are_no_dense_links() -> None:
    build = GraphBuilder("inception")
    feature = build.feature("x", build.input("x", 3), (1, 3, 8, 8))
    left = build.layer("left", feature, 4)
    right = build.layer("right", build.feature("inner", build.layer("reduce", feature, 4), (1, 4, 8, 8)), 4)
    build.sink(build.layer("last", build.feature("cat", build.cat(left, right), (1, 8, 8, 8)), 4))
    assert without_dense_links(build.finish())["last"].all()


def test_conv_to_linear_links_are_made_only_where_asked_for() -> None:
    graph = classified()
    assert "fc" not in wire_kernel(graph, kernel(0.5)).taps()
    plan = wire_kernel(graph, kernel(0.5, conv_to_linear=True))
    taps = plan.taps()["fc"]
    assert taps[0].feature == "vector"
    assert {tap.feature for tap in taps} == {"vector", "f0", "f1", "f2"}
    assert plan.masks()["fc"][:, :8].all()


def test_slots_of_a_flattened_map_are_sources_of_their_own() -> None:
    graph = classified(flat=16)
    ids, _ = number_sources(graph)
    assert len(set(ids["vector"].tolist())) == 128
    build = GraphBuilder("two")
    value = build.layer("conv", build.feature("x", build.input("x", 3), (1, 3, 4, 4)), 4)
    flat = tuple(Run(4 * at, 4 * at + 4, value[0].producer, at, 0) for at in range(4))
    hidden = build.layer("fc1", build.feature("flat", flat, (1, 16)), 12, kind="Linear")
    hidden = build.layer("fc2", build.feature("fc1", hidden, (1, 12)), 12, kind="Linear")
    build.sink(build.layer("fc3", build.feature("fc2", hidden, (1, 12)), 5, kind="Linear"))
    plain = build.finish()
    plan = wire_kernel(plain, kernel(0.5))
    verify(plan, plain)
    assert out_degrees(plan, plain) == out_degrees(wire_kernel(plain, kernel(0)), plain)
    assert any(tap.feature == "flat" for tap in plan.taps()["fc3"])


def test_the_smallest_feature_that_is_large_enough_carries_a_source() -> None:
    build = GraphBuilder("pooled")
    value = build.layer("conv1", build.feature("x", build.input("x", 3), (1, 3, 16, 16)), 8)
    build.layer("side", build.feature("large", value, (1, 8, 16, 16)), 8)
    value = build.layer("conv2", build.feature("small", value, (1, 8, 8, 8)), 8)
    value = build.layer("conv3", build.feature("conv2", value, (1, 8, 8, 8)), 8)
    build.sink(build.layer("conv4", build.feature("conv3", value, (1, 8, 4, 4)), 8))
    graph = build.finish()
    plan = wire_kernel(graph, kernel(1.0, min_in_degree=0, resample="avg"))
    verify(plan, graph)
    taps = plan.taps()["conv4"]
    assert {tap.feature for tap in taps} == {"conv3", "conv2", "small", "x"}
    assert {tap.resample for tap in taps if tap.feature != "conv3"} == {"avg"}


def test_refused_layers_are_left_alone_with_their_reasons() -> None:
    build = GraphBuilder("refused")
    shape = (1, 8, 8, 8)
    value = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 8)
    value = build.layer("depthwise", build.feature("f1", value, shape), 8, groups=8)
    value = build.layer("grouped", build.feature("f2", value, shape), 8, groups=2)
    value = build.layer("shared", build.feature("f3", value, shape), 8, refused="called at two sites")
    gate = build.layer("gate", build.feature("squeezed", value, (1, 8, 1, 1)), 8)
    build.sink(gate)
    value = build.layer("conv", build.feature("f4", value, shape), 8)
    build.sink(build.layer("last", build.feature("f5", value, shape), 8))
    graph = build.finish()
    plan = wire_kernel(graph, kernel(0.5))
    verify(plan, graph)
    assert {note.layer: note.reason.split(":")[0] for note in plan.notes if "links" not in note.reason} == {
        "depthwise": "depthwise",
        "grouped": "grouped",
        "shared": "called at two sites",
        "gate": "it works at 1x1 resolution, as gates and pooled vectors do",
    }
    assert plan.taps().keys() <= {"stem", "conv", "last"}


def test_choose_draws_uniform_subsets_of_the_free() -> None:
    class Fixed:
        """The same numbers as a Draw, from numpy's own generator: for statistics only."""

        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def uniforms(self, count: int) -> NDArray[np.float64]:
            return self.rng.random(count)

        def integers(self, bound: int, count: int) -> NDArray[np.int64]:
            return self.rng.integers(bound, size=count)

    taken = np.zeros((6000, 8), bool)
    taken[:, 3] = True
    for count in (2, 5):
        made = choose(np.full(6000, count), taken, Fixed()).reshape(6000, count)  # type: ignore[arg-type]
        assert all(len(set(row)) == count for row in made.tolist())
        seen = np.bincount(made.ravel(), minlength=8)
        assert seen[3] == 0
        assert np.abs(seen[[0, 1, 2, 4, 5, 6, 7]] / (6000 * count / 7) - 1).max() < 0.06


def test_ranks_number_equal_values() -> None:
    assert ranks(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert ranks(np.zeros(0, np.int64)).tolist() == []


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    """Draw a network of convolutions, sums, concatenations, slices and poolings."""
    build = GraphBuilder("drawn")
    values: list[tuple[Value, int]] = [(build.input("x", 3), 8)]
    for number in range(draw(st.integers(2, 9))):
        value, size = draw(st.sampled_from(values[-4:]))
        width = value[-1].stop
        step = draw(st.sampled_from(("conv", "conv", "conv", "add", "cat", "pool", "slice")))
        others = [other for other, at in values if at == size and other is not value]
        if step == "add" and (equal := [other for other in others if other[-1].stop == width]):
            values.append((build.add(f"add{number}", value, draw(st.sampled_from(equal))), size))
        elif step == "cat" and others:
            values.append((build.cat(value, draw(st.sampled_from(others))), size))
        elif step == "pool" and size > 2:
            values.append((value, size // 2))
        elif step == "slice" and width > 1:
            values.append((tuple(run.cut(0, width // 2) for run in value if run.start < width // 2), size))
        else:
            feature = build.feature(f"f{number}", value, (1, width, size, size))
            side, out = draw(st.sampled_from((1, 3))), draw(st.sampled_from((1, 2, 4, 6)))
            groups = draw(st.sampled_from((1, 1, 1, 2))) if width % 2 == out % 2 == 0 else 1
            options = {"kernel_size": (side, side), "groups": groups, "positions": size * size}
            values.append((build.layer(f"conv{number}", feature, out, **options), size))  # type: ignore[arg-type]
    return build.finish()


@settings(max_examples=150, deadline=None)
@given(
    graphs(),
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.integers(0, 3),
    st.sampled_from(("keep", "remove")),
    st.sampled_from(("links", "params")),
    st.booleans(),
)
def test_any_plan_verifies_and_keeps_its_counts(
    graph: LayerGraph, p: float, least: int, skips: str, budget: str, head: bool
) -> None:
    options = kernel(p, min_in_degree=least, skips=skips, budget=budget, head=head)
    plan = wire_kernel(graph, options)
    verify(plan, graph)
    assert Plan.from_json(plan.to_json()) == plan
    seen = without_skips(graph)[0] if skips == "remove" else graph
    start = wire_kernel(graph, replace(options, p=0.0))
    assert out_degrees(plan, seen) == out_degrees(start, seen)
    assert plan.promise.units == start.promise.units >= plan.promise.moved
    assert start.promise.moved == 0
    before, after = live(start, graph), live(plan, graph)
    for layer in graph.layers:
        least_here = np.minimum(before[layer.name].sum(axis=1), least)
        assert (after[layer.name].sum(axis=1) >= least_here).all()
    if budget == "params":
        assert abs(plan.promise.params - start.promise.params) < 9
    if skips == "keep" and p == 0:
        assert plan.layers == ()
