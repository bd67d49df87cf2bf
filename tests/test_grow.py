"""grow=: links on top that start at zero, so that a trained model computes what it did, to the bit, and learns on from there."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from swcompile.errors import NothingToDoError, SwnetError
from swcompile.graph import Tap
from swcompile.plan import Options, Plan
from swcompile.trace.interpret import tensors
from tests import zoo


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """Run a model from a fixed random state."""
    torch.manual_seed(0)
    return tensors(model(*(x if isinstance(x, tuple) else (x,))))


def grown(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if ".grown." in name}


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_model_computes_what_it_did_and_learns_from_there(name: str) -> None:
    model, x = zoo.build(name)
    outputs(model.train(), x)
    rewired = swnet.transform(model, x, grow=0.25)
    ledger = swnet.ledger(rewired)
    new = sum(parameter.numel() for parameter in grown(rewired).values())
    assert ledger.after.params - ledger.before.params == new > 0
    assert ledger.after.macs > ledger.before.macs
    assert ledger.links_grown == ledger.after.links - ledger.before.links > 0
    assert ledger.links_kept == ledger.before.links
    assert ledger.computes_the_same
    for mode in (False, True):
        for ours, theirs in zip(outputs(rewired.train(mode), x), outputs(model.train(mode), x), strict=True):
            assert torch.equal(ours, theirs)
    state = rewired.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    optimizer = torch.optim.SGD(rewired.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([out.square().mean() for out in outputs(rewired, x) if out.requires_grad]).sum().backward()
        optimizer.step()
    assert any(parameter.dim() > 1 and parameter.any() for parameter in grown(rewired).values())


class PreActivation(nn.Module):
    """Layers behind norms, slopes and dropouts of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.slopes = nn.ModuleList(nn.PReLU(16) for _ in range(4))
        self.drop, self.head = nn.Dropout(0.5), nn.Conv2d(16, 5, 1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, slope, conv in zip(self.norms, self.slopes, self.convs, strict=True):
            x = x + conv(F.dropout(self.drop(slope(norm(x))), 0.1, training=self.training))
        return self.head(x)


X = torch.randn(2, 3, 8, 8)


def test_a_chain_of_its_own_stands_in_front_of_what_is_added() -> None:
    net = PreActivation()
    net(X), net(X)
    rewired = swnet.transform(net, X, grow=0.5)
    beside = rewired.convs[3].grown
    assert beside.in_channels == 8
    assert (beside.chain0.num_features, beside.chain1.num_parameters) == (8, 8)
    assert beside.chain0.num_batches_tracked == 0
    assert torch.equal(beside.chain1.weight, torch.full((8,), 0.25))
    for mode in (True, False):
        torch.testing.assert_close(outputs(rewired.train(mode), X), outputs(net.train(mode), X), rtol=0, atol=0)
    assert beside.chain0.num_batches_tracked == 1


def test_what_is_added_reads_from_far_and_nothing_twice() -> None:
    net = PreActivation()
    graph = swnet.analyze(net, X, points=2).graph
    plan = swnet.plan(net, X, grow=0.5, seed=3)
    for wiring in plan.layers:
        layer = graph.layer_by_name[wiring.layer]
        assert wiring.taps == graph.reads(layer)
        read = [(run.producer, run.first + place) for run in graph.runs_of(wiring.reads) for place in range(run.width)]
        assert len(read) == len(set(read)) > layer.in_channels
    assert swnet.plan(net, X, grow=0.5, seed=3).to_json() == plan.to_json() == Plan.from_json(plan.to_json()).to_json()
    assert "adds" in str(plan)
    assert (plan.options.p, plan.requested_p) == (0.0, "auto")


def test_the_shares_of_all_layers_add_up() -> None:
    model, x = zoo.build("resnet_basic")
    plan = swnet.plan(model, x, grow=0.1)
    assert plan.promise.grown == round(0.1 * plan.promise.units)
    assert (plan.promise.moved, plan.promise.pruned) == (0, 0)
    much = swnet.plan(PreActivation(), X, grow=0.5)
    short = [note for note in much.notes if "blocks can be added: earlier maps fill no more" in note.reason]
    assert [note.layer for note in short] == ["convs.0"]


def test_it_is_saved_copied_pickled_and_exported(tmp_path: Any) -> None:
    net = PreActivation().eval()
    rewired = swnet.transform(net, X, grow=0.5)
    with torch.no_grad():
        for parameter in grown(rewired).values():
            parameter.normal_()
    wanted = rewired(X)
    assert not torch.equal(wanted, net(X))
    swnet.save(rewired, tmp_path / "saved")
    again = swnet.load(tmp_path / "saved", PreActivation().eval())
    for other in (again, copy.deepcopy(rewired), pickle.loads(pickle.dumps(rewired))):
        assert torch.equal(other(X), wanted)
    torch.testing.assert_close(torch.export.export(rewired, (X,)).module()(X), wanted)
    missing = rewired.load_state_dict(net.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(".grown." in key for key in missing.missing_keys)


def test_a_pruned_model_can_grow_and_a_grown_one_grow_again() -> None:
    model, x = zoo.build("resnet_basic")
    model.eval()
    pruned = swnet.transform(model, x, density=0.5, p=0)
    once = swnet.transform(pruned, x, grow=0.25)
    twice = swnet.transform(once, x, grow=0.25, seed=1)
    for ours in (once, twice):
        assert torch.equal(ours(x), pruned(x))
    assert len(grown(twice)) > len(grown(once)) > 0
    notes = [note for note in swnet.ledger(twice).notes if "there is a layer beside it already" in note.reason]
    assert len(notes) == sum(name.endswith(".grown.weight") for name in grown(once))


def test_a_frozen_layer_can_learn_beside_itself_and_the_random_state_stays() -> None:
    net = PreActivation().requires_grad_(False).eval()
    before = torch.get_rng_state()
    rewired = swnet.transform(net, X, grow=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        parameter.requires_grad is (".grown." in name) for name, parameter in rewired.named_parameters() if parameter.dim() > 1
    )
    rewired(X).square().sum().backward()
    assert rewired.convs[3].grown.weight.grad.any()


def test_groups_and_depthwise_layers_are_told_and_left() -> None:
    model, x = zoo.build("resnext")
    rewired = swnet.transform(model, x, grow=0.25)
    told = {note.layer for note in swnet.ledger(rewired).notes if "groups, and links on top would join them" in note.reason}
    assert {"stages.2.conv2", "stages.3.conv2"} <= told
    assert all(model.get_submodule(name).groups > 1 for name in told)
    assert not any(name.rpartition(".grown.")[0] in told for name in grown(rewired))


def test_a_trained_model_is_warned_of_rewiring_only(caplog: pytest.LogCaptureFixture) -> None:
    net = PreActivation()
    net(X)
    with caplog.at_level(logging.WARNING, "swcompile"):
        swnet.transform(net, X, grow=0.25)
        assert not caplog.messages
        swnet.transform(net, X, p=0.25)
    assert "grow= to add links that leave it as it is" in caplog.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"grow": 1.5}, "outside"),
        ({"grow": "much"}, "outside"),
        ({"grow": 0.1, "p": 0.3}, "which p would change"),
        ({"grow": 0.1, "p": "max_S"}, "which p would change"),
        ({"grow": 0.1, "density": 0.5}, "which density would change"),
        ({"grow": 0.1, "wiring": "kernel"}, "does not apply to wiring='kernel'"),
    ],
)
def test_what_contradicts_it_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SwnetError, match=message):
        Options(**asked)


