"""wiring.block: what any plan must keep to, on graphs drawn at random and on known networks."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace

import block_nets as nets
import pytest
import still_alive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swcompile.errors import SwnetError
from swcompile.graph import LayerGraph, Run
from swcompile.plan import Options, Plan
from swcompile.verify import verify
from swcompile.wiring.block import wire_block
from tests import graphs as graphs_by_hand

NETS = {
    "chain": nets.chain(12),
    "residual": nets.residual(12),
    "resnet50": nets.resnet50(),
    "resnext50": nets.resnet50(groups=8),
    "densenet": nets.densenet((4, 6, 4), size=64),
    "unet": nets.unet(),
    "shuffled": nets.shuffled(),
    "vgg16": nets.vgg16(),
    "gated": nets.gated(),
    "transformer": nets.transformer(),
    "inception": nets.inception(),
    "dense": graphs_by_hand.dense(12, 8, start=16),
}


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    """Draw a network of convolutions, sums, concatenations, slices, poolings, groups, and perhaps a flattened tail."""
    net = nets.Net("drawn", 16, draw(st.integers(1, 4)))
    value = net.conv(net.image, draw(st.sampled_from([8, 12, 16, 24])))
    made: list[tuple[int, tuple[Run, ...]]] = []
    for _ in range(draw(st.integers(2, 10))):
        made.append((net.size, value))
        step = draw(st.sampled_from(["conv", "conv", "grouped", "residual", "cat", "slice", "pool", "same", "gate", "norm"]))
        width = value[-1].stop
        near = [old for size, old in made if size == net.size]
        other = draw(st.sampled_from(near))
        if step == "conv":
            value = net.conv(value, draw(st.sampled_from([8, 12, 16, 24, 40])), stride=draw(st.sampled_from([1, 1, 2])))
        elif step == "grouped" and width % 2 == 0:
            value = net.conv(value, 16, groups=2)
        elif step == "residual":
            value = net.build.add(f"add{net.count}_{len(made)}", value, net.conv(value, width))
        elif step == "cat":
            value = net.build.cat(other, net.conv(value, 8))
        elif step == "slice" and width >= 8:
            value = net.conv(tuple(run.cut(4, width, -4) for run in value if run.stop > 4), 16)
        elif step == "pool" and net.size > 2:
            net.size //= 2
        elif step == "norm":
            value = net.conv(net.norm(value), 16)
        elif step == "gate" and not any("_gated" in mark and {*old} & {*value} for old, mark in net.mark.items()):
            value = net.conv(net.gate(value), 16)
            made.clear()  # nobody reads what a gate multiplied without it
        elif step == "same" and other[-1].stop == width:
            value = net.build.add(f"add{net.count}_{len(made)}", value, other)
        net.size = max(net.size, 2)
    if draw(st.booleans()):
        value = net.linear(net.linear(net.flatten(value), 32), 32)
    return net.finish(net.conv(value, 5) if value[-1].producer < 0 else net.linear(value, 10))


options = st.builds(
    Options,
    p=st.floats(0, 1),
    density=st.sampled_from([1.0, 1.0, 0.75, 0.5, 0.2]),
    block=st.sampled_from(["auto", "auto", "producer", 1, 2, 4]),
    reach=st.sampled_from(["uniform", "near", "far"]),
    dead=st.sampled_from(["auto", "forbid", "allow"]),
    seed=st.integers(0, 5),
    head=st.booleans(),
)


def maps_read(graph: LayerGraph, plan: Plan | None) -> dict[str, list[tuple[int, int]]]:
    """Return each layer's input as (producer, channel), column by column."""
    changed = {} if plan is None else plan.taps()
    return {
        layer.name: [
            (run.producer, run.first + k * run.step)
            for run in graph.runs_of(changed.get(layer.name, graph.reads(layer)))
            for k in range(run.width)
        ]
        for layer in graph.layers
    }


def dead(graph: LayerGraph, reads: dict[str, list[tuple[int, int]]]) -> set[tuple[int, int]]:
    """Return the channels that nothing reads, by following every read channel by channel: slow and plain."""
    pending = [channel for channels in reads.values() for channel in channels]
    pending += [(run.producer, run.first + k * run.step) for run in graph.sinks for k in range(run.width)]
    alive: set[tuple[int, int]] = set()
    while pending:
        channel = pending.pop()
        if channel in alive:
            continue
        alive.add(channel)
        made = graph.producers[channel[0]]
        if made.kind == "sum":
            for run in (run for part in made.parts for run in part):
                if run.start <= channel[1] < run.stop:
                    pending.append((run.producer, run.first + (channel[1] - run.start) * run.step))
    every = {(index, k) for index, made in enumerate(graph.producers) if made.kind != "sum" for k in range(made.channels)}
    return every - alive


