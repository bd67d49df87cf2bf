"""Refuse what the kernels cannot take, before one is started."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from swkernels.affine import ACTIVATIONS, Norm
from swkernels.taps import Taps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rows(x: Tensor, name: str) -> Tensor:
    """Return a map (..., channels) as a view (rows, channels) whose channels lie side by side.

    Raises:
        ValueError: where the rows do not lie at one distance from each other, so that no kernel can step through them.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; the kernels take {', '.join(str(kind) for kind in DTYPES)}.")
    try:
        flat = x.view(-1, x.shape[-1])
    except RuntimeError:
        flat = None
    if flat is None or (flat.stride(1) != 1 and flat.shape[1] > 1):  # the stride of a single channel says nothing
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and strides {x.stride()}, but its channels must lie side by side and its rows at "
            "one distance: pass a channels-last map (x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))."
        )
    return flat


def lies_in_rows(x: Tensor) -> bool:
    """Say whether a map's channels lie side by side, and its rows at one distance, as the kernels need it."""
    sizes, strides = x.shape, x.stride()
    if sizes[-1] > 1 and strides[-1] != 1:
        return False
    row = [(size, stride) for size, stride in zip(sizes[:-1], strides[:-1], strict=True) if size != 1]
    return all(outer == stride * size for (_, outer), (size, stride) in pairwise(row))


def check_read(sources: Sequence[Tensor], taps: Taps, norm: Norm | None, activation: str) -> None:
    """Raise ValueError where maps have not the channels that are read, or differ, or a norm or activation does not fit."""
    if len(sources) < len(taps.stops):
        raise ValueError(f"The taps read {len(taps.stops)} maps, but {len(sources)} were given.")
    first = sources[0]
    for place, (source, stop) in enumerate(zip(sources, taps.stops, strict=False)):
        if stop > source.shape[-1]:
            raise ValueError(
                f"Channels up to {stop} of map {place} are read, but its shape is {tuple(source.shape)}, channels last."
            )
        if (source.shape[:-1], source.dtype, source.device) != (first.shape[:-1], first.dtype, first.device):
            raise ValueError(
                f"Map {place} is {tuple(source.shape)} of {source.dtype} on {source.device}, map 0 {tuple(first.shape)} of "
                f"{first.dtype} on {first.device}: maps that are read together must agree in all but their channels."
            )
    check_norm("norm", norm, len(taps))
    check_activation(activation)


def check_made(name: str, made: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ValueError where a tensor that was given is not of a shape, and of another tensor's dtype."""
    if made is not None and (tuple(made.shape) != shape or made.dtype != like.dtype):
        raise ValueError(f"{name} has shape {tuple(made.shape)} and dtype {made.dtype}; here it must be {shape} of {like.dtype}.")


def check_behind(count: int, bias: Tensor | None, norm: Norm | None, activation: str) -> None:
    """Raise ValueError where what comes behind a product does not fit its `count` outputs."""
    check_norm("out_norm", norm, count)
    check_activation(activation)
    if bias is not None and tuple(bias.shape) != (count,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; {count} outputs need ({count},).")


def check_norm(name: str, norm: Norm | None, count: int) -> None:
    """Raise ValueError where a norm is not one of `count` channels."""
    for part, value in zip(Norm._fields, norm or (), strict=False):
        if isinstance(value, Tensor) and tuple(value.shape) != (count,):
            raise ValueError(
                f"{name}.{part} has shape {tuple(value.shape)}, but {count} channels come to it: it must be ({count},)."
            )


def check_activation(activation: str) -> None:
    """Raise ValueError where there is no such activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; there are {', '.join(ACTIVATIONS)}.")