def test_nothing_to_read_is_told() -> None:
    with pytest.raises(NothingToDoError):
        swnet.transform(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(2, 16), grow=0.5)


@pytest.mark.parametrize("change", ["twice", "option", "promise", "count", "more", "taps", "reads"])
def test_an_altered_plan_is_refused(change: str) -> None:
    net = PreActivation()
    plan = swnet.plan(net, X, grow=0.5)
    wiring = plan.layers[-1]
    altered = {
        "twice": {"layers": (*plan.layers[:-1], dataclasses.replace(wiring, grown=(*wiring.grown, wiring.taps[0])))},
        "option": {"options": dataclasses.replace(plan.options, grow=0.0)},
        "promise": {"promise": dataclasses.replace(plan.promise, params=plan.promise.params + 1)},
        "more": {"promise": dataclasses.replace(plan.promise, grown=999)},
        "reads": {"layers": (*plan.layers[:-1], dataclasses.replace(wiring, taps=wiring.taps[::-1] + wiring.grown, grown=()))},
        "count": {"promise": dataclasses.replace(plan.promise, grown=0)},
        "taps": {"layers": (*plan.layers[:-1], dataclasses.replace(wiring, grown=(Tap("add_3", 0, 8),)))},
    }[change]
    with pytest.raises(
        SwnetError,
        match=r"twice|do not say|promises a|which its wirings are not|cannot tap|taps a feature|more than it|leaves what",
    ):
        swnet.apply(net, dataclasses.replace(plan, **altered), X)


def test_a_convolution_of_the_models_own_is_left_and_told() -> None:
    class Conv2d(nn.Conv2d):
        pass

    kinds = (nn.Conv2d, nn.Conv2d, Conv2d, nn.Conv2d)
    net = nn.Sequential(*(layer for kind in kinds for layer in (kind(8, 8, 3, padding=1), nn.ReLU())), nn.Conv2d(8, 2, 1))
    ledger = swnet.ledger(swnet.transform(net, torch.randn(2, 8, 8, 8), grow=0.5))
    assert {count.layer for count in ledger.layers if count.grown} == {"2", "6"}
    assert any(note.layer == "4" and "beside which no second one can be put" in note.reason for note in ledger.notes)


class Noise(nn.Dropout2d):
    """A dropout by another name."""


@pytest.mark.parametrize("kind", [nn.RReLU, Noise])
def test_what_draws_random_numbers_is_not_drawn_twice(kind: type[nn.Module]) -> None:
    net = PreActivation()
    net.slopes = nn.ModuleList(kind() for _ in range(4))
    rewired = swnet.transform(net, X, grow=0.5)
    torch.testing.assert_close(outputs(rewired.train(), X), outputs(net.train(), X), rtol=0, atol=0)


def test_a_norm_that_cannot_be_fitted_is_refused() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    net = PreActivation()
    for norm in net.norms:
        nn.utils.parametrize.register_parametrization(norm, "weight", Half())
    for asked in ({"grow": 0.5}, {"density": 0.5}):
        with pytest.raises(SwnetError, match="cannot be fitted to other channels"):
            swnet.transform(net, X, **asked)
