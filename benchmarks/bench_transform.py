"""What does the compiler itself cost? ResNet-50 in at most 5 s, and a time that grows linearly with the number of layers.

    python benchmarks/bench_transform.py                  chains of 10 to 10,000 layers, without and with shortcuts
    python benchmarks/bench_transform.py --layers 10 100

The growth is read off as the exponent e in time ~ layers^e between the chains of at least 100 layers: 1 is linear. The longest
chains are to take at most 60 s. Building the network is not counted. Each figure is the best of a few runs, since noise only ever
adds; growth is judged by processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import swnet
from benchmarks.models import chain, residual_chain, resnet50
from benchmarks.record import write_timings

TARGET_SECONDS = 5.0
LONGEST_SECONDS = 60.0
LINEAR = 1.15
"""An exponent up to which growth is called linear: caches get slower with size even where the work does not grow."""


def seconds(model: nn.Module, example: Tensor, p: float | str, repeats: int) -> tuple[float, float]:
    """Return the shortest time of transforming the model, on the clock and on the processor."""
    clock, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        swnet.transform(model, example, p=p)
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return min(clock), min(processor)


def measure(name: str, build: Callable[[], nn.Module], size: int, p: float | str, repeats: int) -> dict[str, Any]:
    """Return the record of one network."""
    model, example = build(), torch.zeros(1, 3, size, size)
    clock, processor = seconds(model, example, p, repeats)
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    return {
        "name": name,
        "shape": [3, size, size],
        "p": p,
        "layers": layers,
        "repeats": repeats,
        "seconds": clock,
        "cpu_seconds": processor,
    }


CHAINS: dict[str, Callable[[int], nn.Module]] = {"chain": chain, "residual chain": residual_chain}


def exponent(rows: Sequence[dict[str, Any]], name: str = "chain") -> float | None:
    """Return e of time ~ layers^e by least squares over the chains of at least 100 layers; None for fewer than two of them."""
    chains = [(row["layers"], row["cpu_seconds"]) for row in rows if row["name"] == name and row["layers"] >= 100]
    if len(chains) < 2:
        return None
    layers, taken = np.log(np.array(chains)).T
    return float(np.polyfit(layers, taken, 1)[0])


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of times."""
    table = Table(title="swnet.transform", box=box.SIMPLE_HEAD)
    for heading in ("", "p", "layers", "seconds", "cpu seconds", "cpu ms per layer"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        times = (row["seconds"], row["cpu_seconds"], 1e3 * row["cpu_seconds"] / row["layers"])
        table.add_row(row["name"], str(row["p"]), f"{row['layers']:,}", *(f"{value:.2f}" for value in times))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Measure what transforming a network costs.")
    parser.add_argument(
        "--layers", type=int, nargs="*", default=[10, 30, 100, 300, 1000, 3000, 10000], help="lengths of the chains"
    )
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    rows = [measure("resnet50", resnet50, 224, p, 3) for p in (0.3, "auto")]
    for name, build in CHAINS.items():
        rows += [measure(name, partial(build, count), 8, 0.3, 3 if count <= 1000 else 1) for count in options.layers]
    console = Console()
    console.print(show(rows))
    worst = max(row["seconds"] for row in rows[:2])
    console.print(f"ResNet-50 takes {worst:.2f} s; the target is {TARGET_SECONDS:g} s.")
    for name in CHAINS:
        growth = exponent(rows, name)
        if growth is not None:
            told = f"{'' if growth <= LINEAR else 'NOT '}linear (up to {LINEAR})"
            longest = max((row for row in rows if row["name"] == name), key=lambda row: int(row["layers"]))
            took = f"{longest['layers']:,} layers take {longest['seconds']:.1f} s; the target is {LONGEST_SECONDS:g} s"
            console.print(f"{name}: time grows as layers^{growth:.2f}, {told}; {took}.")
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_transform', rows)}")


if __name__ == "__main__":
    main()
