"""trained_gather_mm is what plain torch makes of cat, batch norm, activation and linear layer, forward and backward."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swkernels import Norm, Shared, Taps, share, trained_gather_mm, trained_with_moments
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
    by_kernel = options.get("by_kernel", True)
    maps = [share(given[f"map {at}"], moments=mode != "none", by_kernel=by_kernel) for at in range(len(WIDTHS))]
    norm = None
    if mode != "none":
        mean, var = statistics if mode == "frozen" else moments_of(maps, TAPS)
        norm = Norm(mean, var, *((given["scale"], given["shift"]) if mode != "bare" else (None, None)), 1e-3)
    options |= {"norm": norm, "activation": activation, "bias": given.get("bias")}
    return trained_gather_mm(maps, TAPS, given.get("weight"), **options)[0]


def moments_of(maps: Sequence[Shared], taps: Taps) -> tuple[Tensor, ...]:
    return taps.take([one.moments for one in maps if one.moments is not None]).unbind()


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


READERS: tuple[tuple[Taps, float | None], ...] = (
    (TAPS, 1e-3),
    (Taps(((1, 0, 8), (0, 1, 3))), 1e-1),
    (Taps(((2, 0, 9), (2, 4, 6))), None),  # without a norm, and a part of it twice
    (Taps(((1, 0, 8), (2, 0, 9))), 1e-5),
)
"""What each of several readers of the same maps reads, and its norm's eps."""


