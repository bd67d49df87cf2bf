from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swkernels import Cluster, Support, Taps, block_sparse_conv2d, block_sparse_conv2d_reference, gather_mm_reference
from swkernels.block_sparse import SHIPPED
from tests.kernels.cases import DTYPES, close, norm, only_read
from tests.kernels.races import watched

SUPPORTS = {
    "aligned": Support((Cluster(0, 16, ((0, 8), (24, 32))), Cluster(16, 40, ((8, 16), (32, 40))), Cluster(40, 45, ()))),
    "askew": Support((Cluster(0, 5, ((1, 8), (10, 19))), Cluster(5, 9, ((0, 12), (16, 40))))),
    "dense": Support((Cluster(0, 33, ((0, 40),)),)),
}
TAPS = Taps.of((24, 56), (0, 8))
SHAPES = {"1x1": (1, 1, 0), "1x1 by 2": (1, 2, 0), "3x3": (3, 1, 1), "3x3 by 2": (3, 2, 1), "3x3 bare": (3, 1, 0), "5x5": (5, 1, 2)}


def weight(support: Support, kernel: int, dtype: torch.dtype, inputs: int = 40) -> Tensor:
    """Return a weight that holds NaN where it must not be looked at."""
    live = support.mask(inputs)[:, None, None, :]
    drawn = torch.randn(support.outputs, kernel, kernel, inputs) / (kernel * inputs**0.5)
    return torch.where(live, drawn, float("nan")).to(dtype)


def everything(outputs: int) -> dict[str, Any]:
    before = {"norm": norm(40), "activation": "relu", "bias": torch.randn(outputs)}
    return before | {"out_norm": norm(outputs), "out_activation": "relu"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SUPPORTS)
def test_the_kernel_agrees_with_the_reference(name: str, shape: str, dtype: torch.dtype) -> None:
    support, (kernel, stride, padding) = SUPPORTS[name], SHAPES[shape]
    source, of = only_read(torch.randn(2, 6, 7, 64).to(dtype), TAPS), weight(support, kernel, dtype)
    options = everything(support.outputs) | {"stride": stride, "padding": padding}
    expected = block_sparse_conv2d_reference(source, TAPS, of, support, **options)
    options["residual"] = torch.randn_like(expected)
    expected = block_sparse_conv2d_reference(source, TAPS, of, support, **options)
    assert close(block_sparse_conv2d(source, TAPS, of, support, **options), expected)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_configuration(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("swkernels.block_sparse"), "tiles_for", lambda *_: SHIPPED[name]
    )  # not the function of that name
    first = SHIPPED[name].columns + 3  # more than a tile
    support = Support((Cluster(0, first, ((0, 8), (16, 40))), Cluster(first, first + 6, ((8, 24),))))
    source, of = only_read(torch.randn(1, 3, 23, 64).to(dtype), TAPS), weight(support, 3, dtype)
    options = everything(first + 6) | {"padding": 1}
    with watched() as watch:
        found = block_sparse_conv2d(source, TAPS, of, support, **options)
    assert close(found, block_sparse_conv2d_reference(source, TAPS, of, support, **options))
    assert not watch.faults


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    batch, height, width, inputs = (data.draw(st.integers(least, most)) for least, most in ((1, 2), (1, 6), (1, 6), (1, 40)))
    support, start = drawn_support(data, inputs), data.draw(st.integers(0, 5))
    taps = Taps.of((start, start + inputs))
    kernel, stride = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1, 2]))
    padding = data.draw(st.integers(max(0, kernel - min(height, width)), 2))
    source = only_read(torch.randn(batch, height, width, 48), taps)
    of = weight(support, kernel, torch.float32, inputs)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "norm": norm(inputs), "activation": "relu"}
    with watched() as watch:
        found = block_sparse_conv2d(source, taps, of, support, **options)
    assert close(found, block_sparse_conv2d_reference(source, taps, of, support, **options))
    assert not watch.faults


def drawn_support(data: st.DataObject, inputs: int) -> Support:
    """Draw a support of up to 40 outputs, in which some may read nothing."""
    borders = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))
    runs = st.tuples(st.integers(0, inputs - 1), st.integers(1, inputs)).map(lambda run: (run[0], min(run[0] + run[1], inputs)))
    return Support(
        tuple(
            Cluster(start, stop, tuple(sorted(_apart(data.draw(st.lists(runs, max_size=3))))))
            for start, stop in zip([0, *borders], borders, strict=False)
        )
    )


