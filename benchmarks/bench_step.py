"""What does rewiring cost per training step? ResNet-18 on 32x32 images, p = 0.3, density 1: the same multiplications, other inputs.

    python benchmarks/bench_step.py

Original and rewired take turns, each round in the other order, so that whatever else the machine does meets both. Reported are
medians, quartiles, and the ratio of the medians beside the quartiles of the rounds' own ratios. The target is 1.10 for the step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.models import seeded
from benchmarks.record import quartiles, write_timings
from examples.resnet18 import build_model

TARGET = 1.10
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
PARTS = ("forward", "backward", "step")
Times = dict[str, list[float]]


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Take a training step; return the milliseconds of the forward pass, of the backward pass and of the whole step."""
    optimizer.zero_grad()
    start = time.perf_counter()
    loss = F.cross_entropy(model(images), labels)
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    optimizer.step()
    return 1e3 * (middle - start), 1e3 * (end - middle), 1e3 * (time.perf_counter() - start)


def measure(models: Mapping[str, nn.Module], layout: str, batch: int, rounds: int, warmup: int = 3) -> dict[str, Times]:
    """Return, for each model, the times of each part in each round."""
    order = LAYOUTS[layout]
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=order)
    labels = torch.randint(0, 10, (batch,))
    arms = {name: model.to(memory_format=order).train() for name, model in models.items()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for name, model in arms.items()}
    times: dict[str, Times] = {name: {part: [] for part in PARTS} for name in arms}
    for place in range(warmup + rounds):
        for name in sorted(arms, reverse=place % 2 == 1):
            taken = one_step(arms[name], optimizers[name], images, labels)
            if place >= warmup:
                for part, value in zip(PARTS, taken, strict=True):
                    times[name][part].append(value)
    return times


def row(times: Mapping[str, Times], layout: str, part: str, batch: int, macs: int) -> dict[str, Any]:
    """Return the record of one part in one layout."""
    original, rewired = (np.array(times[name][part]) for name in ("original", "rewired"))
    passes = {"forward": 1, "backward": 2, "step": 3}[part]
    return {
        "name": f"{part} {layout}",
        "network": "resnet18",
        "shape": [3, 32, 32],
        "dtype": "float32",
        "batch": batch,
        "baseline": "original",
        "rounds": len(original),
        "original_ms": quartiles(original),
        "rewired_ms": quartiles(rewired),
        "bytes": None,
        "flops": 2 * macs * batch * passes,
        "peak_memory": None,
        "ratio": float(np.median(rewired) / np.median(original)),
        "ratio_quartiles": quartiles(rewired / original),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of medians and ratios."""
    table = Table(title="A training step of ResNet-18, rewired against original", box=box.SIMPLE_HEAD)
    for heading in ("", "original ms", "rewired ms", "ratio", "its quartiles"):
        table.add_column(heading, justify="right" if heading else "left")
    for record in rows:
        low, _, high = record["ratio_quartiles"]
        medians = (f"{record[key][1]:.1f}" for key in ("original_ms", "rewired_ms"))
        table.add_row(record["name"], *medians, f"{record['ratio']:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both layouts, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Measure a training step of a rewired ResNet-18 against the original's.")
    parser.add_argument("--rounds", type=int, default=25, help="steps of each network in each layout (default: 25)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--p", type=float, default=0.3)
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows = []
    for layout in LAYOUTS:
        original = seeded(build_model, 0)
        rewired = swnet.transform(original, torch.zeros(1, 3, 32, 32), p=options.p)
        times = measure({"original": original, "rewired": rewired}, layout, options.batch, options.rounds)
        macs = swnet.ledger(rewired).after.macs
        rows += [row(times, layout, part, options.batch, macs) for part in PARTS]
    console = Console()
    console.print(show(rows))
    worst = max(record["ratio"] for record in rows if record["name"].startswith("step"))
    console.print(f"A step takes at most {worst:.3f} times the original's; the target is {TARGET:.2f}.")
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_step', rows)}")


if __name__ == "__main__":
    main()
