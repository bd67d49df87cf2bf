"""Remember what torch's own modules make of fake tensors, so that a deep network asks each kind of module once.

A call on fake tensors costs 90 to 350 us, most of it Python; a remembered one 20 us. Only modules whose result is a tensor of its
own, and nothing but a function of their settings and of the shape that they read, are remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swcompile.trace.copies import make_fake
from swcompile.trace.layers import LAYER_TYPES

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh)
_TYPES = frozenset((*LAYER_TYPES, *_POOLS, *_ADAPTIVE, *_ACTIVATIONS, nn.Hardswish, nn.Hardsigmoid, nn.PReLU, nn.Softplus))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_made: WeakKeyDictionary[FakeTensorMode, dict[Any, tuple[Any, ...]]] = WeakKeyDictionary()


def remembered(module: nn.Module, args: tuple[Any, ...], run: Callable[[], Any]) -> Any:
    """Return what `run`, a call of the module, returns; without running it where a call like it is known."""
    if len(args) != 1 or type(args[0]) is not FakeTensor or torch.is_grad_enabled() or not _is_plain(module):
        return run()
    given = args[0]
    if _only_normalises(module, given):
        return make_fake(given.fake_mode, given.shape, given.dtype, given.stride(), given.device)
    known = _made.setdefault(given.fake_mode, {})
    key = _key(module, given)
    if key is None:
        return run()
    if key not in known:
        result = run()
        if type(result) is not FakeTensor or result.device != given.device:
            return result
        known[key] = (result.shape, result.stride(), result.dtype)
        return result
    shape, stride, dtype = known[key]
    return make_fake(given.fake_mode, shape, dtype, stride, given.device)


def concatenated(parts: Any, dim: Any = 0) -> FakeTensor | None:
    """Return the concatenation of contiguous fake maps that fit, else None: torch is to say what else there is to say."""
    first = parts[0] if isinstance(parts, list | tuple) and parts else None
    if type(first) is not FakeTensor or type(dim) is not int or not -first.dim() <= dim < first.dim() or torch.is_grad_enabled():
        return None
    axis = dim % first.dim()
    width, rest = 0, (*first.shape[:axis], *first.shape[axis + 1 :])
    for part in parts:
        alike = type(part) is FakeTensor and part.dtype == first.dtype and part.device == first.device and part.is_contiguous()
        if not alike or (*part.shape[:axis], *part.shape[axis + 1 :]) != rest or part.dim() != first.dim():
            return None
        width += part.shape[axis]
    return make_fake(first.fake_mode, (*rest[:axis], width, *rest[axis:]), first.dtype, device=first.device)


def divided(source: Any, sizes: Any, dim: Any = 0) -> tuple[FakeTensor, ...] | None:
    """Return pieces of a fake map with the shapes that torch.split gives, but memory of their own; None where they do not fit."""
    if (
        type(source) is not FakeTensor
        or not isinstance(sizes, list)
        or type(dim) is not int
        or not -source.dim() <= dim < source.dim()
    ):
        return None
    axis, shape = dim % source.dim(), source.shape
    if torch.is_grad_enabled() or sum(sizes) != shape[axis] or min(sizes, default=-1) < 0:
        return None
    return tuple(
        make_fake(source.fake_mode, (*shape[:axis], size, *shape[axis + 1 :]), source.dtype, device=source.device) for size in sizes
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is torch's own class, and as torch made it."""
    own = module.__dict__
    return type(module) in (*_NORMS, *_TYPES) and "forward" not in own and not any(own[hooks] for hooks in _HOOKS)


def _only_normalises(module: nn.Module, given: FakeTensor) -> bool:
    """Whether a call is that of a plain batch norm, whose shape is that of its input.

    torch takes a fake one apart into some 20 operations: 60% of the time of tracing a DenseNet.
    """
    return isinstance(module, _NORMS) and given.dim() > 1 and given.shape[1] == module.num_features


def _key(module: nn.Module, given: FakeTensor) -> Any:
    """Return all that the shape of a result hangs on, or None where the result may be the input's own memory."""
    own = module.__dict__
    if isinstance(module, _NORMS) or own.get("inplace") or own.get("return_indices") or torch.is_autocast_enabled("cpu"):
        return None
    settings = tuple(value for name, value in own.items() if name[0] != "_" and name != "training")
    tensors = tuple(
        None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        for tensor in own["_parameters"].values()
    )
    key = (type(module), settings, tensors, given.shape, given.stride(), given.dtype, given.device)
    try:
        hash(key)
    except TypeError:  # a setting that somebody made a list
        return None
    return key
