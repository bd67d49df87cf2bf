"""What a lowered train-mode graph calls: statistics of a map, once for all that read it, and gathers that train.

Over processes, too, as nn.SyncBatchNorm takes them: once a map, where that one does it once a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensor

from swcompile.lower.run import beside, channels_back, channels_last
from swkernels import Norm, Shared, Taps, share, trained_gather_mm, trained_with_moments


def in_rows(x: Tensor, axis: int, by_kernel: bool) -> Tensor:
    """Return a map with its channels last; for kernels, copied where it does not lie as they read it."""
    return beside(x, axis=axis)[0] if by_kernel else channels_last(x, axis)


def shared(x: Tensor, axis: int, moments: bool, by_kernel: bool, known: Tensor | None = None) -> Shared:
    """Return a map with its channels last, for all that read it through a norm or a product.

    `known` are its moments, where `train` made it and has taken them.
    """
    return share(in_rows(x, axis, by_kernel), moments=moments, by_kernel=by_kernel, known=known)


Moments = tuple[Tensor, Tensor | None]
"""Mean and variance of a map's channels, (2, C), and of how many rows over all processes; None: of those of the map alone."""


def synchronised(map_: Shared, norms: Sequence[Any]) -> Moments:
    """Return a map's statistics over all processes of the group of these norms, differentiably, where one of them trains.

    As nn.SyncBatchNorm, those of this process where there is no other.
    """
    assert map_.moments is not None
    group = norms[0].process_group
    if isinstance(map_.moments, FakeTensor) or not any(norm.training for norm in norms) or not _has_peers(group):
        return map_.moments, None
    moments, count = _Synchronised.apply(map_.moments, map_.map.numel() // map_.map.shape[-1], group)  # type: ignore[no-untyped-call]  # torch's is
    return moments, count


def _has_peers(group: Any) -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


class _Synchronised(torch.autograd.Function):
    """Join the statistics of all processes (Chan, Golub and LeVeque 1979); add up what comes back to them."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor, rows: int, group: Any) -> tuple[Tensor, Tensor]:
        mine = torch.cat([moments.flatten(), moments.new_tensor([rows])])
        every = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(every, mine, group)
        found = torch.stack(every)
        mean, var = found[:, :-1].reshape(len(every), 2, -1).unbind(1)
        counts = found[:, -1:]
        count = counts.sum()
        middle = (mean * counts).sum(0) / count
        made = torch.stack([middle, ((var + (mean - middle).square()) * counts).sum(0) / count])
        ctx.save_for_backward(moments[0] - middle, rows / count)
        ctx.group = group
        ctx.mark_non_differentiable(count)
        return made, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        away, share = ctx.saved_tensors
        total = grad.contiguous().clone()
        distributed.all_reduce(total, group=ctx.group)
        return torch.stack([total[0] + 2 * away * total[1], total[1]]) * share, None, None


def train(
    maps: Sequence[Shared],
    over: Sequence[Moments],
    runs: Sequence[int],
    axis: int,
    norm: Any,
    activation: str,
    weight: Tensor | None,
    bias: Tensor | None,
    by_kernel: bool,
    moments: bool = False,
) -> tuple[Tensor, tuple[Shared, ...], Tensor | None]:
    """Gather, norm, activate and multiply, where there is a weight; return the maps, too, for those who read them next.

    A norm in train mode moves its running statistics along; where `over` has statistics, for each map, it goes by these. The weight
    is cast to the type of the maps, as autocast does. Where `moments` are asked for, the result's are taken as it is written.
    """
    taps, first = Taps.of_flat(runs), maps[0].map
    matrix = None if weight is None else weight.flatten(1).to(first.dtype)
    through = norm is not None and (norm.training or norm.running_mean is None)
    how = _by_the_batch(maps, over, taps, norm) if through else None if norm is None else _as_they_stand(norm)
    options: dict[str, Any] = {"norm": how, "activation": activation, "bias": bias, "by_kernel": by_kernel}
    if moments:
        made, after, found = trained_with_moments(maps, taps, matrix, **options)
        return channels_back(made, axis), after, found
    made, after = trained_gather_mm(maps, taps, matrix, **options)
    return channels_back(made, axis), after, None


def _as_they_stand(norm: Any) -> Norm:
    """Return a frozen norm, in eval mode inside of a model that trains."""
    return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _by_the_batch(maps: Sequence[Shared], over: Sequence[Moments], taps: Taps, norm: Any) -> Norm:
    taken = over if over and norm.training else [(one.moments, None) for one in maps if one.moments is not None]
    mean, var = taps.take([moments for moments, _ in taken]).unbind()
    first, count = maps[0].map, taken[0][1]
    rows = first.numel() // first.shape[-1] if count is None else count
    if count is None and rows == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(first.shape)}")
    if norm.training and norm.track_running_stats:
        _track(norm, mean.detach(), var.detach() * (rows / (rows - 1)))
    return Norm(mean, var, norm.weight, norm.bias, norm.eps)


def _track(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Move running statistics towards those of a batch, as nn.BatchNorm does; its variance is divided by one row less.

    As there, autograd does not take that for writing to them: a call in eval mode may hold them for its backward pass.
    """
    with torch.no_grad():
        count = norm.num_batches_tracked
        if count is not None:
            count.add_(1)
        share: Any = norm.momentum
        if share is None:  # a tensor: a number would wait for the device, and there is none where shapes are followed
            share = 0.0 if count is None else 1.0 / count.double()
        if norm.running_mean is None:
            return
        for running, now in ((norm.running_mean, mean), (norm.running_var, var)):
            written = running if torch.compiler.is_compiling() or isinstance(running, FakeTensor) else running.data
            written.mul_(1 - share).add_(now.to(running.dtype) * share)
