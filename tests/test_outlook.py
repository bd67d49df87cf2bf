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
from swcompile.outlook import LEAST, LEAST_GAIN, MOST, MOST_GAIN, Paths, effective_depth, foreseen, outlook, paths
from swcompile.survey import survey


@pytest.mark.parametrize(
    ("build", "expected"), [(plain_cnn21, Paths(21, 21)), (resnet20, Paths(4, 20)), (lambda: densenet(40, 12), Paths(4, 40))]
)
def test_paths_are_counted_in_layers(build: Callable[[], nn.Module], expected: Paths) -> None:
    assert paths(survey(build()).graph) == expected


def test_the_depth_is_that_of_the_ledger() -> None:
    for model in (resnet20(), densenet(16, 8)):
        found = survey(model, torch.zeros(2, 3, 32, 32))
        counted = swnet.ledger(swnet.transform(model, torch.zeros(2, 3, 32, 32), p=0)).before
        assert effective_depth(found.graph) == counted.effective_depth


def test_the_deeper_the_more_and_beyond_what_is_known_no_more() -> None:
    gains = [foreseen(depth) for depth in (3.0, LEAST, 9.0, 15.0, MOST, 100.0)]
    assert gains == sorted(gains)
    assert (gains[0], gains[-1]) == (gains[1], gains[-2]) == pytest.approx((LEAST_GAIN, MOST_GAIN))


def test_a_deep_plain_network_is_told_what_such_ones_gained() -> None:
    said = survey(plain_cnn21()).outlook
    assert said is not None
    assert said.startswith("Its effective depth, the layers on a random walk back from its output, is 21.0. ")
    assert "those of 21.0 came to the original's final error about 2.4 times as fast in steps, two of three 1.9 to 3.0" in said
    assert said.endswith("a rule of thumb.")  # nothing of shortcuts


def test_a_shallow_network_is_told_that_it_may_gain_little_and_what_is_not_known() -> None:
    said = survey(plain_cnn((2, 1, 1))).outlook
    assert said is not None
    assert said.startswith("It may gain little. ")
    assert "is 5.0. " in said
    assert "those of 5.8, the least that is known of, came" in said
    assert "those of 21.0, the most that is known of, came" in (survey(plain_cnn((14, 13, 13))).outlook or "")


def test_who_has_shortcuts_and_norms_is_told_what_is_known_of_long_training() -> None:
    said = survey(resnet20()).outlook
    assert said is not None
    assert "is 9.5. " in said
    assert "Trained for long it may gain less" in said
    assert "(20 layers on its longest path, 4 on its shortest)" in said
    assert "1.04 to 1.10 times" in said


def test_without_norms_nothing_is_known_of_long_training() -> None:
    model = resnet20()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    found = survey(model)
    assert "Trained for long" not in (found.outlook or "")
    assert "Trained for long" in outlook(found.graph, normed=True)


def test_where_nothing_can_be_rewired_nothing_is_foreseen() -> None:
    assert survey(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 8)).outlook is None


def test_check_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (("resnet20", True), ("plain_cnn21", False)):
        file = tmp_path / f"{name}.py"
        file.write_text(f"from benchmarks.models import {name}\n\n\ndef build_model():\n    return {name}()\n")
        asked = ["check", str(file), "--input", "2x3x32x32", "--quiet"]
        assert run([*asked, "--json"]) == 0
        outlook = json.loads(capsys.readouterr().out)["outlook"]
        assert ("Trained for long" in outlook) is told
        assert run(["check", str(file), "--input", "2x3x32x32"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert outlook in shown
