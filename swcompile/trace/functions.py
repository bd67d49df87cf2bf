"""Which modules of a user's are plain functions, so that following them once says what every call of them does."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Sequence
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
    steps = list(dis.get_instructions(forward.__code__))
    return _is_straight(forward.__code__, steps) and all(_reads_torch_alone(step, forward, kind) for step in steps)


def _is_straight(code: CodeType, steps: Sequence[dis.Instruction]) -> bool:
    if code.co_freevars or code.co_cellvars or any(isinstance(constant, CodeType) for constant in code.co_consts):
        return False
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    jumps = {*dis.hasjrel, *dis.hasjabs}
    return not any(step.opcode in jumps or step.opname in _WRITES or step.opname.startswith("IMPORT") for step in steps)


def _reads_torch_alone(step: dis.Instruction, forward: FunctionType, kind: type) -> bool:
    """Say whether an instruction reads, by name, no more than what torch has, or an attribute of a value that a graph follows."""
    if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
        found: Any = forward.__globals__.get(step.argval)  # builtins are not there: setattr, print, next
        home = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
        return home is not None and (home + ".").startswith(f"{torch.__name__}.")
    return ("ATTR" not in step.opname and "METHOD" not in step.opname) or (
        step.argval not in _TOLD and step.argval not in vars(kind)
    )
