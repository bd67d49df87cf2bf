"""Take the statistics of batch norms anew after a network was changed: weights stay, and so does everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swcompile.batches import divided, evaluating, reported, shown
from swcompile.errors import SwnetError
from swcompile.modules import RewiredModule

_Norm = nn.modules.batchnorm._NormBase


def calibrate(module: RewiredModule, batches: Iterable[Any], inputs: int) -> tuple[int, int]:
    """Set the running mean and variance of each norm to the average over `batches`, each batch counting alike.

    Args:
        module: the rewired module. Its modes, weights and gradients are left as they were.
        batches: tensors, or tuples and lists that begin with the forward's arguments: a loader's labels are passed over.
        inputs: how many arguments the forward takes.

    Returns:
        How many norms there are, and how many batches there were.

    Raises:
        SwnetError: where there is no batch, or one that is too short.
    """
    norms = _norms(module)
    seen = 0
    with _taking_statistics(module, norms), torch.no_grad():
        for batch in shown(batches, "calibrating", "calibrate") if norms else ():
            given, _ = divided(batch, inputs, "calibrate")
            with reported(seen, "calibrate", "the model"):
                module(*given)
            seen += 1
    if norms and not seen:
        raise SwnetError("calibrate= was given no batch. Give an iterable of inputs, such as a DataLoader.")
    return len(norms), seen


def is_trained(module: RewiredModule) -> bool:
    """Whether a norm has seen data: a fresh one has mean 0 and variance 1."""
    return any(bool((norm.running_mean != 0).any()) for norm in _norms(module) if not norm.running_mean.is_meta)


def _norms(module: RewiredModule) -> list[Any]:
    """Return the norms that keep statistics and that eval mode runs."""
    called = (node.target for node in module.graphs[-1].nodes if node.op == "call_module")
    found = (inner for path in called for inner in module.get_submodule(str(path)).modules())
    return list(dict.fromkeys(norm for norm in found if isinstance(norm, _Norm) and norm.running_mean is not None))


@contextmanager
def _taking_statistics(module: nn.Module, norms: list[Any]) -> Iterator[None]:
    """Let norms average what they see, from nothing, while everything else is in eval mode."""
    kept = [(norm, norm.momentum) for norm in norms]
    state = [(norm, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    try:
        with evaluating(module):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            yield
    except BaseException:
        for norm, buffers in state:
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
        raise
    finally:
        for norm, momentum in kept:
            norm.momentum = momentum
