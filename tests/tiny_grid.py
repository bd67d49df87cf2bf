"""A grid that trains in a second or two, for tests that stop and go on: the command itself, on made-up images, in any process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import convergence
from benchmarks.data import Dataset, write_npz
from benchmarks.lab import training
from benchmarks.lab.grids import Arm, Grid, Task
from benchmarks.lab.networks import MODELS

ORIGINAL, BLOCK, KERNEL = Arm("original"), Arm("block-p0.3", 0.3), Arm("kernel-p0.3", 0.3, "kernel")


def net(classes: int = 10, channels: int = 3, size: int = 8) -> nn.Sequential:
    """Return what has all that a checkpoint must hold: weights, running statistics, dropout."""
    body: list[nn.Module] = []
    for width in (8, 8, 16, 16):
        body += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)]
        channels = width
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


training.MODELS = MODELS | {"net": net}  # type: ignore[operator]

TASK = Task("net", "cifar10", (ORIGINAL, BLOCK, KERNEL), epochs=3, batch=16, evaluations=2, schedule="one-cycle")
TINY = Grid("tiny", (TASK, replace(TASK, schedule="plateau", variant="plateau", rotation=10.0)), seeds=(0, 1))
PLAIN = replace(TASK, model="plain_mlp", arms=(ORIGINAL, BLOCK), schedule="steps", evaluations=1)
SHARED = Grid("shared", (PLAIN,), seeds=(0,))
"""Without norms and dropout, which see the share of a rank: it comes to the same on any number of processes."""
LONG = Grid("long", (replace(PLAIN, epochs=10_000),), seeds=(0,))
GRIDS: Mapping[str, Grid] = {grid.name: grid for grid in (TINY, SHARED, LONG)}


def small_set(images: int = 96, size: int = 8) -> Dataset:
    """Make up images of ten classes."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, images)
    labels[:10] = np.arange(10)
    return Dataset("cifar10", pixels, labels, pixels[:20], labels[:20])


def main(
    arguments: Sequence[str],
    data: Path,
    environment: Mapping[str, str] = {},
    log: Path | None = None,
    out: Path | None = None,
) -> None:
    """Run the command as a process of its own does; with `log`, write a line there for every step, with `out`, what it prints."""
    if out:
        with out.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    os.environ |= {"SWCOMPILE_DATA": str(data), **environment}
    torch.set_num_threads(1)
    if not (data / "cifar10.npz").exists():
        write_npz(small_set(), data)
    if log:
        advance = training.Training.advance

        def counted(self: training.Training, *batch: torch.Tensor) -> None:
            advance(self, *batch)
            with log.open("a") as stream:
                stream.write(f"{self.run.name} {self.step}\n")

        training.Training.advance = counted  # type: ignore[method-assign]
    convergence.GRIDS = GRIDS
    convergence.main(arguments)


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))
