"""Time the operations that gathers consist of on a device, and keep how long they took."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from swcompile.lower.gpus import GPU
from swcompile.lower.operations import (
    KERNEL_MAPS,
    KERNEL_PRODUCTS,
    MAPS,
    PRODUCTS,
    SLAB_MAPS,
    SLAB_PRODUCTS,
    Inputs,
    Size,
)
from swcompile.lower.rates import Rates, Timing, Timings, device_name, flops, moved, versions
from swcompile.lower.training_operations import (
    KERNEL_TRAINED_MAPS,
    KERNEL_TRAINED_PRODUCTS,
    TRAINED_MAPS,
    TRAINED_PRODUCTS,
    TrainedInputs,
)
from swkernels.timing import quartiles

LAYOUTS = ("first", "last")
SIDES, CHANNELS, OUTPUTS = (7, 14, 28, 56), (64, 256, 1024), (32, 128, 512)
BATCHES = {"cpu": (1, 8), "cuda": (1, 32, 256)}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
MOST_BYTES = {"cpu": 1 << 26, "cuda": 1 << 31}
MOST_FLOPS = {"cpu": 1 << 31, "cuda": 1 << 40}
"""Sizes beyond these take long to time, and say nothing new."""


def calibrated(device: torch.device, begin: Callable[[str], None] = lambda _: None, seconds: float = 0.1) -> Rates:
    """Time the operations on a device, `seconds` a timing; a minute or two on two cores. `begin` is told each dtype."""
    dtypes = {}
    for dtype in DTYPES[device.type]:
        named = str(dtype).removeprefix("torch.")
        begin(f"timing operations on {named}")
        dtypes[named] = dict(_timed_all(device, dtype, seconds))
    return Rates(device_name(device), versions(), dtypes, GPU.of(device) if device.type == "cuda" else None)


def _timed_all(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterator[tuple[str, Timings]]:
    on_kernels = device.type == "cuda"
    for layout in LAYOUTS:
        for name, operation in (MAPS | PRODUCTS).items():
            yield f"{name} {layout}", _timed(operation, name in PRODUCTS, device, dtype, layout, seconds)
        for name, training in (TRAINED_MAPS | TRAINED_PRODUCTS).items():
            yield f"{name} {layout}", _timed(training, name in TRAINED_PRODUCTS, device, dtype, layout, seconds, TrainedInputs)
    for name, operation in (SLAB_MAPS | SLAB_PRODUCTS | (KERNEL_MAPS | KERNEL_PRODUCTS if on_kernels else {})).items():
        yield name, _timed(operation, name in SLAB_PRODUCTS | KERNEL_PRODUCTS, device, dtype, "last", seconds)
    for name, training in (KERNEL_TRAINED_MAPS | KERNEL_TRAINED_PRODUCTS if on_kernels else {}).items():
        for layout in LAYOUTS if name.startswith("shared") else ("last",):
            yield (
                f"{name} {layout}",
                _timed(training, name in KERNEL_TRAINED_PRODUCTS, device, dtype, layout, seconds, TrainedInputs),
            )


def _timed(
    operation: Callable[[Any], object],
    is_product: bool,
    device: torch.device,
    dtype: torch.dtype,
    layout: str,
    seconds: float,
    inputs: type[Inputs] = Inputs,
) -> Timings:
    timings = []
    for size in sizes(device.type, OUTPUTS if is_product else (0,), dtype.itemsize):
        given = inputs(size, dtype, device, layout)
        low, _, _ = quartiles(functools.partial(operation, given), device, seconds)  # what runs beside it only ever takes time
        timings.append(Timing(size.rows, size.channels, size.outputs, float(f"{low:.3g}")))
    return Timings(dtype.itemsize, tuple(timings))


def sizes(kind: str, outputs: Sequence[int], item: int) -> Iterator[Size]:
    """Yield the sizes at which a kind of device is measured."""
    for size in itertools.starmap(Size, itertools.product(BATCHES[kind], SIDES, CHANNELS, outputs)):
        work = size.rows, size.channels, size.outputs
        if moved(*work, item) <= MOST_BYTES[kind] and flops(*work) <= MOST_FLOPS[kind]:
            yield size
