"""trained_block_sparse_conv2d is what plain torch makes of a dense convolution times its mask, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swkernels import Cluster, Support, Taps, trained_block_sparse_conv2d
from tests.kernels.races import watched

TAPS = Taps(((2, 3, 9), (0, 0, 4), (1, 2, 7), (2, 0, 2)))
WIDTHS = (4, 8, 9)
SUPPORT = Support((Cluster(0, 5, ((0, 3), (8, 15))), Cluster(5, 9, ()), Cluster(9, 16, ((2, 12),))))
SHAPES = {"1x1": (1, 1, 0), "1x1 by 2": (1, 2, 0), "3x3": (3, 1, 1), "3x3 by 2": (3, 2, 1), "3x3 bare": (3, 1, 0)}
LAYOUTS = ("first", "last")


def parameters(dtype: torch.dtype, kernel: int, layout: str) -> dict[str, Tensor]:
    """Return maps (N, C, H, W) in a layout, and the weight and bias of a convolution."""
    sizes: dict[str, tuple[int, ...]] = {f"map {at}": (3, width, 5, 6) for at, width in enumerate(WIDTHS)}
    sizes |= {"weight": (SUPPORT.outputs, len(TAPS), kernel, kernel), "bias": (SUPPORT.outputs,)}
    drawn = {name: torch.randn(size, dtype=dtype) for name, size in sizes.items()}
    lie = torch.channels_last if layout == "last" else torch.contiguous_format
    return {name: (x.contiguous(memory_format=lie) if x.dim() == 4 else x).requires_grad_() for name, x in drawn.items()}


def plainly(given: dict[str, Tensor], stride: int, padding: int) -> Tensor:
    """Return (N, O, H', W')."""
    read = torch.cat([given[f"map {owner}"][:, start:stop] for owner, start, stop in TAPS.runs], 1)
    masked = given["weight"] * SUPPORT.mask(len(TAPS))[:, :, None, None]
    return functional.conv2d(read, masked, given["bias"], stride, padding)


def by_us(given: dict[str, Tensor], stride: int, padding: int, by_kernel: bool) -> Tensor:
    """Return the same."""
    sources = [given[f"map {at}"].movedim(1, -1) for at in range(len(WIDTHS))]
    weight = given["weight"].permute(0, 2, 3, 1)
    options = {"stride": stride, "padding": padding, "bias": given["bias"], "by_kernel": by_kernel}
    return trained_block_sparse_conv2d(sources, TAPS, weight, SUPPORT, **options).movedim(-1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_what_plain_torch_does(dtype: torch.dtype, shape: str, layout: str, launched: list[str]) -> None:
    kernel, stride, padding = SHAPES[shape]
    given = parameters(dtype, kernel, layout)
    expected = plainly(given, stride, padding)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, list(given.values()), grad)
    by_kernel = dtype == torch.float32 and layout == "last"
    with watched(*(value.detach() for value in given.values())) as watch:
        found = by_us(given, stride, padding, by_kernel)
        gradients = torch.autograd.grad(found, list(given.values()), grad)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **close)
    for name, one, other in zip(given, gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}", **close)
        assert one.dim() < 4 or one.stride() == given[name].stride(), f"the gradient of {name} lies otherwise than it does"
    assert not watch.faults
    kernels = ["_block_sparse_conv2d", "_block_sparse_data_gradient", "_block_sparse_weight_gradient"]
    assert launched == (kernels if by_kernel else [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_result_lies_as_its_map_does(layout: str) -> None:
    found = by_us(parameters(torch.float64, 3, layout), 1, 1, False)
    lie = torch.channels_last if layout == "last" else torch.contiguous_format
    assert found.is_contiguous(memory_format=lie)


def test_one_map_is_read_where_it_lies_by_the_kernels() -> None:
    x, weight = torch.randn(2, 5, 6, 24).requires_grad_(), torch.randn(16, 3, 3, 17).requires_grad_()
    taps = Taps.of((16, 24), (0, 9))
    grads = []
    for by_kernel in (True, False):
        made = trained_block_sparse_conv2d(x, taps, weight, SUPPORT, padding=1, by_kernel=by_kernel)
        grads.append((made, *torch.autograd.grad(made.square().sum(), (x, weight))))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradcheck(kernel: int) -> None:
    given = parameters(torch.float64, kernel, "last")
    names = list(given)

    def whole(*values: Tensor) -> Tensor:
        return by_us(dict(zip(names, values, strict=True)), 1, kernel // 2, False)

    assert torch.autograd.gradcheck(whole, tuple(given.values()), fast_mode=True)


def test_what_is_not_live_is_not_looked_at() -> None:
    given = parameters(torch.float64, 3, "first")
    live = SUPPORT.mask(len(TAPS))[:, :, None, None]
    given["weight"] = torch.where(live, given["weight"], float("nan")).detach().requires_grad_()
    made = by_us(given, 1, 1, False)
    made.square().sum().backward()
    assert made.isfinite().all()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in given.values())
    assert given["weight"].grad is not None
    assert torch.equal((given["weight"].grad != 0).flatten(2).any(2), live[:, :, 0, 0])


def test_only_the_maps_are_saved() -> None:
    given, kept = parameters(torch.float32, 3, "first"), []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.untyped_storage().data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        by_us(given, 1, 1, False)
    assert set(kept) == {value.untyped_storage().data_ptr() for name, value in given.items() if name != "bias"}


@pytest.mark.parametrize("by_kernel", [True, False])
def test_what_follows_may_write_into_the_result(by_kernel: bool) -> None:
    given = parameters(torch.float32, 3, "last")
    by_us(given, 1, 1, by_kernel).relu_().sum().backward()
    assert all(value.grad is not None for value in given.values())


def test_a_second_derivative_is_refused() -> None:
    given = parameters(torch.float64, 3, "first")
    (first,) = torch.autograd.grad(by_us(given, 1, 1, False).square().sum(), given["map 0"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    given = parameters(torch.float64, 3, "first")
    for name in ("map 1", "weight"):
        given[name].requires_grad_(False)
    by_us(given, 1, 1, False).sum().backward()
    assert {name for name, value in given.items() if value.grad is not None} == {"map 0", "map 2", "bias"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_without_a_break(layout: str) -> None:
    given = parameters(torch.float64, 3, layout)

    def step(values: dict[str, Tensor]) -> Tensor:
        return by_us(values, 2, 1, False)

    grad = torch.randn_like(step(given))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for one, other in zip(
        torch.autograd.grad(compiled(given), list(given.values()), grad),
        torch.autograd.grad(step(given), list(given.values()), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    given = parameters(torch.float64, 3, "first")
    sources = [given[f"map {at}"].detach().movedim(1, -1).requires_grad_() for at in range(len(WIDTHS))]
    weight = given["weight"].detach().permute(0, 2, 3, 1).requires_grad_()
    rest = (TAPS.flat(), weight, SUPPORT.flat(), 1, 1, given["bias"], False)
    torch.library.opcheck(torch.ops.swkernels.trained_block_sparse_conv2d, (sources, *rest))
