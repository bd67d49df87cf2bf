"""Start kernels: the one place where it happens."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from swkernels._triton import interpreting


def run(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Start `programs` programs of a kernel on the device of its tensors. All launches of the package go through here."""
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **options)


def on_kernels(x: Tensor) -> bool:
    """Say whether work on a tensor goes to the kernels, rather than to the reference."""
    return x.is_cuda or (interpreting() and x.device.type == "cpu" and x.dtype != torch.bfloat16)


def ceil_div(count: int, size: int) -> int:
    """Return how many pieces of `size` cover `count`."""
    return -(-count // size)


def power_of_two(count: int, least: int, most: int) -> int:
    """Return the least power of two that is no less than `count`, within bounds that are powers of two."""
    return max(least, min(most, 1 << (count - 1).bit_length()))
