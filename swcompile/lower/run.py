"""What a lowered graph calls: make a slab, put a map into it, read a product or a map from it. Once in plain torch, once in Triton.

Maps are (N, C, *spatial) where `axis` is 1, and (..., C) where it is -1; a slab is (N, *spatial, width), or (..., width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from swcompile.modules import resample
from swkernels import Norm, Taps, gather, gather_mm, gather_mm_reference, gather_reference
from swkernels.affine import ACTIVATIONS, NormParts, norm_of
from swkernels.checks import DTYPES, lies_in_rows

_WIDE = (torch.float32, torch.float64)


def channels_last(x: Tensor, axis: int) -> Tensor:
    """Return a view with the channels at the end."""
    return x.movedim(1, -1) if axis == 1 else x


def channels_back(x: Tensor, axis: int) -> Tensor:
    """Return a view with the channels where `axis` has them."""
    return x.movedim(-1, 1) if axis == 1 else x


def is_channels_last(x: Tensor) -> bool:
    """Say whether a map's channels lie side by side."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()  # vmap answers this, and no other, question


def lie_as(x: Tensor, like: Sequence[object]) -> Tensor:
    """Return a map as torch's layers lay theirs: channels last where an input or weight `like` has them so, else first."""
    if any(isinstance(one, Tensor) and one.dim() == x.dim() and x.dim() > 3 and is_channels_last(one) for one in like):
        return x
    return x.contiguous()


def new_slab(like: Tensor, width: int, axis: int) -> Tensor:
    """Return an empty slab for maps of the size of `like`."""
    return like.new_empty((*channels_last(like, axis).shape[:-1], width))


def put(slab: Tensor, x: Tensor, start: int, axis: int) -> Tensor:
    """Write a map into its slice of a slab, and return the slab."""
    slab[..., start : start + x.shape[axis]].copy_(channels_last(x, axis))
    return slab


def put_by_kernel(slab: Tensor, x: Tensor, start: int, axis: int) -> Tensor:
    """Write a map into its slice of a slab, and return the slab; torch copies what the kernel cannot step through."""
    last = channels_last(x, axis)
    if last.dtype not in DTYPES or not lies_in_rows(last):
        return put(slab, x, start, axis)
    gather(last, Taps.of((0, last.shape[-1])), out=slab[..., start : start + last.shape[-1]])
    return slab


def put_made_by_kernel(
    slab: Tensor, x: Tensor, start: int, axis: int, norm: NormParts, activation: str, like: Tensor | None, kind: str
) -> Tensor:
    """Norm and activate a map, bring it to the size of `like` (swcompile.modules.resample), and put it into a slab, in one pass.

    What the kernel cannot step through, or sizes that do not divide, are made by torch first.
    """
    window = (1, 1) if like is None else _window(x, like)
    last = channels_last(x, axis)
    if last.dtype not in DTYPES or not lies_in_rows(last) or window is None:
        made = ACTIVATIONS[activation](normed(x, norm))
        return put_by_kernel(slab, made if like is None else resample(made, like, kind), start, axis)
    width = last.shape[-1]
    gather(
        last,
        Taps.of((0, width)),
        norm=norm_of(*norm),
        activation=activation,
        pool=_POOLS[kind],
        window=window,
        out=slab[..., start : start + width],
    )
    return slab


_POOLS = {"max": "max", "avg": "avg", "stride": "first"}
"""How swkernels.gather pools, by the kinds of swcompile.modules.resample."""


def _window(x: Tensor, like: Tensor) -> tuple[int, int] | None:
    """Return how many pixels of a map, in height and width, become one of the other; None where they do not divide."""
    if x.dim() != 4 or like.dim() != 4:
        return None
    (height, width), (high, wide) = x.shape[2:], like.shape[2:]  # symbols inside a compiler
    if not high or not wide or height % high or width % wide or height < high or width < wide:
        return None
    return height // high, width // wide


