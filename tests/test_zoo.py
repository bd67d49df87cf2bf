"""benchmarks.zoo: a sample of torchvision's models goes through all that the whole zoo goes through, and failures are seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor, nn

from benchmarks import record, zoo
from benchmarks.zoo import Case, Outcome, examine

SAMPLE = (
    "resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t", "lraspp_mobilenet_v3_large",
    "quantized_mobilenet_v2", "fasterrcnn_mobilenet_v3_large_320_fpn",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_of_the_zoo_passes(name: str) -> None:
    (case,) = (case for case in zoo.cases() if case.name == name)
    outcome = examine(case)
    assert (outcome.outcome, outcome.reason) == ("passed", "")
    assert outcome.moved > 0
    assert "batch" in outcome.elsewhere
    assert outcome.trace_s < 10


def test_the_zoo_is_whole() -> None:
    families = [case.family for case in zoo.cases()]
    assert set(families) == set(zoo.FAMILIES)
    assert len(families) >= 121


class Restless(nn.Module):
    """A network whose hook multiplies by another number at each call: no two runs are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3 if not place else 8, 8, 3, padding=1) for place in range(4)))
        self.numbers = iter(range(1, 1000))
        self.register_forward_hook(lambda module, args, out: out * next(self.numbers))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_is_not_equal_fails_and_what_cannot_be_traced_is_refused() -> None:
    restless = examine(Case("restless", "classification", Restless))
    assert (restless.outcome, restless.reason[:31]) == ("failed", "AssertionError: outputs, traini")
    refused = examine(Case("undecided", "classification", Undecided))
    assert refused.outcome == "refused"
    assert "decide" in refused.reason


def test_outcomes_of_this_commit_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome("resnet18", "classification", "passed", shape=(2, 3, 64, 64))
    file = tmp_path / "zoo.json"
    file.write_text(json.dumps({"commit": "a" * 40, "rows": [vars(outcome)]}))
    monkeypatch.setattr(zoo, "commit", lambda: "a" * 40)
    assert zoo.recorded(file) == [outcome]
    monkeypatch.setattr(zoo, "commit", lambda: "b" * 40)
    assert zoo.recorded(file) == []
    assert zoo.recorded(tmp_path / "none.json") == []
    assert record.RESULTS.name == "results"
