"""What an operation of a graph is called, whichever of torch's functions, methods and ATen operators it is."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload


def name_of(target: Any) -> str:
    """Return "relu" for torch.relu, the method "relu" and torch.ops.aten.relu.default alike."""
    if isinstance(target, OpOverload):
        return str(target._schema.name).rpartition("::")[2]
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
