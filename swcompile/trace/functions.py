"""Which modules of a user's are plain functions, so that following them once says what every call of them does."""

from __future__ import annotations

import dis
import inspect
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
_TOLD = frozenset(["training", "dtype", "device", "is_grad_enabled", "is_floating_point", "requires_grad"])
"""What code may ask for that a graph does not follow."""
_WRITES = frozenset(["STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR"])


def is_function(module: nn.Module) -> bool:
    """Say whether a module's forward is straight code over its arguments alone.

    It holds nothing but integers (the axis of a concat), derives from nn.Module itself, has no branch and no loop, writes to
    nothing, and calls no other Python code than torch's. So nothing can be set on it, counted by it or decided in it later.
    """
    kind = type(module)
    forward = kind.__dict__.get("forward")
    if kind.__bases__ != (nn.Module,) or not isinstance(forward, FunctionType) or "__call__" in kind.__dict__:
        return False
    if any(type(value) is not int for name, value in vars(module).items() if name not in _OWN) or module._modules:
        return False
    return _is_straight(forward.__code__) and all(_is_torchs(name, forward, kind) for name in forward.__code__.co_names)


def _is_straight(code: CodeType) -> bool:
    if code.co_freevars or code.co_cellvars or any(isinstance(constant, CodeType) for constant in code.co_consts):
        return False
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    jumps = {*dis.hasjrel, *dis.hasjabs}
    return not any(
        step.opcode in jumps or step.opname in _WRITES or step.opname.startswith("IMPORT") for step in dis.get_instructions(code)
    )


def _is_torchs(name: str, forward: FunctionType, kind: type) -> bool:
    """Say whether a name that code uses is a module or function of torch, or an attribute of a value."""
    if name in _TOLD or name in vars(kind):
        return False
    if name not in forward.__globals__:
        return name != "print"
    found: Any = forward.__globals__[name]
    home = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    return home is not None and (home + ".").startswith(f"{torch.__name__}.")