def weights(dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Return the weight of each reader's layer, and those of its norm."""
    return [
        tuple(torch.randn(size, dtype=dtype).requires_grad_() for size in ((6, len(taps)), (len(taps),), (len(taps),)))
        for taps, _ in READERS
    ]


def read_by_us(sources: Sequence[Tensor], of: Sequence[tuple[Tensor, ...]], by_kernel: bool = True) -> list[Tensor]:
    """Let the readers read maps one after the other, without the last one in what they hand on."""
    maps, made = tuple(share(source, by_kernel=by_kernel) for source in sources), []
    for (taps, eps), (weight, scale, shift) in zip(READERS, of, strict=True):
        norm = None if eps is None else Norm(*moments_of(maps, taps), scale, shift, eps)
        y, maps = trained_gather_mm(maps, taps, weight, norm=norm, activation="relu", by_kernel=by_kernel)
        made.append(y)
    return made


def read_plainly(sources: Sequence[Tensor], of: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    made = []
    for (taps, eps), (weight, scale, shift) in zip(READERS, of, strict=True):
        read = taps.take(sources).movedim(-1, 1)
        if eps is not None:
            read = functional.batch_norm(read, None, None, scale, shift, training=True, eps=eps)
        made.append(functional.linear(functional.relu(read.movedim(1, -1)), weight))
    return made


def differentiated(made: Sequence[Tensor], sources: Sequence[Tensor], of: Sequence[tuple[Tensor, ...]]) -> list[Tensor | None]:
    used = [*sources, *(value for parts in of for value in parts)]
    total = sum((number + 1) * (y * y.detach().cos()).sum() for number, y in enumerate(made))
    return [*torch.autograd.grad(total, used, allow_unused=True, retain_graph=True)]


WAYS = {"kernels": (torch.float32, True), "torch": (torch.float32, False), "torch in double": (torch.float64, True)}


@pytest.mark.parametrize("heard", [(0, 1, 2, 3), (0, 2), (1, 3), (2,)])
@pytest.mark.parametrize("way", WAYS)
def test_readers_of_the_same_maps_give_each_one_gradient(way: str, heard: tuple[int, ...], launched: list[str]) -> None:
    """Whichever of them has anything to say; what comes back through a map's statistics is added once."""
    dtype, by_kernel = WAYS[way]
    sources = [value for name, value in parameters(dtype).items() if "map" in name]
    of = weights(dtype)
    wanted = differentiated([read_plainly(sources, of)[at] for at in heard], sources, of)
    made = read_by_us(sources, of, by_kernel)
    launched.clear()
    found = differentiated([made[at] for at in heard], sources, of)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None or not one.any()
            continue
        torch.testing.assert_close(one, other, **close)
    if way == "kernels":
        assert launched.count("_data_gradient") == len(heard)
        normed = {owner for at in heard if READERS[at][1] is not None for owner, _, _ in READERS[at][0].runs}
        assert launched.count("_centered") == len(normed)
    again = differentiated([made[at] for at in heard], sources, of)
    assert all(one is other or torch.equal(one, other) for one, other in zip(found, again, strict=True) if one is not None)


class WideOperators(TorchDispatchMode):
    """Note which operators make something as wide as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        wide = [value for value in tree_leaves(made) if isinstance(value, Tensor) and value.dim() == 4 and value.stride(-1)]
        self.names += [func.overloadpacket.__name__ for _ in wide[:1]]
        return made


@pytest.mark.parametrize("way", WAYS)
def test_nothing_wide_is_made_beside_the_gradients_themselves(way: str) -> None:
    dtype, by_kernel = WAYS[way]
    sources, of = [value for name, value in parameters(dtype).items() if "map" in name], weights(dtype)
    made = read_by_us(sources, of, by_kernel)
    grads = [torch.randn_like(y) for y in made]
    with WideOperators() as seen:
        torch.autograd.grad(made, sources, grads)
    views = {"detach", "split", "split_with_sizes", "alias"}
    expected = {"trained_gather_mm_backward": len(READERS), "share_backward": len(sources)}
    assert Counter(name for name in seen.names if name not in views) == expected


@pytest.mark.parametrize("backward", [True, False])
def test_a_step_leaves_nothing_behind(backward: bool) -> None:
    """Without the collector of cycles, and whether or not it is differentiated."""
    sources, of = [value for name, value in parameters(torch.float32).items() if "map" in name], weights(torch.float32)
    gc.collect()
    gc.disable()
    try:
        maps = [source * 2 for source in sources]
        dead = [weakref.ref(value) for value in maps]
        made = read_by_us(maps, of)
        dead += [weakref.ref(value) for value in made]
        if backward:
            torch.stack([y.sum() for y in made]).sum().backward()
        del maps, made
        assert [one() for one in dead] == [None] * len(dead)
    finally:
        gc.enable()


def test_a_token_has_no_memory_and_a_shared_map_is_the_map() -> None:
    x = torch.randn(3, 4, 5, 8).requires_grad_()
    found = share(x)
    assert found.map is x
    assert found.token.shape == x.shape
    assert found.token.untyped_storage().nbytes() == x.element_size()
    assert share(x, moments=False).moments is None
    with torch.no_grad():
        assert not share(x).token.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("product", [True, False])
def test_moments_that_are_taken_as_a_map_is_made_serve_the_norm_behind(
    product: bool, dtype: torch.dtype, launched: list[str]
) -> None:
    given = {name: value for name, value in parameters(dtype).items() if product or name not in ("weight", "bias")}
    count, nothing = (6 if product else len(TAPS)), (torch.zeros(len(TAPS)).to(dtype), torch.ones(len(TAPS)).to(dtype))
    of = [torch.randn(count, dtype=dtype).requires_grad_() for _ in range(2)]
    grad, asked = torch.randn(3, 4, 5, count, dtype=dtype), [*given.values(), *of]
    plain = plainly(given, "silu", "batch", nothing)
    expected = functional.relu(functional.batch_norm(plain.flatten(0, -2), None, None, *of, training=True)).view(plain.shape)
    with watched(*(value.detach() for value in asked)) as watch:
        maps = [share(given[f"map {at}"]) for at in range(len(WIDTHS))]
        norm = Norm(*moments_of(maps, TAPS), given["scale"], given["shift"], 1e-3)
        made, _, moments = trained_with_moments(
            maps, TAPS, given.get("weight"), norm=norm, activation="silu", bias=given.get("bias")
        )
        one = share(made, known=moments)
        assert one.moments is not None
        behind = Norm(*one.moments.unbind(), *of)
        found, _ = trained_gather_mm([one], Taps.of((0, count)), None, norm=behind, activation="relu")
        gradients = torch.autograd.grad(found, asked, grad)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **close)
    for at, (mine, theirs) in enumerate(zip(gradients, torch.autograd.grad(expected, asked, grad), strict=True)):
        torch.testing.assert_close(mine, theirs, msg=lambda text, at=at: f"{at}: {text}", **close)
    assert not watch.faults
    names = ("_partial", "_joined", "_centered")
    assert [launched.count(name) for name in names] == ([3, 4, 4] if dtype == torch.float32 else [0, 0, 0])
