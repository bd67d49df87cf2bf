"""Sizes that a report says of layers are those of the rewired module's own weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

import swnet
from swcompile.record import record
from swcompile.report.sizes import Size, idle, sizes
from swcompile.report.subjects import facts
from tests import zoo
from tests.report.networks import residual

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pruned": (zoo.resnet_basic, {"density": 0.5, "score": "weight", "dead": "allow"}),
    "moved": (zoo.densenet, {"p": 0.3, "density": 0.6}),
    "depthwise": (zoo.mobilenet_v2, {"density": 0.5, "score": "weight", "dead": "allow"}),
}


@pytest.mark.parametrize("case", CASES)
def test_after_is_what_the_module_holds(case):
    build, options = CASES[case]
    module = swnet.transform(build(), **options)
    stops = [stop for stop in facts(module).stops if stop.kind != "input"]
    for stop in stops:
        weight = module.get_submodule(stop.name.partition("@")[0]).weight
        made = weight.shape[0], weight.shape[1] * stop.after.groups, weight.numel()
        assert (stop.after.makes, stop.after.reads, stop.after.weights) == made, stop.name
    changed = [stop for stop in stops if stop.after != stop.before]
    assert changed
    page = swnet.report(module)
    for stop in changed:
        assert f"{stop.before.weights:,} → {stop.after.weights:,}" in page
    first = changed[0]
    ends = f"{first.before.reads} to {first.before.makes} → {first.after.reads} to {first.after.makes} channels"
    assert json.dumps(ends)[1:-1] in page


def test_live_weights_and_what_was_added_count():
    for options in ({"p": 0.4, "wiring": "kernel"}, {"grow": 0.3}):
        module = swnet.transform(zoo.mlp(), **options)
        found, ledger = facts(module), swnet.ledger(module)
        assert sum(stop.after.weights for stop in found.stops) == ledger.after.links, options
        assert sum(stop.after.macs for stop in found.stops) == ledger.after.macs, options


def test_what_no_longer_runs_computes_nothing():
    module = swnet.transform(zoo.resnet_basic(), p=0.3, wiring="kernel", skips="remove")
    known, ledger = record(module), swnet.ledger(module)
    resting = idle(known.graph, known.plan)
    assert resting
    found = sizes(known.graph, known.plan)
    assert {name for name, size in found.items() if not size.macs} == resting
    assert sum(size.macs for size in found.values()) == ledger.after.macs


def test_without_a_plan_layers_stand_as_they_are():
    assert sizes(residual(), None)["head"] == Size(16, 10, 1, 160, 160)
    assert sizes(residual(), None)["stem"] == Size(3, 16, 1, 432, 432 * 256)