def check(graph: LayerGraph, asked: Options) -> Plan:
    """Assert everything that holds for any plan of wiring `block`."""
    plan = wire_block(graph, asked)
    verify(plan, graph)
    reads, before = maps_read(graph, plan), maps_read(graph, None)
    for wiring in plan.layers:
        layer = graph.layer_by_name[wiring.layer]
        now, old = Counter(reads[wiring.layer]), Counter(before[wiring.layer])
        flat = {run.producer for run in graph.runs_of(wiring.taps) if run.step == 0}
        assert all(count <= max(1, old[channel]) for channel, count in now.items() if channel[0] not in flat)
        if asked.density == 1:
            assert wiring.columns == ((0, layer.in_channels),)
        kept_columns(graph, wiring.layer, plan, before[wiring.layer])
    at_zero = dead(graph, maps_read(graph, wire_block(graph, Options(**{**vars(asked), "p": 0.0}))))
    lost = dead(graph, reads) - at_zero
    if asked.dead == "forbid":
        assert not lost
    told = [note.reason for note in plan.notes if note.layer == "*"]
    assert bool(lost) == any("channels are unread: " in reason for reason in told)
    assert not lost or any(reason.startswith(f"{len(lost)} channels are unread: ") for reason in told)
    still_alive.check(graph, plan, wire_block(graph, replace(asked, p=0.0)))
    left = plan.promise.units - plan.promise.pruned
    assert plan.promise.moved == round(asked.number * left) or any("instead of" in reason for reason in told)
    return plan


