"""A rewired network written as Python source computes what the network does, is readable, and needs torch alone."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import swnet
from swcompile.errors import SwnetError
from swcompile.export import python as written
from swcompile.modules import RewiredModule
from swcompile.record import record
from tests.test_equivalence import assert_same, rewire, run, state_of, tensors
from tests.zoo import ZOO, build

OPTIONS: tuple[dict[str, Any], ...] = (
    {"p": 0.3, "density": 0.5},
    {"p": 0.3, "wiring": "kernel"},
    {"p": 0.3, "wiring": "tile", "density": 0.25},
    {"p": 0.3, "resample": "avg"},
    {"p": 0.3, "resample": "stride"},
    {"grow": 0.2},
)
CASES = [(name, {"p": 0.3}) for name in ZOO] + [(name, options) for name in ("resnet_basic", "mlp") for options in OPTIONS]


def source_of(module: RewiredModule) -> str:
    return written.source(module, record(module).example)


def made_from(text: str) -> dict[str, Any]:
    """Run a written module as an import would."""
    scope: dict[str, Any] = {"__name__": "model", "__file__": "model.py"}
    exec(compile(text, "model.py", "exec"), scope)
    return scope


def twin_of(module: RewiredModule) -> nn.Module:
    """Return the model that is written of a module, with its weights. It imports torch alone, and what it names it reads."""
    text = source_of(module)
    tree = ast.parse(text)
    assert imported(tree) <= {"torch", "pathlib", "typing", "collections", "math", "safetensors"}
    for method in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and "forward" in node.name):
        names = [node for node in ast.walk(method) if isinstance(node, ast.Name)]
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        assert {node.id for node in names if isinstance(node.ctx, ast.Store)} <= {*read, "_"}
    made: nn.Module = made_from(text)["Model"]()
    made.load_state_dict(module.state_dict(), strict=True)
    return made


def imported(tree: ast.Module) -> set[str]:
    """Return the packages that a program imports, also inside of functions."""
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def assert_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_outputs_gradients_and_buffers_are_the_modules(name: str, options: dict[str, Any]) -> None:
    """In eval mode to the bit, at two batch sizes, but for weights that pruning has left with other strides."""
    module, x = rewire(name, **options), build(name)[1]
    twin = twin_of(module)
    with torch.no_grad():
        for images in (x, torch.cat([x, x[:1].flip(-1)])):
            ours, theirs = tensors(twin.eval()(images)), tensors(module.eval()(images))
            assert_same(ours, theirs) if "density" not in options else torch.testing.assert_close(ours, theirs)
    ours, gradients = run(twin.train(), x)
    theirs, wanted = run(module.train(), x)
    torch.testing.assert_close(tensors(ours), tensors(theirs), rtol=1e-5, atol=1e-6)
    assert_close(gradients, wanted)
    assert_close(state_of(twin), state_of(module))


class Small(nn.Module):
    """Two stages: the second reads the first across a pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.body(self.stem(x))).mean((2, 3)))


def small(**options: Any) -> RewiredModule:
    return swnet.transform(Small(), torch.randn(2, 3, 8, 8), seed=3, **options)


WANTED = """\
class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            [
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(),
            ]
        )
        self.body = nn.ModuleList(
            [
                nn.MaxPool2d(2),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
            ]
        )
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x_c0, x_c1, x_c2 = x.split(1, dim=1)

        # stem (Sequential)
        y = self.stem[0](x)
        y = self.stem[1](y)

        # body (Sequential)
        body_0 = self.body[0](y)
        (
            body_0_c0, body_0_c2, body_0_c3, body_0_c4, body_0_c5, body_0_c6, body_0_c7,
        ) = body_0.split([2, 1, 1, 1, 1, 1, 1], dim=1)  # fmt: skip
        y = torch.cat([
            body_0_c0, max_pooled(x_c0, body_0), body_0_c3, max_pooled(x_c2, body_0),
            max_pooled(x_c1, body_0), body_0_c6, body_0_c7,
        ], 1)  # fmt: skip
        y = self.body[1](y)
        body = self.body[2](y)
        _, body_c1, _, body_c5, _, body_c7 = body.split([1, 2, 2, 1, 1, 1], dim=1)

        y = torch.cat(
            [body_0_c2, body_c1, body_0_c4, body_0_c6, body_c5, body_0_c5, body_c7], 1
        )
        y = self.last(y)
        y = y.mean((2, 3))
        return self.head(y)
"""


