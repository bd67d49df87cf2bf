"""The examples run: through the command line and back, through the public API, and as programs."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import swnet
from swcompile.cli import run

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = {"resnet20": (3, 32, 32), "resnet18": (3, 32, 32), "plain_mlp": (1, 28, 28), "unet": (1, 64, 64)}


def test_every_example_is_tested() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*MODELS, "train"}


def built(name: str) -> nn.Module:
    names: dict[str, Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    model = names["build_model"]() if "build_model" in names else names.get("model") or names["UNet"]()
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_an_example_goes_through_the_command_line(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size = "x".join(map(str, (1, *MODELS[name])))
    assert run(["transform", str(EXAMPLES / f"{name}.py"), "--out", str(out), "--p", "0.3", "--input", size]) == 0
    written = runpy.run_path(str(out / "model.py"))["build_model"]()
    loaded = swnet.load(out, built(name))
    x = torch.randn(3, *MODELS[name])
    assert torch.equal(written.eval()(x), loaded.eval()(x))


@pytest.mark.parametrize("name", MODELS)
def test_an_example_keeps_its_size_and_trains(name: str) -> None:
    model = built(name)
    x = torch.randn(3, *MODELS[name])
    rewired = swnet.transform(model, x[:1], p=0.3)
    rewired.load_state_dict(model.state_dict(), strict=True)
    ledger = swnet.ledger(rewired)
    assert ledger.after.params == ledger.before.params == sum(parameter.numel() for parameter in model.parameters())
    assert ledger.after.macs == ledger.before.macs
    assert ledger.after.long_range > ledger.before.long_range
    rewired(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in rewired.parameters())


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_the_resnets_need_no_example_input(name: str) -> None:
    model = built(name).eval()
    assert swnet.transform(model).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_training_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "train.py"))["main"](steps=3)
    said = capsys.readouterr().out
    assert "rewired   loss after 3 steps" in said
    assert "original  loss after 3 steps" in said
