"""A gather, batch norm, activation, and maybe a linear layer, that train, and save nothing for that but the maps that they read.

    y = act(norm(gather(maps))) @ weight.T + bias

Plain torch keeps the concat and what the activation made of it, each as wide as all maps together, for every layer that reads them.
Here the backward pass computes both anew from the maps, inside its kernels; the maps are there once, whoever reads them.

A map's gradient is made in one place, too. A map that is shared comes with a token, an empty stand-in of its shape; a reader takes
the tokens of its maps and returns new ones, for the reader behind it. Backward, the gradients of a token run the other way: each
reader gets what those behind it have given, and adds its share in the kernel that makes it. What comes back through the statistics
of a map is summed over its readers as a gradient of two numbers a channel, and added once, where the map was shared.

    a = share(conv1(x))             map, token, moments
    y, a1 = read(a)                 backward: gradient of a's token = gradient of a1's token + share of y
    z, a2 = read(a1)                          gradient of a1's token = share of z
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from swkernels.affine import ACTIVATIONS, ACTIVATIONS_BACKWARD, NO_NORM, Norm, norm_of
from swkernels.checks import DTYPES, lies_in_rows
from swkernels.gather import gather, gather_reference
from swkernels.gather_mm import gather_mm, gather_mm_reference
from swkernels.gather_mm_backward import Gradients, Incoming, add, gather_mm_backward, gather_mm_backward_reference, passed_on
from swkernels.statistics import centered, centered_reference, statistics, statistics_reference
from swkernels.taps import Taps, known


class Shared(NamedTuple):
    """A map (..., C) that several read in training; its token, through which their gradients run; mean and variance, (2, C).

    The map itself counts as a constant to those who read it so. Without statistics `moments` is None.
    """

    map: Tensor
    token: Tensor
    moments: Tensor | None


def share(source: Tensor, *, moments: bool = True, by_kernel: bool = True, known: Tensor | None = None) -> Shared:
    """Let several `trained_gather_mm`, one after the other, read a map and give it one gradient.

    Args:
        source: a map (..., C) of at least one row, channels side by side for kernels.
        moments: whether norms take its statistics: mean and biased variance of each channel over all rows, in float32 (in float64
            of maps of float64). They are differentiable.
        by_kernel: False computes in plain torch on any device; so do types that the kernels do not take.
        known: the moments, where `trained_with_moments` made the map, so that they are not taken again.
    """
    token, *found = _share(source, moments, by_kernel, known)
    return Shared(source, token, found[0] if found else None)


def trained_gather_mm(
    shared: Sequence[Shared],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    by_kernel: bool = True,
) -> tuple[Tensor, tuple[Shared, ...]]:
    """Do what `gather_mm` does, or `gather`, differentiably: by the maps, the weight and bias, and all of the norm but its eps.

    Args:
        shared: maps (..., C), which differ in C alone, as `share` or an earlier reader returned them.
        taps: which channels of them are read, in what order; K in all.
        weight: (N, K), of the maps' type; None puts no product behind the activation, and no bias.
        norm: a norm of the K channels; None is none. Where its statistics are the maps' own moments, gradients come back through
            them.
        activation: a name of swkernels.affine.ACTIVATIONS, applied behind that norm.
        bias: (N,).
        by_kernel: False computes in plain torch on any device; so do types that the kernels do not take.

    Returns:
        (..., N), or (..., K) without a weight, and the maps for who reads them next. Its gradient cannot be differentiated again.
    """
    made, after, _ = _called(shared, taps, (*(norm or NO_NORM), activation, weight, bias, by_kernel, False))
    return made, after


def trained_with_moments(
    shared: Sequence[Shared],
    taps: Taps,
    weight: Tensor | None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    bias: Tensor | None = None,
    by_kernel: bool = True,
) -> tuple[Tensor, tuple[Shared, ...], Tensor]:
    """Do what `trained_gather_mm` does, and return the moments of the result, too, as `share` wants them: (2, N), or (2, K).

    The kernel that writes the result takes them as it does, of the values as rounded. There must be a row.
    """
    made, after, moments = _called(shared, taps, (*(norm or NO_NORM), activation, weight, bias, by_kernel, True))
    return made, after, moments[0]


def _called(shared: Sequence[Shared], taps: Taps, options: tuple[Any, ...]) -> tuple[Tensor, tuple[Shared, ...], list[Tensor]]:
    given, tokens = [one.map for one in shared], [one.token for one in shared]
    made, *found = _trained(given, tokens, taps.flat(), *options)
    after = tuple(one._replace(token=token) for one, token in zip(shared, found, strict=False))
    return made, after, found[len(after) :]


def _kernels_take(by_kernel: bool, source: Tensor) -> bool:
    return by_kernel and source.dtype in DTYPES


def _token(source: Tensor) -> Tensor:
    return source.new_empty_strided(source.shape, [0] * source.dim())  # one element, whatever the shape


def _in_rows(x: Tensor) -> Tensor:
    return x if lies_in_rows(x) else x.contiguous()


@torch.library.custom_op("swkernels::share", mutates_args=())
def _share(source: Tensor, moments: bool, by_kernel: bool, known: Tensor | None) -> list[Tensor]:
    if moments and known is not None:
        return [_token(source), known.clone()]
    found = (statistics if _kernels_take(by_kernel, source) else statistics_reference)(source) if moments else ()
    return [_token(source), *([torch.stack(found)] if found else ())]


@_share.register_fake
def _(source: Tensor, moments: bool, by_kernel: bool, known: Tensor | None) -> list[Tensor]:
    dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
    return [_token(source), *([source.new_empty((2, source.shape[-1]), dtype=dtype)] if moments else ())]


@torch.library.custom_op("swkernels::share_backward", mutates_args=())
def _share_backward(grad: Tensor | None, of_moments: Tensor, source: Tensor, moments: Tensor, by_kernel: bool) -> Tensor:
    """Return what the readers gave a map, with what comes back through its moments."""
    rows = source.numel() // source.shape[-1]
    mean, level, slope = moments[0], of_moments[0] / rows, of_moments[1] * (2 / rows)
    grad = source.new_zeros(source.shape) if grad is None else grad
    if _kernels_take(by_kernel, source):
        return centered(_in_rows(grad), source, mean, -level, -slope)
    if source.dtype != moments.dtype:
        return centered_reference(grad, source, mean, -level, -slope).contiguous()
    made = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    # With the mean in the constant, as batch norms have it that know their statistics: two passes, not four.
    return torch.addcmul(grad, source, slope, out=made).add_(torch.addcmul(level, mean, slope, value=-1))


@_share_backward.register_fake
def _(grad: Tensor | None, of_moments: Tensor, source: Tensor, *_: Any) -> Tensor:
    return torch.empty(source.shape, dtype=source.dtype, device=source.device)


def _share_saved(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    source, _, by_kernel, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.by_kernel = by_kernel
    if len(output) > 1:
        ctx.save_for_backward(source, output[1])


def _share_differentiated(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    grad, *of_moments = grads
    if not of_moments or of_moments[0] is None:
        return grad, None, None, None
    source, moments = ctx.saved_tensors
    return _share_backward(grad, of_moments[0], source, moments, ctx.by_kernel), None, None, None


_share.register_autograd(_share_differentiated, setup_context=_share_saved)


@torch.library.custom_op("swkernels::trained_gather_mm", mutates_args=())
def _trained(
    sources: Sequence[Tensor],
    tokens: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    weight: Tensor | None,
    bias: Tensor | None,
    by_kernel: bool,
    moments: bool,
) -> list[Tensor]:
    taps, norm, fast = known(tuple(runs)), norm_of(mean, var, norm_weight, norm_bias, eps), _kernels_take(by_kernel, sources[0])
    if not fast and _torch_takes(sources[0], norm):
        made = _activated(_normed(_rows(taps.take(sources)), norm), activation, norm is not None)
        made = made if weight is None else functional.linear(made, weight, bias)
        # Not a view to autograd, so that what follows may write into it, as in-place activations do.
        made = torch.ops.aten._unsafe_view(made, [*sources[0].shape[:-1], made.shape[-1]])
    elif fast and moments:
        return _with_moments(sources, taps, weight, norm, activation, bias)
    elif weight is not None:
        made = (gather_mm if fast else gather_mm_reference)(sources, taps, weight, norm=norm, activation=activation, bias=bias)
    else:
        made = (gather if fast else gather_reference)(sources, taps, norm=norm, activation=activation).contiguous()
    if weight is None and norm is None and activation == "none":
        made = made.clone()  # one run alone is a view
    return [made, *(_token(source) for source in sources), *([torch.stack(statistics_reference(made))] if moments else ())]


def _with_moments(
    sources: Sequence[Tensor], taps: Taps, weight: Tensor | None, norm: Norm | None, activation: str, bias: Tensor | None
) -> list[Tensor]:
    """Return what `_trained` does, the moments of the result taken by the kernel that writes it."""
    count = len(taps) if weight is None else weight.shape[0]
    found = sources[0].new_empty((2, count), dtype=torch.float32)
    how: dict[str, Any] = {"norm": norm, "activation": activation, "statistics": (found[0], found[1])}
    made = gather(sources, taps, **how) if weight is None else gather_mm(sources, taps, weight, bias=bias, **how)
    return [made, *(_token(source) for source in sources), found]


@_trained.register_fake
def _(sources: Sequence[Tensor], tokens: Sequence[Tensor], runs: Sequence[int], *more: Any) -> list[Tensor]:
    weight = more[6]
    count = len(known(tuple(runs))) if weight is None else weight.shape[0]
    like, dtype = sources[0], torch.float64 if sources[0].dtype == torch.float64 else torch.float32
    found = [like.new_empty((2, count), dtype=dtype)] if more[-1] else []
    return [like.new_empty((*like.shape[:-1], count)), *(_token(source) for source in sources), *found]


@torch.library.custom_op("swkernels::trained_gather_mm_backward", mutates_args=())
def _backward(
    grad: Tensor,
    incoming: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    runs: Sequence[int],
    mean: Tensor | None,
    var: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    weight: Tensor | None,
    by_kernel: bool,
) -> list[Tensor]:
    taps, norm = known(tuple(runs)), norm_of(mean, var, norm_weight, norm_bias, eps)
    fast = _kernels_take(by_kernel, sources[0])
    if not fast and _torch_takes(sources[0], norm):
        return [*_torch_backward(grad, incoming, sources, taps, weight, norm, activation)]
    how = gather_mm_backward if fast else gather_mm_backward_reference
    came = [None if one is None else _in_rows(one) for one in incoming]
    return [*how(grad.contiguous(), sources, taps, weight, norm=norm, activation=activation, incoming=came)]


@_backward.register_fake
def _(grad: Tensor, incoming: Incoming, sources: Sequence[Tensor], runs: Sequence[int], *more: Any) -> list[Tensor]:
    channels, weight, like = len(known(tuple(runs))), more[6], sources[0]
    outputs = 0 if weight is None else weight.shape[0]
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sums = [grad.new_empty(size, dtype=dtype) for size in ((outputs, channels), (channels,), (channels,))]
    return [like.new_empty((*like.shape[:-1], sum(source.shape[-1] for source in sources))), *sums]


# Plain torch in single and double precision, by its own fused batch norm, which takes no other mixtures of types.

AT_ONCE = 2**19
"""How many numbers of the gathered map are in work at a time: what is made of them on the way then stays in the cache."""


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
    grad: Tensor,
    incoming: Incoming,
    sources: Sequence[Tensor],
    taps: Taps,
    weight: Tensor | None,
    norm: Norm | None,
    activation: str,
) -> Gradients:
    """Return the gradients, made of one block of the first axis after the other."""
    like, widths = sources[0], [source.shape[-1] for source in sources]
    into = torch.empty((*like.shape[:-1], sum(widths)), dtype=like.dtype, device=like.device)
    of_weight = like.new_zeros(0 if weight is None else len(weight), len(taps))
    sums, scale = [like.new_zeros(len(taps)) for _ in range(2)], None
    if norm is not None:
        inverse = torch.rsqrt(norm.var + norm.eps)
        weights = torch.ones_like(inverse) if norm.weight is None else norm.weight
        scale = inverse * weights
    outstanding = passed_on(into, incoming, taps, widths)
    for block in _blocks(like, len(taps)):
        taken = taps.take([source[block] for source in sources])
        x, given = _rows(taken), _rows(grad[block])
        before = _normed(x, norm)
        read = _activated(before, activation, norm is not None)
        if weight is not None:
            of_weight.addmm_(given.T, read)
            given = given @ weight
        given = ACTIVATIONS_BACKWARD[activation](given, read if activation == "relu" else before)  # of relu either will do
        if norm is not None:
            _, *found = torch.ops.aten.native_batch_norm_backward(
                given, x, weights, norm.mean, norm.var, norm.mean, inverse, True, norm.eps, [False, True, True]
            )
            sums = [total.add_(one) for total, one in zip(sums, found, strict=True)]
        add(outstanding, into, given.view(taken.shape), scale, block)
    return Gradients(into, of_weight, *sums)


def _blocks(like: Tensor, width: int) -> Iterator[Any]:
    """Yield indices of the first axis, a few rows at least, that take all of (..., width) in turn."""
    if like.dim() < 2:
        yield ...
        return
    step = max(1, AT_ONCE * like.shape[-1] * len(like) // max(1, width * like.numel()))
    yield from (slice(first, first + step) for first in range(0, len(like), step))


def _saved(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    sources, _, runs, mean, var, norm_weight, norm_bias, eps, activation, weight, bias, by_kernel, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*sources, weight, mean, var, norm_weight, norm_bias)
    ctx.runs, ctx.options = runs, (eps, activation, by_kernel)
    ctx.bias = None if bias is None else bias.dtype


def _differentiated(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    *sources, weight, mean, var, norm_weight, norm_bias = ctx.saved_tensors
    grad, *incoming = grads[: 1 + len(sources)]  # none comes back through moments: `share` has it
    nothing = [None for _ in sources]
    if grad is None:  # nobody read what this one made
        return nothing, incoming, *(None for _ in range(11))
    eps, activation, by_kernel = ctx.options
    of_maps, of_weight, of_norm, of_norm_bias = _backward(
        grad, incoming, sources, ctx.runs, mean, var, norm_weight, norm_bias, eps, activation, weight, by_kernel
    )
    of_mean = of_var = None
    if mean is not None and ctx.needs_input_grad[3]:
        inverse = torch.rsqrt(var.to(of_norm.dtype) + eps)
        scale = inverse if norm_weight is None else inverse * norm_weight
        of_mean, of_var = (-scale * of_norm_bias).to(mean.dtype), (-0.5 * scale * inverse * of_norm).to(var.dtype)
    return (
        nothing,
        [*of_maps.split([source.shape[-1] for source in sources], -1)],
        None,
        of_mean,
        of_var,
        None if norm_weight is None else of_norm.to(norm_weight.dtype),
        None if norm_bias is None else of_norm_bias.to(norm_bias.dtype),
        None,
        None,
        None if weight is None else of_weight.to(weight.dtype),
        None if ctx.bias is None else grad.flatten(0, -2).sum(0, dtype=of_weight.dtype).to(ctx.bias),
        None,
        None,
    )


_trained.register_autograd(_differentiated, setup_context=_saved)
