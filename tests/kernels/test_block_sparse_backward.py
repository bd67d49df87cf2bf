from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swkernels import (
    BlockSparseGradients,
    Cluster,
    Support,
    Taps,
    block_sparse_conv2d_backward,
    block_sparse_conv2d_backward_reference,
    block_sparse_conv2d_reference,
    gather_mm_backward_reference,
)
from swkernels.block_sparse_backward import SHIPPED, SHIPPED_DATA
from tests.kernels.cases import close, only_read
from tests.kernels.races import watched
from tests.kernels.test_block_sparse import SHAPES, SUPPORTS, TAPS, drawn_support, weight

CASES = [(name, shape, torch.float32) for name in SUPPORTS for shape in SHAPES if shape != "5x5"]
CASES += [(name, "3x3 by 2", torch.float16) for name in SUPPORTS]
KERNELS = ["_block_sparse_data_gradient", "_block_sparse_weight_gradient"]


def gradient_of(source: Tensor, of: Tensor, stride: int, padding: int) -> Tensor:
    """Return a random gradient of what a convolution makes."""
    height, width = ((have + 2 * padding - size) // stride + 1 for have, size in zip(source.shape[1:3], of.shape[1:3], strict=True))
    return torch.randn(source.shape[0], height, width, of.shape[0]).to(source.dtype)


def agree(found: BlockSparseGradients, grad: Tensor, source: Tensor, taps: Taps, of: Tensor, *given: Any, **options: Any) -> bool:
    """Compare both gradients with the reference's in double precision, rounded to the types that they have.

    A sum of the weight's is of as many numbers as there are pixels, and those of half types may be far smaller than these.
    """
    exact = block_sparse_conv2d_backward_reference(grad.double(), source.double(), taps, of.double(), *given, **options)
    return close(found.source, exact.source) and close(found.weight, exact.weight, grad[..., 0].numel())


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_the_kernels_agree_with_the_reference(name: str, shape: str, dtype: torch.dtype, launched: list[str]) -> None:
    support, (kernel, stride, padding) = SUPPORTS[name], SHAPES[shape]
    source, of = only_read(torch.randn(2, 6, 7, 64).to(dtype), TAPS), weight(support, kernel, dtype)
    grad = gradient_of(source, of, stride, padding)
    with watched() as watch:
        found = block_sparse_conv2d_backward(grad, source, TAPS, of, support, stride=stride, padding=padding)
    assert found.source.dtype == dtype
    assert found.weight.dtype == torch.float32
    assert agree(found, grad, source, TAPS, of, support, stride=stride, padding=padding)
    assert not found.weight[~support.mask(40)[:, None, None, :].expand_as(found.weight)].any()
    assert not watch.faults
    assert launched == KERNELS


@pytest.mark.parametrize("name", SHIPPED)
def test_every_configuration_of_the_weights_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = torch.float32 if name == "float32" else torch.float16
    monkeypatch.setattr(import_module("swkernels.block_sparse_backward"), "tiles_for", lambda *_: SHIPPED[name])
    monkeypatch.setattr(import_module("swkernels.block_sparse_backward"), "LEAST_ROWS", 32)
    first, inputs = SHIPPED[name].columns + 3, SHIPPED[name].channels + 24  # more than a tile of either
    support = Support((Cluster(0, first, ((0, 8), (16, inputs))), Cluster(first, first + 6, ((8, 24),))))
    taps = Taps.of((0, inputs))
    source, of = torch.randn(2, 3, 17, inputs).to(dtype), weight(support, 2, dtype, inputs)[:, :1]
    grad = gradient_of(source, of, 1, 0)
    with watched() as watch:
        found = block_sparse_conv2d_backward(grad, source, taps, of, support)
    assert agree(found, grad, source, taps, of, support)
    assert not watch.faults


@pytest.mark.parametrize("name", SHIPPED_DATA)
def test_every_configuration_of_the_maps_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, dtype = SHIPPED_DATA[name], torch.float32 if name == "float32" else torch.float16
    monkeypatch.setattr(import_module("swkernels.block_sparse_backward"), "data_tiles_for", lambda *_: tiles)
    inputs = tiles.columns + 24
    support = Support(
        (Cluster(0, tiles.channels + 8, ((8, inputs),)), Cluster(tiles.channels + 8, tiles.channels + 13, ((0, 24),)))
    )
    taps = Taps.of((0, inputs))
    source, of = torch.randn(1, 5, 60, inputs).to(dtype), weight(support, 3, dtype, inputs)[:, :, :1]
    grad = gradient_of(source, of, 2, 1)
    with watched() as watch:
        found = block_sparse_conv2d_backward(grad, source, taps, of, support, stride=2, padding=1)
    assert agree(found, grad, source, taps, of, support, stride=2, padding=1)
    assert not watch.faults


def test_rows_are_split_among_programs_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("swkernels.block_sparse_backward"), "LEAST_ROWS", 32)
    support = SUPPORTS["askew"]
    source, of = only_read(torch.randn(2, 6, 7, 64), TAPS), weight(support, 2, torch.float32)
    grad = gradient_of(source, of, 1, 1)
    with watched() as watch:
        found = block_sparse_conv2d_backward(grad, source, TAPS, of, support, padding=1)
    assert agree(found, grad, source, TAPS, of, support, padding=1)
    assert not watch.faults


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    batch, height, width, inputs = (data.draw(st.integers(least, most)) for least, most in ((1, 2), (1, 6), (1, 6), (1, 40)))
    support, start = drawn_support(data, inputs), data.draw(st.integers(0, 5))
    taps = Taps.of((start, start + inputs))
    high, wide = data.draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 3), (3, 2)]))
    stride = data.draw(st.sampled_from([1, 2, 3]))
    padding = data.draw(st.integers(max(0, high - height, wide - width), 2))
    source = only_read(torch.randn(batch, height, width, 48), taps)
    of = weight(support, max(high, wide), torch.float32, inputs)[:, :high, :wide]
    grad = gradient_of(source, of, stride, padding)
    with watched() as watch:
        found = block_sparse_conv2d_backward(grad, source, taps, of, support, stride=stride, padding=padding)
    assert agree(found, grad, source, taps, of, support, stride=stride, padding=padding)
    assert not watch.faults


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SUPPORTS)
def test_the_reference_is_what_autograd_finds(name: str, shape: str) -> None:
    support, (kernel, stride, padding) = SUPPORTS[name], SHAPES[shape]
    source, of = torch.randn(2, 6, 7, 64).double(), weight(support, kernel, torch.float64)
    options = {"stride": stride, "padding": padding}
    leaves = source.clone().requires_grad_(), of.clone().requires_grad_()
    y = block_sparse_conv2d_reference(leaves[0], TAPS, leaves[1], support, **options)
    grad = torch.randn_like(y)
    of_source, of_weight = torch.autograd.grad(y, leaves, grad)
    found = block_sparse_conv2d_backward_reference(grad, source, TAPS, of, support, **options)
    torch.testing.assert_close(found.source, TAPS.take([of_source]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.weight, of_weight, rtol=1e-10, atol=1e-10)


def test_the_reference_differentiates_again() -> None:
    support, taps = Support((Cluster(0, 2, ((0, 2),)), Cluster(2, 3, ((1, 4),)))), Taps.of((2, 6))
    sizes = (1, 2, 2, 3), (1, 4, 3, 6), (3, 3, 3, 4)
    grad, source, of = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes)

    def whole(*given: Tensor) -> tuple[Tensor, ...]:
        back, x, w = given
        return tuple(block_sparse_conv2d_backward_reference(back, x, taps, w, support, stride=2, padding=1))

    assert torch.autograd.gradcheck(whole, (grad, source, of))


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    source, of = torch.randn(2, 3, 4, 64), weight(SUPPORTS["dense"], 1, torch.float32)
    grad = torch.randn(2, 3, 4, 33)
    found = block_sparse_conv2d_backward(grad, source, TAPS, of, SUPPORTS["dense"])
    expected = gather_mm_backward_reference(grad, source, TAPS, of[:, 0, 0])
    assert close(found.source, TAPS.take([expected.source]))
    assert close(found.weight[:, 0, 0], expected.weight, 24)


