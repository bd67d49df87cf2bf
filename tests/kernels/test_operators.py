"""What holds for all operators: torch's own checks, compilation without a break, export, the same bits twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from swkernels import (
    Cluster,
    Norm,
    Support,
    Taps,
    block_sparse_conv2d,
    block_sparse_conv2d_backward,
    centered,
    gather,
    gather_mm,
    gather_mm_backward,
    statistics,
)
from swkernels.statistics import empty_statistics
from tests.kernels.cases import norm

TAPS = Taps.of((16, 32), (0, 8))
ALL = Taps.of((0, 32))
SUPPORT = Support((Cluster(0, 8, ((0, 8),)), Cluster(8, 16, ((8, 24),))))
NORM = norm(24)
WEIGHT = torch.randn(16, 24)
FILTERS = torch.randn(16, 3, 3, 24)


def _gather(x: Tensor) -> Tensor:
    return gather(x, TAPS, norm=NORM, activation="relu", pool="avg", window=(2, 2))


def _gather_mm(x: Tensor) -> Tensor:
    return gather_mm(x, TAPS, WEIGHT, norm=NORM, activation="relu", residual=x[..., :16].contiguous(), out_activation="relu")


def _block_sparse(x: Tensor) -> Tensor:
    return block_sparse_conv2d(x, TAPS, FILTERS, SUPPORT, padding=1, norm=NORM, activation="relu")


def _into_a_slab(x: Tensor) -> Tensor:
    slab = x.new_zeros((*x.shape[:-1], 40))
    gather(x, ALL, out=slab[..., :32])
    return gather_mm(slab, TAPS, WEIGHT[:8], out=slab[..., 32:])


def _backward(x: Tensor) -> Tensor:
    """Return what comes back through a product and the statistics of what it read, all that there is in one tensor."""
    mean, var = statistics(x)
    found = gather_mm_backward(x[..., 8:24].contiguous(), x, TAPS, WEIGHT, norm=NORM, activation="relu", incoming=[x])
    sums = found.weight.sum() + found.norm_weight.sum() + found.norm_bias.sum()
    return centered(found.source, x, mean, var, mean) + sums


def _block_sparse_backward(x: Tensor) -> Tensor:
    found = block_sparse_conv2d_backward(x[..., 8:24].contiguous(), x, TAPS, FILTERS, SUPPORT, padding=1)
    return found.source + found.weight.sum((0, 1, 2))


def _with_statistics(x: Tensor) -> Tensor:
    """Return a product and the statistics of it, and of what it read, all that there is in one tensor."""
    of_read, of_made = empty_statistics(x, 24), empty_statistics(x, 16)
    read = gather(x, TAPS, statistics=of_read)
    y = gather_mm(read, Taps.of((0, 24)), WEIGHT, norm=Norm(*of_read), activation="relu", statistics=of_made)
    return torch.cat([y.flatten(), *of_made])


CALLS = {
    "gather": _gather,
    "gather_mm": _gather_mm,
    "block_sparse": _block_sparse,
    "slab": _into_a_slab,
    "backward": _backward,
    "block_sparse_backward": _block_sparse_backward,
    "statistics": _with_statistics,
}
Call = Callable[[Tensor], Tensor]


class Calling(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_a_break(name: str) -> None:
    x = torch.randn(2, 4, 6, 32)
    compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), CALLS[name](x))


@pytest.mark.parametrize("name", CALLS)
def test_exports(name: str) -> None:
    x = torch.randn(2, 4, 6, 32)
    exported = torch.export.export(Calling(CALLS[name]), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})
    other = torch.randn(3, 4, 6, 32)
    assert torch.equal(exported.module()(other), CALLS[name](other))


@pytest.mark.parametrize("name", CALLS)
def test_gives_the_same_bits_twice(name: str) -> None:
    x = torch.randn(2, 4, 6, 32)
    assert torch.equal(CALLS[name](x), CALLS[name](x))


@pytest.mark.parametrize("name", CALLS)
def test_runs_the_reference_on_a_cpu_without_the_interpreter(
    name: str, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    x = torch.randn(2, 4, 6, 32)
    kernels = CALLS[name](x)
    assert launched
    launched.clear()
    monkeypatch.setattr("swkernels.launch.interpreting", lambda: False)
    assert torch.allclose(CALLS[name](x), kernels, atol=1e-4)
    assert launched == []


def test_torch_finds_nothing_wrong_with_the_operators() -> None:
    x, run, none = torch.randn(1, 4, 4, 32), TAPS.flat(), (None, None, None, None, 0.0)
    operators = torch.ops.swkernels
    out = torch.zeros(1, 4, 4, 16)
    for taken in (False, True):
        of_read, of_made = ([*torch.zeros(2, count)] if taken else [] for count in (24, 16))
        pooled = (torch.zeros(1, 2, 2, 24), of_read)
        torch.library.opcheck(operators.gather_into, ([x], run, *NORM, "relu", "max", [2, 2], *pooled))
        made = (out, of_made)
        torch.library.opcheck(operators.gather_mm_into, ([x], run, *none, "relu", WEIGHT, None, *none, None, "none", *made))
    torch.library.opcheck(
        operators.gather_mm_backward_into, (out, [x], run, *NORM, "relu", WEIGHT, [None], torch.zeros(1, 4, 4, 32))
    )
    torch.library.opcheck(operators.statistics, (x,))
    checks = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
    )  # the last one would compare tokens, which hold nothing
    y, token = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
    for known in (None, torch.rand(2, 32).requires_grad_()):
        torch.library.opcheck(operators.share, (y, True, True, known), test_utils=checks)
    for weight, moments in ((WEIGHT, False), (WEIGHT, True), (None, True)):
        given = [x], [token], run, *NORM, "relu", weight, None, True, moments
        torch.library.opcheck(operators.trained_gather_mm, given, test_utils=checks)
    torch.library.opcheck(operators.share_backward, (x, torch.randn(2, 32), x, torch.rand(2, 32), True))
    torch.library.opcheck(operators.trained_gather_mm_backward, (out, [x], [x.clone()], run, *NORM, "relu", WEIGHT, True))
    torch.library.opcheck(operators.centered, (x, x, *torch.zeros(3, 32)))
    more = (SUPPORT.flat(), 1, 1, None, *none, None, "none", out)
    torch.library.opcheck(operators.block_sparse_conv2d_into, (x, run, *NORM, "relu", FILTERS, *more))
    back = (out, x, run, FILTERS, SUPPORT.flat(), 1, 1, torch.zeros(1, 4, 4, 24))
    torch.library.opcheck(operators.block_sparse_conv2d_backward_into, back)


def test_bfloat16_on_a_cpu_runs_the_reference(launched: list[str]) -> None:
    """The interpreter's products of bfloat16 are of bit patterns."""
    x = torch.randn(2, 4, 6, 32).bfloat16()
    found = gather_mm(x, TAPS, WEIGHT.bfloat16())
    assert torch.allclose(found.float(), TAPS.take([x]).float() @ WEIGHT.bfloat16().float().T, rtol=1e-2, atol=1e-2)
    assert launched == []
