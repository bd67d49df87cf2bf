"""Does a rewired network learn in fewer steps? Train an original and its rewired twins on the same images, and compare curves.

    python -m benchmarks.convergence quick                                one original, one rewired at p = 0.3; about 10 minutes
    python -m benchmarks.convergence quick --report                       the tables again, from the raw curves alone
    python -m benchmarks.convergence densenet40-short --seeds 0 1 2       3 epochs of DenseNet-40 and of nets a tenth its size
    python -m benchmarks.convergence densenet40 --seeds 0 1 2             the same for 300 epochs: for a GPU

Each needs `make data`. A grid is a dataclass: what is trained, on what, for how long, which arms. The arms of one seed start from
the same weights (where they have the same) and see the same images, in the same order and augmented alike, under the same schedule.
A curve is a file of JSON lines, one an evaluation; `train_loss` in it is the mean over the last epoch's worth of steps (fewer at
the start), so that the original's last value is the mean loss of its last epoch. A run whose curve is there already is not run
again unless `--again` says so, and a grid that was stopped goes on with the run it was in; `--arms` lets several processes share
one. A target counts as
reached at the first evaluation around which the median of three is at or below it. The seconds are those of this machine beside
whatever else ran on it: for the cost of a step see bench_step.py.
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
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.data import Dataset, load
from benchmarks.models import densenet, parameters, plain_cnn21, resnet20, seeded
from benchmarks.record import RESULTS, provenance, write_whole

CPU = torch.device("cpu")
PADDING = 4
console = Console()


def densenet40(classes: int, channels: int) -> nn.Module:
    """Return DenseNet-40 (k = 12)."""
    return densenet(40, 12, classes, channels=channels)


def narrow_densenet40(classes: int, channels: int) -> nn.Module:
    """Return a DenseNet of as many layers with 96,637 parameters at 3 channels: 3 new ones a layer behind 25 at first."""
    return densenet(40, 3, classes, first=25, channels=channels)


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "plain_cnn21": plain_cnn21,
    "resnet20": resnet20,
    "densenet40": densenet40,
    "narrow_densenet40": narrow_densenet40,
}


@dataclass(frozen=True)
class Arm:
    """One kind of network in a grid; without p it is as it was built."""

    name: str
    p: float | None = None
    wiring: str = "block"
    params: int | None = None
    """The budget to prune to, of parameters; None prunes nothing."""
    model: str | None = None
    """Another network than the grid's: a control."""


