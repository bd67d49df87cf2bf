"""The first minutes on a GPU: how fast are the operations that every prediction for the kernels rests on, and is it worth going on?

    python -m benchmarks.calibration

Asked are the ceilings (a copy, a product of large squares); what a concat of channels-last maps reaches; whether cuBLAS reads and
writes strided rows without a copy; what cuDNN's 3x3 convolutions reach; gather_mm in the middle of DenseNet-121's third block (K1),
with norm and activation and without; block-sparse 3x3 convolutions against dense ones; what a launch costs, in a CUDA graph and
outside; and a training step of the third block by the kernels, against torch.compile. A question that fails says why.

The stop rule: with K1 below 55% of the copy's bandwidth, or the training step less than 1.2 times as fast as the tuned compile, the
kernels for training are not worth having, and inference is left to the slab, Inductor and K1.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import swnet
from benchmarks.forms import (
    FORCED_CAT,
    Call,
    Reference,
    captured,
    milliseconds,
    peak_bytes,
    relative_error,
    release,
    side_by_side,
    tuned,
    why,
)
from benchmarks.models import seeded
from benchmarks.record import Judged, write_timings
from benchmarks.vision import torchvision_models
from swcompile.bench import Gather, asked, ceilings, row, timed_gather
from swcompile.lower import run
from swcompile.lower.rates import flops, moved
from swkernels import (
    Cluster,
    Support,
    Taps,
    block_sparse_conv2d,
    block_sparse_conv2d_backward,
    block_sparse_conv2d_backward_reference,
    block_sparse_conv2d_reference,
)
from swkernels.affine import NO_NORM
from swkernels.timing import quartiles

K1_WIDTHS = (256, *(32 for _ in range(11)), 16)
"""624 channels: the mean over the layers of DenseNet-121's third block."""
SIDE, SLAB, OUTPUTS = 14, 1024, 128
CONVOLUTIONS = ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (128, 32, 56), (128, 32, 14))
"""Inputs, outputs and side of the 3x3 convolutions of ResNet-50's stages, and of the first and third block of DenseNet-121."""
SPARSE = ((256, 14), (512, 7))
DENSITIES = (0.25, 0.5)
BLOCK, LAUNCHES, TIMES = 64, 100, 20
K1_SHARE, SPARSE_TIMES = 0.70, 2.2
STOP_SHARE, STOP_TIMES = 0.55, 1.2


@dataclass(frozen=True)
class Setting:
    """Where, of what, how many images, and how many seconds a timing."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    seconds: float = 0.3

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def random(self, *shape: int) -> Tensor:
        """Return random numbers; four axes are maps, or filters, and lie channels last."""
        drawn = torch.randn(*shape, device=self.device).to(self.dtype)
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn

    def timed(
        self, name: str, form: str, call: Callable[[], Tensor], work: tuple[int, int], than: float | None = None
    ) -> dict[str, Any]:
        """Time a call whose result has a shape; `work` is bytes and floating-point operations, `than` another's milliseconds."""
        times = quartiles(call, self.device, self.seconds)
        ratio = None if than is None else 1000 * times[1] / than
        found = row(name, form, tuple(call().shape), self.dtype, times, ratio, *work)
        return asdict(found) | {"peak_memory": peak_bytes(call, self.device)}


def ceiling(on: Setting) -> Iterator[dict[str, Any]]:
    """What does the device do at best?"""
    yield from (asdict(found) for found in ceilings(on.device, on.dtype, on.seconds))


def concat(on: Setting) -> Iterator[dict[str, Any]]:
    """What does a concat of channels-last maps of 32 channels reach, and one of slices of a wider map?"""
    count, wide = 20, on.random(on.batch, 640, SIDE, SIDE)
    apart = [on.random(on.batch, 32, SIDE, SIDE) for _ in range(count)]
    slices = [wide[:, start : start + 32] for start in range(0, 640, 32)][::-1]
    work = moved(on.batch * SIDE**2, 640, 0, on.dtype.itemsize), 0
    for form, maps in (("maps of 32 channels", apart), ("slices of 32 channels", slices)):
        yield on.timed("concat", form, functools.partial(torch.cat, maps, 1), work)


