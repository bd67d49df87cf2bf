"""The examples run: through the command line and back, through the public API, and as programs."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import swnet
from benchmarks.vision import torchvision_models
from swcompile.cli import run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MODELS = {
    "resnet20": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "plain_mlp": (1, 28, 28),
    "unet": (1, 64, 64),
    "timm_resnet": (3, 64, 64),
}
PROGRAMS = {"train", "train_ema", "train_lightning", "train_transformers", "quantize", "serve"}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Return a function that runs an example as `python examples/NAME.py` would, siblings importable, up to its `main`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    torchvision_models()  # which lightning, transformers and timm import
    yield lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))
    for name in PROGRAMS | MODELS.keys():
        sys.modules.pop(name, None)


def test_every_example_is_tested() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == MODELS.keys() | PROGRAMS


def built(name: str) -> nn.Module:
    torchvision_models()
    names: dict[str, Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    model = names["build_model"]() if "build_model" in names else names.get("model") or names["UNet"]()
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_an_example_goes_through_the_command_line(name: str, tmp_path: Path) -> None:
    torchvision_models()
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


def test_the_training_example_runs(program: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    program("train")["main"](steps=3)
    said = capsys.readouterr().out
    assert "rewired   loss after 3 steps" in said
    assert "original  loss after 3 steps" in said


def test_the_average_of_weights_is_one_of_a_rewired_model(program: Callable[[str], Any]) -> None:
    averaged = program("train_ema")["main"](steps=3)
    assert averaged.n_averaged == 3
    assert swnet.ledger(averaged.module).links_moved > 0


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own, of torch's pytrees
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_lightning_trains_it_and_its_checkpoints_fit(program: Callable[[str], Any], tmp_path: Path) -> None:
    names = program("train_lightning")
    trainer = names["main"](steps=3)
    assert trainer.global_step == 3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = names["digits"]()[0][:2]
    fresh = names["Classifier"](swnet.transform(names["build_model"](), images, p=0.3))
    fresh.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], strict=True)
    assert torch.equal(fresh.model.eval()(images), trainer.lightning_module.model.eval()(images))


def test_transformers_trainer_trains_evaluates_and_saves_it(program: Callable[[str], Any], tmp_path: Path) -> None:
    names = program("train_transformers")
    trainer = names["main"](steps=3)
    assert trainer.state.global_step == 3
    assert swnet.ledger(trainer.model).links_moved > 0
    trainer.save_model(str(tmp_path))
    fresh = swnet.transform(names["build_model"](), torch.randn(2, 1, 32, 32), p=0.3)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    x = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x)["logits"], trainer.model.eval()(x)["logits"])


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's, which torchao imports
def test_quantized_it_answers_nearly_the_same(program: Callable[[str], Any]) -> None:
    errors = program("quantize")["main"](steps=3)
    assert errors.keys() == {"whole", "weights only"}
    assert all(0 < error < 0.05 for error in errors.values()), errors  # 0 would be no quantization at all


SERVED = """
import json, sys, threading, urllib.error, urllib.request
import serve
running = serve.server(sys.argv[1], port=0)
threading.Thread(target=running.serve_forever, daemon=True).start()
url = f"http://localhost:{running.server_port}"
body = json.dumps([[[[0.5] * 32] * 32] * 3] * 2).encode()
said = {"classes": json.load(urllib.request.urlopen(url, body))}
for bad in (b"[[1, 2]]", b"no", b"[]"):
    try:
        urllib.request.urlopen(url, bad)
    except urllib.error.HTTPError as error:
        said[bad.decode()] = error.code
said["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(said))
"""
RUNTIME = {"torch", "numpy", "networkx", "safetensors"}
"""The packages that loading a folder needs; what else is imported there comes with torch."""
TRAINING = {"sklearn", "scipy", "lightning", "pytorch_lightning", "transformers", "accelerate", "timm", "torchvision", "torchao",
            "matplotlib", "PIL", "igraph", "pandas", "benchmarks"}  # fmt: skip


def test_serving_needs_nothing_of_training(tmp_path: Path) -> None:
    assert run(["transform", str(EXAMPLES / "resnet20.py"), "--out", str(tmp_path / "out"), "--p", "0.3"]) == 0
    paths = os.pathsep.join(map(str, (EXAMPLES, ROOT, ROOT / "kernels")))
    command = [sys.executable, "-c", SERVED, str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["classes"]) == 2
    assert set(said["classes"]) <= set(range(10))
    assert [said[bad] for bad in ("[[1, 2]]", "no", "[]")] == [400, 400, 400]
    assert set(said["modules"]) >= RUNTIME
    assert not TRAINING & set(said["modules"])
