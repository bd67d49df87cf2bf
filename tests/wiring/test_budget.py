"""wiring.budget: budgets are met from above, to within one block, however the layers share what stays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_block import NETS, graphs

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph
from swcompile.plan import Options, Plan, channel_ids
from swcompile.verify import verify
from swcompile.wiring.block import BlockWiring, wire_block
from tests import graphs as graphs_by_hand

SPREADS = ("uniform", "erk", "global")


def size_of(graph: LayerGraph, plan: Plan, measure: str) -> int:
    """Count what a plan leaves, layer by layer, without the product's own arithmetic."""
    width = {wiring.layer: sum(stop - start for start, stop in wiring.columns) for wiring in plan.layers}
    params = macs = 0
    for layer in graph.layers:
        kept = width.get(layer.name, layer.in_channels)
        weights = layer.out_channels * (kept // layer.groups)
        for side in layer.kernel_size:
            weights *= side
        params += weights + kept * layer.chain_params
        macs += weights * layer.positions
    return params if measure == "params" else macs


def smallest_step(graph: LayerGraph, options: Options, plan: Plan, measure: str) -> int | None:
    """Return what the next block would cost in the layer where it is cheapest; None where no layer has lost any."""
    kept = {wiring.layer: {column for start, stop in wiring.columns for column in range(start, stop)} for wiring in plan.layers}
    read = {wiring.layer: set(channel_ids(graph.runs_of(wiring.taps)).tolist()) for wiring in plan.layers}
    costs = []
    for site in BlockWiring(graph, options).found:
        layer = site.layer
        own = channel_ids(graph.feature_by_name[layer.feature].runs).tolist()
        gone = [
            slot
            for slot in site.slots
            if not set(range(slot.start, slot.stop)) <= kept.get(layer.name, {*range(slot.stop)})
            and read[layer.name].isdisjoint(own[slot.start : slot.stop])
        ]
        if gone:
            width = min(slot.width for slot in gone) * layer.groups
            weights = width // layer.groups * layer.out_channels * layer.kernel_area
            costs.append(weights + width * layer.chain_params if measure == "params" else weights * layer.positions)
    return min(costs, default=None)


def check_met(graph: LayerGraph, measure: str, limit: int, **asked: Any) -> Plan:
    options = Options(**{"p": 0.3, **asked, measure: limit})
    plan = wire_block(graph, options)
    verify(plan, graph)
    left = size_of(graph, plan, measure)
    step = smallest_step(graph, options, plan, measure)
    assert left <= limit
    assert step is None or limit - left < step
    assert any(f"at most {limit:,} " in note.reason and f"{left:,} are left" in note.reason for note in plan.notes)
    return plan


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize("name", ["residual", "resnext50", "densenet", "unet", "inception", "dense", "gated", "transformer"])
def test_a_budget_is_met_to_within_one_block(name: str, measure: str, spread: str) -> None:
    graph = NETS[name]
    total = graph.params if measure == "params" else graph.macs
    for share in (0.9, 0.5, 0.35):
        check_met(graph, measure, int(share * total), spread=spread, head=True)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("measure", ["params", "macs"])
def test_a_budget_is_met_where_a_layer_has_blocks_of_several_widths(measure: str, spread: str) -> None:
    """Growth 12 makes blocks of 8 and of 4: that the narrow one would fit does not mean that the next one does."""
    graph = graphs_by_hand.dense(12, 12, start=16)
    total = graph.params if measure == "params" else graph.macs
    for percent in range(30, 100, 2):
        check_met(graph, measure, total * percent // 100, spread=spread)


@settings(max_examples=60, deadline=None)
@given(
    graph=graphs(),
    measure=st.sampled_from(["params", "macs"]),
    share=st.floats(0.05, 1.2),
    asked=st.fixed_dictionaries(
        {
            "spread": st.sampled_from(SPREADS),
            "block": st.sampled_from(["auto", 2, 4]),
            "head": st.booleans(),
            "dead": st.sampled_from(["auto", "allow"]),
        }
    ),
)
def test_any_budget_of_any_network_is_met_or_refused(
    graph: LayerGraph, measure: str, share: float, asked: Mapping[str, Any]
) -> None:
    total = graph.params if measure == "params" else graph.macs
    try:
        BlockWiring(graph, Options(**asked))
    except SwnetError:  # a block larger than every width
        return
    limit = max(1, int(share * total))
    try:
        wire_block(graph, Options(**{**asked, "p": 0.3, measure: limit}))
    except SwnetError as error:
        refused = str(error)
    else:
        refused = ""
    assert not refused or "with one block per layer the model still has" in refused
    if limit < total and not refused:
        check_met(graph, measure, limit, **asked)


def test_a_budget_that_the_model_is_within_prunes_nothing() -> None:
    graph = NETS["densenet"]
    whole = wire_block(graph, Options(p=0.3))
    for loose in ({"params": graph.params}, {"macs": graph.macs}):
        plan = wire_block(graph, Options(p=0.3, **loose))
        assert plan.layers == whole.layers
        assert plan.notes[-1].reason == "the model is within its budget as it is: no block had to go"


def counts(graph: LayerGraph, **asked: Any) -> dict[str, tuple[int, int]]:
    """Return the blocks that each layer that may change keeps, and has."""
    wiring = BlockWiring(graph, Options(p=0.0, **asked))
    return {site.layer.name: (kept.count, len(site.slots)) for site, kept in zip(wiring.found, wiring.kept, strict=True)}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", ["residual", "densenet", "dense", "inception"])
def test_density_is_never_exceeded(name: str, spread: str) -> None:
    for density in (0.9, 0.61, 0.3):
        kept, had = map(sum, zip(*counts(NETS[name], density=density, spread=spread).values(), strict=True))
        assert kept <= density * had
        assert kept > density * had - 1


def erdos_renyi(layer: Layer) -> float:
    """Return the density of RigL, but for its scale: for kernels of k x k, (in + out + 2 k) / (in * out * k * k)."""
    k = layer.kernel_size
    links = layer.in_channels * layer.out_channels * math.prod(k)
    return (layer.in_channels + layer.out_channels + sum(k)) / links


def test_erk_keeps_less_of_wide_layers() -> None:
    graph = NETS["dense"]
    raw = {layer.name: erdos_renyi(layer) for layer in graph.layers}
    for density, capped in ((0.5, False), (0.8, True)):
        made = counts(graph, density=density, spread="erk", block=2)
        scale = [kept / had / raw[name] for name, (kept, had) in made.items() if kept < had]
        assert max(scale) < 1.15 * min(scale), "in proportion, but for whole blocks"
        whole = [name for name, (kept, had) in made.items() if kept == had]
        assert all(raw[one] >= raw[other] for one in whole for other in made.keys() - whole)
        assert bool(whole) == capped


def test_global_keeps_near_blocks_of_any_layer_before_far_ones() -> None:
    graph = NETS["dense"]
    wiring = BlockWiring(graph, Options(p=0.0, density=0.4, spread="global"))
    kept, gone = [], []
    for site, chosen in zip(wiring.found, wiring.kept, strict=True):
        for place, slot in enumerate(site.slots):
            distance = site.far.get(wiring.atlas.producer(slot.maps[0][0]), 1)
            (kept if place in chosen.slots else gone).append(distance)
    assert min(gone) >= sorted(kept)[len(kept) * 3 // 4], "but for the one block that each layer keeps"
    assert all(chosen.count >= 1 for chosen in wiring.kept)


def test_keep_gives_layers_their_share_by_name_and_leaves_the_others() -> None:
    graph = NETS["residual"]
    names = list(counts(graph))
    made = counts(graph, keep={names[3]: 0.25, f"{names[3][:1]}*": 1.0, "*": 0.5})
    assert {name: kept for name, (kept, _) in made.items()} == {
        name: had // 4 if name == names[3] else had if name.startswith(names[3][:1]) else had // 2
        for name, (_, had) in made.items()
    }
    assert Options(keep={"a": 0.5}) == Options(keep=(("a", 0.5),))
    plan = wire_block(graph, Options(p=0.0, keep={names[3]: 0.25}))
    assert [wiring.layer for wiring in plan.layers] == [names[3]]
    assert Plan.from_json(plan.to_json()) == plan


def test_a_pattern_that_names_no_layer_is_refused() -> None:
    graph = NETS["residual"]
    with pytest.raises(SwnetError, match=r"keep names 'stage9\.\*', but no layer has such a name"):
        wire_block(graph, Options(p=0.0, keep={"stage9.*": 0.5}))
    head = graph.layers[-1].name
    with pytest.raises(SwnetError, match=f"keep names '{head}', but {head} cannot be changed"):
        wire_block(graph, Options(p=0.0, keep={head: 0.5}))


@pytest.mark.parametrize(
    ("one", "other"), [*itertools.combinations(({"density": 0.5}, {"params": 9}, {"macs": 9}, {"keep": {"a": 0.5}}), 2)]
)
def test_budgets_exclude_each_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    with pytest.raises(SwnetError, match=f"{next(iter(one))} and {next(iter(other))} were given"):
        Options(**one, **other)


@pytest.mark.parametrize("keep", [{"a": 0}, {"a": 1.5}, {"": 0.5}, {"a": "b"}, [("a",)], 3, {"a": True}, {"a": float("nan")}])
def test_shares_that_are_none(keep: Any) -> None:
    with pytest.raises(SwnetError, match="does not give shares by name; write a share above 0"):
        Options(keep=keep)
