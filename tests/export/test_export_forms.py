"""Exported forms agree with the module, are compared before they are written, and leave nothing behind where they do not."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swcompile.export as exporting
import swnet
from swcompile.errors import SwnetError
from swcompile.export import FORMS, PACKAGE, PROGRAM, export
from swcompile.export.compare import difference, inputs_like
from swcompile.modules import RewiredModule
from swcompile.store import EXPORT
from swcompile.trace.shapes import Spec
from tests.test_equivalence import rewire
from tests.zoo import build


def net(**options: Any) -> RewiredModule:
    """Return a small rewired network with norms that have seen data."""
    blocks = [nn.Sequential(nn.Conv2d(3 if not place else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for place in range(3)]
    model = nn.Sequential(*blocks, nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    module = swnet.transform(model, torch.randn(2, 3, 8, 8), **({"p": 0.5} | options))
    with torch.no_grad():
        module.train()(torch.randn(4, 3, 8, 8))
    return module.eval()


FILES = {"torch-export": ["model.pt2"], "onnx": ["model.onnx"], "python": ["model.py", "weights.safetensors"]}


@pytest.mark.parametrize("to", FORMS)
def test_a_form_is_written_whole_and_agrees_at_two_batch_sizes(to: str, tmp_path: Path) -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    done = export(module, tmp_path / "out", to=to)
    assert done.comparison.difference <= 1e-5 == done.comparison.tolerance
    assert (done.comparison.batches, done.open_batch) == ((1, 3), True)
    assert list(done.files) == FILES[to]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted([*FILES[to], "manifest.json"])
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (document["format"], document["to"], document["compared"]["batches"]) == ("swcompile-export", to, [1, 3])
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_a_pt2_file_runs_without_the_models_code(tmp_path: Path) -> None:
    module = net()
    export(module, tmp_path / "out", to="torch-export")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    x = torch.randn(7, 3, 8, 8)
    assert torch.equal(program(x), module(x))


def test_an_onnx_file_names_its_batch_and_runs(tmp_path: Path) -> None:
    import onnxruntime

    module = net(wiring="kernel")
    export(module, tmp_path / "out", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (given,) = session.get_inputs()
    assert given.shape == ["batch", 3, 8, 8]
    assert session.get_outputs()[0].shape == ["batch", 4]
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]), module(x), rtol=1e-5, atol=1e-5)


FRESH = """
import sys, torch
from model import load
x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
torch.save(load()(x), "result.pt")
assert not [name for name in sys.modules if name.partition(".")[0] in ("swnet", "swcompile", "swkernels")]
"""


def test_a_python_module_needs_none_of_ours_in_a_fresh_process(tmp_path: Path) -> None:
    module = net(wiring="tile", density=0.5)
    export(module, tmp_path / "out", to="python")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "out"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", FRESH], check=True, cwd=tmp_path, env=env)
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    assert torch.equal(torch.load(tmp_path / "result.pt", weights_only=True), module(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside inductor
def test_a_package_compiled_ahead_of_time_agrees(tmp_path: Path) -> None:
    assert shutil.which("g++") or shutil.which("clang++"), "AOTInductor needs a C++ compiler; install g++"
    module = swnet.transform(nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]), torch.randn(2, 8), p=0.5)
    done = export(module, tmp_path / "out", to="torch-export", aot=True)
    assert list(done.files) == ["model.aot.pt2", "model.pt2"]
    assert done.comparison.difference <= 1e-5


def test_without_a_compiler_aot_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SwnetError, match=r"needs a C\+\+ compiler, and there is none. Install g\+\+"):
        export(net(), tmp_path / "out", to="torch-export", aot=True)
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(SwnetError, match=r"missing: onnxscript. Install them: pip install 'swcompile\[onnx\]'"):
        export(net(), tmp_path / "out", to="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("old", "new"), [("padding=1)", 'padding=1, padding_mode="circular")'), ("F.max_pool2d", "F.avg_pool2d")])
def test_what_computes_something_else_is_refused_and_nothing_is_left(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting.source

    def wrongly(*arguments: Any) -> str:
        text = write(*arguments)
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(exporting, "source", wrongly)
    with pytest.raises(SwnetError, match=r"python computes differs from the module by .*, more than 1e-05 .* nothing was written"):
        export(net(), tmp_path / "out", to="python")
    assert not list(tmp_path.iterdir())


def test_train_mode_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporting.source
    dropping = ("nn.ReLU()", "nn.Sequential(nn.ReLU(), nn.Dropout())", 1)
    monkeypatch.setattr(exporting, "source", lambda *given: write(*given).replace(*dropping))
    with pytest.raises(SwnetError, match="In train mode"):
        export(net(), tmp_path / "out", to="python")
    assert not list(tmp_path.iterdir())


def test_where_train_mode_cannot_be_compared_that_is_told(tmp_path: Path) -> None:
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(4)]
    module = swnet.transform(nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(4, 8), p=0.5).eval()
    assert export(module, tmp_path / "four", to="python").trained is True
    assert export(module, tmp_path / "one", to="python", example_inputs=torch.randn(1, 8)).trained is False  # norms want two
    assert export(module, tmp_path / "program", to="torch-export").trained is None


def test_a_folder_is_replaced_when_asked_and_only_one_of_ours(tmp_path: Path) -> None:
    module = net()
    export(module, tmp_path / "out", to="python")
    with pytest.raises(SwnetError, match=r"exists. Choose another one, or replace it: --force\.$"):
        export(module, tmp_path / "out", to="python")
    export(module, tmp_path / "out", to="torch-export", force=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["manifest.json", "model.pt2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SwnetError, match="do not belong to an export"):
        export(module, tmp_path / "mine", to="python", force=True)


def test_an_export_never_replaces_a_saved_model(tmp_path: Path) -> None:
    module = net()
    swnet.save(module, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    kept = r"holds a saved model, which `swcompile transform` or swnet\.save wrote; an export does not replace it\."
    strange = r"holds files that do not belong to an export \(plan\.json\); it is not replaced\. Choose another\."
    for manifest, said in ((before["manifest.json"], kept), (b"[1]", strange), (b"no json", strange)):
        (tmp_path / "out" / "manifest.json").write_bytes(manifest)
        with pytest.raises(SwnetError, match=said):
            export(module, tmp_path / "out", to="python", force=True)
    (tmp_path / "out" / "manifest.json").write_bytes(before["manifest.json"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_never_replaces_an_export(tmp_path: Path, form: str) -> None:
    module = net()
    export(module, tmp_path / "out", to=form)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(SwnetError, match=r"holds an export, which `swcompile export` wrote; a saved model does not replace it\."):
        swnet.save(module, tmp_path / "out", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert {*before, PROGRAM, PACKAGE} <= EXPORT.files  # what may be replaced is all that is written
    export(module, tmp_path / "out", to=form, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_lowered_module_is_exported_as_it_was(tmp_path: Path) -> None:
    module, x = rewire("densenet", p=0.3).eval(), build("densenet")[1]
    lowered = swnet.lower(module, x, backend="torch")
    assert export(lowered, tmp_path / "python", to="python").comparison.difference <= 1e-5
    text = (tmp_path / "python" / "model.py").read_text()
    export(module, tmp_path / "plain", to="python")
    assert (tmp_path / "plain" / "model.py").read_text() == text


def test_own_inputs_are_compared_with(tmp_path: Path) -> None:
    module = net()
    assert export(module, tmp_path / "out", to="python", example_inputs=torch.randn(2, 3, 12, 12)).comparison.batches == (1, 3)
    with pytest.raises(SwnetError, match="2 example inputs were given; the model was traced with 1"):
        export(module, tmp_path / "two", to="python", example_inputs=[torch.randn(2, 3, 8, 8)] * 2)


def test_a_model_of_one_batch_size_is_exported_for_that_one(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).view(2, 4, 2)

    module = swnet.transform(Fixed(), torch.randn(2, 8), p=0.5)
    for to in ("python", "torch-export"):
        done = export(module, tmp_path / to, to=to)
        assert (done.open_batch, done.comparison.batches) == (False, (2,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_compared_by_what_they_can_hold(dtype: torch.dtype, tmp_path: Path) -> None:
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)]).to(dtype)
    module = swnet.transform(layers, torch.randn(2, 8, dtype=dtype), p=0.5)
    for to in ("python", "torch-export"):
        assert export(module, tmp_path / to, to=to).comparison.difference == 0


def test_onnxruntime_has_no_convolution_in_float64(tmp_path: Path) -> None:
    layers = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(3)]).double()
    module = swnet.transform(layers, torch.randn(2, 3, 4, 4, dtype=torch.float64), p=0.5)
    with pytest.raises(SwnetError, match=r"onnxruntime does not take what was exported: .* Export in float32, or in another form"):
        export(module, tmp_path / "out", to="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("torch.export.export", {"to": "torch-export"}, r"torch.export cannot export Sequential: no way. Take another form"),
        ("torch.onnx.export", {"to": "onnx"}, r"torch.onnx cannot export it: no way. Take another form, such as torch-export"),
        (
            "torch._inductor.aoti_compile_and_package",
            {"to": "torch-export", "aot": True},
            r"AOTInductor cannot compile it: no way. Leave --aot out",
        ),
    ],
)
def test_what_torch_cannot_do_is_said_with_a_remedy(
    name: str, asked: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no way\nat all")

    module = swnet.transform(nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]), torch.randn(2, 8), p=0.5)
    monkeypatch.setattr(name, fail)
    with pytest.raises(SwnetError, match=message):
        export(module, tmp_path / "out", **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"to": "keras"}, "There is no form 'keras'; export to torch-export, onnx, python"),
        ({"to": "onnx", "aot": True}, "it goes with torch-export, not with onnx"),
        ({"to": "python", "tolerance": -1}, "tolerance=-1 is not a number from 0 up"),
        ({"to": "python", "tolerance": float("nan")}, "tolerance=nan is not a number"),
    ],
)
def test_bad_requests_say_what_to_do(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SwnetError, match=message):
        export(net(), tmp_path / "out", **asked)
    assert not list(tmp_path.iterdir())


def test_only_rewired_modules_are_exported(tmp_path: Path) -> None:
    with pytest.raises(SwnetError, match=r"was not made by swnet.transform"):
        export(nn.Linear(2, 2), tmp_path / "out", to="python")


def test_differences_see_shapes_and_what_is_not_finite() -> None:
    one = torch.tensor([1.0, float("inf")])
    assert difference(one, one) == 0
    assert difference(torch.tensor([1.0, 2.0]), one) == float("inf")
    assert difference(torch.zeros(2, 1), torch.zeros(2)) == float("inf")
    assert difference([torch.zeros(2)], (torch.zeros(2), torch.zeros(2))) == float("inf")
    assert difference(torch.tensor([0.0]), torch.tensor([1e-3])) == pytest.approx(1e-3)


def test_differences_see_words_and_types() -> None:
    x = torch.zeros(2)
    assert difference({"y": x, "said": "two"}, {"y": x, "said": "two"}) == 0
    assert difference([x, "two"], [x, "three"]) == float("inf")
    assert difference([torch.float32], [torch.float16]) == difference(["two"], [x]) == float("inf")
    assert difference([2, True], [torch.tensor(2), torch.tensor(True)]) == 0


@pytest.mark.parametrize("text", ["def load(:", "raise RuntimeError('no')", "load = 1", "import nowhere_at_all"])
def test_source_that_does_not_run_is_one_error(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "source", lambda *_: text)
    with pytest.raises(SwnetError, match=r"cannot be written as Python: .*; take torch-export or onnx|does not run for a batch"):
        export(net(), tmp_path / "out", to="python")
    assert not list(tmp_path.iterdir())


def test_what_draws_in_eval_mode_is_compared_from_one_seed(tmp_path: Path) -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layers(x), 0.5, training=True)

    module = swnet.transform(Drawing(), torch.randn(2, 8), p=0.5)
    state = torch.random.get_rng_state()
    assert export(module, tmp_path / "out", to="python").comparison.difference == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inputs_share_the_batch_where_the_example_does() -> None:
    example = (Spec((4, 3), torch.float32), Spec((5, 2), torch.float32), Spec((4,), torch.int64))
    shapes = [tuple(tensor.shape) for tensor in inputs_like(example, 6)]
    assert shapes == [(6, 3), (5, 2), (6,)]