def beside(*maps: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Return maps as the kernels read them where they lie, channels last. What lies otherwise is copied."""
    last = (channels_last(x, axis) for x in maps)
    return tuple(x if lies_in_rows(x) else x.contiguous() for x in last)


def read_map(slab: Tensor, runs: Sequence[int], axis: int, norm: NormParts, activation: str) -> Tensor:
    """Gather, norm and activate in plain torch."""
    taps, given = Taps.of_flat(runs), norm_of(*norm)
    if given is None and activation == "none":
        taken = taps.take([slab])  # one run is a view of the slab, and would change when its slots are used again
        return channels_back(taken.clone() if len(taps.runs) == 1 else taken, axis)
    if given is None or given.mean.dtype in _WIDE:
        return channels_back(_affine(taps.take([slab]), given, activation), axis)
    return channels_back(gather_reference(slab, taps, norm=given, activation=activation), axis)


def read_map_by_kernel(maps: Tensor | Sequence[Tensor], runs: Sequence[int], axis: int, norm: NormParts, activation: str) -> Tensor:
    """Gather, norm and activate in one kernel, from a slab or from what `beside` returned."""
    how = gather if _first(maps).dtype in DTYPES else gather_reference
    return channels_back(how(maps, Taps.of_flat(runs), norm=norm_of(*norm), activation=activation), axis)


def product(
    slab: Tensor,
    runs: Sequence[int],
    axis: int,
    norm: NormParts,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    out_norm: NormParts,
    out_activation: str,
) -> Tensor:
    """Gather, norm, activate, multiply, norm and activate in plain torch.

    In single and double precision the norm behind goes into the weight, where that is smaller than the map. Under autocast it does
    not: what cancels in the norm must not be rounded before. Autocast casts the weight and bias, as it does a layer's.
    """
    taps, before, behind = Taps.of_flat(runs), norm_of(*norm), norm_of(*out_norm)
    matrix = weight.flatten(1)
    if weight.dtype not in _WIDE:
        y = gather_mm_reference(
            slab,
            taps,
            matrix,
            norm=before,
            activation=activation,
            bias=bias,
            out_norm=behind,
            out_activation=out_activation,
        )
        return channels_back(y, axis)
    x = _affine(taps.take([slab]), before, activation)
    smaller = torch.compiler.is_compiling() or x.numel() > matrix.numel()  # a size may be a symbol there
    if behind is not None and smaller and x.dtype in _WIDE:
        scale, shift = folded(behind)
        matrix, bias, behind = matrix * scale[:, None], shift if bias is None else torch.addcmul(shift, bias, scale), None
    y = functional.linear(x, matrix, bias)
    return channels_back(activated(y, out_activation) if behind is None else _affine(y, behind, out_activation), axis)


def product_by_kernel(
    maps: Tensor | Sequence[Tensor],
    runs: Sequence[int],
    axis: int,
    norm: NormParts,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    out_norm: NormParts,
    out_activation: str,
) -> Tensor:
    """Gather, norm, activate, multiply, norm and activate in one kernel, from a slab or from what `beside` returned."""
    dtype = _first(maps).dtype
    how = gather_mm if dtype in DTYPES else gather_mm_reference
    y = how(
        maps,
        Taps.of_flat(runs),
        weight.flatten(1).to(dtype),  # under autocast they differ
        norm=norm_of(*norm),
        activation=activation,
        bias=bias,
        out_norm=norm_of(*out_norm),
        out_activation=out_activation,
    )
    return channels_back(y, axis)


def normed(x: Tensor, norm: NormParts) -> Tensor:
    """Norm over the second axis, which is where nn.BatchNorm has its channels."""
    mean, var, weight, bias, eps = norm
    return x if mean is None else functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _first(maps: Tensor | Sequence[Tensor]) -> Tensor:
    return maps if isinstance(maps, Tensor) else maps[0]


def folded(norm: Norm) -> tuple[Tensor, Tensor]:
    """Return a norm as scale and shift."""
    scale = torch.rsqrt(norm.var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    return scale, -norm.mean * scale if norm.bias is None else torch.addcmul(norm.bias, norm.mean, scale, value=-1)


def _affine(x: Tensor, norm: Norm | None, activation: str) -> Tensor:
    """Norm and activate (..., C) in the precision of the norm, writing one new map at most twice; return it in the type of x."""
    if norm is None:
        return ACTIVATIONS[activation](x)
    scale, shift = folded(norm)
    return activated(torch.addcmul(shift, x, scale), activation).to(x.dtype)


def activated(made: Tensor, activation: str) -> Tensor:
    """Activate a map that nobody else holds."""
    return made.relu_() if activation == "relu" else ACTIVATIONS[activation](made)