def test_it_reads_as_a_person_would_write_it() -> None:
    text = source_of(small(p=0.5))
    model = text[text.index("class Model") : text.index("WEIGHTS")]
    assert model.rstrip() == WANTED.rstrip()


@pytest.mark.parametrize("options", [{"p": 0.5}, {"p": 0.5, "wiring": "kernel"}, {"p": 0.5, "resample": "avg"}], ids=str)
def test_it_is_formatted_and_without_findings(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(source_of(small(**options)))
    rules = "E,F,W,I,B,UP,C4,SIM,PIE,RET,PERF,RUF"
    for command in (["check", "--select", rules, "--target-version", "py311"], ["format", "--check"]):
        line = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "model.py"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["densenet", "googlenet", "shufflenet", "convnext"])
def test_long_gathers_are_filled_lines_that_formatters_leave(name: str, tmp_path: Path) -> None:
    text = source_of(rewire(name, p=0.5))
    assert max(map(len, text.splitlines())) <= 88
    (tmp_path / "model.py").write_text(text)
    line = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--no-cache", "model.py"]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == 0


def test_a_module_called_under_two_names_is_one() -> None:
    class Twice(Small):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.last

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.body(self.stem(x)))
            return self.head(self.again(y).mean((2, 3)))

    module = swnet.transform(Twice(), torch.randn(2, 3, 8, 8), p=0)
    twin: Any = twin_of(module)
    assert twin.again is twin.last
    assert len(list(twin.parameters())) == len(list(module.parameters()))


def test_one_activation_at_two_places_of_a_sequence_is_one() -> None:
    act = nn.ReLU()
    layers = nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 8), nn.Sequential(act, nn.Identity(), act))
    module = swnet.transform(layers, torch.randn(2, 8), p=0.5).eval()
    twin: Any = twin_of(module).eval()
    assert twin[1] is twin[3] is twin[5][0] is twin[5][2]
    x = torch.randn(3, 8)
    assert torch.equal(twin(x), module(x))


def test_tied_weights_stay_tied() -> None:
    class Tied(Small):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Conv2d(8, 8, 1)
            self.extra.weight = self.last.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.extra(self.last(self.body(self.stem(x)))).mean((2, 3)))

    module = swnet.transform(Tied(), torch.randn(2, 3, 8, 8), p=0.5).eval()
    twin: Any = twin_of(module).eval()
    assert twin.extra.weight is twin.last.weight
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin(x), module(x))


