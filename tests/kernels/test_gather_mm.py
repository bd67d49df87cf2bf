from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swkernels import Taps, gather_mm, gather_mm_reference, statistics_reference
from swkernels.affine import ACTIVATIONS
from swkernels.gather_mm import SHIPPED, Tiles, tiles_for
from swkernels.statistics import empty_statistics
from tests.kernels.cases import DTYPES, close, norm, only_read
from tests.kernels.races import watched

TAPS = {"aligned": Taps.of((32, 48), (0, 8)), "askew": Taps.of((3, 9), (20, 45)), "all": Taps.of((0, 50)), "one": Taps.of((7, 8))}


def weight(outputs: int, taps: Taps, dtype: torch.dtype) -> Tensor:
    return (torch.randn(outputs, len(taps)) / len(taps) ** 0.5).to(dtype)


def everything(taps: Taps, outputs: int, rows: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Return every option of the product at once."""
    before = {"norm": norm(len(taps)), "activation": "relu", "bias": torch.randn(outputs)}
    return before | {"out_norm": norm(outputs), "residual": torch.randn(*rows, outputs).to(dtype), "out_activation": "relu"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [1, 37, 128])
@pytest.mark.parametrize("name", TAPS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_kernel_agrees_with_the_reference(whole: bool, name: str, outputs: int, dtype: torch.dtype) -> None:
    taps, rows = TAPS[name], (2, 5, 7)
    source = only_read(torch.randn(*rows, 50).to(dtype), taps)
    options = everything(taps, outputs, rows, dtype) if whole else {}
    of = weight(outputs, taps, dtype)
    with watched() as watch:
        found = gather_mm(source, taps, of, **options)
    assert close(found, gather_mm_reference(source, taps, of, **options))
    assert not watch.faults


@pytest.mark.parametrize("option", ["norm", "activation", "bias", "out_norm", "residual", "out_activation"])
def test_each_option_alone(option: str) -> None:
    taps = TAPS["aligned"]
    source, of = torch.randn(9, 50), weight(20, taps, torch.float32)
    options = {option: everything(taps, 20, (9,), torch.float32)[option]}
    assert close(gather_mm(source, taps, of, **options), gather_mm_reference(source, taps, of, **options))
    assert not close(gather_mm(source, taps, of), gather_mm_reference(source, taps, of, **options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_before_and_behind(activation: str) -> None:
    taps = TAPS["aligned"]
    source, of = 3 * torch.randn(9, 50), 3 * weight(20, taps, torch.float32)
    for options in ({"activation": activation}, {"out_activation": activation}):
        assert close(gather_mm(source, taps, of, **options), gather_mm_reference(source, taps, of, **options))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_configuration(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("swkernels.gather_mm"), "tiles_for", lambda *_: SHIPPED[name]
    )  # not the function of that name
    taps, rows = TAPS["askew"], (150,)
    source, of = only_read(torch.randn(*rows, 50).to(dtype), taps), weight(130, taps, dtype)
    options = everything(taps, 130, rows, dtype)
    taken = empty_statistics(source, 130)
    with watched() as watch:
        found = gather_mm(source, taps, of, statistics=taken, **options)
    assert close(found, gather_mm_reference(source, taps, of, **options))
    assert all(close(one, other) for one, other in zip(taken, statistics_reference(found), strict=True))
    assert not watch.faults


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    rows, channels, outputs = (data.draw(st.integers(1, most)) for most in (90, 80, 70))
    runs = data.draw(st.lists(st.tuples(st.integers(0, channels - 1), st.integers(1, channels)), min_size=1, max_size=5))
    taps = Taps.of(*((start, min(start + length, channels)) for start, length in runs))
    source = only_read(torch.randn(rows, channels), taps)
    options = {"norm": norm(len(taps), affine=data.draw(st.booleans()))} if data.draw(st.booleans()) else {}
    of, taken = weight(outputs, taps, torch.float32), empty_statistics(source, outputs)
    with watched() as watch:
        found = gather_mm(source, taps, of, statistics=taken, **options)
    assert close(found, gather_mm_reference(source, taps, of, **options))
    assert all(close(one, other) for one, other in zip(taken, statistics_reference(found), strict=True))
    assert not watch.faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_that_lie_apart(dtype: torch.dtype, launched: list[str]) -> None:
    maps = [torch.randn(2, 3, 5, 48).to(dtype)[..., 8 * place :] for place in range(6)]
    taps = Taps(((5, 0, 8), (0, 0, 16), (2, 8, 24), (5, 0, 8), (3, 0, 5)))
    maps = [only_read(source, taps, place) for place, source in enumerate(maps)]
    options, of = everything(taps, 20, (2, 3, 5), dtype), weight(20, taps, dtype)
    with watched(*maps) as watch:
        found = gather_mm(maps, taps, of, **options)
    assert close(found, gather_mm_reference(maps, taps, of, **options))
    assert not watch.faults
    assert launched == ["_write_places", "_write_places", "_gather_mm"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 37, 300])
@pytest.mark.parametrize("outputs", [1, 37])
def test_statistics_are_those_of_the_rounded_result(
    outputs: int, rows: int, dtype: torch.dtype, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of values around 1000, of which float16 keeps every second half: what was rounded away is a twentieth of the variance."""
    monkeypatch.setattr(import_module("swkernels.statistics"), "AT_ONCE", 2)
    taps, slab = TAPS["askew"], torch.full((rows, outputs + 8), 9.0, dtype=dtype)
    source, of, taken = torch.randn(rows, 50).to(dtype), weight(outputs, taps, dtype), empty_statistics(slab, outputs)
    with watched() as watch:
        y = gather_mm(source, taps, of, bias=torch.full((outputs,), 1000.0), out=slab[:, 3 : 3 + outputs], statistics=taken)
    mean, var = statistics_reference(y.double())
    assert torch.allclose(taken[0].double(), mean, rtol=1e-6)
    assert torch.allclose(taken[1].double(), var, rtol=1e-4)
    assert rows > 1 or not taken[1].any()
    assert not watch.faults
    assert launched == ["_gather_mm", *["_joined"] * {1: 1, 37: 1, 300: 3}[rows]]


def test_a_small_variance_beside_a_great_mean_is_not_lost() -> None:
    source, of = torch.randn(500, 8), 0.01 * torch.randn(20, 8)
    taken = empty_statistics(source, 20)
    y = gather_mm(source, Taps.of((0, 8)), of, bias=torch.full((20,), 1000.0), statistics=taken)
    assert torch.allclose(taken[1].double(), y.double().var(0, correction=0), rtol=1e-3)


def test_a_slice_is_written_and_its_neighbours_are_left_alone() -> None:
    arena, taps = torch.full((2, 3, 64), 9.0), TAPS["aligned"]
    source, of = torch.randn(2, 3, 50), weight(20, taps, torch.float32)
    with watched() as watch:
        made = gather_mm(source, taps, of, out=arena[..., 8:28])
    assert close(made, gather_mm_reference(source, taps, of))
    assert (arena[..., :8] == 9).all()
    assert (arena[..., 28:] == 9).all()
    assert not watch.faults


def test_a_slab_is_read_and_written_at_once() -> None:
    """Each layer of a dense block reads the slices in front of its own."""
    arena, plain = torch.zeros(6, 24), torch.randn(6, 8)
    arena[:, :8] = plain
    of = [weight(8, Taps.of((0, 8 * depth)), torch.float32) for depth in (1, 2)]
    for depth, layer in enumerate(of, start=1):
        taps = Taps.of((0, 8 * depth))
        with watched() as watch:
            gather_mm(arena, taps, layer, activation="relu", out=arena[:, 8 * depth : 8 * depth + 8])
        plain = torch.cat([plain, gather_mm_reference(plain, taps, layer, activation="relu")], 1)
        assert not watch.faults
    assert close(arena, plain)


def test_a_weight_in_another_layout_is_read_rightly() -> None:
    taps, source = TAPS["aligned"], torch.randn(5, 50)
    of = weight(20, taps, torch.float32)
    assert torch.equal(gather_mm(source, taps, of.T.contiguous().T), gather_mm(source, taps, of))


def test_half_precision_is_summed_in_single() -> None:
    source, taps = torch.ones(2, 4096, dtype=torch.float16), Taps.of((0, 4096))
    of = torch.full((16, 4096), 2**-12, dtype=torch.float16)
    of[:, 0] = 1.0
    assert gather_mm(source, taps, of)[0, 0].item() == torch.tensor(1.0 + 4095 * 2**-12).half().item()


def test_the_reference_differentiates() -> None:
    taps, of = Taps.of((4, 6), (0, 3)), norm(5)
    source, linear = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((3, 6), (4, 5)))
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def whole(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return gather_mm_reference(x, taps, w, norm=of, activation="silu", bias=b, out_norm=norm_out, out_activation="gelu")

    norm_out = norm(4)
    assert torch.autograd.gradcheck(whole, (source, linear, bias))


def test_tiles_are_chosen_by_size() -> None:
    assert tiles_for(10**6, 128, torch.float16) == SHIPPED["wide"]
    assert tiles_for(10**6, 64, torch.float16) == SHIPPED["half"]
    assert tiles_for(10**6, 20, torch.bfloat16) == SHIPPED["narrow"]
    assert tiles_for(49 * 32, 128, torch.float16) == SHIPPED["few rows"]
    assert tiles_for(4, 1000, torch.float16) == SHIPPED["a few rows"]
    assert tiles_for(10**6, 128, torch.float32) == SHIPPED["float32"]
    assert isinstance(SHIPPED["wide"], Tiles)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"taps": Taps.of((0, 51))}, ValueError, "Channels up to 51 of map 0 are read"),
        ({"weight": torch.zeros(20, 23)}, ValueError, r"weight has shape \(20, 23\) .* here it must be \(20, 24\)"),
        ({"weight": torch.zeros(20, 24).half()}, ValueError, "weight has shape .* of torch.float32"),
        ({"bias": torch.zeros(19)}, ValueError, r"bias has shape \(19,\); 20 outputs need \(20,\)"),
        ({"out_norm": norm(19)}, ValueError, r"out_norm.mean has shape \(19,\), but 20 channels come to it"),
        ({"out_activation": "tanh"}, ValueError, "activation is 'tanh'"),
        ({"residual": torch.zeros(5, 19)}, ValueError, "residual has shape"),
        ({"out": torch.zeros(4, 20)}, ValueError, "out has shape"),
        ({"statistics": torch.zeros(2, 19).unbind()}, ValueError, r"statistics' mean has shape \(19,\) .* it must be \(20,\)"),
        ({"statistics": torch.zeros(2, 20).double().unbind()}, ValueError, "statistics' mean .* of torch.float32"),
        ({"statistics": torch.zeros(20, 2).unbind(1)}, ValueError, "statistics' mean has strides .2,.; its values must lie"),
        ({"source": torch.zeros(0, 50), "statistics": torch.zeros(2, 20).unbind()}, ValueError, "has no values to take"),
        ({"source": torch.zeros(5, 50).double(), "weight": torch.zeros(20, 24).double()}, TypeError, "the kernels take"),
        ({"source": torch.zeros(50, 5).T}, ValueError, "its channels must lie side by side"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"source": torch.zeros(5, 50), "taps": TAPS["aligned"], "weight": torch.zeros(20, 24)} | change
    with pytest.raises(error, match=message):
        gather_mm(**arguments)
