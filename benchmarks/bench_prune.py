"""Does pruning to a budget meet it, and is what is left faster? Six networks at half and a quarter of their parameters, and of
their multiply-accumulates, at 224x224, p = 0.3, the classifier included.

    python -m benchmarks.bench_prune                   all of them; needs torchvision
    python -m benchmarks.bench_prune resnet50 vgg16    some

Original and pruned take turns at inference, each round in the other order. Reported are the budget and what came of it, and the
ratio of the median times beside the quartiles of the rounds' own ratios: below 1 the pruned network is faster. What keeps one from
being as much faster as it is smaller is in the last column: the share of its time in which it brings channels together.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import swnet
from benchmarks.models import seeded
from benchmarks.record import compared, quartiles, write_timings
from benchmarks.vision import torchvision_models

NETWORKS = ("densenet121", "resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "vit_b_16")
BUDGETS = (("params", 2), ("params", 4), ("macs", 2), ("macs", 4))
P = 0.3
SHAPE = (3, 224, 224)


def forward_ms(model: nn.Module, images: Tensor) -> float:
    """Return the milliseconds of one inference."""
    with torch.inference_mode():
        start = time.perf_counter()
        model(images)
    return 1e3 * (time.perf_counter() - start)


def measure(
    one: nn.Module,
    other: nn.Module,
    batch: int,
    rounds: int,
    warmup: int = 2,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[list[float], list[float]]:
    """Return the times of both in each round."""
    images = torch.randn(batch, *SHAPE).contiguous(memory_format=layout)
    arms, times = (one.eval(), other.eval()), ([], [])  # type: tuple[nn.Module, nn.Module], tuple[list[float], list[float]]
    for place in range(warmup + rounds):
        for arm in (0, 1) if place % 2 else (1, 0):
            taken = forward_ms(arms[arm], images)
            if place >= warmup:
                times[arm].append(taken)
    return times


def gathering_share(model: nn.Module, images: Tensor) -> float:
    """Return the share of an inference's time that goes into concatenating and copying maps: moving bytes, computing nothing."""
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            model(images)
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return sum(times.get(name, 0.0) for name in ("aten::cat", "aten::copy_")) / sum(times.values())


def examine(name: str, original: nn.Module, measured: str, part: int, batch: int, rounds: int) -> dict[str, Any]:
    """Prune a network to 1/`part` of its parameters or multiply-accumulates and time it. A budget that it cannot meet says why."""
    whole = swnet.analyze(original, torch.zeros(1, *SHAPE), points=2).graph
    budget = getattr(whole, measured) // part
    row: dict[str, Any] = {
        "name": f"{name} {measured} / {part}",
        "network": name,
        "shape": list(SHAPE),
        "dtype": "float32",
        "batch": batch,
        "baseline": "original",
        "rounds": rounds,
        "budget": {measured: budget},
        "peak_memory": None,
    }
    try:
        pruned = swnet.transform(original, torch.zeros(1, *SHAPE), p=P, head=True, **{measured: budget})
    except swnet.SwnetError as error:
        return row | {"refused": str(error)}
    ledger = swnet.ledger(pruned)
    assert getattr(ledger.after, measured) <= budget, f"{name} has {getattr(ledger.after, measured):,} of at most {budget:,}"
    before, after = (np.array(times) for times in measure(original, pruned, batch, rounds))
    images = torch.randn(batch, *SHAPE)
    return (
        row
        | {
            "gathering": [round(gathering_share(model, images), 3) for model in (original, pruned)],
            "params": [ledger.before.params, ledger.after.params],
            "macs": [ledger.before.macs, ledger.after.macs],
            "p_achieved": ledger.after.p_achieved,
            "bytes": None,
            "flops": 2 * ledger.after.macs * batch,
            "original_ms": quartiles(before),
            "pruned_ms": quartiles(after),
        }
        | compared(before, after)
    )


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of budgets and ratios."""
    table = Table(title="Pruned against original: inference on this machine's CPU", box=box.SIMPLE_HEAD)
    for heading in ("", "budget", "left", "unused", "parameters", "MACs", "ratio", "its quartiles", "gathering"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        ((measured, budget),) = row["budget"].items()
        if "refused" in row:
            table.add_row(row["name"], f"{budget:,}", "refused", *("" for _ in range(6)))
            continue
        left, (low, _, high) = row[measured][1], row["ratio_quartiles"]
        shares = (f"{row[kind][1] / row[kind][0]:.3f}" for kind in ("params", "macs"))
        ratio = f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}"
        gathering = " to ".join(f"{share:.0%}" for share in row["gathering"])
        table.add_row(row["name"], f"{budget:,}", f"{left:,}", f"{(budget - left) / budget:.2%}", *shares, *ratio, gathering)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune and time the networks, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Prune networks to budgets, and time what is left against the original.")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="names in torchvision.models")
    parser.add_argument("--rounds", type=int, default=15, help="inferences of each network (default: 15)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    models, console = torchvision_models(), Console()
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        original = seeded(getattr(models, name), 0)
        for measured, part in BUDGETS:
            rows.append(examine(name, original, measured, part, options.batch, options.rounds))
            console.print(f"{rows[-1]['name']}: {rows[-1].get('refused') or format(rows[-1]['ratio'], '.3f')}", highlight=False)
            gc.collect()
    console.print(show(rows))
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_prune', rows)}")


if __name__ == "__main__":
    main()
