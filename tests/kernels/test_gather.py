from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swkernels import Taps, gather, gather_reference, statistics_reference
from swkernels.affine import ACTIVATIONS
from swkernels.gather import POOLS
from swkernels.statistics import empty_statistics
from tests.kernels.cases import DTYPES, close, norm, only_read
from tests.kernels.races import watched

TAPS = {"aligned": Taps.of((32, 48), (0, 8)), "askew": Taps.of((3, 9), (20, 45)), "all": Taps.of((0, 50)), "one": Taps.of((7, 8))}
WINDOWS = [(1, 1), (2, 2), (2, 3), (5, 1)]


def a_map(dtype: torch.dtype, batch: int = 2, height: int = 5, width: int = 7) -> Tensor:
    return torch.randn(batch, height, width, 50).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", TAPS)
def test_the_kernel_agrees_with_the_reference(name: str, window: tuple[int, int], pool: str, dtype: torch.dtype) -> None:
    taps = TAPS[name]
    source = only_read(a_map(dtype), taps)
    options = {"norm": norm(len(taps)), "activation": "relu", "pool": pool, "window": window}
    assert close(gather(source, taps, **options), gather_reference(source, taps, **options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_every_activation_and_a_norm_without_affine(activation: str, affine: bool) -> None:
    taps, source = TAPS["aligned"], 3 * a_map(torch.float32)
    options = {"norm": norm(len(taps), affine=affine), "activation": activation}
    assert close(gather(source, taps, **options), gather_reference(source, taps, **options))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    batch, height, width, channels = (data.draw(st.integers(1, most)) for most in (3, 9, 9, 70))
    runs = data.draw(st.lists(st.tuples(st.integers(0, channels - 1), st.integers(1, channels)), min_size=1, max_size=5))
    taps = Taps.of(*((start, min(start + length, channels)) for start, length in runs))
    window = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    source = only_read(torch.randn(batch, height, width, channels), taps)
    options = {
        "pool": data.draw(st.sampled_from(POOLS)),
        "window": window,
        "activation": data.draw(st.sampled_from(list(ACTIVATIONS))),
    }
    taken = empty_statistics(source, len(taps))
    with watched() as watch:
        found = gather(source, taps, statistics=taken, **options)
    assert close(found, gather_reference(source, taps, **options))
    assert all(close(one, other) for one, other in zip(taken, statistics_reference(found), strict=True))
    assert not watch.faults


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TAPS)
def test_statistics_are_those_of_the_rounded_result(name: str, dtype: torch.dtype, launched: list[str]) -> None:
    """Of the averages of four values around 1000, of which float16 keeps every second half."""
    taps, arena = TAPS[name], torch.full((6, 10, 11, 64), 9.0, dtype=dtype)
    source = (1000 + torch.randn(6, 20, 23, 50)).to(dtype)
    out, taken = arena[..., 8 : 8 + len(taps)], empty_statistics(source, len(taps))
    with watched() as watch:
        gather(source, taps, pool="avg", window=(2, 2), out=out, statistics=taken)
    mean, var = statistics_reference(out.double())
    assert torch.allclose(taken[0].double(), mean, rtol=1e-6)
    assert torch.allclose(taken[1].double(), var, rtol=1e-4)
    assert not watch.faults
    assert launched == ["_gather", "_joined"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_that_lie_apart(dtype: torch.dtype) -> None:
    maps = [torch.randn(2, 4, 6, 40).to(dtype)[..., place : 16 + 3 * place] for place in range(6)]
    taps = Taps(((5, 1, 9), (0, 0, 16), (2, 4, 12), (5, 0, 1)))
    maps = [only_read(source, taps, place) for place, source in enumerate(maps)]
    options = {"norm": norm(len(taps)), "activation": "silu", "window": (2, 3)}
    with watched(*maps) as watch:
        found = gather(maps, taps, **options)
    assert close(found, gather_reference(maps, taps, **options))
    assert not watch.faults


def test_a_slice_is_written_and_its_neighbours_are_left_alone() -> None:
    arena = torch.full((2, 5, 7, 64), 9.0)
    source = a_map(torch.float32)
    with watched() as watch:
        made = gather(source, TAPS["askew"], out=arena[..., 8:39])
    assert torch.equal(arena[..., 8:39], gather_reference(source, TAPS["askew"]))
    assert (arena[..., :8] == 9).all()
    assert (arena[..., 39:] == 9).all()
    assert made.data_ptr() == arena[..., 8:].data_ptr()
    assert not watch.faults


def test_a_nan_goes_through_activation_and_pooling() -> None:
    source = torch.zeros(1, 2, 2, 8)
    source[0, 1, 1, 3] = float("nan")
    found = gather(source, Taps.of((0, 8)), activation="relu", window=(2, 2))
    assert found.isnan().flatten().tolist() == [channel == 3 for channel in range(8)]


def test_a_matrix_is_a_map_without_height_and_width() -> None:
    source = torch.randn(5, 50)
    assert torch.equal(gather(source, TAPS["aligned"]), gather_reference(source, TAPS["aligned"]))


def test_the_reference_differentiates() -> None:
    source = torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    taps, of = Taps.of((4, 6), (0, 3)), norm(5)
    for pool in POOLS:
        options = {"norm": of, "activation": "silu", "pool": pool, "window": (2, 2)}
        assert torch.autograd.gradcheck(lambda x, options=options: gather_reference(x, taps, **options), (source,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"taps": Taps.of((0, 51))}, ValueError, "Channels up to 51 of map 0 are read, but its shape is"),
        ({"norm": norm(3)}, ValueError, r"norm.mean has shape \(3,\), but 24 channels come to it"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'; there are none, relu"),
        ({"pool": "min", "window": (2, 2)}, ValueError, "pool is 'min'; there are max, avg, first"),
        ({"window": (6, 1)}, ValueError, "A window of 6x1 does not fit into a map of 5x7"),
        ({"source": torch.zeros(4, 50), "window": (2, 2)}, ValueError, "Pooling needs a map"),
        ({"source": torch.zeros(2, 5, 7, 50, dtype=torch.float64)}, TypeError, "the kernels take torch.float32, torch.float16"),
        ({"source": torch.zeros(2, 50, 5, 7).permute(0, 2, 3, 1)}, ValueError, "pass a channels-last map"),
        ({"source": [torch.zeros(2, 50), torch.zeros(3, 50)]}, ValueError, "Map 1 is|The taps read"),
        ({"out": torch.zeros(2, 5, 7, 23)}, ValueError, r"out has shape \(2, 5, 7, 23\)"),
        ({"statistics": torch.zeros(2, 23).unbind()}, ValueError, r"statistics' mean has shape \(23,\) .* it must be \(24,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"source": a_map(torch.float32), "taps": TAPS["aligned"]} | change
    if isinstance(arguments["source"], list):
        arguments["taps"] = Taps(((0, 0, 8), (1, 0, 8)))
    with pytest.raises(error, match=message):
        gather(**arguments)
