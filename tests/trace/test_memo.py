"""trace.memo: what is remembered of torch's modules and functions is what torch itself says of fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swcompile.trace.copies import make_fake, skeleton
from swcompile.trace.memo import concatenated, divided, remembered

IMAGE, VECTOR, SIGNAL = (2, 8, 9, 7), (2, 5, 8), (2, 8, 11)
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 3), VECTOR),
    "linear without bias": (lambda: nn.Linear(8, 3, bias=False), VECTOR),
    "conv": (lambda: nn.Conv2d(8, 6, 3, 2, 1, groups=2), IMAGE),
    "conv reflecting": (lambda: nn.Conv2d(8, 6, 3, padding="same", padding_mode="reflect"), IMAGE),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, dilation=2), SIGNAL),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), IMAGE),
    "relu": (nn.ReLU, IMAGE),
    "prelu": (lambda: nn.PReLU(8), IMAGE),
    "gelu": (nn.GELU, VECTOR),
    "norm": (lambda: nn.BatchNorm2d(8), IMAGE),
    "max": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "avg": (lambda: nn.AvgPool2d(2), IMAGE),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((3, None)), IMAGE),
}


class Counted:
    """Runs a module, and counts how often."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x, self.calls = module, x, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.module(self.x)

    def remembered(self) -> Any:
        return remembered(self.module, (self.x,), self)


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_a_second_call_gives_the_layout_of_the_first_and_memory_of_its_own(
    name: str, dtype: torch.dtype, channels_last: bool
) -> None:
    build, shape = MODULES[name]
    mode = FakeTensorMode()
    bare = skeleton(build().to(dtype), mode)
    x = make_fake(mode, shape, dtype)
    if channels_last and x.dim() == 4:
        with mode:
            x = x.to(memory_format=torch.channels_last)
    with mode, torch.no_grad():
        fresh = bare(x)
        run = Counted(bare, x)
        first, second = run.remembered(), run.remembered()
    assert run.calls == (0 if name == "norm" else 1)
    for made in (first, second):
        assert type(made) is FakeTensor
        assert layout(made) == layout(fresh)
    storages = {made.untyped_storage()._cdata for made in (x, first, second)}
    assert len(storages) == 3


def hooked() -> nn.Module:
    module = nn.Linear(8, 3)
    module.register_forward_hook(lambda module, args, out: out[:, :1])
    return module


def patched() -> nn.Module:
    module = nn.Linear(8, 3)
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


class Wider(nn.Linear):
    pass


@pytest.mark.parametrize("build", [hooked, patched, nn.Dropout, nn.Identity, lambda: nn.ReLU(inplace=True), lambda: Wider(8, 3)])
def test_what_may_answer_otherwise_is_asked_each_time(build: Callable[[], nn.Module]) -> None:
    mode = FakeTensorMode()
    run = Counted(skeleton(build(), mode), make_fake(mode, VECTOR, torch.float32))
    with mode, torch.no_grad():
        for calls in (1, 2, 3):
            run.remembered()
            assert run.calls == calls


def test_with_gradients_each_call_runs() -> None:
    mode = FakeTensorMode()
    run = Counted(skeleton(nn.Linear(8, 3), mode), make_fake(mode, VECTOR, torch.float32))
    with mode, torch.enable_grad():
        assert all(run.remembered().requires_grad for _ in range(2))


def test_settings_and_inputs_are_told_apart() -> None:
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        made = [
            Counted(skeleton(nn.Conv2d(8, 4, size, stride), mode), make_fake(mode, (1, 8, side, side), torch.float32)).remembered()
            for size in (1, 3)
            for stride in (1, 2)
            for side in (8, 9)
        ]
    assert [tuple(out.shape[2:]) for out in made] == [(8, 8), (9, 9), (4, 4), (5, 5), (6, 6), (7, 7), (3, 3), (4, 4)]


def test_a_call_that_fails_fails_again() -> None:
    mode = FakeTensorMode()
    run = Counted(skeleton(nn.Linear(9, 3), mode), make_fake(mode, VECTOR, torch.float32))
    for _ in range(2):
        with mode, torch.no_grad(), pytest.raises(RuntimeError):
            run.remembered()


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concatenations_and_splits_have_the_shapes_that_torch_gives(dim: int) -> None:
    mode = FakeTensorMode()
    parts = [make_fake(mode, IMAGE, torch.float16) for _ in range(3)]
    with mode, torch.no_grad():
        whole = concatenated(parts, dim)
        assert whole is not None
        assert layout(whole) == layout(torch.cat(parts, dim))
        sizes = [1, whole.shape[dim] - 1]
        pieces = divided(whole, sizes, dim)
        assert pieces is not None
        assert [piece.shape for piece in pieces] == [piece.shape for piece in torch.split(whole, sizes, dim)]


def test_what_torch_refuses_or_converts_is_left_to_torch() -> None:
    mode = FakeTensorMode()
    x, other, half = (make_fake(mode, *kind) for kind in ((IMAGE, torch.float32), (VECTOR, torch.float32), (IMAGE, torch.float16)))
    taller = make_fake(mode, (2, 8, 9, 8), torch.float32)
    with torch.no_grad():
        for parts in ([x, other], [x, half], [x, taller], [], x, [x, torch.zeros(IMAGE)]):
            assert concatenated(parts, 1) is None
        assert concatenated([x], 4) is None
        assert concatenated([x], "C") is None
        for sizes in ([1, 2], 4, [9, -1], []):
            assert divided(x, sizes, 1) is None
        assert divided(torch.zeros(8), [4, 4]) is None
