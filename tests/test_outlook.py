"""What `check` says in advance about who gains: only where there is evidence, and what it rests on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import swnet
from benchmarks.models import densenet, plain_cnn, plain_cnn21, resnet20
from swcompile.cli import run
from swcompile.outlook import LITTLE, Paths, effective_depth, outlook, paths
from swcompile.survey import survey


@pytest.mark.parametrize(
    ("build", "expected"), [(plain_cnn21, Paths(21, 21)), (resnet20, Paths(4, 20)), (lambda: densenet(40, 12), Paths(4, 40))]
)
def test_paths_are_counted_in_layers(build: Callable[[], nn.Module], expected: Paths) -> None:
    assert paths(survey(build()).graph) == expected


def test_who_is_shallow_already_is_told_that_it_may_gain_little() -> None:
    said = survey(plain_cnn((2, 1, 1))).outlook
    assert said is not None
    assert said.startswith(LITTLE)
    assert "is 5.0 already" in said
    assert survey(plain_cnn((3, 3, 2))).outlook is None


def test_the_depth_is_that_of_the_ledger() -> None:
    for model in (resnet20(), densenet(16, 8)):
        found = survey(model, torch.zeros(2, 3, 32, 32))
        assert (
            effective_depth(found.graph)
            == swnet.ledger(swnet.transform(model, torch.zeros(2, 3, 32, 32), p=0)).before.effective_depth
        )


def test_who_has_shortcuts_and_norms_is_told_what_is_known_of_long_training() -> None:
    said = survey(resnet20()).outlook
    assert said is not None
    assert said.startswith("It may gain less, the longer it is trained")
    assert "(20 layers on its longest path, 4 on its shortest)" in said
    assert "1.04 to 1.10 times" in said
    assert "rule of thumb" in said


def test_a_deep_plain_network_is_told_nothing() -> None:
    assert survey(plain_cnn21()).outlook is None


def test_without_norms_nothing_is_known() -> None:
    model = resnet20()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    found = survey(model)
    assert found.outlook is None
    assert outlook(found.graph, normed=True) is not None


def test_check_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (("resnet20", True), ("plain_cnn21", False)):
        file = tmp_path / f"{name}.py"
        file.write_text(f"from benchmarks.models import {name}\n\n\ndef build_model():\n    return {name}()\n")
        asked = ["check", str(file), "--input", "2x3x32x32", "--quiet"]
        assert run([*asked, "--json"]) == 0
        outlook = json.loads(capsys.readouterr().out)["outlook"]
        assert (outlook is not None) is told
        assert run(["check", str(file), "--input", "2x3x32x32"]) == 0
        assert ("It may gain less" in capsys.readouterr().out) is told
