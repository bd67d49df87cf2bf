"""Triton, where there is one: it has no wheel for some platforms, and there the references must still import."""

from __future__ import annotations

import importlib
from typing import Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _without(kernel: Any = None, **_: Any) -> Any:
    return _without if kernel is None else kernel


triton, tl = _module("triton"), _module("triton.language")
jit: Any = _without if triton is None else triton.jit


def interpreting() -> bool:
    """Say whether kernels run in Triton's interpreter, on CPU tensors."""
    return triton is not None and bool(triton.knobs.runtime.interpret)
