"""What a forward assigns, takes away and caches while it is traced: put back afterwards, so that no proxy stays behind."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swcompile.trace.lines import is_users_file

Buffers = dict[nn.Module, dict[str, torch.Tensor | None]]
"""The buffers of each module, by name."""
_Containers = list[tuple[Any, Any]]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""
_EVERYBODYS = frozenset(vars(nn.Module()))
"""Attributes that every module has, its hooks among them."""
_OWN = _EVERYBODYS - {*HOOKS}


@contextmanager
def attributes(root: nn.Module) -> Iterator[Buffers]:
    """Leave the attributes, hooks, parameters, buffers and submodules of all modules as they were, and containers among them.

    Yields the buffers.
    """
    ours = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = {module: dict(module.__dict__) for module in ours}
    buffers: Buffers = {module: dict(module._buffers) for module in ours}
    held = {module: (dict(module._parameters), dict(module._modules)) for module in ours}
    containers = [pair for module in ours for pair in _containers(module)]
    try:
        yield buffers
    finally:
        for module in ours:
            module._buffers.update(buffers[module])
            module._parameters.update(held[module][0])
            module._modules.update(held[module][1])
            _restore(module, before[module])
        for container, items in containers:
            _refill(container, items)


Held = dict[str, dict[str, tuple[object, int]]]
"""The attributes of each module by its path, and how many items those have that are containers."""


def held(root: nn.Module) -> Held:
    """Return the attributes of all modules that not every module has, to be compared with what they are later."""
    return {
        path: {name: (value, _length(value)) for name, value in vars(module).items() if name not in _EVERYBODYS}
        for path, module in root.named_modules()
    }


def changed(root: nn.Module, before: Held) -> list[str]:
    """Return the paths of attributes that are others now, or hold more or fewer items."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, values in held(root).items()
        for name, (value, length) in values.items()
        if _differs(before.get(path, {}).get(name), value, length)
    ]


def _differs(old: tuple[object, int] | None, value: object, length: int) -> bool:
    return (
        old is None or old[1] != length or (old[0] is not value and not (isinstance(value, int | float | str) and old[0] == value))
    )


def _length(value: object) -> int:
    return len(value) if isinstance(value, dict | list | set) else 0


def _containers(module: nn.Module) -> _Containers:
    mutable = (value for name, value in vars(module).items() if name not in _OWN and isinstance(value, dict | list | set))
    return [(value, type(value)(value) if type(value) in (dict, list, set) else value.copy()) for value in mutable]


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    for name in [name for name, value in module.__dict__.items() if before.get(name, module) is not value]:
        if name in before:
            module.__dict__[name] = before[name]
        else:
            del module.__dict__[name]


def _refill(container: Any, held: Any) -> None:
    """Put the items back; only where that changes something, since a user's class may do more than hold them."""
    if len(container) == len(held) and all(map(_is, _items(container), _items(held))):
        return
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(held)


def _items(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _is(left: object, right: object) -> bool:
    return left is right


@contextmanager
def caches() -> Iterator[None]:
    """Empty the caches of the user's functions (functools.lru_cache) that were filled meanwhile: with proxies, it may be."""
    before = {id(cache): cache.cache_info().misses for cache in _caches()}
    try:
        yield
    finally:
        for cache in _caches():
            if cache.cache_info().misses != before.get(id(cache), 0):
                cache.cache_clear()


def _caches() -> list[Any]:
    kind = functools._lru_cache_wrapper
    found = [item for item in gc.get_objects() if type(item) is kind]
    return [cache for cache in found if is_users_file(_file(cache))]


def _file(cache: Callable[..., Any]) -> str:
    code = getattr(getattr(cache, "__wrapped__", None), "__code__", None)
    return code.co_filename if code is not None else "<"
