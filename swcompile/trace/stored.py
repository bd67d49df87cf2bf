"""Record what a forward computes of parameters and buffers that it reaches otherwise than as attributes.

`self.weight` gives a proxy, but `self.parameters()` and `self._buffers["n"]` give the tensor itself, and torch.fx hears nothing of
what is computed of that: a penalty on all weights would be computed once, and stay a constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from swcompile.trace.interpret import map_in, tensors

_ATTRIBUTES = frozenset(["T", "mT", "H", "mH", "data", "real", "imag"])
"""Attributes that are tensors; the others are answered by the tensor itself."""
_CONVERSIONS: dict[str, Callable[..., Any]] = {"__bool__": bool, "__float__": float, "__int__": int, "__index__": operator.index}


class Recorder(Protocol):
    """What is asked of the tracer."""

    @property
    def recording(self) -> bool:
        """Whether it is the user's forward that runs."""

    def stored(self, tensor: torch.Tensor) -> fx.Proxy | None:
        """Return the proxy of a parameter or buffer of the model, None for any other tensor."""


class StoredMode(TorchFunctionMode):
    """While active, operations on the model's own tensors become nodes, as those on proxies do."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors((args, kwargs)) if self.recorder.recording else []
        if not given or all(self.recorder.stored(tensor) is None for tensor in given):
            return func(*args, **kwargs)
        return self._record(func, types, args, kwargs)

    def _record(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = str(getattr(func, "__name__", ""))
        proxied, named = map_in((args, kwargs), torch.Tensor, self._proxy)
        if name in ("__get__", "__set__"):
            attribute = func.__self__.__name__
            if name == "__set__":
                return setattr(proxied[0], attribute, proxied[1])
            return getattr(proxied[0], attribute) if attribute in _ATTRIBUTES else func(*args, **kwargs)
        if not name.endswith("_") and not self._makes_tensors(func, args, kwargs):
            return func(*args, **kwargs)
        named_so = _CONVERSIONS.get(name, getattr(operator, name, None) if name.startswith("__") else None)
        if named_so is not None:
            return named_so(*proxied)
        return fx.Proxy.__torch_function__(func, types, proxied, named)

    def _proxy(self, tensor: torch.Tensor) -> Any:
        found = self.recorder.stored(tensor)
        return tensor if found is None else found

    @staticmethod
    def _makes_tensors(func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call is more than a question about sizes and types; tried on tensors without values."""
        try:
            return bool(tensors(func(*map_in(args, torch.Tensor, _bare), **map_in(kwargs, torch.Tensor, _bare))))
        except Exception:  # proxies among the arguments, or values asked for: neither is a question
            return True


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")
