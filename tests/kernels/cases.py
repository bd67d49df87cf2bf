"""Random inputs for the kernels, and what "equal" means for them."""

from __future__ import annotations

import torch
from torch import Tensor

from swkernels import Norm, Taps

DTYPES = (torch.float32, torch.float16)
"""What Triton's interpreter computes rightly; its bfloat16 products are of bit patterns."""


def norm(channels: int, *, affine: bool = True) -> Norm:
    """Return a random norm, with or without weight and bias."""
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    return Norm(mean, var, torch.randn(channels), torch.randn(channels), 1e-3) if affine else Norm(mean, var)


def only_read(source: Tensor, taps: Taps, place: int = 0) -> Tensor:
    """Return a copy of a map that holds NaN wherever the taps do not read it."""
    kept = torch.full_like(source, float("nan"))
    for owner, start, stop in taps.runs:
        if owner == place:
            kept[..., start:stop] = source[..., start:stop]
    return kept


def close(found: Tensor, expected: Tensor, terms: int = 1) -> bool:
    """Say whether a result is the reference's but for rounding: some units in the last place of the greatest value.

    `terms` says of how many numbers a sum is whose value may be far smaller than they are. False where either is not finite.
    """
    step = torch.finfo(found.dtype).eps * max(1.0, expected.double().abs().max().item()) * terms**0.5
    error = (found.double() - expected.double()).abs().max().item()
    return error <= (2 if found.dtype == torch.float16 else 16) * step  # a NaN compares false
