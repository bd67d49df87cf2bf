"""What goes on each value of a channel: a norm with its statistics as they stand, and an activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from swkernels._triton import jit, tl

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "hardswish": functional.hardswish,
}
"""What the kernels can do, by name, as torch does it."""
ACTIVATIONS_BACKWARD: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, _: grad,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "relu6": lambda grad, x: torch.ops.aten.hardtanh_backward(grad, x, 0, 6),
    "silu": lambda grad, x: torch.ops.aten.silu_backward(grad, x),
    "gelu": lambda grad, x: torch.ops.aten.gelu_backward(grad, x),
    "hardswish": lambda grad, x: torch.ops.aten.hardswish_backward(grad, x),
}
"""The gradient in front of an activation, of the one behind it and of what came in."""


class Norm(NamedTuple):
    """A batch norm in eval mode: (x - mean) / sqrt(var + eps) * weight + bias, each a vector of one value a channel.

    Without weight or bias these count as 1 and 0.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


NormParts = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float]
"""A norm as operators take it: mean, variance, weight, bias and eps."""
NO_NORM: NormParts = (None, None, None, None, 0.0)


def norm_of(mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm | None:
    """Return the norm that operators were given in parts; None for NO_NORM."""
    return None if mean is None or var is None else Norm(mean, var, weight, bias, eps)


def activated(x: Tensor, norm: Norm | None, activation: str) -> Tensor:
    """Return act(norm(x)) of (..., channels), in the type of x; half types go through float32 and are rounded once at the end."""
    wide = x if x.dtype == torch.float64 else x.float()
    if norm is not None:
        scale = torch.rsqrt(norm.var.to(wide.dtype) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.to(wide.dtype)
        wide = (wide - norm.mean.to(wide.dtype)) * scale
        wide = wide if norm.bias is None else wide + norm.bias.to(wide.dtype)
    return ACTIVATIONS[activation](wide).to(x.dtype)


class Behind(NamedTuple):
    """What comes back through an activation and a norm: the gradient of the map, and sums over its rows for weight and bias."""

    source: Tensor
    weight: Tensor
    bias: Tensor


def activated_backward(grad: Tensor, x: Tensor, norm: Norm | None, activation: str) -> Behind:
    """Return the gradients of `activated` at x, where that of its result is `grad`; all (..., channels), in the type of `grad`.

    The norm's statistics count as constants: what comes back through them, where they are those of x, is `centered`.
    """
    wide = x.to(grad.dtype)
    if norm is None:
        sums = grad.new_zeros(x.shape[-1])
        return Behind(ACTIVATIONS_BACKWARD[activation](grad, wide), sums, sums.clone())
    rows = tuple(range(x.dim() - 1))
    inverse = torch.rsqrt(norm.var.to(grad.dtype) + norm.eps)
    normed = (wide - norm.mean.to(grad.dtype)) * inverse
    scaled = normed if norm.weight is None else normed * norm.weight.to(grad.dtype)
    behind = ACTIVATIONS_BACKWARD[activation](grad, scaled if norm.bias is None else scaled + norm.bias.to(grad.dtype))
    scale = inverse if norm.weight is None else inverse * norm.weight.to(grad.dtype)
    return Behind(behind * scale, (behind * normed).sum(rows), behind.sum(rows))


@jit
def folded(mean, var, weight, bias, channel, live, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Return a norm as scale and shift, each of the shape of `channel`; `live` says which of the channels there are."""
    scale = tl.rsqrt(tl.load(var + channel, mask=live, other=1.0).to(tl.float32) + eps)
    if WEIGHT:
        scale *= tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    shift = -tl.load(mean + channel, mask=live, other=0.0).to(tl.float32) * scale
    if BIAS:
        shift += tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    return scale, shift


@jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply an activation of ACTIVATIONS to a float32 tile. Relu as torch has it: a NaN stays one."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        x = tl.minimum(tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL), 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "hardswish":
        x = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    return x


@jit
def slope(x, ACTIVATION: tl.constexpr):
    """Return the derivative of an activation of ACTIVATIONS at a float32 tile, as torch has it."""
    if ACTIVATION == "relu":
        x = tl.where(x <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "relu6":
        x = tl.where((x <= 0.0) | (x >= 6.0), 0.0, 1.0)
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(x)
        x = gate * (1.0 + x * (1.0 - gate))
    elif ACTIVATION == "gelu":
        x = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "hardswish":
        x = tl.where(x <= -3.0, 0.0, tl.where(x >= 3.0, 1.0, x / 3.0 + 0.5))
    else:
        x = tl.full(x.shape, 1.0, tl.float32)
    return x


@jit
def finished(
    total, bias, mean, var, norm_weight, norm_bias, residual, row, column, mask, end, residual_stride, eps,
    ADDS: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Add bias, norm, residual and activation to a float32 tile (rows, columns) of a product; columns end before `end`."""
    if ADDS:
        total += tl.load(bias + column, mask=column < end, other=0.0).to(tl.float32)[None, :]
    if NORM:
        # In several copies, of which the greatest is taken: else each thread loads all its columns' values into registers of its
        # own, 226 instead of 138 for tiles of 128x128x32 on sm_90.
        copies = tl.zeros((COPIES, total.shape[1]), tl.int32) + column[None, :]
        scale, shift = folded(mean, var, norm_weight, norm_bias, copies, copies < end, eps, WEIGHT, BIAS)
        total = total * tl.max(scale, 0)[None, :] + tl.max(shift, 0)[None, :]
    if RESIDUAL:
        total += tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    return activate(total, ACTIVATION)
