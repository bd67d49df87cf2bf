"""Does a rewired network learn in fewer steps? Train an original and its rewired twins on the same images, and compare curves.

    python benchmarks/convergence.py --quick             one original, one rewired at p = 0.3; needs `make data`; about 10 minutes
    python benchmarks/convergence.py --quick --report    the table again, from the raw curves alone

A grid is a dataclass: what is trained, on what, for how long, which arms. The arms of one seed start from the same weights and see
the same images, in the same order and augmented alike, under the same one-cycle schedule. A curve is a file of JSON lines, one an
evaluation; `train_loss` in it is the mean over the last epoch's worth of steps (fewer at the start), so that the original's last
value is the mean loss of its last epoch. A target counts as reached at the first evaluation around which the median of three is at
or below it. The seconds are those of this machine while the arms took turns on it: for the cost of a step see bench_step.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.data import Dataset, load
from benchmarks.models import parameters, plain_cnn21, resnet20, seeded
from benchmarks.record import RESULTS, provenance, write_whole

MODELS: Mapping[str, Callable[..., nn.Module]] = {"plain_cnn21": plain_cnn21, "resnet20": resnet20}
PADDING = 4
QUICK_P = 0.3
console = Console()


@dataclass(frozen=True)
class Arm:
    """One kind of network in a grid; without p it is the original."""

    name: str
    p: float | None = None
    wiring: str = "block"


@dataclass(frozen=True)
class Grid:
    """What is trained, and how. `train_images` and `test_images` count from the front of the set; None is all."""

    name: str
    model: str
    data: str
    arms: tuple[Arm, ...]
    epochs: int
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train_images: int | None = None
    test_images: int | None = None
    evaluations: int = 8
    """Evaluations an epoch."""

    @property
    def subset(self) -> str:
        """Say which images are used, so that no subset goes by the full set's name."""
        named = ((self.train_images, "training"), (self.test_images, "test"))
        parts = (f"all {kind} images" if count is None else f"the first {count:,} {kind} images" for count, kind in named)
        return f"{' and '.join(parts)} of {self.data}"


QUICK = Grid(
    name="quick",
    model="plain_cnn21",
    data="cifar10",
    arms=(Arm("original"), Arm("block-p0.3", QUICK_P)),
    epochs=6,
    train_images=12_000,
    test_images=1_000,
)


class Images:
    """A set's images in memory: padded training images to crop from, normalised test images."""

    def __init__(self, data: Dataset, grid: Grid) -> None:
        self.mean, self.std = torch.tensor(data.mean) * 255, torch.tensor(data.std) * 255
        train = torch.from_numpy(data.train_images[: grid.train_images])
        self.size = train.shape[1]
        self.padded = F.pad(train, (0, 0, PADDING, PADDING, PADDING, PADDING))
        self.labels = torch.from_numpy(data.train_labels[: grid.train_images])
        self.test = self._ready(torch.from_numpy(data.test_images[: grid.test_images]))
        self.test_labels = torch.from_numpy(data.test_labels[: grid.test_images])

    def _ready(self, images: Tensor) -> Tensor:
        """Normalise images (N, H, W, C) in uint8 and return them as (N, C, H, W) in channels-last order."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order, flipped at random and shifted by up to PADDING; a short last batch is left out."""
        order = torch.randperm(len(self.labels), generator=generator)
        for chosen in order.split(batch)[: len(order) // batch]:
            yield self._cropped(chosen, generator), self.labels[chosen]

    def _cropped(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        place = torch.arange(self.size)
        shift = torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1), generator=generator)
        flip = torch.rand(len(chosen), 1, generator=generator) < 0.5
        rows = place + shift[0]  # (N, H)
        columns = torch.where(flip, place.flip(0), place) + shift[1]  # (N, W)
        return self._ready(self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]])


