"""The call that a report prints gives the same plan again."""

from __future__ import annotations

import pytest
import torch

import swnet
from swcompile import api
from tests import zoo


@pytest.mark.parametrize("options", [{"p": "auto", "seed": 3}, {"p": 0.5, "keep": {"*": 0.5}, "block": 4, "head": True}])
def test_the_call_repeats_the_plan(options):
    model = zoo.mlp()
    facts = api.facts(swnet.transform(model, torch.zeros(4, 20), **options))
    again = eval(facts.provenance.command, {"swnet": swnet, "torch": torch, "model": model})
    assert api.record(again).plan.digest == facts.provenance.digest


def test_what_only_the_caller_has_is_named():
    model, batch = zoo.mlp(), [(torch.randn(4, 20), torch.zeros(4, dtype=torch.int64))]
    made = swnet.transform(
        model, torch.zeros(4, 20), density=0.5, score="taylor", batches=batch, loss_fn=torch.nn.functional.cross_entropy
    )
    command = api.facts(made).provenance.command
    assert command.endswith("score='taylor', seed=0, batches=batches, loss_fn=loss_fn)")