def strided(on: Setting) -> Iterator[dict[str, Any]]:
    """Does a product of rows that lie in a slab, into rows that do, run as fast as one of whole matrices, and without a copy?"""
    rows, channels = on.batch * SIDE**2, sum(K1_WIDTHS)
    slab, weight, target = on.random(rows, SLAB), on.random(channels, OUTPUTS), on.random(rows, SLAB)
    whole, made = on.random(rows, channels), on.random(rows, OUTPUTS)
    inside, slot = slab[:, :channels], target[:, channels : channels + OUTPUTS]
    work = moved(rows, channels, OUTPUTS, on.dtype.itemsize), flops(rows, channels, OUTPUTS)
    for form, source, out in (("contiguous", whole, made), ("strided in", inside, made), ("strided in and out", inside, slot)):
        yield on.timed("product of a slab", form, functools.partial(torch.mm, source, weight, out=out), work)


def convolution(on: Setting) -> Iterator[dict[str, Any]]:
    """What do torch's 3x3 convolutions reach?"""
    for inputs, outputs, side in CONVOLUTIONS:
        x, weight = on.random(on.batch, inputs, side, side), on.random(outputs, inputs, 3, 3)
        call = functools.partial(functional.conv2d, x, weight, padding=1)
        yield on.timed("3x3", f"{inputs} to {outputs}", call, _work3x3(on, inputs, outputs, side))


def _work3x3(on: Setting, inputs: int, outputs: int, side: int) -> tuple[int, int]:
    rows = on.batch * side**2
    return on.dtype.itemsize * (rows * (inputs + outputs) + 9 * inputs * outputs), 9 * flops(rows, inputs, outputs)


def gather(on: Setting) -> Iterator[dict[str, Any]]:
    """What does K1 reach with norm and activation, and without, beside plain torch and torch.compile?"""
    given = Gather(on.batch, SIDE, K1_WIDTHS, on.device, on.dtype)
    yield from (asdict(found) for found in timed_gather("K1", given, on.seconds))
    product = run.product_by_kernel if on.on_gpu else run.product
    taken = (given.slab, (0, 0, given.shape[1]), 1, NO_NORM, "none", given.weight, None, NO_NORM, "none")
    rows = on.batch * SIDE**2
    work = moved(rows, given.shape[1], OUTPUTS, on.dtype.itemsize), flops(rows, given.shape[1], OUTPUTS)
    yield on.timed("K1", "triton, no norm" if on.on_gpu else "torch, no norm", functools.partial(product, *taken), work)


def support(width: int, density: float) -> Support:
    """Return a support of blocks of 64, each of which reads as many blocks in a row as the density says, at least one."""
    blocks = width // BLOCK
    count = max(1, round(density * blocks))

    def read(first: int) -> tuple[tuple[int, int], ...]:
        places = sorted((first + place) % blocks for place in range(count))
        return tuple((BLOCK * place, BLOCK * (place + 1)) for place in places)

    return Support(tuple(Cluster(BLOCK * block, BLOCK * (block + 1), read(block)) for block in range(blocks)))


def block_sparse(on: Setting) -> Iterator[dict[str, Any]]:
    """How much faster than a dense 3x3 convolution is one of which a share of the blocks is there?"""
    convolve = block_sparse_conv2d if on.on_gpu else block_sparse_conv2d_reference
    for width, side in SPARSE:
        name, x, weight = f"block-sparse 3x3 of {width}", on.random(on.batch, width, side, side), on.random(width, width, 3, 3)
        size, operations = _work3x3(on, width, width, side)
        dense = on.timed(name, "dense", functools.partial(functional.conv2d, x, weight, padding=1), (size, operations))
        yield dense
        for density in DENSITIES:
            given = x.permute(0, 2, 3, 1), Taps.of((0, width)), weight.permute(0, 2, 3, 1), support(width, density)
            call = functools.partial(convolve, *given, padding=1)
            yield on.timed(name, f"density {density:g}", call, (size, int(density * operations)), dense["ms"][1])


