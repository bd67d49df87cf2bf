"""Copies of a user's model: a whole one to work on, and one without weights to ask for shapes."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from swcompile.errors import SwnetError, first_line


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model, parameters and their hooks included. Raises SwnetError where it cannot be copied."""
    _refuse_lazy(model)
    copied = _deepcopy(model, {})
    for parameter in copied.parameters():
        if not parameter.is_leaf:  # TorchScript copies parameters as results of a computation, which get no gradients
            parameter.detach_().requires_grad_()
    for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        copy_hooks(theirs, ours)
    return copied


def copy_hooks(source: torch.Tensor, target: torch.Tensor) -> None:
    """Give a parameter the gradient hooks of the one that it was copied from: torch's deepcopy forgets them."""
    theirs, ours = cast(Any, source), cast(Any, target)  # torch types none of what is used here
    for hook in (theirs._backward_hooks or {}).values():
        ours.register_hook(hook)
    for hook in (theirs._post_accumulate_grad_hooks or {}).values():
        ours.register_post_accumulate_grad_hook(hook)


def skeleton(model: nn.Module, mode: FakeTensorMode, device: str = "cpu") -> nn.Module:
    """Copy a model with fake parameters and buffers: its structure at no memory, whatever device it is on.

    Fake tensors live on the CPU, unless told otherwise, even for a model on `meta`, so that constants made in `forward` can meet
    them.
    """
    _refuse_lazy(model)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        fake = memo[id(tensor)] = make_fake(mode, tensor.shape, tensor.dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            fake.requires_grad_(tensor.requires_grad)
            cast(Any, fake)._is_param = True  # as nn.Parameter itself does, after copying
    return _deepcopy(model, memo)


def make_fake(
    mode: FakeTensorMode,
    shape: Sequence[int],
    dtype: torch.dtype,
    stride: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> FakeTensor:
    """Return a fake tensor of its own memory, contiguous unless told otherwise: torch's factories take six times as long."""
    with no_dispatch():
        if stride is None:
            bare = torch.empty(shape, dtype=dtype, device="meta")
        else:
            bare = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, bare, torch.device(device))


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    _detach_results(model, memo)
    try:
        with copying_fakes(lambda fake: fake), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, at each exported program that is copied
            modules = [*model.modules()]
            own = {kind for kind in set(map(type, modules)) if _has_own_way(kind)}
            for module in reversed(modules):  # those within before those around them
                if type(module) not in own:
                    _copy_plain(module, memo)
            made = copy.deepcopy(model, memo)
        why = _strange(made) if isinstance(made, nn.Module) else f"a {type(made).__name__}"
        if why is not None:
            raise TypeError(f"its copy is no such module, {why}")
        return made
    except Exception as error:
        raise SwnetError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}); swcompile works on a copy. "
            "Keep what copy.deepcopy does not take (locks, files, generators) out of the model's attributes."
        ) from error


def _copy_plain(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy a module that holds nothing but tensors, settings and modules copied before: deepcopy takes 20 times as long."""
    if id(module) in memo:
        return
    state: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules") and type(value) is dict:
            state[name] = value
        elif type(value) in (dict, OrderedDict, set) and not value:
            state[name] = type(value)()
        elif type(value) in _IMMUTABLE or (type(value) is tuple and all(type(item) is int for item in value)):
            state[name] = value
        else:
            return
    if not all(child is None or id(child) in memo for child in state.get("_modules", {}).values()):
        return
    for name in ("_parameters", "_buffers", "_modules"):
        state[name] = {key: copy.deepcopy(held, memo) for key, held in state.get(name, {}).items()}
    copied = memo[id(module)] = object.__new__(type(module))
    copied.__dict__ = state


_IMMUTABLE = frozenset((bool, int, float, str, type(None)))
_WAYS = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")


def _has_own_way(kind: type[nn.Module]) -> bool:
    """Whether modules of a class are copied in a way of their own, which may make anything."""
    known = ("torch.nn.modules.", "builtins")
    return any(way in vars(base) for base in kind.__mro__ for way in _WAYS if not base.__module__.startswith(known)) or any(
        "__slots__" in vars(base) for base in kind.__mro__
    )


def refuse_strange(model: nn.Module) -> None:
    """Raise SwnetError for a model that does not tell what it holds as every other one does."""
    why = _strange(model)
    if why is not None:
        raise SwnetError(
            f"{type(model).__name__} does not tell which modules, parameters and buffers it has, and their mode ({why}). Call "
            "super().__init__() first in its __init__, and leave named_modules, parameters and their like as nn.Module has them."
        )


def _strange(model: nn.Module) -> str | None:
    try:
        modules = [*model.modules(), *(module for _, module in model.named_modules(remove_duplicate=False))]
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [tensor for _, tensor in (*model.named_parameters(), *model.named_buffers())]
        sound = model in modules and all(isinstance(module, nn.Module) and module.training in (0, 1) for module in modules)
        return None if sound and all(isinstance(tensor, torch.Tensor) for tensor in tensors) else "but other objects"
    except Exception as error:
        if isinstance(error, RecursionError) and not _holds_itself(model):
            raise  # nested too deeply
        return f"{type(error).__name__}: {first_line(error)}"


def _detach_results(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let deepcopy copy tensors among the attributes that were computed of parameters, which it would refuse.

    torch.nn.utils.weight_norm and torch.nn.utils.prune keep such weights, and compute them anew in each forward.
    """
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())


def _holds_itself(model: nn.Module) -> bool:
    """Whether a module lies among its own submodules."""
    above: list[tuple[nn.Module, Iterator[nn.Module | None]]] = [(model, iter(model._modules.values()))]
    path, done = {model}, set[nn.Module]()
    while above:
        module, rest = above[-1]
        child = next((one for one in rest if isinstance(one, nn.Module) and one not in done), None)
        if child is None:
            above.pop()
            path.discard(module)
            done.add(module)
        elif child in path:
            return True
        else:
            path.add(child)
            above.append((child, iter(child._modules.values())))
    return False


def set_mode(module: nn.Module, training: bool) -> None:
    """Put a module into train or eval mode the way its class does it; an exported program, which has one mode, is only marked."""
    try:
        module.train(training)
    except NotImplementedError:
        module.training = training
    except Exception as error:
        raise SwnetError(
            f"{type(module).__name__} cannot be put into {'train' if training else 'eval'} mode ({type(error).__name__}: "
            f"{first_line(error)}), and both are traced. Leave train, eval and children as nn.Module has them, or make them work."
        ) from error


@contextmanager
def copying_fakes(copied: Callable[[FakeTensor], torch.Tensor]) -> Iterator[None]:
    """Say what deepcopy makes of a fake tensor among a module's attributes: torch would copy memory that is not there."""
    kind: Any = FakeTensor
    before = kind.__dict__.get("__deepcopy__")  # a module that is copied may itself copy others
    kind.__deepcopy__ = lambda fake, memo: memo.setdefault(id(fake), copied(fake))
    try:
        yield
    finally:
        if before is None:
            del kind.__deepcopy__
        else:
            kind.__deepcopy__ = before


def _refuse_lazy(model: nn.Module) -> None:
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    if not any(isinstance(tensor, lazy) for tensor in (*model.parameters(), *model.buffers())):
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, lazy):
            raise SwnetError(f"{name} has no shape yet (a lazy module); run the model once on an example before transforming it.")
