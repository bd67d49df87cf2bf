"""What does training a network lowered (swnet.lower, training=True) save, and what does it cost? Networks against themselves.

    python -m benchmarks.bench_training                needs torchvision; on a GPU by the kernels in bfloat16, else plain torch
    python -m benchmarks.bench_training densenet40 --batch 64
    python -m benchmarks.bench_training "#resnet18" --batch 8 --side 128

A name with "#" in front is rewired in tiles (p = 0.3), of which a quarter stays, and compared with itself as rewired, which
multiplies by the zeros of its masks.

Both take turns at whole steps of SGD, each round in the other order. Reported are what a forward pass keeps for the backward pass,
in bytes of distinct memory without the parameters, and the ratio of the median times beside the quartiles of the rounds' own
ratios: below 1 the lowered one keeps less, or is faster. On a GPU also the peak of memory in a step.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import swnet
from benchmarks.models import densenet, seeded
from benchmarks.record import compared, quartiles, write_timings
from benchmarks.vision import torchvision_models

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "densenet40": (densenet, 32),
    "densenet121": (lambda: torchvision_models().densenet121(), 224),
    "#resnet18": (lambda: tiled(torchvision_models().resnet18()), 128),
}
"""How each is built, and the side of its images."""


def tiled(model: nn.Module) -> nn.Module:
    """Return a network rewired in tiles, of which a quarter stays."""
    return swnet.transform(model, torch.zeros(1, 3, 128, 128), p=0.3, wiring="tile", density=0.25)


LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass; memory that several keep counts once, parameters do not."""
    storages: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        made = model(images)
    assert made.requires_grad, "nothing is to be differentiated"
    return sum(storages.values())


def step_ms(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Take a step, and return its milliseconds."""
    start = time.perf_counter()
    optimizer.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> int | None:
    """Return the most memory that is allocated in a step, on a GPU."""
    if not images.is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats()
    step_ms(model, optimizer, images, labels)
    return torch.cuda.max_memory_allocated()


def examine(
    name: str, original: nn.Module, images: Tensor, rounds: int, backend: str, warmup: int = 3, layout: str = "last"
) -> dict[str, Any]:
    """Lower a network for training, and time both."""
    original = original.to(images.device, images.dtype, memory_format=LAYOUTS[layout]).train()
    arms = (original, swnet.lower(original, images, backend=backend, training=True).train())
    labels = torch.randint(0, 10, (len(images),), device=images.device)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in arms]
    kept = [kept_bytes(model, images) for model in arms]
    times: tuple[list[float], list[float]] = ([], [])
    for place in range(warmup + rounds):
        for arm in (0, 1) if place % 2 else (1, 0):
            taken = step_ms(arms[arm], optimizers[arm], images, labels)
            if place >= warmup:
                times[arm].append(taken)
    peaks = [peak_bytes(model, optimizer, images, labels) for model, optimizer in zip(arms, optimizers, strict=True)]
    before, after = (np.array(one) for one in times)
    row = {"name": name, "shape": list(images.shape[1:]), "dtype": str(images.dtype).removeprefix("torch."), "batch": len(images)}
    row |= {"layout": f"channels {layout}"}
    row |= {"baseline": "original", "backend": backend, "rounds": rounds, "kept_bytes": kept, "peak_memory": peaks}
    row |= {"chosen": str(swnet.ledger(arms[1]).lowered[-1]), "bytes": None, "flops": None}
    return row | {"original_ms": quartiles(before), "lowered_ms": quartiles(after)} | compared(before, after)


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of ratios."""
    table = Table(title="A training step, lowered against original", box=box.SIMPLE_HEAD)
    for heading in ("", "batch", "kept MB", "of", "ratio", "step ms", "of", "ratio", "its quartiles"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        original, lowered = row["kept_bytes"]
        kept = f"{lowered / 1e6:.1f}", f"{original / 1e6:.1f}", f"{lowered / original:.3f}"
        low, _, high = row["ratio_quartiles"]
        taken = f"{row['lowered_ms'][1]:.1f}", f"{row['original_ms'][1]:.1f}", f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}"
        table.add_row(row["name"], str(row["batch"]), *kept, *taken)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks for some steps, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Time training steps of networks as they are and lowered.")
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], help=f"of {', '.join(NETWORKS)}")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 4)
    parser.add_argument("--side", type=int, help="of the images (default: what the network is for)")
    parser.add_argument("--layout", choices=[*LAYOUTS], default="last", help="where maps have their channels (default: last)")
    parser.add_argument("--backend", choices=("torch", "triton"), default="triton" if on_gpu else "torch")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    console, rows = Console(), []
    for name in options.networks:
        build, side = NETWORKS[name]
        side = options.side or side
        images = torch.randn(options.batch, 3, side, side, dtype=torch.bfloat16 if on_gpu else torch.float32)
        images = images.to("cuda" if on_gpu else "cpu").contiguous(memory_format=LAYOUTS[options.layout])
        rows.append(examine(name, seeded(build, 0), images, options.rounds, options.backend, layout=options.layout))
        gc.collect()
    console.print(show(rows))
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_training', rows)}")


if __name__ == "__main__":
    main()