def build(grid: Grid, arm: Arm, seed: int, example: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """Return an arm's network and what the curve says about it: parameters, multiply-accumulates a sample, p."""
    original = seeded(MODELS[grid.model], seed, 10, example.shape[1])
    rewired = swnet.transform(original, example, p=QUICK_P if arm.p is None else arm.p, wiring=arm.wiring, seed=seed)
    ledger = swnet.ledger(rewired)
    if arm.p is None:
        return original, {"params": parameters(original), "macs": ledger.before.macs, "p_achieved": 0.0}
    return rewired, {"params": ledger.after.params, "macs": ledger.after.macs, "p_achieved": ledger.after.p_achieved}


def train(grid: Grid, arm: Arm, seed: int, images: Images) -> list[dict[str, Any]]:
    """Train one arm and return its curve, one record an evaluation."""
    model, about = build(grid, arm, seed, images.test[:2])
    model = model.to(memory_format=torch.channels_last)
    per_epoch = len(images.labels) // grid.batch
    fixed = _identity(grid, arm, seed) | about | provenance()
    marks = {round(per_epoch * (place + 1) / grid.evaluations) for place in range(grid.evaluations)}
    recent: deque[float] = deque(maxlen=per_epoch)
    curve: list[dict[str, Any]] = []
    seconds, began = 0.0, time.perf_counter()
    for step, (loss, lr) in enumerate(steps(model, grid, seed, images), start=1):
        recent.append(loss)
        place = (step - 1) % per_epoch + 1
        if place not in marks:
            continue
        seconds += time.perf_counter() - began
        curve.append(
            fixed
            | {"step": step, "epoch": step / per_epoch, "macs": about["macs"] * step * grid.batch, "seconds": round(seconds, 3)}
            | {"train_loss": statistics.fmean(recent), "test_error": test_error(model, images), "lr": lr}
        )
        if place == per_epoch:
            last = curve[-1]
            console.print(
                f"{arm.name:12} seed {seed}  epoch {step // per_epoch}/{grid.epochs}  training loss {last['train_loss']:.3f}  "
                f"test error {last['test_error']:.3f}  {seconds:.0f} s"
            )
        began = time.perf_counter()
    return curve


def steps(model: nn.Module, grid: Grid, seed: int, images: Images) -> Iterator[tuple[float, float]]:
    """Train a model by a grid's schedule; yield, after each step, the loss in front of it and its learning rate."""
    per_epoch = len(images.labels) // grid.batch
    optimizer = torch.optim.SGD(
        model.parameters(), lr=grid.lr, momentum=grid.momentum, nesterov=True, weight_decay=grid.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, grid.lr, total_steps=grid.epochs * per_epoch)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for _ in range(grid.epochs):
        for batch, labels in images.batches(grid.batch, generator):
            lr = schedule.get_last_lr()[0]
            yield one_step(model, optimizer, batch, labels), lr
            schedule.step()


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, labels: Tensor) -> float:
    """Take one step and return the loss in front of it."""
    loss = F.cross_entropy(model(batch), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def test_error(model: nn.Module, images: Images) -> float:
    """Return the share of the test images that are classified wrongly; leaves the model in training mode."""
    model.eval()
    wrong = sum(
        int((model(batch).argmax(1) != labels).sum())
        for batch, labels in zip(images.test.split(500), images.test_labels.split(500), strict=True)
    )
    model.train()
    return wrong / len(images.test_labels)


def _identity(grid: Grid, arm: Arm, seed: int) -> dict[str, Any]:
    named = {"grid": grid.name, "model": grid.model, "data": grid.data, "subset": grid.subset, "seed": seed, "topology_seed": seed}
    options = {key: value for key, value in dataclasses.asdict(grid).items() if key != "arms"}
    return named | {"arm": arm.name, "p": arm.p or 0.0, "wiring": None if arm.p is None else arm.wiring, "options": options}


# --- from curves to a table --------------------------------------------------------------------------------------------------

Curve = Sequence[Mapping[str, Any]]


def reached(curve: Curve, key: str, target: float) -> int | None:
    """Return the step of the first evaluation around which the median of three is at or below the target, or None."""
    values = [record[key] for record in curve]
    for place in range(1, len(curve)):
        if statistics.median(values[place - 1 : place + 2]) <= target:
            return int(curve[place]["step"])
    return None


def read_curves(folder: Path) -> list[list[dict[str, Any]]]:
    """Read all curves of a grid's folder, by arm and seed."""
    curves = [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.glob("*.jsonl"))]
    return sorted((curve for curve in curves if curve), key=lambda curve: (curve[0]["p"], curve[0]["arm"], curve[0]["seed"]))


