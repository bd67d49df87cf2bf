"""Write parameters and buffers as expressions: of their shape and type, and of their values where no weights bring these."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swcompile.errors import SwnetError
from swcompile.export.python.expressions import Expression, literal

MAX_LITERAL = 256
"""The most numbers of a buffer that is not saved which are written out."""


def fresh(parameter: Tensor) -> str:
    """Return an expression for a parameter as it might be before training: normal, with the standard deviation it has now."""
    if _constant(parameter) is not None or not parameter.dtype.is_floating_point or parameter.is_meta or not parameter.numel():
        return blank(parameter)
    deviation = float(parameter.detach().double().std())
    shape, dtype = _sized(parameter)
    return f"torch.randn({shape}{dtype}) * {deviation:.3g}" if math.isfinite(deviation) else blank(parameter)


def blank(tensor: Tensor) -> str:
    """Return an expression for a tensor whose values come with the weights: its number where it has one, else zeros.

    One of positive numbers alone is one all over: something may be divided by them.
    """
    shape, dtype = _sized(tensor)
    value = _constant(tensor)
    if value is not None and value not in (0, 1):
        return f"torch.full({tuple(tensor.shape)}, {literal(value, _no_node)}{dtype})"
    positive = value is None and tensor.dtype.is_floating_point and not tensor.is_meta and bool((tensor > 0).all())
    return f"torch.{'ones' if positive or value == 1 else 'zeros'}({shape}{dtype})"


def _sized(tensor: Tensor) -> tuple[str, str]:
    """Return the arguments that say a tensor's shape and, where it is not torch's default, its type."""
    return ", ".join(map(str, tensor.shape)) or "()", "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"


def _constant(tensor: Tensor) -> bool | int | float | complex | None:
    """Return the number that a tensor holds all over, None where it holds several."""
    if not tensor.numel() or tensor.is_meta or not bool((tensor == tensor.flatten()[0]).all()):
        return None
    return tensor.flatten()[0].item()


def values(path: str, tensor: Tensor) -> str:
    """Return an expression for a tensor that is in no state dict."""
    if tensor.numel() > MAX_LITERAL:
        raise SwnetError(
            f"{path} is a tensor of {tensor.numel():,} numbers that the state dict does not hold, too many to write out. Make it a "
            "persistent buffer of the model, or export to torch-export or onnx."
        )
    return f"torch.tensor({literal(tensor.tolist(), _no_node)}, dtype={tensor.dtype})"


def _no_node(_: object) -> Expression:
    raise AssertionError("a tensor is made of numbers")