def kept_columns(graph: LayerGraph, name: str, plan: Plan, own: list[tuple[int, int]]) -> None:
    """Assert that what a layer still reads of its own input stands where its weights for it are."""
    wiring = next(item for item in plan.layers if item.layer == name)
    layer = graph.layer_by_name[name]
    columns = [column for start, stop in wiring.columns for column in range(start, stop)]
    assert len(columns) == wiring.width
    place = 0
    for tap in wiring.taps:
        moved_back = plan.options.density < 1 and (tap.start, tap.stop) != (columns[place], columns[place + tap.width - 1] + 1)
        if tap.feature == layer.feature and not moved_back:
            assert columns[place : place + tap.width] == list(range(tap.start, tap.stop))
        place += tap.width
    each = len(columns) // layer.groups
    for group in range(layer.groups):
        low = group * layer.in_channels // layer.groups
        inside = columns[group * each : (group + 1) * each]
        assert all(low <= column < low + layer.in_channels // layer.groups for column in inside)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), options)
def test_any_plan_keeps_the_rules(graph: LayerGraph, asked: Options) -> None:
    try:
        plan = check(graph, asked)
    except SwnetError:  # raised for a block size that fits no layer
        assert isinstance(asked.block, int)
        return
    assert plan.to_json() == wire_block(graph, asked).to_json()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("choice", ["auto", "forbid", "allow"])
def test_known_networks_keep_the_rules(name: str, density: float, choice: str) -> None:
    for p in (0.2, 0.7, 1.0):
        check(NETS[name], Options(p=p, density=density, dead=choice, seed=3))


@pytest.mark.parametrize("name", NETS)
def test_p_zero_changes_nothing(name: str) -> None:
    assert wire_block(NETS[name], Options(p=0.0)).layers == ()


def test_bytes_are_pinned() -> None:
    plan = wire_block(NETS["unet"], Options(p=0.3, seed=7))
    assert hashlib.sha256(plan.to_json().encode()).hexdigest() == "75a669b9a3587294614584464cf885f85c58a9c6b9a6dd3590137eef6ee5d234"


def test_seeds_differ_and_a_policy_is_remembered() -> None:
    graph = NETS["residual"]
    assert wire_block(graph, Options(p=0.3, seed=1)).layers != wire_block(graph, Options(p=0.3, seed=2)).layers
    assert wire_block(graph, Options(p=0.3)).requested_p == 0.3


def test_a_chain_without_dead_channels_cannot_move() -> None:
    plan = wire_block(NETS["chain"], Options(p=0.5, dead="forbid"))
    assert plan.promise.moved == 0
    assert any(note.reason.endswith("their maps would have had no reader left") for note in plan.notes)
    told = [note.reason for note in wire_block(NETS["chain"], Options(p=0.5)).notes if note.layer == "*"]
    assert any("most maps have a single reader" in reason for reason in told)


def test_residual_streams_move_nearly_all_that_is_asked_without_dead_channels() -> None:
    plan = wire_block(nets.resnet50(), Options(p=0.3, dead="forbid"))
    assert plan.promise.p > 0.28


def test_grouped_layers_move_as_many_blocks_in_every_group() -> None:
    graph = NETS["resnext50"]
    for density in (1.0, 0.5):
        plan = wire_block(graph, Options(p=0.4, density=density))
        grouped = [wiring for wiring in plan.layers if graph.layer_by_name[wiring.layer].groups > 1]
        assert grouped
        for wiring in grouped:
            layer = graph.layer_by_name[wiring.layer]
            own = [tap.feature == layer.feature for tap in wiring.taps for _ in range(tap.width)]
            each = len(own) // layer.groups
            assert len({sum(own[k * each : (k + 1) * each]) for k in range(layer.groups)}) == 1


def test_density_keeps_the_nearest_maps_of_a_dense_block() -> None:
    graph = nets.densenet((8,), growth=16, size=64)
    plan = wire_block(graph, Options(p=0.0, density=0.5))
    layer = graph.layers[13]  # a bottleneck late in the block
    wiring = next(item for item in plan.layers if item.layer == layer.name)
    assert wiring.columns[-1][1] == layer.in_channels
    assert len(wiring.columns) == 1
    assert plan.promise.units - plan.promise.pruned == round(0.5 * plan.promise.units)


def test_a_pure_dense_block_is_pruned_to_a_lattice_with_shortcuts() -> None:
    graph = NETS["dense"]  # every layer reads all earlier maps, so that there is nothing else to read
    assert wire_block(graph, Options(p=0.4)).layers == ()
    lattice, rewired = (wire_block(graph, Options(p=p, density=0.5)) for p in (0.0, 0.4))
    last = graph.layers[-2]
    near, far = (next(item for item in plan.layers if item.layer == last.name) for plan in (lattice, rewired))
    assert near.columns == ((last.in_channels // 2, last.in_channels),)
    assert [(tap.start, tap.stop) for tap in near.taps] == list(near.columns)
    assert far.columns == near.columns
    assert min(graph.runs_of([tap])[0].producer for tap in far.taps) < graph.runs_of(near.taps)[0].producer
    assert rewired.promise.p > 0.3
    assert (rewired.promise.params, rewired.promise.pruned) == (lattice.promise.params, lattice.promise.pruned)


def test_where_each_block_left_is_the_last_of_its_layer_more_stay_than_density_asks_for() -> None:
    net = nets.Net("two branches")
    stem = net.conv(net.image, 16)
    both = net.build.cat(net.conv(stem, 16), net.conv(stem, 16))
    plan = wire_block(net.finish(net.linear(net.conv(both, 16), 10)), Options(p=0.0, density=0.5, block="producer"))
    assert any("more blocks stay than density 0.5 asks for" in note.reason for note in plan.notes)


def test_every_reach_prefers_its_distance() -> None:
    graph = nets.chain(40)
    depth = {feature.name: place for place, feature in enumerate(graph.features)}
    mean = {}
    for reach in ("near", "uniform", "far"):
        plan = wire_block(graph, Options(p=0.3, reach=reach, dead="allow"))
        steps = [
            depth[graph.layer_by_name[wiring.layer].feature] - depth[tap.feature]
            for wiring in plan.layers
            for tap in wiring.taps
            for _ in range(tap.width)
        ]
        moved = [step for step in steps if step]
        mean[reach] = sum(moved) / len(moved)
    assert mean["near"] < 0.6 * mean["uniform"]
    assert mean["far"] > 1.1 * mean["uniform"]


def test_what_only_train_mode_computes_is_no_source() -> None:
    graph = NETS["resnet50"]
    hidden = {feature.name for feature in graph.features[12:15]}
    features = tuple(replace(feature, train_only=feature.name in hidden) for feature in graph.features)
    layers = tuple(replace(layer, train_only=layer.feature in hidden) for layer in graph.layers)
    graph = replace(graph, features=features, layers=layers)
    for choice in ("forbid", "allow"):
        plan = check(graph, Options(p=0.8, dead=choice))
        tapped = {(wiring.layer, tap.feature) for wiring in plan.layers for tap in wiring.taps if tap.feature in hidden}
        assert all(graph.layer_by_name[name].feature == feature for name, feature in tapped)


def test_large_networks_take_seconds() -> None:
    for graph in (nets.chain(1000), nets.residual(1000), nets.densenet()):
        began = time.perf_counter()
        wire_block(graph, Options(p=0.3))
        assert time.perf_counter() - began < 10  # 0.3 to 0.7 s on an idle core
