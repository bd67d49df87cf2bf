"""Write values and functions as Python source."""

from __future__ import annotations

import builtins
import inspect
import math
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import _get_qualified_name
from torch.nn import functional

from swcompile.errors import SwnetError, shown
from swcompile.export.python.flatten import Written

INFIX: Mapping[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.lt: "<",
    operator.le: "<=",
    operator.eq: "==",
    operator.ne: "!=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.is_: "is",
    operator.is_not: "is not",
}
PREFIX: Mapping[Callable[..., Any], str] = {operator.neg: "-", operator.invert: "~", operator.pos: "+", operator.not_: "not "}
AUGMENTED: Mapping[Callable[..., Any], str] = {
    operator.iadd: "+",
    operator.isub: "-",
    operator.imul: "*",
    operator.itruediv: "/",
    operator.ifloordiv: "//",
    operator.imod: "%",
    operator.ipow: "**",
    operator.iand: "&",
    operator.ior: "|",
}


@dataclass(frozen=True)
class Expression:
    """Source text, and whether it can be an operand or be followed by a dot without brackets around it."""

    text: str
    atomic: bool = True

    @property
    def operand(self) -> str:
        return self.text if self.atomic else f"({self.text})"


Look = Callable[[fx.Node], Expression]
"""Says how a node is written where it is read."""


def literal(value: Any, look: Look) -> str:
    """Return the source of an argument. Raises SwnetError for an object that cannot be written down."""
    if isinstance(value, fx.Node):
        return look(value).text
    if isinstance(value, Written):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool | int | complex) or value is Ellipsis:
        return "..." if value is Ellipsis else repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, slice):
        return f"slice({', '.join(literal(part, look) for part in (value.start, value.stop, value.step))})"
    if isinstance(value, tuple | list | dict):
        return _collection(value, look)
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    if isinstance(value, type | types.BuiltinFunctionType):
        return function(value)
    raise SwnetError(
        f"The graph holds {shown(value)}, of type {type(value).__name__}, which cannot be written as Python source. "
        "Export to torch-export or onnx."
    )


def _collection(value: Any, look: Look) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key, look)}: {literal(item, look)}' for key, item in value.items())}}}"
    inner = ", ".join(literal(item, look) for item in value)
    if isinstance(value, list):
        return f"[{inner}]"
    return f"({inner},)" if len(value) == 1 else f"({inner})"


def quoted(text: str) -> str:
    """Return a string literal in double quotes, as ruff has them."""
    plain = repr(text)
    return plain if '"' in text or "\\" in plain or plain[0] == '"' else f'"{plain[1:-1]}"'


def index(value: Any, look: Look) -> str:
    """Return what stands in the brackets of x[...]."""
    if isinstance(value, tuple) and value:
        inner = ", ".join(_place(item, look) for item in value)
        return f"{inner}," if len(value) == 1 else inner
    return _place(value, look)


def _place(value: Any, look: Look) -> str:
    if not isinstance(value, slice):
        return literal(value, look)
    ends = ["" if part is None else literal(part, look) for part in (value.start, value.stop)]
    return ":".join(ends) + ("" if value.step is None else f":{literal(value.step, look)}")


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], look: Look) -> str:
    """Return what stands in the brackets of a call."""
    return ", ".join(
        [*(literal(value, look) for value in args), *(f"{key}={literal(value, look)}" for key, value in kwargs.items())]
    )


def without_defaults(target: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out arguments that a function of Python's takes for granted: F.relu(x, inplace=False) is F.relu(x)."""
    try:
        known = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin
        return dict(kwargs)
    defaults = {name: place.default for name, place in known.items()}
    return {name: value for name, value in kwargs.items() if name not in defaults or not _is_plainly(value, defaults[name])}


def _is_plainly(value: Any, other: Any) -> bool:
    return type(value) is type(other) and isinstance(value, bool | int | float | str | type(None)) and value == other


def function(target: Any) -> str:
    """Return the name under which a program that imports torch, nn, F, math and OrderedDict reaches a function.

    Raises SwnetError for one that is not torch's or Python's.
    """
    if isinstance(target, OpOverload):
        return f"torch.ops.{target}"
    name = str(getattr(target, "__name__", ""))
    if target is OrderedDict:
        return name
    for prefix, place in (("F", functional), ("torch", torch), ("math", math), ("", builtins)):
        if name and getattr(place, name, None) is target:
            return f"{prefix}.{name}".lstrip(".")
    path = _path(target)
    if path is not None:
        return path
    raise SwnetError(
        f"The model calls {name or shown(target)} of {getattr(target, '__module__', 'an unknown module')}, a function that is "
        "neither torch's nor Python's, and the module to be written needs torch alone. Let the model call torch's functions, or "
        "export to torch-export or onnx."
    )


def _path(target: Any) -> str | None:
    """Return the dotted path of one of torch's functions, where it leads back to it."""
    try:
        path = _get_qualified_name(target)
    except Exception:  # fx asserts what it knows of functions
        return None
    found: Any = torch
    first, *rest = path.split(".")
    for part in rest:
        found = getattr(found, part, None)
    return path if first == "torch" and found is target else None
