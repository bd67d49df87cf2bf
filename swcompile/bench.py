"""Time gathers on a device, form by form: what `swcompile bench` shows.

Each is a layer of DenseNet-121 in the middle of its block: concat, norm, ReLU and a 1x1 convolution to 128 channels, over as many
maps as the layer has. One after the other in one run: plain channels-last torch; on a GPU also torch.compile, as tuned as it gets;
the slab in plain torch; on a GPU the Triton kernel. The slab is written before the clock starts; `put` is what that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swcompile.errors import SwnetError, first_line
from swcompile.lower import run
from swcompile.lower.calibrate import DTYPES, calibrated
from swcompile.lower.rates import Rates, device_name, flops, keep, moved, versions
from swkernels.affine import NO_NORM, NormParts
from swkernels.timing import quartiles

FLOATS = ("float32", "float16", "bfloat16")
GROWTH, OUTPUTS = 32, 128
STAGES = {"block 1": (56, 64, 3), "block 2": (28, 128, 6), "block 3": (14, 256, 12), "block 4": (7, 512, 8)}
"""Of DenseNet-121: the side of the maps at 224 pixels, the channels that a block begins with, the layers in front of its middle."""


@dataclass(frozen=True)
class Row:
    """One form of one gather: quartiles of milliseconds, and the ratio of its median to plain torch's, None for other rows.

    `gbytes` and `gflops` a second are what the gather needs at least (each map read once, the result written) over the median.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    dtype: str
    ms: tuple[float, float, float]
    ratio: float | None
    gbytes: float
    gflops: float


def microbenchmarks(
    device: torch.device, dtype: torch.dtype, batch: int, begin: Callable[[str], None] = lambda _: None, seconds: float = 0.3
) -> Iterator[Row]:
    """Yield the ceilings of the device, then each gather in each form. `begin` is told what comes next."""
    begin("ceilings")
    yield from ceilings(device, dtype, seconds)
    for name, (side, first, layers) in STAGES.items():
        begin(name)
        widths = (first, *(GROWTH for _ in range(layers)))
        try:
            yield from timed_gather(name, Gather(batch, side, widths, device, dtype), seconds)
        except RuntimeError as error:  # torch.OutOfMemoryError among them
            raise SwnetError(f"{name} cannot be timed with a batch of {batch}: {first_line(error)}.") from error