def block_sparse_backward(on: Setting) -> Iterator[dict[str, Any]]:
    """How much faster are the gradients of a 3x3 convolution of which a share of the blocks is there than a dense one's?"""
    differentiate = block_sparse_conv2d_backward if on.on_gpu else block_sparse_conv2d_backward_reference
    how = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    for width, side in SPARSE:
        name, weight = f"block-sparse 3x3 of {width}, back", on.random(width, width, 3, 3)
        grad, x = (on.random(on.batch, width, side, side) for _ in range(2))
        size, operations = (2 * one for one in _work3x3(on, width, width, side))

        def dense(given: tuple[Tensor, ...] = (grad, x, weight)) -> Tensor:
            return torch.ops.aten.convolution_backward(*given, *how)[1]  # type: ignore[no-any-return]  # torch types no operator

        whole = on.timed(name, "dense", dense, (size, operations))
        yield whole
        for density in DENSITIES:
            given = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1), Taps.of((0, width)), weight.permute(0, 2, 3, 1)

            def sparse(given: Any = given, reads: Support = support(width, density)) -> Tensor:  # noqa: B008  # of this round
                return differentiate(*given, reads, padding=1).weight

            yield on.timed(name, f"density {density:g}", sparse, (size, int(density * operations)), whole["ms"][1])


def launch(on: Setting) -> Iterator[dict[str, Any]]:
    """What does one call of work that takes next to no time cost, by torch and by the kernel, in a graph and outside?"""
    x, weight, taps = on.random(16, 64), on.random(OUTPUTS, 64), (0, 0, 64)
    product = run.product_by_kernel if on.on_gpu else run.product
    by_kernel = functools.partial(product, x, taps, -1, NO_NORM, "none", weight, None, NO_NORM, "none")
    calls = {"relu": functools.partial(torch.relu, x), "gather_mm" if on.on_gpu else "linear": by_kernel}
    for form, call in calls.items():

        def many(call: Call = call) -> Tensor:
            return [call() for _ in range(LAUNCHES)][-1]

        many()
        for where, ready in {"": many, " in a graph": captured(many, on.device)}.items() if on.on_gpu else (("", many),):
            times = np.array([milliseconds(ready, on.device) for _ in range(TIMES)]) / LAUNCHES / 1000
            yield asdict(row("launch", form + where, tuple(x.shape), on.dtype, _spread(times), None, 0, 0))


