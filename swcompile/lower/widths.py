"""Whether a value has as many channels for every input, as far as layers say: else they may be places of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn import functional

from swcompile.lower.pieces import width_of
from swcompile.lower.steps import CONVS, NORMS, activation_of, called, norms_channels
from swcompile.modules import MASKED, MaskedLinear, resample
from swcompile.trace.names import name_of
from swcompile.trace.rules import (
    ACTIVATION_MODULES,
    DROPOUT_MODULES,
    ELEMENTWISE,
    NORM_MODULES,
    POOLING,
    POOLING_MODULES,
    PRODUCTS,
    SUMS,
)
from swcompile.trace.shapes import spec_of

_FUNCTIONAL: Mapping[object, tuple[int, int]] = {
    functional.linear: (-1, 0),
    functional.conv1d: (1, 3),
    functional.conv2d: (1, 4),
    functional.conv3d: (1, 5),
}
"""Functions that take a weight, where their input has the channels, and its rank with a batch (0: any)."""
_FIXED = (*CONVS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, *(MASKED[conv] for conv in CONVS))
"""Layers that take one number of channels and no other."""
_PER_CHANNEL = (*ACTIVATION_MODULES, *DROPOUT_MODULES, *POOLING_MODULES, *NORM_MODULES, nn.Identity)
"""Modules that make as many channels as they read."""


def fixes_width(user: fx.Node, value: fx.Node, axis: int, root: nn.Module) -> bool:
    """Say whether a value's channels are as many for every input, because a layer or norm behind takes no other number.

    Without one they may be places of a sequence, as where a class token is put in front of others.
    """
    if user.op == "call_function" and user.target in _FUNCTIONAL and len(user.args) > 1:
        source, weight, *_ = user.args
        is_own = isinstance(weight, fx.Node) and weight.op == "get_attr"
        at, rank = _FUNCTIONAL[user.target]
        spec = spec_of(value)
        return source is value and is_own and axis == at and spec is not None and rank in (0, len(spec.shape))
    module: Any = called(user, root)
    if type(module) in NORMS:
        return norms_channels(user, value, axis)
    passes = activation_of(user, root) is not None or isinstance(module, _PER_CHANNEL)
    if passes and width_of(user, axis) == width_of(value, axis):
        return any(fixes_width(other, user, axis, root) for other in user.users)
    if axis == -1:
        return type(module) in (nn.Linear, MaskedLinear)
    spec = spec_of(value)
    return (
        type(module) in _FIXED
        and type(module) is not MaskedLinear
        and spec is not None
        and len(spec.shape) == 2 + len(module.kernel_size)
    )


def has_width(value: fx.Node, axis: int, root: nn.Module) -> bool:
    """Say whether a value has as many channels for every input, because a layer makes or reads that many."""
    spec, module = spec_of(value), called(value, root)
    if spec is None:
        return False
    if any(fixes_width(user, value, axis, root) for user in value.users):
        return True
    if type(module) in _FIXED and type(module) is not MaskedLinear:
        conv: Any = module
        return axis == 1 and len(spec.shape) == 2 + len(conv.kernel_size)
    if type(module) in (nn.Linear, MaskedLinear):
        return axis == -1
    name = name_of(value.target)
    if isinstance(module, _PER_CHANNEL) or (value.op != "call_module" and name in (*ELEMENTWISE, *POOLING, name_of(resample))):
        sources = value.all_input_nodes[:1]
    else:
        sources = value.all_input_nodes if value.op != "call_module" and name in (*SUMS, *PRODUCTS) else []
    shape = spec.shape
    alike = (one for one in sources if (of := spec_of(one)) is not None and len(of.shape) == len(shape))
    return any(1 < width_of(one, axis) == shape[axis] and has_width(one, axis, root) for one in alike)
