from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swkernels import (
    Norm,
    Taps,
    centered,
    centered_reference,
    gather_mm_backward_reference,
    statistics,
    statistics_reference,
)
from tests.kernels.cases import DTYPES, close
from tests.kernels.races import watched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 5, 7, 50), (1300, 16), (3, 130)])
def test_statistics_agree_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype, launched: list[str]) -> None:
    slab = torch.full((*shape[:-1], shape[-1] + 9), float("nan"), dtype=dtype)
    source = slab[..., 3 : 3 + shape[-1]]
    source.copy_(3 * torch.randn(shape) + 5)
    with watched() as watch:
        found = statistics(source)
    assert all(close(one, other) for one, other in zip(found, statistics_reference(source), strict=True))
    assert not watch.faults
    assert launched == ["_partial", "_joined"]


def test_parts_are_joined_whatever_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("swkernels.statistics"), "LEAST_ROWS", 64)
    source = torch.randn(5 * 64 + 7, 20) + torch.arange(5 * 64 + 7)[:, None] / 10
    with watched() as watch:
        found = statistics(source)
    assert all(close(one, other) for one, other in zip(found, statistics_reference(source), strict=True))
    assert not watch.faults


def test_a_small_variance_beside_a_great_mean_is_not_lost() -> None:
    """As it is where a mean of squares less the square of the mean is taken."""
    source = 1000 + 0.01 * torch.randn(2000, 4)
    _, var = statistics(source)
    assert torch.allclose(var.double(), source.double().var(0, correction=0), rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 24, 100])
def test_centered_agrees_with_the_reference(width: int, dtype: torch.dtype, launched: list[str]) -> None:
    grads, maps = (torch.full((3, 7, 5, width + 9), float("nan"), dtype=dtype) for _ in range(2))
    grad, source = grads[..., 2 : 2 + width], maps[..., 4 : 4 + width]
    for value in (grad, source):
        value.copy_(torch.randn(value.shape))
    vectors = [torch.randn(width) for _ in range(3)]
    with watched() as watch:
        found = centered(grad, source, *vectors)
    assert close(found, centered_reference(grad, source, *vectors))
    assert found.is_contiguous()
    assert not watch.faults
    assert launched == ["_centered"]


def test_two_readers_of_one_map_train_as_two_batch_norms_do() -> None:
    """The identity of the file's head, against autograd in float64: other weights and another eps for each reader."""
    x = torch.randn(6, 5, 8).double().requires_grad_()
    taps = [Taps.of((0, 8)), Taps.of((2, 7))]
    weights = [torch.randn(4, len(one)).double() for one in taps]
    scales = [torch.randn(len(one)).double() for one in taps]
    shifts = [torch.randn(len(one)).double() for one in taps]
    grads = [torch.randn(6, 5, 4).double() for _ in taps]
    total = x.new_zeros(())
    for one, weight, scale, shift, eps, grad in zip(taps, weights, scales, shifts, (1e-5, 0.1), grads, strict=True):
        read = one.take([x]).flatten(0, -2)
        normed = functional.relu(functional.batch_norm(read, None, None, scale, shift, training=True, eps=eps))
        total = total + (normed @ weight.T * grad.flatten(0, -2)).sum()
    (expected,) = torch.autograd.grad(total, x)

    source = x.detach()
    mean, var = statistics_reference(source)
    found, level, tilt = torch.zeros_like(source), torch.zeros(8).double(), torch.zeros(8).double()
    rows = source[..., 0].numel()
    for one, weight, scale, shift, eps, grad in zip(taps, weights, scales, shifts, (1e-5, 0.1), grads, strict=True):
        channels = torch.tensor(one.starts_of(1))
        norm = Norm(mean[channels], var[channels], scale, shift, eps)
        back = gather_mm_backward_reference(grad, source, one, weight, norm=norm, activation="relu")
        found += back.source
        inverse = torch.rsqrt(var[channels] + eps)
        level.index_add_(0, channels, inverse * scale * back.norm_bias / rows)
        tilt.index_add_(0, channels, inverse**2 * scale * back.norm_weight / rows)
    torch.testing.assert_close(centered_reference(found, source, mean, level, tilt), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: statistics(x[:0]), "has no values"),
        (lambda x: statistics(x.T), "side by side"),
        (lambda x: centered(x[:4], x, *x[:3]), "grad has shape"),
        (lambda x: centered(x, x, *x[:3, :4]), "mean has shape"),
        (lambda x: centered(x.T.contiguous().T, x, *x[:3]), "grad has shape .* side by side"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    assert callable(call)
    x: Tensor = torch.zeros(5, 6)
    with pytest.raises(ValueError, match=message):
        call(x)
