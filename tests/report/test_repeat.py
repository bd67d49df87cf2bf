"""The call that a report prints gives the printed plan again, or the page says that no such call does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile.plan import Note
from swcompile.record import record
from swcompile.report import layout
from swcompile.report.subjects import facts
from tests import zoo

Batches = list[tuple[Tensor, Tensor]]


def batches() -> Batches:
    return [(torch.randn(4, 20), torch.zeros(4, dtype=torch.int64))]


def repeated(module: nn.Module, model: nn.Module, **names: Any) -> str:
    """Evaluate the call that the report of a module prints, and return the digest of the plan that comes out."""
    command = facts(module).provenance.command
    return record(eval(command, {"swnet": swnet, "torch": torch, "model": model, **names})).plan.digest


def printed(module: nn.Module) -> str:
    digest = facts(module).provenance.digest
    assert len(digest) == 64
    return digest


@pytest.mark.parametrize("options", [{"p": "auto", "seed": 3}, {"p": 0.5, "keep": {"*": 0.5}, "block": 4, "head": True}])
def test_the_call_repeats_the_plan(options):
    model = zoo.mlp()
    made = swnet.transform(model, torch.zeros(4, 20), **options)
    assert repeated(made, model) == printed(made)


def test_what_only_the_caller_has_is_named():
    model, loss_fn = zoo.mlp(), torch.nn.functional.cross_entropy
    given: dict[str, Any] = {"batches": batches(), "loss_fn": loss_fn, "calibrate": batches()}
    made = swnet.transform(model, torch.zeros(4, 20), density=0.5, score="taylor", **given)
    command = facts(made).provenance.command
    assert command.endswith("score='taylor', seed=0, batches=batches, loss_fn=loss_fn, calibrate=calibrate)")
    assert repeated(made, model, **given) == printed(made)


@pytest.mark.parametrize("how", ["apply", "load"])
def test_a_plan_that_was_given_is_applied_again(how, tmp_path, monkeypatch):
    """Its options alone do not make it: it may be from another version, here with another note."""
    model = zoo.mlp()
    plan = replace(swnet.plan(model, torch.zeros(4, 20), p=0.5), notes=(Note("*", "of another version"),))
    made = swnet.apply(model, plan, torch.zeros(4, 20))
    swnet.save(made, tmp_path / "out")
    if how == "load":
        made = swnet.load(tmp_path / "out", model)
    assert facts(made).provenance.command.startswith("# plan.json is the plan that was given, as swnet.save writes it.\n")
    monkeypatch.chdir(tmp_path / "out")
    assert repeated(made, model) == printed(made)


def test_links_moved_in_training_are_no_transforms(tmp_path, monkeypatch):
    model = zoo.mlp()
    made = swnet.transform(model, torch.zeros(4, 20), p=0.5, wiring="kernel")
    before = printed(made)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    rewirer = swnet.Rewirer(optimizer, made, every=1, until=9)
    made(torch.randn(4, 20)).square().sum().backward()
    optimizer.step()
    assert rewirer.step() > 0
    assert printed(made) != before
    assert "no call of swnet.transform gives them" in layout.page(facts(made))
    swnet.save(made, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    assert repeated(made, model) == printed(made)


class Named(nn.Module):
    """Take a dictionary, or one in an object of a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = zoo.mlp()

    def forward(self, inputs: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return self.body(inputs["x"]) * scale


class Inputs(dict):
    pass


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"x": torch.zeros(4, 20)}, "{'x': torch.zeros(4, 20)}"),
        (({"x": torch.zeros(4, 20)}, 2.0), "({'x': torch.zeros(4, 20)}, 2.0)"),
        (Inputs(x=torch.zeros(4, 20)), "example_inputs"),
    ],
)
def test_inputs_are_code_or_have_a_name(given, code):
    model = Named()
    made = swnet.transform(model, given, p=0.5)
    assert f"(model, {code}, p=0.5" in facts(made).provenance.command
    assert repeated(made, model, example_inputs=given) == printed(made)


def test_an_analysis_prints_no_digest():
    """The plan is not made yet: notes of tracing and of the policy are part of one."""
    found = facts(swnet.analyze(zoo.mlp(), torch.zeros(4, 20), points=3)).provenance
    assert found.digest == ""
    assert found.command == "swnet.transform(model, torch.zeros(4, 20), p='auto', seed=0)"
