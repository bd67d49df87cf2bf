"""Parameters, buffers and settings of a written network: the names, types and values of the module's, frozen where these are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import swnet
from swcompile.errors import SwnetError
from swcompile.export import export
from swcompile.export.python.constructors import constructor, unwritable
from swcompile.modules import RewiredModule
from tests.export.test_python_source import Small, made_from, small, source_of, twin_of, with_module


class Holding(Small):
    """Parameters and buffers in whatever torch lets them be held."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(8, 1, 1)) for _ in range(2)])
        self.shifts = nn.ParameterDict({"a-b": nn.Parameter(torch.randn(8, 1, 1)), "same": self.scales[0]})
        self.register_buffer("bounds", torch.tensor([-math.inf, math.inf]), persistent=False)
        self.register_buffer("spread", torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("steps", torch.arange(3))
        self.blocks = nn.ModuleDict({"self": nn.ReLU(), "block-1": nn.ReLU()})
        self.blocks["block-2"] = self.blocks["self"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.body(self.stem(x))).clamp(self.bounds[0], self.bounds[1])
        y = self.blocks["block-2"](self.blocks["block-1"](self.blocks["self"](y)))
        y = y * self.scales[0] + self.shifts["a-b"] * self.scales[1] * self.shifts["same"]
        return self.head((y / self.spread + self.steps.sum()).mean((2, 3)))


def rewired(model: nn.Module) -> RewiredModule:
    return swnet.transform(model, torch.randn(2, 3, 8, 8), p=0.5, seed=3)


def test_names_that_are_no_identifiers_and_ties_are_kept() -> None:
    module, x = rewired(Holding()).eval(), torch.randn(2, 3, 8, 8)
    twin: Any = twin_of(module).eval()
    assert torch.equal(twin(x), module(x))
    named = dict(twin.named_parameters(remove_duplicate=False))
    assert named["shifts.same"] is named["scales.0"]
    assert named.keys() == dict(module.named_parameters(remove_duplicate=False)).keys()


def test_fresh_networks_compute_finite_numbers() -> None:
    """Deterministic settings fill torch.empty with NaN, so that memory that nobody wrote shows."""
    module = rewired(Holding())
    torch.use_deterministic_algorithms(True)
    try:
        made: Any = made_from(source_of(module))["Model"]()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in made.state_dict().values())
    assert made(torch.randn(2, 3, 8, 8)).isfinite().all()
    assert float(made.get_parameter("scales.1").detach().std()) > 0


def test_what_is_frozen_stays_frozen() -> None:
    model = Holding()
    model.stem.requires_grad_(False)
    model.scales[1].requires_grad_(False)
    model.last.bias.requires_grad_(False)  # type: ignore[union-attr]
    module = rewired(model)
    twin = twin_of(module)
    wanted = {name: parameter.requires_grad for name, parameter in module.named_parameters(remove_duplicate=False)}
    assert {name: parameter.requires_grad for name, parameter in twin.named_parameters(remove_duplicate=False)} == wanted
    assert {True, False} == set(wanted.values())
    assert "requires_grad_" not in source_of(small(p=0.5))


def test_attributes_of_the_users_do_not_hinder_but_methods_do() -> None:
    layer: Any = nn.Linear(4, 2)
    layer.SCALE_INIT = torch.ones(3)
    assert constructor(layer) == "nn.Linear(4, 2)"
    layer.extra_repr = lambda: "mine"
    assert constructor(layer) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_norms_without_parameters_have_the_type_of_their_buffers(dtype: torch.dtype) -> None:
    assert constructor(nn.BatchNorm2d(8, affine=False).to(dtype)) == f"nn.BatchNorm2d(8, affine=False, dtype={dtype})"


@pytest.mark.parametrize(
    "text",
    [
        "nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True)",
        "nn.LSTM(4, 6, proj_size=3)",
        "nn.GRU(4, 6, bias=False)",
        'nn.RNN(4, 6, nonlinearity="relu")',
        "nn.RNN(4, 6, num_layers=2, dropout=0.5)",
    ],
)
def test_recurrent_layers_are_written_as_the_calls_that_made_them(text: str) -> None:
    assert constructor(eval(text, {"nn": nn})) == text


def test_transformer_layers_are_refused_with_the_reason() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert constructor(layer) is None
    with pytest.raises(SwnetError, match=r"body\.3 is a TransformerEncoderLayer, which does not keep the arguments"):
        raise unwritable("body.3", layer)


class Counting(nn.Module):
    """Counts its calls in a buffer, and reads the count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return x / self.n


class CountingNet(Small):
    """The same at the root, which is traced into."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return super().forward(x) / self.n


def test_a_buffer_that_is_written_in_place_is_read_afterwards() -> None:
    x = torch.randn(2, 3, 8, 8)
    module = rewired(CountingNet()).eval()
    twin = twin_of(module).eval()
    for _ in range(3):
        assert torch.equal(twin(x), module(x))
    assert torch.equal(twin.state_dict()["n"], module.state_dict()["n"])


def test_a_module_that_only_its_code_can_run_and_that_counts_is_refused() -> None:
    with pytest.raises(SwnetError, match=r"body\.3 is a Counting, .* \(it writes into a buffer of its own\)"):
        source_of(with_module(Counting()))


def test_trying_other_batches_leaves_buffers_alone(tmp_path: Path) -> None:
    module = rewired(CountingNet()).eval()
    export(module, tmp_path / "out", to="python")
    assert torch.equal(load_file(tmp_path / "out" / "weights.safetensors")["n"], module.state_dict()["n"])
