"""Do exported forms compute what the module does? Ten architectures, rewired, in each form, at two batch sizes.

    python -m benchmarks.exports                    all; needs torchvision, onnx, onnxscript and onnxruntime
    python -m benchmarks.exports resnet20 vit       some

Reported is the largest difference from the module as a part of its largest output (of 1, where that is smaller) in float32, on a
CPU. Norms have seen some batches, and parameters of zeros are drawn, so that no layer is without effect.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import swnet
from benchmarks.lab.networks import mlp, mobilenet_v2
from benchmarks.models import densenet, resnet20, seeded
from benchmarks.record import write_timings
from benchmarks.vision import torchvision_models
from swcompile.export import FORMS, export
from swcompile.lower.rates import version_of

TARGET = 1e-5


class Case(NamedTuple):
    """A network, the side of its images, and how it is rewired."""

    build: Callable[[], nn.Module]
    side: int
    options: Mapping[str, Any]


def cases() -> dict[str, Case]:
    """Return the ten by name: small variants on small images."""
    models = torchvision_models()
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "num_classes": 10}
    block = models.convnext.CNBlockConfig
    stages = [block(32, 64, 2), block(64, 128, 2), block(128, None, 2)]
    return {
        "resnet20": Case(resnet20, 32, {"p": 0.3}),
        "vgg11_bn, tile": Case(lambda: models.vgg11_bn(num_classes=10), 32, {"p": 0.3, "wiring": "tile", "density": 0.25}),
        "densenet22, params=80000": Case(lambda: densenet(22), 32, {"p": 0.3, "params": 80_000}),
        "mobilenet_v2, density=0.5": Case(mobilenet_v2, 32, {"p": 0.3, "density": 0.5}),
        "efficientnet_b0": Case(lambda: models.efficientnet_b0(num_classes=10), 64, {"p": 0.3}),
        "squeezenet1_1": Case(lambda: models.squeezenet1_1(num_classes=10), 64, {"p": 0.3, "resample": "avg"}),
        "shufflenet_v2_x0_5": Case(lambda: models.shufflenet_v2_x0_5(num_classes=10), 64, {"p": 0.3}),
        "convnext, 6 blocks": Case(lambda: models.ConvNeXt(stages, num_classes=10), 64, {"p": 0.3}),
        "vit, 4 blocks": Case(lambda: models.VisionTransformer(**vit), 32, {"p": 0.3}),
        "mlp, kernel": Case(lambda: mlp(width=64), 32, {"p": 0.3, "wiring": "kernel"}),
    }


def rewired(case: Case) -> nn.Module:
    """Rewire a network, and give all of it an effect."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, case.side, case.side)
    module = swnet.transform(seeded(case.build, 0), images, **case.options)
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        for _ in range(3):
            module.train()(images)
    return module.eval()


def examine(name: str, case: Case, module: nn.Module, to: str) -> dict[str, Any]:
    """Export one network in one form, and say how it compares."""
    with tempfile.TemporaryDirectory() as folder:
        done = export(module, Path(folder) / "out", to=to)
    return {
        "name": name,
        "to": to,
        "dtype": "float32",
        "side": case.side,
        "options": dict(case.options),
        "difference": done.comparison.difference,
        "batches": list(done.comparison.batches),
        "open_batch": done.open_batch,
    }


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of differences: a row a network, a column a form."""
    table = Table(title="Exported against the module, largest difference", box=box.SIMPLE_HEAD)
    for heading in ("", *FORMS):
        table.add_column(heading, justify="right" if heading else "left")
    found = {(row["name"], row["to"]): f"{row['difference']:.1e}" for row in rows}
    for name in dict.fromkeys(row["name"] for row in rows):
        table.add_row(name, *(found.get((name, to), "") for to in FORMS))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Export the networks, print the table and keep the rows. Ends with 1 where one is off by more than 1e-5."""
    parser = argparse.ArgumentParser(description="Export rewired networks and compare them with the module.")
    parser.add_argument("networks", nargs="*", help="beginnings of names (default: all)")
    parser.add_argument("--to", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    console, rows = Console(), []
    asked = {name: case for name, case in cases().items() if not options.networks or name.startswith(tuple(options.networks))}
    modules = {name: rewired(case) for name, case in asked.items()}
    versions = {name: version_of(name) for name in ("onnx", "onnxscript", "onnxruntime", "torchvision")}
    for to, name in itertools.product(options.to, asked):
        rows.append(examine(name, asked[name], modules[name], to) | {"versions": versions})
        console.print(f"{name} to {to}: {rows[-1]['difference']:.1e}", highlight=False)
        if not options.no_record:
            write_timings("exports", rows)  # again after each, so that an interruption leaves what was found
    console.print(show(rows))
    if any(row["difference"] > TARGET for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
