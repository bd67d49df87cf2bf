"""swcompile.check: what is counted is the module itself, so a module that is not what the plan says stops everything."""

from __future__ import annotations

import dataclasses
import json
import operator
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import swnet
from swcompile.check import Census, Ledger, census, check
from swcompile.modules import RewiredModule
from swcompile.optimize import optimize
from swcompile.plan import Plan
from swcompile.rewrite import rewrite
from swcompile.trace import Traced, trace

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Six convolutions with shortcuts around every second one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if at == 0 else 16, 16, 3, padding=1) for at in range(6))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        for at in range(1, 6):
            y = torch.relu(self.convs[at](x))
            x = x + y if at % 2 else y
        return self.head(x.mean((2, 3)))


class TwoModes(Net):
    """The same, and noise that train mode alone computes: eval mode has a graph of its own, with other names in it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.rand_like(x) + x
        return super().forward(x)


def prepared(
    wiring: str = "block", p: float = 0.4, density: float = 1.0, net: type[Net] = Net, skips: str = "keep"
) -> tuple[RewiredModule, Plan, Census, Traced]:
    """Do what swnet.transform does, up to the check."""
    plan = swnet.plan(net(), X, p=p, wiring=wiring, density=density, skips=skips)
    traced = trace(net(), X)
    before = census(traced)
    rewrite(traced, plan)
    for graph in traced.graphs:
        optimize(graph)
    return RewiredModule.assemble(traced.root, traced.train_graph, traced.eval_graph), plan, before, traced


def checked(module: RewiredModule, plan: Plan, before: Census, traced: Traced) -> Ledger:
    module.recompile()
    return check(module, plan, before, traced.example)


def cats(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is torch.cat]


def swap_two_taps(module: RewiredModule) -> None:
    node = cats(module.graph)[1]
    first, second, *rest = node.args[0]  # type: ignore[misc]
    node.args = ([second, first, *rest], 1)


def read_another_piece(module: RewiredModule) -> None:
    taken = [node for node in module.graph.nodes if node.target is operator.getitem]
    one, other = next((a, b) for a in taken for b in taken if a is not b and a.args[0] is b.args[0]
                      and a.args[0].args[1][a.args[1]] == a.args[0].args[1][b.args[1]])  # type: ignore[union-attr, index]  # fmt: skip
    one.args = other.args


def forget_a_wiring(module: RewiredModule) -> None:
    node = next(node for node in module.graph.nodes if node.target == "convs.3")
    own = next(other for other in module.graph.nodes if other.name == "relu_1")
    node.args = (own,)


@pytest.mark.parametrize("spoil", [swap_two_taps, read_another_piece, forget_a_wiring])
def test_a_graph_that_reads_other_maps_than_the_plan_says_fails(spoil: Callable[[RewiredModule], None]) -> None:
    module, plan, before, traced = prepared()
    checked(module, plan, before, traced)
    spoil(module)
    with pytest.raises(AssertionError, match=r"convs\.\d reads .*, the plan says "):
        checked(module, plan, before, traced)


@pytest.mark.parametrize("spoil", [swap_two_taps, read_another_piece])
@pytest.mark.parametrize("mode", [True, False])
def test_the_graph_for_eval_mode_is_read_back_too(spoil: Callable[[RewiredModule], None], mode: bool) -> None:
    module, plan, before, traced = prepared(net=TwoModes)
    assert module.eval_graph is not None
    checked(module, plan, before, traced)
    spoil(module.train(mode))  # module.graph is the one that the mode runs
    with pytest.raises(AssertionError, match=r"convs\.\d reads .*, the plan says "):
        checked(module, plan, before, traced)


def test_a_network_without_its_shortcuts_is_read_back_too() -> None:
    module, plan, before, traced = prepared("kernel", skips="remove")
    assert plan.bypassed
    checked(module, plan, before, traced)
    swap_two_taps(module)
    with pytest.raises(AssertionError, match=r"convs\.\d reads .*, the plan says "):
        checked(module, plan, before, traced)


@pytest.mark.parametrize(("wiring", "density", "skips"), [("block", 1.0, "keep"), ("block", 0.5, "keep"), ("kernel", 1.0, "keep"),
                                                          ("kernel", 1.0, "remove")])  # fmt: skip
def test_moved_blocks_and_links_are_counted_on_the_module(wiring: str, density: float, skips: str) -> None:
    module, plan, before, traced = prepared(wiring, density=density, skips=skips)
    right = plan.promise
    assert checked(module, plan, before, traced).after.p_achieved == right.p > 0
    wrong = dataclasses.replace(plan, promise=dataclasses.replace(right, moved=right.moved - 1))
    says = rf"the plan says that {right.moved - 1} of \d+ were moved; the module shows {right.moved} of \d+"
    with pytest.raises(AssertionError, match=says):
        checked(module, wrong, before, traced)
    found = check(module, wrong, before, traced.example, fresh=False)
    assert found.after.p_achieved == right.p
    assert found.notes[-1].layer == "*"
    assert re.fullmatch(says, str(found.notes[-1]))


def test_a_parameter_too_many_or_too_few_breaks_the_promise() -> None:
    module, plan, before, traced = prepared()
    module.head.bias = None
    with pytest.raises(AssertionError, match=r"promised a change of \(0, 0\) parameters and MACs, the module shows \(-5, 0\)"):
        checked(module, plan, before, traced)
    module.head.bias = nn.Parameter(torch.zeros(5))
    module.head.register_parameter("more", nn.Parameter(torch.zeros(7)))
    with pytest.raises(AssertionError, match=r"the module shows \(7, 0\)"):
        checked(module, plan, before, traced)


def test_a_promise_that_was_altered_is_noticed() -> None:
    module, plan, before, traced = prepared(density=0.5)
    assert plan.promise.params < 0
    wrong = dataclasses.replace(plan, promise=dataclasses.replace(plan.promise, macs=plan.promise.macs + 1))
    with pytest.raises(AssertionError, match="the plan promised a change of"):
        checked(module, wrong, before, traced)


def test_a_mask_with_one_link_more_fails() -> None:
    module, plan, before, traced = prepared("kernel")
    checked(module, plan, before, traced)
    mask = next(layer.mask for layer in module.modules() if isinstance(getattr(layer, "mask", None), Tensor))
    mask.view(-1)[int(mask.view(-1).logical_not().nonzero()[0])] = True
    with pytest.raises(AssertionError, match="a mask differs from the plan's"):
        checked(module, plan, before, traced)


def test_a_layer_that_lost_its_mask_fails() -> None:
    module, plan, before, traced = prepared("kernel")
    layer = next(layer for layer in module.modules() if isinstance(getattr(layer, "mask", None), Tensor))
    layer.__class__ = nn.Conv2d
    del layer.mask
    with pytest.raises(AssertionError, match="masked layers differ from the plan's"):
        checked(module, plan, before, traced)


# The ledger.


def ledger(**options: object) -> Ledger:
    torch.manual_seed(0)
    return swnet.ledger(swnet.transform(Net(), X, **options))  # type: ignore[arg-type]


def test_before_is_the_original_counted_by_hand() -> None:
    before = ledger(p=0.3).before
    links = 3 * 16 + 5 * 16 * 16
    assert before.params == links * 9 + 6 * 16 + 16 * 5 + 5 == sum(parameter.numel() for parameter in Net().parameters())
    assert before.macs == links * 9 * 64 + 16 * 5
    assert before.links == links + 16 * 5
    assert (before.p_requested, before.p_achieved) == (0, 0)


def test_at_density_1_every_count_stays_and_links_only_move() -> None:
    found = ledger(p=0.3)
    assert (found.after.params, found.after.macs, found.after.links) == (found.before.params, found.before.macs, found.before.links)
    assert found.after.stored_params == found.after.params
    assert found.links_pruned == 0 < found.links_moved
    assert found.links_kept + found.links_moved == found.before.links
    assert found.after.long_range > found.before.long_range


def test_at_lower_density_links_are_kept_moved_or_pruned() -> None:
    found = ledger(p=0.3, density=0.5)
    assert found.links_pruned > 0
    assert found.links_kept + found.links_moved + found.links_pruned == found.before.links
    assert found.links_kept + found.links_moved == found.after.links


def test_link_by_link_moved_links_are_not_pruned_and_live_ones_are_counted_apart_from_stored_ones() -> None:
    found = ledger(p=0.5, wiring="kernel")
    assert found.links_pruned == 0
    assert found.links_kept + found.links_moved == found.before.links == found.after.links
    assert found.after.params == found.before.params < found.after.stored_params
    assert found.after.executed_macs > found.after.macs


def test_a_masked_layer_that_only_lost_links_is_counted_by_its_mask() -> None:
    """The first layer reads the image as before, but some of its links went to later layers."""
    found = ledger(p=0.5, wiring="kernel")
    first = next(count for count in found.layers if count.layer == "convs.0")
    assert first.moved == 0
    assert 0 < first.kept < 48
    assert first.kept + first.pruned == 48


def test_requested_and_achieved_p_agree_to_a_block_or_a_note_says_why() -> None:
    for p in (0.1, 0.3, 0.6, 1.0):
        found = ledger(p=p)
        assert found.after.p_requested == p
        assert abs(found.after.p_achieved - p) <= 1 / 40 or any("instead of" in note.reason for note in found.notes)


def test_nothing_changed_is_said_loudly() -> None:
    found = ledger(p=0)
    assert not found.changed
    assert "NOTHING CHANGED" in str(found)
    assert "NOTHING CHANGED" not in str(ledger(p=0.3))


def test_printed_it_shows_both_sides_and_the_reasons() -> None:
    found = ledger(p=0.3)
    text = str(found)
    for line in ("params", "macs", "links", "dead_channels", "C ", "L ", "S ", "long_range", "mean_path"):
        assert f"\n{line}" in f"\n{text}"
    assert "convs.0: the stem" in text
    assert "*:" not in str(ledger(p=0.3, dead="forbid"))
    assert f"{found.before.params:,}" in text


def test_what_users_annotate_is_public() -> None:
    rewired: fx.GraphModule = swnet.transform(Net(), X, p=0.3)
    found: swnet.Ledger = swnet.ledger(rewired)
    plan: swnet.Plan = swnet.plan(Net(), X, p=0.3)
    assert isinstance(found, Ledger)
    assert isinstance(plan, Plan)


def test_for_machines_it_is_plain_json() -> None:
    found = ledger(p=0.3)
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["links"] == {"kept": found.links_kept, "moved": found.links_moved, "pruned": 0, "grown": 0}
    assert again["before"]["params"] == found.before.params
    assert again["inputs"] == ["2x3x8x8"]


def test_a_module_that_was_not_made_here_has_no_ledger() -> None:
    with pytest.raises(swnet.SwnetError, match=r"This Net was not made by swnet\.transform"):
        swnet.ledger(Net())