def _spread(seconds: Any) -> tuple[float, float, float]:
    low, middle, high = (float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return low, middle, high


def third_block() -> tuple[nn.Module, int]:
    """Return DenseNet-121's third block, and the channels that it reads."""
    return torchvision_models().densenet121().features.denseblock3, 256


def training(on: Setting, rounds: int = 20) -> Iterator[dict[str, Any]]:
    """Is a training step of the third block, forward and backward, faster by the kernels than by torch.compile?"""
    channels = 0

    def build() -> nn.Module:
        nonlocal channels
        model, channels = third_block()
        return model

    block = seeded(build, 0).to(on.device, on.dtype, memory_format=torch.channels_last).train()
    x = on.random(on.batch, channels, SIDE, SIDE).requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(block(x))

    def step(model: nn.Module) -> Tensor:
        return torch.autograd.grad(model(x), [x, *model.parameters()], grad)[0]

    def stepped(model: nn.Module) -> Call:
        return functools.partial(step, model)

    wide = copy.deepcopy(block).double()
    exact = torch.autograd.grad(wide(double := x.detach().double().requires_grad_()), double, grad.double())[0]
    reference = Reference.of(step(block), exact)
    backend = "triton" if on.on_gpu else "torch"
    forms: dict[str, Callable[[], Call]] = {"eager": lambda: stepped(block)}
    if on.on_gpu:
        forms["compile-cat"] = lambda: stepped(tuned(copy.deepcopy(block), step, **FORCED_CAT))
    forms[f"lower-{backend}"] = lambda: stepped(swnet.lower(block, x.detach(), backend=backend, training=True).train())
    eager = None
    for form, outcome in side_by_side(forms, on.device, rounds).items():
        failed = outcome.failed
        if outcome.made is not None and (error := relative_error(outcome.made, reference.exact)) > reference.allowed:
            failed = f"its gradient is wrong: an error of {error:.2g}, of at most {reference.allowed:.2g}"
        if failed is not None or outcome.times is None:
            yield {"name": "training block 3", "form": form, "failed": failed}
            continue
        times = _spread(outcome.times / 1000)
        eager = times[1] if form == "eager" else eager
        found = row("training block 3", form, tuple(x.shape), on.dtype, times, eager and times[1] / eager, 0, 0)
        yield asdict(found) | {"peak_memory": outcome.peak}


QUESTIONS: tuple[Callable[[Setting], Iterator[dict[str, Any]]], ...] = (
    ceiling,
    concat,
    strided,
    convolution,
    gather,
    block_sparse,
    block_sparse_backward,
    launch,
    training,
)


def answered(question: Callable[[Setting], Iterator[dict[str, Any]]], on: Setting) -> list[dict[str, Any]]:
    """Return what a question finds; where it fails, the last row says why."""
    rows: list[dict[str, Any]] = []
    try:
        rows.extend(question(on))  # keeps what came before an exception
    except Exception as error:  # whatever a compiler, a kernel or the allocator raises
        rows.append({"name": question.__name__, "form": "", "failed": why(error)})
    release(on.device)
    return rows


def judged(rows: Sequence[dict[str, Any]]) -> tuple[Judged, ...]:
    """Return what was to be reached and what was: K1, block-sparse convolutions, and last a training step."""
    found = {(one["name"], one["form"]): one for one in rows if not one.get("failed")}

    def ratio(kind: Callable[[dict[str, Any]], float], one: tuple[str, str], other: tuple[str, str]) -> float | None:
        return kind(found[one]) / kind(found[other]) if one in found and other in found else None

    share = ratio(lambda one: one["gbytes"], ("K1", "triton"), ("copy", "ceiling"))
    density, sparse = f"density {DENSITIES[0]:g}", []
    for width, _ in SPARSE:
        name = f"block-sparse 3x3 of {width}"
        times = ratio(lambda one: one["ms"][1], (name, "dense"), (name, density))
        sparse.append(Judged(f"{name} at {density}, times as fast as dense", SPARSE_TIMES, times))
    step = ratio(lambda one: one["ms"][1], ("training block 3", "compile-cat"), ("training block 3", "lower-triton"))
    return (
        Judged("K1 with norm and activation, of the copy's bandwidth", K1_SHARE, share),
        *sparse,
        Judged("training block 3 by the kernels, times as fast as torch.compile", STOP_TIMES, step),
    )


def verdict(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what was to be reached and what was, then what the stop rule says."""
    found = judged(rows)
    yield from map(str, found)
    share, step = found[0].value, found[-1].value
    below = [value is not None and value < least for value, least in ((share, STOP_SHARE), (step, STOP_TIMES))]
    if any(below):
        yield "Stop rule: STOP: leave the kernels for training; inference by the slab, Inductor and K1 stays."
    elif share is None or step is None:
        yield "Stop rule: open, for not all that it asks was measured."
    else:
        yield "Stop rule: go on."


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of answers, beside the device's ceilings."""
    table = Table(title="Calibration", box=box.SIMPLE_HEAD)
    for heading in ("", "form", "shape", "µs", "ratio", "GB/s", "of copy", "TFLOP/s", "of product", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("", "form", "shape") else "right")
    best = {kind: [one[kind] for one in rows if one["form"] == "ceiling"] for kind in ("gbytes", "gflops")}
    for one in rows:
        if one.get("failed"):
            table.add_row(one["name"], one["form"], one["failed"])
            continue
        speeds = []
        for kind, scale in (("gbytes", 1), ("gflops", 1000)):
            speeds += (
                [f"{one[kind] / scale:.1f}", f"{one[kind] / max(best[kind]):.0%}" if best[kind] else ""] if one[kind] else ["", ""]
            )
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        peak = "" if one.get("peak_memory") is None else f"{one['peak_memory'] / 1e6:.1f}"
        shape = "x".join(map(str, one["shape"]))
        table.add_row(one["name"], one["form"], shape, f"{1000 * one['ms'][1]:.1f}", ratio, *speeds, peak)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the questions; print the answers and the verdict, and keep the rows."""
    parser = argparse.ArgumentParser(description="Time what predictions for the kernels rest on.")
    parser.add_argument("--batch", type=int, help="images (default: 256 on a GPU, 8 on a CPU)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each timing (default: 0.3)")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    device, dtype, batch = asked(None, None, options.batch)
    torch.backends.cudnn.benchmark = True
    console = Console()
    on, rows = Setting(device, dtype, batch, options.seconds), []
    for question in QUESTIONS:
        console.print(question.__doc__, highlight=False)
        rows += answered(question, on)
        if not options.no_record:  # each time: the last question compiles for minutes
            write_timings("calibration", rows)
    console.print(show(rows))
    for line in verdict(rows) if on.on_gpu else ["What was to be reached is for a GPU."]:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