def test_names_do_not_hide_what_statements_call() -> None:
    """An argument and modules called like functions of the written module."""

    class Named(Small):
        def __init__(self) -> None:
            super().__init__()
            self.max_pooled, self.load = nn.ReLU(), nn.ReLU()

        def forward(self, y: Tensor) -> Tensor:
            first = self.max_pooled(self.stem(y))
            second = self.load(self.last(self.body(first)))
            return self.head(second.mean((2, 3))) + first.mean() + second.mean()

    module = swnet.transform(Named(), torch.randn(2, 3, 8, 8), p=0.5, seed=3).eval()
    x = torch.randn(2, 3, 8, 8)
    assert "max_pooled(" in source_of(module)
    assert torch.equal(twin_of(module).eval()(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_parameters_is_kept(dtype: torch.dtype) -> None:
    module = swnet.transform(Small().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype), p=0.5).eval()
    twin = twin_of(module).eval()
    assert {parameter.dtype for parameter in twin.parameters()} == {dtype}
    x = torch.randn(3, 3, 8, 8, dtype=dtype)
    assert torch.equal(twin(x), module(x))


def test_it_follows_other_image_sizes() -> None:
    """Also where the sizes do not divide, and where what was larger is smaller."""
    module = small(p=0.5).eval()
    twin = twin_of(module).eval()
    for side in (9, 13, 16):
        x = torch.randn(1, 3, side, side)
        assert torch.equal(twin(x), module(x))


class Foreign(nn.Module):
    """A class of the user's own without layers, which tracing leaves as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("steps", torch.arange(8.0).view(8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x * self.scale + self.steps)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Summing(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps.sum()


def with_module(inside: nn.Module) -> RewiredModule:
    model = Small()
    model.body.append(inside)
    return swnet.transform(model, torch.randn(2, 3, 8, 8), p=0.5)


def test_a_module_of_the_users_own_is_written_as_its_operations() -> None:
    module = with_module(Foreign())
    twin = twin_of(module)
    x = torch.randn(2, 3, 8, 8)
    for training in (False, True):
        torch.manual_seed(1)
        wanted = module.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(twin.train(training)(x), wanted)


def test_a_weight_that_is_computed_is_written_as_its_computation() -> None:
    model = Small()
    weight_norm(model.last)
    module = swnet.transform(model, torch.randn(2, 3, 8, 8), p=0.5).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(twin_of(module).eval()(x), module(x))


def test_what_cannot_be_written_is_named_with_a_remedy() -> None:
    with pytest.raises(SwnetError, match=r"body\.3 is a Deciding, .* Replace it by modules of torch.nn, or export to torch-export"):
        source_of(with_module(Deciding()))
    hooked = small(p=0.5)
    hooked.last.register_forward_hook(lambda *_: None)  # type: ignore[operator,union-attr]
    with pytest.raises(SwnetError, match=r"last \(Conv2d\) has hooks"):
        source_of(hooked)
    with pytest.raises(SwnetError, match=r"body\.3 is a Summing, .* computes with tensors of its own before it comes to its input"):
        source_of(with_module(Summing()))


def test_the_module_is_left_as_it_was() -> None:
    module = with_module(Foreign()).train()
    before, state = module.code, copy.deepcopy(module.state_dict())
    source_of(module)
    assert module.code == before
    assert all(one.training for one in module.modules())
    assert_same(module.state_dict(), state)


class Writing(nn.Module):
    """Writes into slices of a value, which is read again later, and returns what it has written into."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[1](torch.relu(self.layers[0](x)))
        part = x[:, :4]
        part += 1
        y = self.layers[2](x)
        y[:, 0] = part.sum(1)
        y = self.layers[3](torch.relu(y) + x)
        last = y[:, 2:]
        last *= 2
        return last


def test_what_is_written_in_place_is_written_so() -> None:
    module, x = swnet.transform(Writing(), torch.randn(2, 8), p=0.5).eval(), torch.randn(3, 8)
    text = source_of(module)
    assert " += 1" in text
    assert torch.equal(twin_of(module).eval()(x), module(x))


def test_functional_dropout_follows_the_mode_in_one_forward() -> None:
    class Dropping(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(self.last(self.body(self.stem(x))), 0.5, self.training).mean((2, 3)))

    module, x = swnet.transform(Dropping(), torch.randn(2, 3, 8, 8), p=0.5), torch.randn(2, 3, 8, 8)
    text = source_of(module)
    assert "self.training" in text
    assert text.count("def forward(self, x") == 1
    twin = twin_of(module)
    for training in (True, False):
        torch.manual_seed(1)
        wanted = module.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(twin.train(training)(x), wanted)


@pytest.mark.parametrize("resample", ["max", "avg", "stride"])
def test_maps_are_brought_down_by_more_than_two(resample: str) -> None:
    model = Small()
    model.body[0] = nn.MaxPool2d(4)
    module = swnet.transform(model, torch.randn(2, 3, 16, 16), p=0.5, seed=3, resample=resample).eval()
    assert "(x_c0, body_0)" in source_of(module)
    for side in (16, 18, 23):
        x = torch.randn(2, 3, side, side)
        assert torch.equal(twin_of(module).eval()(x), module(x))


def test_an_argument_that_is_not_given_is_compared_with_none() -> None:
    class Optional(Small):
        def forward(self, x: Tensor, mask: Any = None) -> Tensor:
            if mask is not None:
                x = x * mask
            return super().forward(x)

    module, x = swnet.transform(Optional(), torch.randn(2, 3, 8, 8), p=0.5).eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(twin_of(module).eval()(x), module(x))
