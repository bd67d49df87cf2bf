"""Train the network that `swcompile transform` has just written beside its original, on real images, and say what came out.

    make demo

The images are scikit-learn's 1,797 handwritten digits, blown up from 8x8 to 32x32. They are quickly learned: this shows that the
thing works and what it costs, not how much faster it learns (benchmarks/convergence.py asks that).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.models import seeded
from examples.resnet20 import build_model
from swcompile.check import Ledger

WINDOW = 20
"""Losses are means over so many steps: an epoch of batches of 64 is 22."""


@dataclass(frozen=True)
class Outcome:
    """What came of one training: the smoothed loss after each step, accuracy on held-out images, seconds a step."""

    losses: Sequence[float]
    accuracy: float
    pace: float

    def reached(self, loss: float) -> int | None:
        """Return the first step at which the smoothed loss is at or below the given one."""
        return next((step for step, value in enumerate(self.losses, start=WINDOW) if value <= loss), None)


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images (N, 3, 32, 32), centred around 0, and their classes, in an order that is always the same."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    return images[order].contiguous(memory_format=torch.channels_last), torch.tensor(classes)[order]


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, batch: int, progress: Progress, name: str) -> Outcome:
    """Train on all but the last 397 images; the batches are the same for every model."""
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    training = len(images) - 397
    losses, times = [], []
    for _ in progress.track(range(steps), description=name):
        chosen = torch.randint(training, (batch,), generator=generator)
        start = time.perf_counter()
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
        schedule.step()
    smooth = [statistics.fmean(losses[end - WINDOW : end]) for end in range(WINDOW, steps + 1)]
    return Outcome(smooth, accuracy(model, images[training:], labels[training:]), statistics.median(times))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of the images that are classified rightly."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def closing_table(ledger: Ledger, original: Outcome, rewired: Outcome, steps: int) -> Table:
    """Return what the network is and what training it gave, before and after."""
    before, after = ledger.before, ledger.after
    goal = original.losses[-1]
    table = Table(title=f"ResNet-20, original and rewired, after {steps} steps on scikit-learn's digits", box=box.SIMPLE_HEAD)
    for heading in ("", "original", "rewired"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, old, new, form in (
        ("parameters", before.params, after.params, ","),
        ("multiply-accumulates", before.macs, after.macs, ","),
        ("links that reach far", before.long_range, after.long_range, ".1%"),
        ("clustering C", before.C, after.C, ".4f"),
        ("path length L", before.L, after.L, ".3f"),
        ("small-worldness S", before.S, after.S, ".3f"),
        ("training loss", goal, rewired.losses[-1], ".4f"),
        ("accuracy, held out", original.accuracy, rewired.accuracy, ".1%"),
        ("steps to a loss of 0.1", original.reached(0.1), rewired.reached(0.1), ""),
        ("steps to the original's loss", original.reached(goal), rewired.reached(goal), ""),
        ("seconds a step", original.pace, rewired.pace, ".3f"),
    ):
        table.add_row(name, *("not reached" if value is None else format(value, form) for value in (old, new)))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Load what the command line wrote, train both, print one table."""
    parser = argparse.ArgumentParser(description="Train a rewired ResNet-20 beside its original, on digits.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("out/demo"), help="what swcompile transform wrote")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args(arguments)
    images, labels = digits()
    rewired = swnet.load(options.folder, seeded(build_model, 0))
    rewired.load_state_dict(seeded(build_model, 0).state_dict())  # the same start for both
    console = Console()
    with Progress(console=console, transient=True) as progress:
        original, small_world = (
            train(model, images, labels, options.steps, options.batch, progress, name)
            for name, model in (("original", seeded(build_model, 0)), ("rewired", rewired))
        )
    console.print(closing_table(swnet.ledger(rewired), original, small_world, options.steps))
    page = options.folder / "report.html"
    if page.exists():
        console.print(f"The network before and after, for a browser: {page}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