def asked(device: str | None, dtype: str | None, batch: int | None) -> tuple[torch.device, torch.dtype, int]:
    """Return where, of what and how many: what was asked for, or what is usual there. Raises SwnetError for what there is not."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ("cpu", *(("cuda", *(f"cuda:{index}" for index in range(gpus))) if gpus else ()))
    where = device or ("cuda" if gpus else "cpu")
    if where not in there:
        raise SwnetError(f"There is no device {where!r} here; there is {', '.join(there)}.")
    on_gpu = where != "cpu"
    named = dtype or ("bfloat16" if on_gpu else "float32")
    if named not in FLOATS:
        raise SwnetError(f"There is no dtype {named!r} to time; there are {', '.join(FLOATS)}.")
    return torch.device(where), getattr(torch, named), batch or (256 if on_gpu else 8)


def calibrate(device: torch.device, begin: Callable[[str], None] = lambda _: None) -> tuple[Rates, Path]:
    """Time the operations that gathers consist of, and keep that for swnet.lower; return it and where."""
    rates = calibrated(device, begin)
    return rates, keep(rates)


def steps(device: torch.device, *, calibrating: bool) -> int:
    """Return how many steps `calibrate` or `microbenchmarks` tells of."""
    return len(DTYPES[device.type]) if calibrating else 1 + len(STAGES)


def document(device: torch.device, rows: Sequence[Row]) -> dict[str, Any]:
    """Return timings, and what they were made on, as JSON has them."""
    return {"device": device_name(device), "versions": versions(), "rows": [asdict(row) for row in rows]}


class Gather:
    """A gather of maps of some widths, in all its forms."""

    def __init__(self, batch: int, side: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device).to(dtype)

        self.shape, self.device, self.dtype, channels = (batch, sum(widths), side, side), device, dtype, sum(widths)
        self.maps = [random(batch, width, side, side).contiguous(memory_format=torch.channels_last) for width in widths]
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype).eval()
        self.weight = (random(OUTPUTS, channels, 1, 1) / channels**0.5).contiguous(memory_format=torch.channels_last)
        self.slab = run.new_slab(self.maps[0], channels, 1)
        self.parts: NormParts = (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, self.norm.eps)
        self.put()

    def put(self) -> Tensor:
        start = 0
        for x in self.maps:
            run.put(self.slab, x, start, 1)
            start += x.shape[1]
        return self.slab

    def plain(self) -> Tensor:
        return functional.conv2d(functional.relu(self.norm(torch.cat(self.maps, 1))), self.weight)

    def by_torch(self) -> Tensor:
        return run.product(self.slab, (0, 0, self.shape[1]), 1, self.parts, "relu", self.weight, None, NO_NORM, "none")

    def by_triton(self) -> Tensor:
        return run.product_by_kernel(self.slab, (0, 0, self.shape[1]), 1, self.parts, "relu", self.weight, None, NO_NORM, "none")

    def forms(self) -> Mapping[str, Callable[[], Tensor]]:
        """Return the forms that the device runs, plain torch first."""
        forms: dict[str, Callable[[], Tensor]] = {"plain": self.plain}
        if self.device.type == "cuda":
            tuned: dict[str, Any] = {"max_autotune": True, "force_pointwise_cat": True, "max_pointwise_cat_inputs": len(self.maps)}
            forms["torch.compile"] = torch.compile(self.plain, options=tuned)
        forms["torch"] = self.by_torch
        if self.device.type == "cuda":
            forms["triton"] = self.by_triton
        return forms


def timed_gather(name: str, gather: Gather, seconds: float) -> Iterator[Row]:
    """Yield each form of a gather, then what writing its slab takes."""
    rows, channels = gather.shape[0] * gather.shape[2] ** 2, gather.shape[1]
    work = moved(rows, channels, OUTPUTS, gather.dtype.itemsize), flops(rows, channels, OUTPUTS)
    plain: float | None = None
    for form, call in gather.forms().items():
        times = quartiles(call, gather.device, seconds)
        plain = times[1] if plain is None else plain
        yield row(name, form, gather.shape, gather.dtype, times, times[1] / plain, *work)
    times = quartiles(gather.put, gather.device, seconds)
    yield row(name, "put", gather.shape, gather.dtype, times, None, moved(rows, channels, 0, gather.dtype.itemsize), 0)


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterator[Row]:
    """Yield what the device does at best: a copy beyond any cache, and a product of large squares."""
    count, side = ((1 << 29), 8192) if device.type == "cuda" else ((1 << 26), 1024)
    source = torch.ones(count // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    square = torch.randn(side, side, device=device).to(dtype)  # equal numbers take less power, and a GPU then clocks higher
    copied = quartiles(lambda: target.copy_(source), device, seconds)
    yield row("copy", "ceiling", tuple(source.shape), dtype, copied, None, 2 * count, 0)
    product = quartiles(lambda: square @ square, device, seconds)
    yield row("product", "ceiling", (side, side, side), dtype, product, None, 3 * side**2 * dtype.itemsize, 2 * side**3)


def row(
    name: str,
    form: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    times: tuple[float, float, float],
    ratio: float | None,
    *work: int,
) -> Row:
    """Return a row of quartiles of seconds; `work` is the bytes moved and the floating-point operations."""
    size, operations = work
    low, middle, high = (round(1000 * value, 5) for value in times)
    speeds = (round(amount / times[1] / 1e9, 1) for amount in (size, operations))
    return Row(name, form, shape, str(dtype).removeprefix("torch."), (low, middle, high), ratio and round(ratio, 4), *speeds)
