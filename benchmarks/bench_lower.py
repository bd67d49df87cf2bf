"""Does reading feature maps where they lie save time? Inference of networks as they are and lowered (swnet.lower), on a CPU.

    python -m benchmarks.bench_lower                                all of them; needs torchvision
    python -m benchmarks.bench_lower densenet121 --batch 1 8        one, at several batch sizes

A name with "+" in front is rewired first (p = 0.3), and compared with itself as rewired. One with "#" is rewired in tiles, of which
a quarter stays, and compared with the network that it was: what its masks take out is saved only where it is lowered. Both take
turns, each round in the other order; reported is the ratio of the median times beside the quartiles of the rounds' own ratios:
below 1 the lowered one is faster. Where it is predicted to save nothing (swnet.lower's backend "auto"), the network is left as it
is, and the row says so; --backend torch takes every gather all the same.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import swnet
from benchmarks.bench_prune import SHAPE, measure
from benchmarks.models import seeded
from benchmarks.record import compared, quartiles, write_timings
from benchmarks.vision import torchvision_models
from swcompile.errors import NothingToDoError
from swcompile.lower import BACKENDS

NETWORKS = ("densenet121", "+densenet121", "+resnet50", "+resnet18", "#resnet18", "#resnet50", "#vgg16")
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
REWIRED: dict[str, dict[str, Any]] = {"+": {"p": 0.3}, "#": {"p": 0.3, "wiring": "tile", "density": 0.25}}


def examine(
    name: str, model: nn.Module, layout: str, batch: int, rounds: int, backend: str = "auto", original: nn.Module | None = None
) -> dict[str, Any]:
    """Lower a network and time both; or, where the original is given, that and the lowered one."""
    row: dict[str, Any] = {"name": f"{name} {layout}", "shape": list(SHAPE), "dtype": "float32", "batch": batch, "rounds": rounds}
    row |= {"baseline": "rewired" if name.startswith("+") else "original", "peak_memory": None, "bytes": None, "flops": None}
    model = model.eval().to(memory_format=LAYOUTS[layout])
    images = torch.zeros(batch, *SHAPE).contiguous(memory_format=LAYOUTS[layout])
    try:
        lowered = swnet.lower(model, images, backend=backend)
    except NothingToDoError as error:  # the network has no concat at all
        return row | {"left_alone": str(error)}
    with torch.no_grad():
        lowered(images)
    chosen = swnet.ledger(lowered).lowered[-1]
    row |= {"backend": backend, "chosen": str(chosen)}
    if not any(choice.form != "plain" for choice in chosen.gathers):
        return row | {"left_alone": chosen.why}
    plain = model if original is None else original.eval().to(memory_format=LAYOUTS[layout])
    before, after = (np.array(times) for times in measure(plain, lowered, batch, rounds, layout=LAYOUTS[layout]))
    return row | {"plain_ms": quartiles(before), "lowered_ms": quartiles(after)} | compared(before, after)


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of ratios."""
    table = Table(title="Lowered against plain: inference on this machine's CPU", box=box.SIMPLE_HEAD)
    for heading in ("", "batch", "plain ms", "lowered ms", "ratio", "its quartiles"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        if "left_alone" in row:
            table.add_row(row["name"], str(row["batch"]), "left alone", *("" for _ in range(3)))
            continue
        medians = (f"{row[kind][1]:.1f}" for kind in ("plain_ms", "lowered_ms"))
        low, _, high = row["ratio_quartiles"]
        table.add_row(row["name"], str(row["batch"]), *medians, f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the networks, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Time networks as they are and lowered.")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="names in torchvision.models, + or # in front rewires")
    parser.add_argument("--rounds", type=int, default=15, help="inferences of each (default: 15)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    models, console = torchvision_models(), Console()
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        original = seeded(getattr(models, name.lstrip("+#")), 0)
        how = REWIRED.get(name[0])
        model = original if how is None else swnet.transform(original, torch.zeros(1, *SHAPE), **how)
        for layout in LAYOUTS:
            for batch in options.batch:
                against = original if name.startswith("#") else None
                rows.append(examine(name, model, layout, batch, options.rounds, options.backend, against))
                gc.collect()
    console.print(show(rows))
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_lower', rows)}")


if __name__ == "__main__":
    main()
