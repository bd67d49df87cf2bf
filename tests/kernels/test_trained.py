"""trained_gather_mm is what plain torch makes of cat, batch norm, activation and linear layer, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swkernels import Norm, Taps, statistics_reference, trained_gather_mm
from swkernels.affine import ACTIVATIONS
from tests.kernels.races import watched

TAPS = Taps(((2, 3, 9), (0, 0, 4), (1, 2, 7), (2, 0, 2)))
WIDTHS = (4, 8, 9)


def parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return maps, and the weights of a norm and a linear layer."""
    count = len(TAPS)
    sizes = {f"map {at}": (3, 4, 5, width) for at, width in enumerate(WIDTHS)}
    sizes |= {"weight": (6, count), "bias": (6,), "scale": (count,), "shift": (count,)}
    return {name: torch.randn(size, dtype=dtype).requires_grad_() for name, size in sizes.items()}


def plainly(given: dict[str, Tensor], activation: str, mode: str, statistics: tuple[Tensor, Tensor]) -> Tensor:
    read = TAPS.take([given[f"map {at}"] for at in range(len(WIDTHS))])
    if mode != "none":
        flat = read.flatten(0, -2)
        mean, var = (value.clone() for value in statistics)
        scale, shift = (given["scale"], given["shift"]) if mode != "bare" else (None, None)
        flat = functional.batch_norm(flat, mean, var, scale, shift, training=mode != "frozen", eps=1e-3)
        read = flat.view(read.shape)
    read = ACTIVATIONS[activation](read)
    return functional.linear(read, given["weight"], given["bias"]) if "weight" in given else read


def by_us(given: dict[str, Tensor], activation: str, mode: str, statistics: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    sources = [given[f"map {at}"] for at in range(len(WIDTHS))]
    norm = None
    if mode != "none":
        mean, var = statistics if mode == "frozen" else statistics_reference(TAPS.take(sources).detach())
        norm = Norm(mean, var, *((given["scale"], given["shift"]) if mode != "bare" else (None, None)), 1e-3)
    options |= {"norm": norm, "through": mode != "frozen", "activation": activation, "bias": given.get("bias")}
    return trained_gather_mm(sources, TAPS, given.get("weight"), **options)


@pytest.mark.parametrize("mode", ["batch", "bare", "frozen", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("product", [True, False])
def test_it_is_what_plain_torch_does(product: bool, dtype: torch.dtype, activation: str, mode: str, launched: list[str]) -> None:
    given = {name: value for name, value in parameters(dtype).items() if product or name not in ("weight", "bias")}
    statistics = torch.randn(len(TAPS), dtype=dtype), torch.rand(len(TAPS), dtype=dtype) + 0.5
    grad = torch.randn(3, 4, 5, 6 if product else len(TAPS), dtype=dtype)
    used = {name: value for name, value in given.items() if mode in ("batch", "frozen") or name not in ("scale", "shift")}
    expected = plainly(given, activation, mode, statistics)
    wanted = torch.autograd.grad(expected, list(used.values()), grad)
    with watched(*(value.detach() for value in given.values())) as watch:
        found = by_us(given, activation, mode, statistics)
        gradients = torch.autograd.grad(found, list(used.values()), grad)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **close)
    for name, one, other in zip(used, gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}", **close)
    assert not watch.faults
    assert ("_data_gradient" in launched) == (dtype == torch.float32)
    assert ("_weight_gradient" in launched) == (dtype == torch.float32 and product)


def test_gradcheck() -> None:
    given = parameters(torch.float64)
    names, statistics = list(given), (torch.zeros(len(TAPS)), torch.ones(len(TAPS)))

    def whole(*values: Tensor) -> Tensor:
        return by_us(dict(zip(names, values, strict=True)), "silu", "batch", statistics)

    assert torch.autograd.gradcheck(whole, tuple(given.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("product", [True, False])
def test_what_follows_may_write_into_the_result(product: bool, dtype: torch.dtype) -> None:
    given = {name: value for name, value in parameters(dtype).items() if product or name not in ("weight", "bias")}
    for mode in ("batch", "none"):
        by_us(given, "none", mode, (torch.zeros(1), torch.ones(1))).movedim(-1, 1).relu_().sum().backward()
    assert all(value.grad is not None for value in given.values())


def test_in_plain_torch_on_request(launched: list[str]) -> None:
    given = parameters(torch.float32)
    found = by_us(given, "relu", "batch", (torch.zeros(1), torch.ones(1)), by_kernel=False)
    found.sum().backward()
    assert launched == []


def test_nothing_wide_is_saved() -> None:
    """What is kept for the backward pass is the maps themselves, and what has a value a channel."""
    given, kept = parameters(torch.float32), []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        by_us(given, "relu", "batch", (torch.zeros(1), torch.ones(1)))
    ours = {given[f"map {at}"].data_ptr() for at in range(len(WIDTHS))}
    assert ours <= {value.data_ptr() for value in kept}
    assert all(value.dim() <= 2 for value in kept if value.data_ptr() not in ours)


def test_a_second_derivative_is_refused() -> None:
    given = parameters(torch.float64)
    y = by_us(given, "silu", "batch", (torch.zeros(1), torch.ones(1)))
    (first,) = torch.autograd.grad(y.sum(), given["map 0"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    given = parameters(torch.float64)
    for name in ("map 1", "scale", "weight"):
        given[name].requires_grad_(False)
    by_us(given, "relu", "batch", (torch.zeros(1), torch.ones(1))).sum().backward()
    assert {name for name, value in given.items() if value.grad is not None} == {"map 0", "map 2", "bias", "shift"}


def test_compiles_without_a_break() -> None:
    given = parameters(torch.float64)
    statistics = torch.zeros(len(TAPS)).double(), torch.ones(len(TAPS)).double()
    grad = torch.randn(3, 4, 5, 6).double()

    def step(values: dict[str, Tensor]) -> Tensor:
        return by_us(values, "relu", "frozen", statistics)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for one, other in zip(
        torch.autograd.grad(compiled(given), list(given.values()), grad),
        torch.autograd.grad(step(given), list(given.values()), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