def test_what_nothing_reads_gets_zeros() -> None:
    support, taps = Support((Cluster(0, 4, ()), Cluster(4, 9, ()))), Taps.of((0, 8))
    with watched() as watch:
        found = block_sparse_conv2d_backward(
            torch.randn(1, 2, 3, 9), torch.randn(1, 2, 3, 8), taps, torch.randn(9, 1, 1, 8), support
        )
    assert not found.source.any()
    assert not found.weight.any()
    assert not watch.faults


def test_two_runs_give_the_same_bits() -> None:
    support = SUPPORTS["aligned"]
    source, of = torch.randn(3, 13, 15, 64), weight(support, 1, torch.float32)
    grad = gradient_of(source, of, 1, 0)
    once, twice = (block_sparse_conv2d_backward(grad, source, TAPS, of, support) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, twice, strict=True))


def test_a_support_is_transposed_twice_into_what_it_was() -> None:
    for support in SUPPORTS.values():
        turned = support.transposed(40)
        assert torch.equal(turned.mask(support.outputs), support.mask(40).T)
        assert torch.equal(turned.transposed(support.outputs).mask(40), support.mask(40))
        assert all(one.reads != other.reads for one, other in zip(turned.clusters, turned.clusters[1:], strict=False))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(45, 3, 3, 39)}, ValueError, r"weight has shape \(45, 3, 3, 39\)"),
        ({"grad": torch.zeros(1, 4, 4, 45)}, ValueError, r"grad has shape \(1, 4, 4, 45\) .* \(1, 2, 2, 45\)"),
        ({"grad": torch.zeros(1, 2, 2, 45).half()}, ValueError, "grad has shape .* of torch.float32"),
        ({"support": Support((Cluster(0, 45, ((0, 41),)),))}, ValueError, "reads inputs beyond the 40"),
        ({"grad": torch.zeros(1, 45, 2, 2).permute(0, 2, 3, 1)}, ValueError, "its channels must lie side by side"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"source": torch.zeros(1, 4, 4, 64), "taps": TAPS, "weight": torch.zeros(45, 3, 3, 40)}
    arguments |= {"grad": torch.zeros(1, 2, 2, 45), "support": SUPPORTS["aligned"]} | change
    with pytest.raises(error, match=message):
        block_sparse_conv2d_backward(**arguments)