def report(curves: Sequence[Curve]) -> Table:
    """Return the table: how soon each arm reaches the mean loss that the originals end with, and what it ends with itself."""
    originals = {curve[0]["seed"]: curve for curve in curves if curve[0]["wiring"] is None}
    if not originals:
        raise SystemExit("There is no curve of an original to compare with; run the grid first.")
    if any(curve[0]["options"] != curves[0][0]["options"] for curve in curves):
        raise SystemExit("The curves were made under different options and do not compare; keep one grid a folder (--results).")
    target = statistics.fmean(curve[-1]["train_loss"] for curve in originals.values())
    total = next(iter(originals.values()))[-1]
    table = Table(
        title=f"Steps to a training loss of {target:.3f}, the original's at the end ({total['subset']})", box=box.SIMPLE_HEAD
    )
    for heading in ("arm", "seed", "training loss", "test error", "params", "steps to target", "sooner by", "s/step"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for curve in curves:
        last = curve[-1]
        steps = last["step"] if last["wiring"] is None else reached(curve, "train_loss", target)
        sooner = "not reached" if steps is None else f"{total['step'] / steps:.2f}x"
        pace = last["seconds"] / last["step"]
        losses = (f"{last['train_loss']:.3f}", f"{last['test_error']:.3f}")
        table.add_row(last["arm"], str(last["seed"]), *losses, f"{last['params']:,}", str(steps or "-"), sooner, f"{pace:.3f}")
    return table


def by_epoch(curve: Curve) -> str:
    """Return the training loss after each epoch, in one line."""
    losses = (f"{record['train_loss']:.3f}" for record in curve if float(record["epoch"]).is_integer())
    return f"training loss by epoch, {curve[0]['arm']}, seed {curve[0]['seed']}: {' '.join(losses)}"


def run(grid: Grid, seeds: Sequence[int], data: Dataset, folder: Path) -> None:
    """Train every arm with every seed, and keep each curve as soon as it is complete."""
    images = Images(data, grid)
    for seed in seeds:
        for arm in grid.arms:
            curve = train(grid, arm, seed, images)
            name = f"{grid.model}-{grid.data}-{arm.name}-seed{seed}.jsonl"
            write_whole(folder / name, "".join(json.dumps(record) + "\n" for record in curve))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a grid, or only report on its curves."""
    parser = argparse.ArgumentParser(description="Compare how fast an original and its rewired twins learn.")
    parser.add_argument("--quick", action="store_true", required=True, help="the small grid, the only one so far")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of weights, data order and topology (default: 0)")
    parser.add_argument("--p", type=float, default=QUICK_P, help="the rewired arm's p (default: 0.3)")
    parser.add_argument("--lr", type=float, default=QUICK.lr, help="the peak of the schedule, for all arms (default: 0.05)")
    parser.add_argument("--report", action="store_true", help="do not train; print the table from the curves")
    parser.add_argument("--results", type=Path, default=RESULTS / "convergence", help="where the curves lie")
    options = parser.parse_args(arguments)
    grid = dataclasses.replace(QUICK, arms=(Arm("original"), Arm(f"block-p{options.p:g}", options.p)), lr=options.lr)
    folder = options.results / grid.name
    if not options.report:
        console.print(f"{grid.model} on {grid.subset}, {grid.epochs} epochs of batch {grid.batch}, one-cycle up to lr {grid.lr:g}")
        run(grid, options.seeds, load(grid.data), folder)
    curves = read_curves(folder)
    console.print(report(curves))
    for curve in curves:
        console.print(by_epoch(curve), highlight=False)


if __name__ == "__main__":
    main()
