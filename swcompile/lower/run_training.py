"""What a lowered train-mode graph calls: statistics of a map, once for all that read it, and gathers that train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swcompile.lower.run import beside, channels_back, channels_last
from swkernels import Norm, Taps, statistics, statistics_reference, trained_gather_mm
from swkernels.checks import DTYPES

Statistics = tuple[Tensor, Tensor]


def in_rows(x: Tensor, axis: int, by_kernel: bool) -> Tensor:
    """Return a map with its channels last; for kernels, copied where it does not lie as they read it."""
    return beside(x, axis=axis)[0] if by_kernel else channels_last(x, axis)


def take_statistics(x: Tensor, by_kernel: bool) -> Statistics:
    """Return mean and variance of each channel of a map (..., channels), as constants."""
    fast = by_kernel and x.dtype in DTYPES
    return statistics(x) if fast else statistics_reference(x.detach())


def train(
    maps: Sequence[Tensor],
    runs: Sequence[int],
    axis: int,
    taken: Sequence[Statistics],
    norm: Any,
    activation: str,
    weight: Tensor | None,
    bias: Tensor | None,
    by_kernel: bool,
) -> Tensor:
    """Gather, norm, activate and multiply, where there is a weight. A norm in train mode moves its running statistics along.

    The weight is cast to the type of the maps, as autocast does.
    """
    taps, matrix = Taps.of_flat(runs), None if weight is None else weight.flatten(1).to(maps[0].dtype)
    through = norm is not None and (norm.training or norm.running_mean is None)
    how = _by_the_batch(maps, taps, taken, norm) if through else None if norm is None else _as_they_stand(norm)
    made = trained_gather_mm(maps, taps, matrix, norm=how, through=through, activation=activation, bias=bias, by_kernel=by_kernel)
    return channels_back(made, axis)


def _as_they_stand(norm: Any) -> Norm:
    """Return a frozen norm, in eval mode inside of a model that trains."""
    return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _by_the_batch(maps: Sequence[Tensor], taps: Taps, taken: Sequence[Statistics], norm: Any) -> Norm:
    mean, var = (taps.take([found[which] for found in taken]) for which in (0, 1))
    rows = maps[0].numel() // maps[0].shape[-1]
    if rows == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(maps[0].shape)}")
    if norm.training and norm.track_running_stats:
        _track(norm, mean, var * (rows / (rows - 1)))
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
