from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swkernels import Norm, Taps, gather_mm_backward, gather_mm_backward_reference, gather_mm_reference
from swkernels.affine import ACTIVATIONS
from swkernels.gather_mm_backward import SHIPPED, Gradients
from tests.kernels.cases import DTYPES, close, norm, only_read
from tests.kernels.races import watched

TAPS = {"aligned": Taps.of((32, 48), (0, 8)), "askew": Taps.of((3, 9), (20, 45)), "all": Taps.of((0, 50)), "one": Taps.of((7, 8))}


def drawn(taps: Taps, outputs: int, rows: tuple[int, ...], dtype: torch.dtype, channels: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of a product, a map that holds NaN where it is not read, and a weight."""
    source = only_read(torch.randn(*rows, channels).to(dtype), taps)
    return torch.randn(*rows, outputs).to(dtype), source, (torch.randn(outputs, len(taps)) / outputs**0.5).to(dtype)


def agree(found: Gradients, grad: Tensor, maps: Tensor | list[Tensor], taps: Taps, weight: Tensor, **options: Any) -> bool:
    """Compare all gradients with the reference's.

    In single precision with the reference in double: torch's gelu is off by more than the kernels are. Sums of half-precision
    maps are of values that were rounded alike, but to the type of the map.
    """
    if found.source.dtype != torch.float32:
        ways = zip(found, gather_mm_backward_reference(grad, maps, taps, weight, **options), strict=True)
        return all(torch.allclose(one.float(), other.float(), rtol=1e-2, atol=2e-2) for one, other in ways)
    if (norm := options.get("norm")) is not None:
        options["norm"] = Norm(*(each.double() if isinstance(each, Tensor) else each for each in norm))
    exact = maps.double() if isinstance(maps, Tensor) else [one.double() for one in maps]
    expected = gather_mm_backward_reference(grad.double(), exact, taps, weight.double(), **options)
    terms = (1, 1, grad[..., 0].numel(), grad[..., 0].numel())
    return all(close(one, other, of) for one, other, of in zip(found, expected, terms, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [1, 37, 128])
@pytest.mark.parametrize("name", TAPS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_kernels_agree_with_the_reference(
    whole: bool, name: str, outputs: int, dtype: torch.dtype, launched: list[str]
) -> None:
    taps = TAPS[name]
    grad, source, weight = drawn(taps, outputs, (2, 5, 7), dtype)
    options: dict[str, Any] = {"norm": norm(len(taps)), "activation": "relu"} if whole else {}
    with watched() as watch:
        found = gather_mm_backward(grad, source, taps, weight, **options)
    assert agree(found, grad, source, taps, weight, **options)
    assert not watch.faults
    assert launched == ["_data_gradient", "_weight_gradient"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normed", [True, False])
def test_every_activation(normed: bool, activation: str) -> None:
    taps = TAPS["aligned"]
    grad, source, weight = drawn(taps, 20, (9,), torch.float32)
    options = {"activation": activation, "norm": norm(len(taps)) if normed else None}
    found = gather_mm_backward(grad, 3 * source, taps, weight, **options)
    assert agree(found, grad, 3 * source, taps, weight, **options)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("swkernels.gather_mm_backward"), "tiles_for", lambda *_: SHIPPED[name])
    taps = TAPS["askew"]
    grad, source, weight = drawn(taps, 130, (150,), torch.float32)
    with watched() as watch:
        found = gather_mm_backward(grad, source, taps, weight, norm=norm(len(taps)), activation="relu")
    assert not watch.faults
    assert found.weight.shape == (130, len(taps))


def test_rows_are_split_among_programs_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("swkernels.gather_mm_backward"), "LEAST_ROWS", 32)
    taps, options = TAPS["askew"], {"norm": norm(31), "activation": "silu"}
    grad, source, weight = drawn(taps, 20, (150,), torch.float32)
    with watched() as watch:
        found = gather_mm_backward(grad, source, taps, weight, **options)
    assert agree(found, grad, source, taps, weight, **options)
    assert not watch.faults


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    rows, channels, outputs = (data.draw(st.integers(1, most)) for most in (90, 80, 70))
    runs = data.draw(st.lists(st.tuples(st.integers(0, channels - 1), st.integers(1, channels)), min_size=1, max_size=5))
    taps = Taps.of(*((start, min(start + length, channels)) for start, length in runs))
    options: dict[str, Any] = {"activation": data.draw(st.sampled_from(sorted(ACTIVATIONS)))}
    options |= {"norm": norm(len(taps), affine=data.draw(st.booleans()))} if data.draw(st.booleans()) else {}
    grad, source, weight = drawn(taps, outputs, (rows,), torch.float32, channels)
    with watched() as watch:
        found = gather_mm_backward(grad, source, taps, weight, **options)
    assert agree(found, grad, source, taps, weight, **options)
    assert not watch.faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_that_lie_apart(dtype: torch.dtype) -> None:
    maps = [torch.randn(2, 3, 5, 48).to(dtype)[..., 8 * place :] for place in range(6)]
    taps = Taps(((5, 0, 8), (0, 0, 16), (2, 8, 24), (5, 0, 8), (3, 0, 5)))
    maps = [only_read(source, taps, place) for place, source in enumerate(maps)]
    grad, weight = torch.randn(2, 3, 5, 20).to(dtype), torch.randn(20, len(taps)).to(dtype)
    options: dict[str, Any] = {"norm": norm(len(taps)), "activation": "relu"}
    with watched(*maps) as watch:
        found = gather_mm_backward(grad, maps, taps, weight, **options)
    assert agree(found, grad, maps, taps, weight, **options)
    assert not watch.faults


INCOMING = {
    "nothing": (),
    "of all": (0, 1, 2, 3),
    "of some": (1, 3),
    "of one": (2,),
    "of one that is not read": (3,),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lie", ["apart", "in a slab", "beside others"])
@pytest.mark.parametrize("taps", [Taps(((2, 3, 9), (0, 0, 4), (1, 2, 7), (2, 0, 2))), Taps(((0, 0, 4), (0, 2, 4), (1, 0, 8)))])
@pytest.mark.parametrize("name", INCOMING)
def test_what_came_in_goes_on_with_this_readers_share(
    name: str, taps: Taps, lie: str, dtype: torch.dtype, launched: list[str]
) -> None:
    """Whole maps of which all, some or no channels are read, or some of them twice."""
    widths = (4, 8, 9, 5)
    sources = [torch.randn(3, 7, width).to(dtype) for width in widths]
    slab = torch.randn(3, 7, sum(widths) + 16).to(dtype)
    gaps = {"apart": None, "in a slab": 0, "beside others": 4}[lie]
    came: list[Tensor | None] = [None] * 4
    for owner in INCOMING[name]:
        start = 0 if gaps is None else gaps * owner + sum(widths[:owner])
        came[owner] = torch.randn(3, 7, widths[owner]).to(dtype) if gaps is None else slab[..., start : start + widths[owner]]
    grad, weight = torch.randn(3, 7, 20).to(dtype), torch.randn(20, len(taps)).to(dtype)
    options: dict[str, Any] = {"norm": norm(len(taps)), "activation": "relu"}
    kept = [None if one is None else one.clone() for one in came]
    with watched(*sources, *(one for one in came if one is not None)) as watch:
        found = gather_mm_backward(grad, sources, taps, weight, incoming=came, **options)
    assert not watch.faults
    assert "_data_gradient" in launched
    if name == "of all" and not taps.reads_twice:  # slices of a slab need no table of addresses
        assert launched.count("_write_places") == (2 if lie == "apart" else 1)
    alone = gather_mm_backward_reference(grad, sources, taps, weight, **options).source.split(widths, -1)
    for one, share, before, after in zip(found.source.split(widths, -1), alone, kept, came, strict=True):
        assert close(one, share if before is None else before + share)
        assert before is None or after is None or torch.equal(before, after), "what came in may be others' too"
    assert agree(found, grad, sources, taps, weight, incoming=came, **options)


def test_the_reference_is_what_autograd_finds() -> None:
    taps, of = TAPS["askew"], norm(31)
    parts = Norm(*(part.double().requires_grad_() if isinstance(part, Tensor) else part for part in of))
    source, weight = torch.randn(4, 5, 50).double().requires_grad_(), torch.randn(20, 31).double().requires_grad_()
    grad = torch.randn(4, 5, 20).double()
    for activation in ACTIVATIONS:
        y = gather_mm_reference(source, taps, weight, norm=parts, activation=activation)
        expected = torch.autograd.grad(y, (source, weight, parts.weight, parts.bias), grad)
        found = gather_mm_backward_reference(grad, source.detach(), taps, weight.detach(), norm=of, activation=activation)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_two_runs_give_the_same_bits() -> None:
    taps = TAPS["all"]
    grad, source, weight = drawn(taps, 20, (700,), torch.float32)
    once, twice = (gather_mm_backward(grad, source, taps, weight, norm=norm_of, activation="relu") for norm_of in [norm(50)] * 2)
    assert all(torch.equal(one, other) for one, other in zip(once, twice, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"taps": Taps.of((0, 51))}, ValueError, "Channels up to 51 of map 0 are read"),
        ({"weight": torch.zeros(20, 23)}, ValueError, "weight has shape"),
        ({"grad": torch.zeros(5, 19)}, ValueError, "grad has shape"),
        ({"grad": torch.zeros(5, 20).half()}, ValueError, "grad has shape .* of torch.float32"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
        ({"norm": norm(23)}, ValueError, "norm.mean has shape"),
        ({"incoming": [torch.zeros(5, 49)]}, ValueError, "incoming 0 has shape"),
        ({"incoming": [torch.zeros(50, 5).T]}, ValueError, "its channels must lie side by side"),
        ({"grad": torch.zeros(20, 5).T}, ValueError, "its channels must lie side by side"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"grad": torch.zeros(5, 20), "source": torch.zeros(5, 50), "taps": TAPS["aligned"]}
    arguments |= {"weight": torch.zeros(20, 24)} | change
    with pytest.raises(error, match=message):
        gather_mm_backward(**arguments)
