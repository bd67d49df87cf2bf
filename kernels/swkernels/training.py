"""A gather, batch norm, activation, and maybe a linear layer, that train, and save nothing for that but the maps that they read.

    y = act(norm(gather(maps))) @ weight.T + bias

Plain torch keeps the concat and what the activation made of it, each as wide as all maps together, for every layer that reads them.
Here the backward pass computes both anew from the maps, inside its kernels; the maps are there once, whoever reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from swkernels.affine import ACTIVATIONS, ACTIVATIONS_BACKWARD, NO_NORM, Norm, norm_of
from swkernels.checks import DTYPES
from swkernels.gather import gather, gather_reference
from swkernels.gather_mm import gather_mm, gather_mm_reference
from swkernels.gather_mm_backward import Gradients, gather_mm_backward, gather_mm_backward_reference
from swkernels.statistics import centered, centered_reference
from swkernels.taps import Taps, known, maps


def trained_gather_mm(
    source: Tensor | Sequence[Tensor],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    through: bool = False,
    activation: str = "none",
    bias: Tensor | None = None,
    by_kernel: bool = True,
) -> Tensor:
    """Do what `gather_mm` does, or `gather`, differentiably: by the maps, the weight and bias, and the norm's weight and bias.

    Args:
        source: a map (..., C), or several that differ in C alone, channels side by side.
        taps: which channels of them are read, in what order; K in all.
        weight: (N, K), of the source's type; None puts no product behind the activation, and no bias.
        norm: a norm of the K channels; None is none.
        through: whether its statistics are those of the maps that are read (swkernels.statistics, biased variance), as in train
            mode, so that gradients come back through them; else they count as constants.
        activation: a name of swkernels.affine.ACTIVATIONS, applied behind that norm.
        bias: (N,).
        by_kernel: False computes in plain torch on any device; so do types that the kernels do not take.

    Returns:
        (..., N), or (..., K) without a weight. Its gradient cannot be differentiated again.
    """
    parts = norm or NO_NORM
    made: Tensor = _trained(maps(source), taps.flat(), *parts, through and norm is not None, activation, weight, bias, by_kernel)
    return made


def _kernels_take(by_kernel: bool, source: Tensor) -> bool:
    return by_kernel and source.dtype in DTYPES


@torch.library.custom_op("swkernels::trained_gather_mm", mutates_args=())
def _trained(
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    through: bool,
    activation: str,
    weight: Tensor | None,
    bias: Tensor | None,
    by_kernel: bool,
) -> Tensor:
    taps, norm, fast = known(tuple(runs)), norm_of(mean, var, norm_weight, norm_bias, eps), _kernels_take(by_kernel, sources[0])
    if not fast and _torch_takes(sources[0], norm):
        made = _activated(_normed(_rows(taps.take(sources)), norm), activation, norm is not None)
        made = made if weight is None else functional.linear(made, weight, bias)
        # Not a view to autograd, so that what follows may write into it, as in-place activations do.
        made = torch.ops.aten._unsafe_view(made, [*sources[0].shape[:-1], made.shape[-1]])
    elif weight is not None:
        return (gather_mm if fast else gather_mm_reference)(sources, taps, weight, norm=norm, activation=activation, bias=bias)
    else:
        made = (gather if fast else gather_reference)(sources, taps, norm=norm, activation=activation).contiguous()
    return made.clone() if weight is None and norm is None and activation == "none" else made  # one run alone is a view


@_trained.register_fake
def _(sources: Sequence[Tensor], runs: Sequence[int], *more: Any) -> Tensor:
    weight = more[7]
    count = len(known(tuple(runs))) if weight is None else weight.shape[0]
    return sources[0].new_empty((*sources[0].shape[:-1], count))


@torch.library.custom_op("swkernels::trained_gather_mm_backward", mutates_args=())
def _backward(
    grad: Tensor,
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    through: bool,
    activation: str,
    weight: Tensor | None,
    by_kernel: bool,
) -> list[Tensor]:
    taps, norm = known(tuple(runs)), norm_of(mean, var, norm_weight, norm_bias, eps)
    fast = _kernels_take(by_kernel, sources[0])
    if not fast and _torch_takes(sources[0], norm):
        found = _torch_backward(grad, taps.take(sources), weight, norm, through, activation)
        pieces = iter(found.source.split([stop - start for _, start, stop in taps.runs], -1))
    else:
        how = gather_mm_backward if fast else gather_mm_backward_reference
        found = how(grad.contiguous(), sources, taps, weight, norm=norm, activation=activation)
        pieces = _pieces(found, sources, taps, norm if through else None, fast)
    back: list[Tensor | None] = [None for _ in sources]
    for (owner, start, stop), piece in zip(taps.runs, pieces, strict=True):
        whole = sources[owner]
        into = back[owner]
        if into is None and stop - start == whole.shape[-1]:
            back[owner] = piece.clone(memory_format=torch.contiguous_format)
            continue
        if into is None:
            into = back[owner] = torch.zeros(whole.shape, dtype=whole.dtype, device=whole.device)
        into[..., start:stop] += piece
    made = [
        torch.zeros(whole.shape, dtype=whole.dtype, device=whole.device) if one is None else one
        for one, whole in zip(back, sources, strict=True)
    ]
    return [*made, found.weight, found.norm_weight, found.norm_bias]


def _pieces(found: Gradients, sources: Sequence[Tensor], taps: Taps, norm: Norm | None, fast: bool) -> Iterator[Tensor]:
    """Yield the gradient of each run of channels, with what comes back through the statistics of `norm`, where there are."""
    place = 0
    for owner, start, stop in taps.runs:
        read = slice(place, place + stop - start)
        place = read.stop
        piece = found.source[..., read]
        if norm is None:
            yield piece
            continue
        inverse = torch.rsqrt(norm.var[read].to(found.weight.dtype) + norm.eps)
        scale = inverse if norm.weight is None else inverse * norm.weight[read]
        scale = scale / (piece.numel() // piece.shape[-1])
        level, tilt = scale * found.norm_bias[read], scale * inverse * found.norm_weight[read]
        center = centered if fast else centered_reference
        yield center(piece, sources[owner][..., start:stop], norm.mean[read].to(level.dtype), level, tilt)


# Plain torch in single and double precision, by its own fused batch norm, which takes no other mixtures of types.


def _torch_takes(source: Tensor, norm: Norm | None) -> bool:
    dtypes = {part.dtype for part in norm or () if isinstance(part, Tensor)}
    return source.dtype in (torch.float32, torch.float64) and dtypes <= {source.dtype}


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else functional.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, eps=norm.eps)


def _activated(x: Tensor, activation: str, is_ours: bool) -> Tensor:
    return x.relu_() if activation == "relu" and is_ours else ACTIVATIONS[activation](x)


def _torch_backward(
    grad: Tensor, taken: Tensor, weight: Tensor | None, norm: Norm | None, through: bool, activation: str
) -> Gradients:
    """Return the gradients, that of the gathered map with what comes back through its statistics, if any does."""
    x, given = _rows(taken), _rows(grad)
    before = _normed(x, norm)
    read = _activated(before, activation, norm is not None)
    of_weight = given.new_zeros(0, x.shape[1]) if weight is None else given.T @ read
    given = given if weight is None else given @ weight
    given = ACTIVATIONS_BACKWARD[activation](given, read if activation == "relu" else before)  # of relu either will do
    sums = [x.new_zeros(x.shape[1]) for _ in range(2)]
    if norm is not None:
        inverse, whole = torch.rsqrt(norm.var + norm.eps), norm.weight is not None
        given, *found = torch.ops.aten.native_batch_norm_backward(
            given, x, norm.weight, norm.mean, norm.var, norm.mean, inverse, through, norm.eps, [True, whole, whole]
        )
        sums = found if whole else sums
    return Gradients(given.view(taken.shape), of_weight, sums[0], sums[1])


@_backward.register_fake
def _(grad: Tensor, sources: Sequence[Tensor], runs: Sequence[int], *more: Any) -> list[Tensor]:
    channels, weight = len(known(tuple(runs))), more[7]
    outputs = 0 if weight is None else weight.shape[0]
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = [grad.new_empty(size, dtype=dtype) for size in ((outputs, channels), (channels,), (channels,))]
    return [*(torch.empty(source.shape, dtype=source.dtype, device=source.device) for source in sources), *sums]


def _saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, runs, mean, var, norm_weight, norm_bias, eps, through, activation, weight, bias, by_kernel = inputs
    ctx.save_for_backward(*sources, weight, mean, var, norm_weight, norm_bias)
    ctx.runs, ctx.options = runs, (eps, through, activation, by_kernel)
    ctx.bias = None if bias is None else bias.dtype


def _differentiated(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *sources, weight, mean, var, norm_weight, norm_bias = ctx.saved_tensors
    eps, through, activation, by_kernel = ctx.options
    *back, of_weight, of_norm, of_norm_bias = _backward(
        grad, sources, ctx.runs, mean, var, norm_weight, norm_bias, eps, through, activation, weight, by_kernel
    )
    of_norm_weight = None if norm_weight is None else of_norm.to(norm_weight.dtype)
    of_shift = None if norm_bias is None else of_norm_bias.to(norm_bias.dtype)
    of_bias = None if ctx.bias is None else grad.flatten(0, -2).sum(0, dtype=of_weight.dtype).to(ctx.bias)
    none = (None, None, None)
    return (
        back,
        None,
        None,
        None,
        of_norm_weight,
        of_shift,
        *none,
        None if weight is None else of_weight.to(weight.dtype),
        of_bias,
        None,
    )


_trained.register_autograd(_differentiated, setup_context=_saved)
