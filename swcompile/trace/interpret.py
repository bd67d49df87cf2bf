"""Run nodes of a graph on fake tensors, and the few modules that cannot run on them on random values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils._python_dispatch import _disable_current_modes

from swcompile.trace.copies import copying_fakes
from swcompile.trace.memo import remembered
from swcompile.trace.random_state import random_state


def thawed(value: Any) -> Any:
    """Return arguments as user code expects them: fx keeps lists and dictionaries that refuse to be changed."""
    if type(value) in (list, immutable_list):
        return [thawed(item) for item in value]
    if type(value) in (dict, immutable_dict):
        return {key: thawed(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(thawed(item) for item in value)
    return value


def map_in(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return `value` with what is of a kind, in nested tuples, lists and dictionaries, replaced by what the function returns."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_in(item, kind, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)([map_in(item, kind, function) for item in value])
    if isinstance(value, dict):
        if is_dataclass(value):  # an output class that lets nobody update it
            return type(value)(**{key: map_in(item, kind, function) for key, item in value.items()})
        made = copy.copy(value)
        made.update({key: map_in(item, kind, function) for key, item in value.items()})
        return made
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries."""
    found: list[torch.Tensor] = []
    map_in(value, torch.Tensor, found.append)
    return found


def run_node(node: fx.Node, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a node computes of `args`; `root` holds the modules and parameters."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(root.get_submodule(owner), name)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return run_module(root.get_submodule(str(node.target)), args, kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def run_module(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a module on fake tensors; on random values of the same shapes where it decides by values, which fake ones have not."""
    try:
        return module(*args, **kwargs) if kwargs else remembered(module, args, lambda: module(*args))
    except Exception as on_fakes:
        mode = detect_fake_mode(tensors((args, kwargs)))
        if mode is None:
            raise
        try:
            with _disable_current_modes(), random_state(), torch.no_grad():
                real = _real(module)(*_filled(args), **_filled(kwargs))
        except Exception:  # what does not run on values either has failed for the first reason
            raise on_fakes from None
        return map_in(real, torch.Tensor, mode.from_tensor)


def _real(module: nn.Module) -> nn.Module:
    """Copy a module of fake tensors with random values in their place."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        filled = _fill(tensor)
        memo[id(tensor)] = nn.Parameter(filled, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else filled
    with copying_fakes(_fill):
        return copy.deepcopy(module, memo)


def _filled(value: Any) -> Any:
    return map_in(value, FakeTensor, lambda tensor: _fill(tensor))


def _fill(tensor: torch.Tensor) -> torch.Tensor:
    return torch.rand(tensor.shape).to(tensor.dtype) if isinstance(tensor, FakeTensor) else tensor
