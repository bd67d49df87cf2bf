"""What a lowered train-mode graph calls: statistics of a map, once for all that read it, and gathers that train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swcompile.lower.run import beside, channels_back, channels_last
from swkernels import Norm, Shared, Taps, share, trained_gather_mm


def shared(x: Tensor, axis: int, moments: bool, by_kernel: bool) -> Shared:
    """Return a map with its channels last, for all that read it. For kernels it is copied where it does not lie as they read it."""
    lying = beside(x, axis=axis)[0] if by_kernel else channels_last(x, axis)
    return share(lying, moments=moments, by_kernel=by_kernel)


def train(
    maps: Sequence[Shared],
    runs: Sequence[int],
    axis: int,
    norm: Any,
    activation: str,
    weight: Tensor | None,
    bias: Tensor | None,
    by_kernel: bool,
) -> tuple[Tensor, tuple[Shared, ...]]:
    """Gather, norm, activate and multiply, where there is a weight; return the maps, too, for those who read them next.

    A norm in train mode moves its running statistics along. The weight is cast to the type of the maps, as autocast does.
    """
    taps, first = Taps.of_flat(runs), maps[0].map
    matrix = None if weight is None else weight.flatten(1).to(first.dtype)
    through = norm is not None and (norm.training or norm.running_mean is None)
    how = _by_the_batch(maps, taps, norm) if through else None if norm is None else _as_they_stand(norm)
    made, maps = trained_gather_mm(maps, taps, matrix, norm=how, activation=activation, bias=bias, by_kernel=by_kernel)
    return channels_back(made, axis), maps


def _as_they_stand(norm: Any) -> Norm:
    """Return a frozen norm, in eval mode inside of a model that trains."""
    return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _by_the_batch(maps: Sequence[Shared], taps: Taps, norm: Any) -> Norm:
    mean, var = taps.take([one.moments for one in maps if one.moments is not None]).unbind()
    first = maps[0].map
    rows = first.numel() // first.shape[-1]
    if rows == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(first.shape)}")
    if norm.training and norm.track_running_stats:
        _track(norm, mean.detach(), var.detach() * (rows / (rows - 1)))
    return Norm(mean, var, norm.weight, norm.bias, norm.eps)


def _track(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Move running statistics towards those of a batch, as nn.BatchNorm does; its variance is divided by one row less."""
    with torch.no_grad():
        count = norm.num_batches_tracked
        if count is not None:
            count.add_(1)
        share = norm.momentum if norm.momentum is not None else 1.0 / float(count) if count is not None else 0.0
        if norm.running_mean is None:
            return
        norm.running_mean.mul_(1 - share).add_(mean.to(norm.running_mean.dtype), alpha=share)
        norm.running_var.mul_(1 - share).add_(var.to(norm.running_var.dtype), alpha=share)