def _apart(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those runs that no earlier one overlaps: an input is read once."""
    kept: list[tuple[int, int]] = []
    for start, stop in runs:
        if all(stop <= low or high <= start for low, high in kept):
            kept.append((start, stop))
    return kept


def test_zeros_of_the_padding_come_behind_the_norm() -> None:
    taps, support = Taps.of((0, 8)), Support((Cluster(0, 4, ((0, 8),)),))
    of, shifted = torch.ones(4, 3, 3, 8), norm(8)._replace(bias=torch.full((8,), 5.0), weight=torch.zeros(8))
    found = block_sparse_conv2d(torch.zeros(1, 3, 3, 8), taps, of, support, padding=1, norm=shifted)
    assert torch.equal(found[0, :, :, 0], 40.0 * torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]]))


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    source, of = torch.randn(2, 3, 4, 64), weight(SUPPORTS["dense"], 1, torch.float32)
    found = block_sparse_conv2d(source, TAPS, of, SUPPORTS["dense"])
    assert close(found, gather_mm_reference(source, TAPS, of[:, 0, 0]))


def test_a_slice_is_written_and_its_neighbours_are_left_alone() -> None:
    arena = torch.full((2, 6, 7, 64), 9.0)
    source, of = torch.randn(2, 6, 7, 64), weight(SUPPORTS["askew"], 3, torch.float32)
    with watched() as watch:
        made = block_sparse_conv2d(source, TAPS, of, SUPPORTS["askew"], padding=1, out=arena[..., 8:17])
    assert close(made, block_sparse_conv2d_reference(source, TAPS, of, SUPPORTS["askew"], padding=1))
    assert (arena[..., :8] == 9).all()
    assert (arena[..., 17:] == 9).all()
    assert not watch.faults


def test_the_reference_differentiates_and_gives_no_gradient_to_what_is_not_read() -> None:
    support, taps = Support((Cluster(0, 2, ((0, 2),)), Cluster(2, 3, ((1, 4),)))), Taps.of((2, 6))
    source, of = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((1, 3, 3, 6), (3, 3, 3, 4)))
    before = norm(4)

    def whole(x: Tensor, w: Tensor) -> Tensor:
        return block_sparse_conv2d_reference(x, taps, w, support, padding=1, norm=before, activation="silu")

    assert torch.autograd.gradcheck(whole, (source, of))
    whole(source, of).sum().backward()
    assert of.grad is not None
    assert torch.equal((of.grad != 0).any(1).any(1), support.mask(4))


def test_a_support_comes_back_from_a_flat_list() -> None:
    assert all(Support.of_flat(tuple(support.flat())) == support for support in SUPPORTS.values())


@pytest.mark.parametrize(
    "clusters",
    [(), (Cluster(1, 3, ()),), (Cluster(0, 3, ()), Cluster(4, 5, ())), (Cluster(0, 0, ()),), (Cluster(0, 3, ((4, 4),)),)],
)
def test_a_support_without_order_is_refused(clusters: tuple[Cluster, ...]) -> None:
    with pytest.raises(ValueError, match="Clusters"):
        Support(clusters)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(45, 3, 3, 39)}, ValueError, r"weight has shape \(45, 3, 3, 39\)"),
        ({"weight": torch.zeros(45, 40)}, ValueError, "source and weight have four axes"),
        ({"support": Support((Cluster(0, 45, ((0, 41),)),))}, ValueError, "reads inputs beyond the 40"),
        ({"source": torch.zeros(1, 2, 2, 64)}, ValueError, "A 3x3 convolution with padding 0 does not fit a map of"),
        ({"bias": torch.zeros(3)}, ValueError, "bias has shape"),
        (
            {"source": torch.zeros(1, 4, 4, 64).double(), "weight": torch.zeros(45, 3, 3, 40).double()},
            TypeError,
            "the kernels take",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"source": torch.zeros(1, 4, 4, 64), "taps": TAPS, "weight": torch.zeros(45, 3, 3, 40)}
    with pytest.raises(error, match=message):
        block_sparse_conv2d(**(arguments | {"support": SUPPORTS["aligned"]} | change))