ORIGINAL = Arm("original")


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
    schedule: Literal["one-cycle", "steps"] = "one-cycle"
    """How `lr` goes: "one-cycle" is up to it and down again, "steps" a tenth of it after half and three quarters of the epochs."""
    bfloat16: bool = False
    """Whether forward and backward run under autocast to bfloat16."""
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

    @property
    def options(self) -> dict[str, Any]:
        """Return what must be equal for two curves to compare."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "arms"}


QUICK = Grid(
    name="quick",
    model="plain_cnn21",
    data="cifar10",
    arms=(ORIGINAL, Arm("block-p0.3", 0.3)),
    epochs=6,
    train_images=12_000,
    test_images=1_000,
)

DENSENET40 = Grid(
    name="densenet40",
    model="densenet40",
    data="cifar10",
    arms=(
        ORIGINAL,
        Arm("small-world-98K", 0.3, params=98_000),
        Arm("nearest-98K", 0.0, params=98_000),
        Arm("narrow-97K", model="narrow_densenet40"),
    ),
    epochs=300,
    batch=64,
    lr=0.1,
    weight_decay=1e-4,
    schedule="steps",
    bfloat16=True,
    evaluations=2,
)
"""DenseNet's own schedule and augmentation (arXiv 1608.06993, section 4.2), against nets of SWNet's 98K parameters."""

GRIDS = {
    grid.name: grid
    for grid in (QUICK, DENSENET40, dataclasses.replace(DENSENET40, name="densenet40-short", epochs=3, schedule="one-cycle"))
}


class Images:
    """A set's images on a device: padded training images to crop from, normalised test images."""

    def __init__(self, data: Dataset, grid: Grid, device: torch.device = CPU) -> None:
        self.device, self.bfloat16 = device, grid.bfloat16
        self.mean, self.std = (torch.tensor(value, device=device) * 255 for value in (data.mean, data.std))
        train = torch.from_numpy(data.train_images[: grid.train_images])
        self.size = train.shape[1]
        self.padded = F.pad(train, (0, 0, PADDING, PADDING, PADDING, PADDING)).to(device)
        self.labels = torch.from_numpy(data.train_labels[: grid.train_images]).to(device)
        self.test = self._ready(torch.from_numpy(data.test_images[: grid.test_images]).to(device))
        self.test_labels = torch.from_numpy(data.test_labels[: grid.test_images]).to(device)

    def logits(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return a model's outputs for a batch, in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return model(batch).float()

    def _ready(self, images: Tensor) -> Tensor:
        """Normalise images (N, H, W, C) in uint8 and return them as (N, C, H, W) in channels-last order."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order, flipped at random and shifted by up to PADDING; a short last batch is left out."""
        order = torch.randperm(len(self.labels), generator=generator)
        for chosen in order.split(batch)[: len(order) // batch]:
            yield self._cropped(chosen, generator), self.labels[chosen.to(self.device)]

    def _cropped(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        place = torch.arange(self.size)
        shift = torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1), generator=generator)
        flip = torch.rand(len(chosen), 1, generator=generator) < 0.5
        rows = place + shift[0]  # (N, H)
        columns = torch.where(flip, place.flip(0), place) + shift[1]  # (N, W)
        places = (chosen[:, None, None], rows[:, :, None], columns[:, None, :])
        return self._ready(self.padded[tuple(place.to(self.device) for place in places)])


def build(grid: Grid, arm: Arm, seed: int, example: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """Return an arm's network and what the curve says about it: parameters, multiply-accumulates a sample, p."""
    original = seeded(MODELS[arm.model or grid.model], seed, 10, example.shape[1])
    rewired = swnet.transform(original, example, p=arm.p or 0.0, wiring=arm.wiring, params=arm.params, seed=seed)
    ledger = swnet.ledger(rewired)
    if arm.p is None:
        return original, {"params": parameters(original), "macs": ledger.before.macs, "p_achieved": 0.0}
    return rewired, {"params": ledger.after.params, "macs": ledger.after.macs, "p_achieved": ledger.after.p_achieved}


def train(grid: Grid, arm: Arm, seed: int, images: Images) -> list[dict[str, Any]]:
    """Train one arm and return its curve, one record an evaluation."""
    model, about = build(grid, arm, seed, images.test[:2].cpu())
    model = model.to(images.device, memory_format=torch.channels_last)
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
    schedule = scheduled(optimizer, grid, grid.epochs * per_epoch)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for _ in range(grid.epochs):
        for batch, labels in images.batches(grid.batch, generator):
            lr = schedule.get_last_lr()[0]
            yield one_step(images.logits(model, batch), labels, optimizer), lr
            schedule.step()


def scheduled(optimizer: torch.optim.Optimizer, grid: Grid, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of a grid over `total` steps."""
    if grid.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, grid.lr, total_steps=total)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [total // 2, total * 3 // 4], gamma=0.1)


def one_step(logits: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Take one step from a batch's outputs and return the loss in front of it."""
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def test_error(model: nn.Module, images: Images) -> float:
    """Return the share of the test images that are classified wrongly; leaves the model in training mode."""
    model.eval()
    wrong = sum(
        int((images.logits(model, batch).argmax(1) != labels).sum())
        for batch, labels in zip(images.test.split(500), images.test_labels.split(500), strict=True)
    )
    model.train()
    return wrong / len(images.test_labels)


def _identity(grid: Grid, arm: Arm, seed: int) -> dict[str, Any]:
    """Return what tells one run from another."""
    trained = {"grid": grid.name, "model": arm.model or grid.model, "data": grid.data, "subset": grid.subset, "arm": arm.name}
    topology = {"p": arm.p or 0.0, "wiring": None if arm.p is None else arm.wiring, "params_budget": arm.params}
    return trained | topology | {"seed": seed, "topology_seed": seed, "options": grid.options}


# --- from curves to a table --------------------------------------------------------------------------------------------------

Curve = Sequence[Mapping[str, Any]]


def reached(curve: Curve, key: str, target: float) -> int | None:
    """Return the step of the first evaluation around which the median of three is at or below the target, or None."""
    values = [record[key] for record in curve]
    for place in range(1, len(curve)):
        if statistics.median(values[place - 1 : place + 2]) <= target:
            return int(curve[place]["step"])
    return None


def read_curve(file: Path) -> list[dict[str, Any]]:
    """Read one curve."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_curves(grid: Grid, folder: Path) -> list[list[dict[str, Any]]]:
    """Read all curves of a grid's folder, by arm and seed."""
    places = {arm.name: place for place, arm in enumerate(grid.arms)}
    curves = [curve for curve in map(read_curve, sorted(folder.glob("*.jsonl"))) if curve]
    return sorted(curves, key=lambda curve: (places.get(curve[0]["arm"], len(places)), curve[0]["arm"], curve[0]["seed"]))


def comparable(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Return curves by arm; raise SystemExit where they do not compare or no original is among them."""
    if any(curve[0]["options"] != curves[0][0]["options"] for curve in curves):
        raise SystemExit("The curves were made under different options and do not compare; keep one grid a folder (--results).")
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve[0]["arm"], []).append(curve)
    if ORIGINAL.name not in arms:
        raise SystemExit("There is no curve of an original to compare with; run the grid first.")
    return arms


def summary(curves: Sequence[Curve]) -> Table:
    """Return the table of what each arm ends with: mean and standard deviation over its seeds."""
    arms = comparable(curves)
    last = next(iter(arms[ORIGINAL.name]))[-1]
    table = Table(title=f"After {last['epoch']:g} epochs on {last['subset']}", box=box.SIMPLE_HEAD)
    for heading in ("arm", "seeds", "params", "million MACs", "training loss", "test error", "s/step"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, runs in arms.items():
        ends = [run[-1] for run in runs]
        macs = statistics.fmean(end["macs"] / end["step"] / end["options"]["batch"] for end in ends)
        params = statistics.fmean(end["params"] for end in ends)
        pace = statistics.fmean(end["seconds"] / end["step"] for end in ends)
        measured = (spread([end[key] for end in ends]) for key in ("train_loss", "test_error"))
        table.add_row(arm, str(len(ends)), f"{params:,.0f}", f"{macs / 1e6:.1f}", *measured, f"{pace:.3f}")
    return table


def spread(values: Sequence[float]) -> str:
    """Return a mean with its standard deviation, where there is one."""
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def report(curves: Sequence[Curve]) -> Table:
    """Return the table: how soon each run reaches the mean loss that the originals end with, and what it ends with itself."""
    originals = comparable(curves)[ORIGINAL.name]
    target = statistics.fmean(curve[-1]["train_loss"] for curve in originals)
    total = originals[0][-1]
    table = Table(
        title=f"Steps to a training loss of {target:.3f}, the original's at the end ({total['subset']})", box=box.SIMPLE_HEAD
    )
    for heading in ("arm", "seed", "training loss", "test error", "params", "steps to target", "sooner by", "s/step"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for curve in curves:
        last = curve[-1]
        steps = last["step"] if last["arm"] == ORIGINAL.name else reached(curve, "train_loss", target)
        sooner = "not reached" if steps is None else f"{total['step'] / steps:.2f}x"
        pace = last["seconds"] / last["step"]
        losses = (f"{last['train_loss']:.3f}", f"{last['test_error']:.3f}")
        table.add_row(last["arm"], str(last["seed"]), *losses, f"{last['params']:,}", str(steps or "-"), sooner, f"{pace:.3f}")
    return table


def by_epoch(curve: Curve) -> str:
    """Return the training loss after each epoch, in one line."""
    losses = (f"{record['train_loss']:.3f}" for record in curve if float(record["epoch"]).is_integer())
    return f"training loss by epoch, {curve[0]['arm']}, seed {curve[0]['seed']}: {' '.join(losses)}"


def run(grid: Grid, seeds: Sequence[int], data: Dataset, folder: Path, device: torch.device = CPU, *, again: bool = False) -> None:
    """Train every arm with every seed, and keep each curve as soon as it is complete; what is kept is run `again` only if asked."""
    images = Images(data, grid, device)
    for seed in seeds:
        for arm in grid.arms:
            file = folder / f"{grid.model}-{grid.data}-{arm.name}-seed{seed}.jsonl"
            if file.exists() and not again:
                _recognise(file, grid, arm, seed)
                continue
            curve = train(grid, arm, seed, images)
            write_whole(file, "".join(json.dumps(record) + "\n" for record in curve))


def _recognise(file: Path, grid: Grid, arm: Arm, seed: int) -> None:
    """Say that a run is there already; raise SystemExit where the file holds another.

    What a curve does not say is what there was no choice of when it was written, and is what has become the default.
    """
    found, wanted = read_curve(file)[0], _identity(grid, arm, seed)
    options = {field.name: field.default for field in dataclasses.fields(Grid)} | found["options"]
    if any(options[key] != value for key, value in grid.options.items()) or any(
        found.get(key) != value for key, value in wanted.items() if key != "options"
    ):
        raise SystemExit(f"{file} was made under other options; move it away, or use another folder (--results).")
    console.print(f"{arm.name:16} seed {seed}  is there already", highlight=False)


def chosen(grid: Grid, arms: Sequence[str] | None) -> Grid:
    """Return a grid with the named arms only."""
    if unknown := set(arms or ()) - {arm.name for arm in grid.arms}:
        raise SystemExit(f"No arm {', '.join(sorted(unknown))}; {grid.name} has {', '.join(arm.name for arm in grid.arms)}.")
    return dataclasses.replace(grid, arms=tuple(arm for arm in grid.arms if arms is None or arm.name in arms))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a grid, or only report on its curves."""
    parser = argparse.ArgumentParser(description="Compare how fast and how well an original and its rewired twins learn.")
    parser.add_argument("grid", choices=GRIDS, help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of weights, data order and topology (default: 0)")
    parser.add_argument("--arms", nargs="+", help="only these arms (default: all)")
    parser.add_argument("--again", action="store_true", help="train also where a curve is there already, and replace it")
    parser.add_argument("--report", action="store_true", help="do not train; print the tables from the curves")
    parser.add_argument("--results", type=Path, default=RESULTS / "convergence", help="where the curves lie")
    options = parser.parse_args(arguments)
    grid = chosen(GRIDS[options.grid], options.arms)
    folder = options.results / grid.name
    if not options.report:
        device = torch.device("cuda") if torch.cuda.is_available() else CPU
        form = "bfloat16" if grid.bfloat16 else "float32"
        trained = f"{grid.model} on {grid.subset}, {grid.epochs} epochs of batch {grid.batch}"
        console.print(f"{trained}, {grid.schedule} from lr {grid.lr:g}, {form}, on {device.type}", highlight=False)
        run(grid, options.seeds, load(grid.data), folder, device, again=options.again)
    curves = read_curves(GRIDS[options.grid], folder)
    console.print(summary(curves))
    console.print(report(curves))
    for curve in curves:
        console.print(by_epoch(curve), highlight=False)


if __name__ == "__main__":
    main()
