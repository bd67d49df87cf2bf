"""Do networks learn lowered (swnet.lower, training=True) what they learn as they are, in what time, and the same in every run?

    python -m benchmarks.lowered_training                  DenseNet-121 and ResNet-18 rewired in tiles, 1,000 steps, seeds 0 1 2
    python -m benchmarks.lowered_training resnet18 --steps 20 --repeated 5 --batch 16 --images 500 --seeds 0 1        on a CPU

Each needs `make data`: they are trained on CIFAR-10, by SGD with momentum, in one cycle of the learning rate. A seed draws
weights, wiring, batches and crops, alike for both forms: "eager" is the network as it is, "lowered" what swnet.lower makes of it,
on a GPU by the kernels and under autocast to bfloat16, else in plain torch and float32. Their runs take turns, and neither is in a
CUDA graph. The seconds of a step are those behind the first steps, in which kernels are compiled and chosen.

Compared are curves of the training loss, in means over a twentieth of the steps: how far, as root mean square, a lowered run is
from the eager one of its seed, and how far eager runs of two seeds are from each other. In the mean over seeds the first shall be
no more than the second. Then one seed is trained lowered, twice, for fewer steps, by torch's deterministic algorithms: losses,
parameters and buffers shall have the same bits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import swnet
from benchmarks.bench_networks import kernels
from benchmarks.data import Dataset, load
from benchmarks.models import seeded
from benchmarks.record import RESULTS, Judged, hardware, write_timings, write_whole
from benchmarks.vision import torchvision_models
from examples.resnet18 import build_model
from swcompile.lower.rates import slug

PADDING = 4
WARMUP = 10
"""Steps that no clock counts, or a quarter of all where that is fewer."""
STEPS = 1000
"""What the target is for."""
WINDOWS = 20
FORMS = ("eager", "lowered")
Curve = Tensor
"""The training loss in front of each step (steps,), in float32 on the CPU."""


def densenet121(seed: int) -> nn.Module:
    """Return torchvision's DenseNet-121 for ten classes, with the 3x3 stem that is usual for 32x32 images."""

    def build() -> nn.Module:
        model: nn.Module = torchvision_models().densenet121(num_classes=10)
        features = model.get_submodule("features")
        features.conv0, features.pool0 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model

    return seeded(build, seed)


def tiled_resnet18(seed: int) -> nn.Module:
    """Return ResNet-18 rewired in tiles, of which a quarter stays: in training, its 3x3 layers are lowered as tiles alone."""
    example = torch.zeros(1, 3, 32, 32)
    return swnet.transform(seeded(build_model, seed), example, p=0.3, wiring="tile", density=0.25, seed=seed)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"densenet121": densenet121, "resnet18": tiled_resnet18}


@dataclass(frozen=True)
class Setting:
    """How networks are trained: where, of how many images a step, for how many steps."""

    device: torch.device
    batch: int = 256
    steps: int = STEPS
    lr: float = 0.1
    weight_decay: float = 5e-4

    @property
    def bfloat16(self) -> bool:
        return self.device.type == "cuda"

    def precision(self) -> torch.autocast:
        """Return the context that a model is called in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


class Images:
    """The images of a set on a device, normalised, in channels-last order; those for training padded, to crop from."""

    def __init__(self, data: Dataset, count: int | None, device: torch.device) -> None:
        mean, std = (torch.tensor(values) * 255 for values in (data.mean, data.std))

        def ready(images: Any) -> Tensor:
            return ((torch.from_numpy(images).float() - mean) / std).permute(0, 3, 1, 2)

        self.side = data.train_images.shape[1]
        self.padded = functional.pad(ready(data.train_images[:count]), (PADDING,) * 4).to(device)
        self.labels = torch.from_numpy(data.train_labels[:count]).to(device)
        self.test = ready(data.test_images[:count]).to(device)
        self.test_labels = torch.from_numpy(data.test_labels[:count]).to(device)

    def batches(self, on: Setting, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a batch for each step: epochs in random order, without their short last batches, flipped and shifted at random."""
        draw = torch.Generator().manual_seed(seed)
        if len(self.labels) < on.batch:
            raise SystemExit(f"{len(self.labels)} images make no batch of {on.batch}; take more (--images) or a smaller --batch.")

        def epochs() -> Iterator[Tensor]:
            while True:
                order = torch.randperm(len(self.labels), generator=draw)
                yield from order.split(on.batch)[: len(order) // on.batch]

        for chosen in itertools.islice(epochs(), on.steps):
            yield self._cropped(chosen, draw), self.labels[chosen.to(self.labels.device)]

    def _cropped(self, chosen: Tensor, draw: torch.Generator) -> Tensor:
        """Return images (N, C, H, W), each shifted by up to PADDING and flipped or not."""
        place = torch.arange(self.side)
        down, right = torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1), generator=draw)
        flipped = torch.rand(len(chosen), 1, generator=draw) < 0.5
        columns = torch.where(flipped, place.flip(0), place) + right  # (N, W)
        places = chosen[:, None, None], (place + down)[:, :, None], columns[:, None, :]
        images, rows, columns = (one.to(self.padded.device) for one in places)
        found = self.padded.permute(0, 2, 3, 1)[images, rows, columns]  # (N, H, W, C)
        return found.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Run:
    """What came of a run: its curve, the seconds of a step, the trained model."""

    curve: Curve
    seconds: float
    model: nn.Module


def train(form: str, model: nn.Module, images: Images, on: Setting, seed: int) -> Run:
    """Train a model in a form. The losses stay on the device until the end, so that no step waits for one."""
    model = model.to(on.device, memory_format=torch.channels_last).train()
    if form == "lowered":
        model = swnet.lower(model, images.test[:2], backend=kernels(on.device), training=True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=on.lr, momentum=0.9, weight_decay=on.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, on.lr, total_steps=on.steps)
    warmup, start = min(WARMUP, on.steps // 4), 0.0
    losses: list[Tensor] = []
    for place, (batch, labels) in enumerate(images.batches(on, seed)):
        if place == warmup:
            start = _now(on.device)
        with on.precision():
            loss = functional.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().float())
    seconds = (_now(on.device) - start) / (on.steps - warmup)
    return Run(torch.stack(losses).cpu(), seconds, model)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def wrong(model: nn.Module, images: Images, on: Setting) -> float:
    """Return the share of the test images that a model classifies wrongly."""
    model.eval()
    with on.precision():
        parts = zip(images.test.split(on.batch), images.test_labels.split(on.batch), strict=True)
        found = [int((model(batch).argmax(1) != labels).sum()) for batch, labels in parts]
    return sum(found) / len(images.test_labels)


# --- what is compared --------------------------------------------------------------------------------------------------------


def apart(one: Curve, other: Curve) -> float:
    """Return the distance of two curves: the root mean square difference of their means over a twentieth of the steps each."""
    windows = zip(one.double().tensor_split(WINDOWS), other.double().tensor_split(WINDOWS), strict=True)
    off = torch.stack([a.mean() - b.mean() for a, b in windows if len(a)])
    return float(off.square().mean().sqrt())


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch use its deterministic algorithms alone."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def differing(one: Run, other: Run) -> list[str]:
    """Name what two runs do not have the same bits of: their losses, parameters or buffers."""
    mine, theirs = ({"losses": run.curve} | dict(run.model.state_dict()) for run in (one, other))
    return [name for name, value in mine.items() if not _same_bits(value, theirs[name])]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    ours, theirs = (value.detach().cpu().contiguous().flatten().view(torch.uint8) for value in (one, other))
    return torch.equal(ours, theirs)


def examine(
    name: str,
    images: Images,
    on: Setting,
    seeds: Sequence[int],
    repeated: int,
    begin: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[tuple[str, int], Curve]]:
    """Train a network with all seeds in both forms; return the row, and the curves by form and seed."""
    curves: dict[tuple[str, int], Curve] = {}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    errors: dict[str, list[float]] = {form: [] for form in FORMS}
    chosen = ""
    for place, seed in enumerate(seeds):
        for form in FORMS[:: 1 if place % 2 else -1]:
            begin(f"{name}, {form}, seed {seed}")
            run = train(form, NETWORKS[name](seed), images, on, seed)
            curves[form, seed] = run.curve
            seconds[form].append(run.seconds)
            if form == "lowered":
                chosen = str(swnet.ledger(run.model).lowered[-1])
            errors[form].append(wrong(run.model, images, on))
    begin(f"{name}, lowered, twice for {repeated} steps")
    row: dict[str, Any] = {"name": name, "shape": [3, images.side, images.side], "dtype": "bfloat16" if on.bfloat16 else "float32"}
    row |= {"batch": on.batch, "images": len(images.labels), "steps": on.steps, "lr": on.lr, "seeds": list(seeds)}
    row |= {"baseline": "eager", "bytes": None, "flops": None, "peak_memory": None, "chosen": chosen}
    row |= {"seconds": seconds, "test_error": errors, "apart": _distances(curves, seeds)}
    return row | {"repeated": repeated, "differing": _repeated(name, images, on, seeds[0], repeated)}, curves


def _distances(curves: Mapping[tuple[str, int], Curve], seeds: Sequence[int]) -> dict[str, list[float]]:
    return {
        "forms": [apart(curves["lowered", seed], curves["eager", seed]) for seed in seeds],
        "seeds": [apart(curves["eager", one], curves["eager", other]) for one, other in itertools.combinations(seeds, 2)],
    }


def _repeated(name: str, images: Images, on: Setting, seed: int, steps: int) -> list[str]:
    """Train a network lowered, twice, and name what differs."""
    fewer = Setting(on.device, on.batch, steps, on.lr, on.weight_decay)
    with deterministic():
        return differing(*(train("lowered", NETWORKS[name](seed), images, fewer, seed) for _ in range(2)))


# --- what came out -----------------------------------------------------------------------------------------------------------


def judged(rows: Sequence[dict[str, Any]]) -> Iterator[Judged]:
    """Yield for each network how near its curves are, against those of seeds, and whether two runs had the same bits."""
    found = {row["name"]: row for row in rows}
    for name in NETWORKS:
        near = f"{name} trained on CIFAR-10: seeds' distance in that of lowered from eager"
        same = f"{name} trained lowered, twice: the same bits"
        row = found.get(name)
        if row is None:
            yield from (Judged(what, 1.0, None) for what in (near, same))
            continue
        yield _nearness(near, row)
        different = f", but for {', '.join(row['differing'][:3])}" if row["differing"] else ""
        yield Judged(same, 1.0, float(not row["differing"]), f"after {row['repeated']} steps{different}")


def _nearness(what: str, row: Mapping[str, Any]) -> Judged:
    forms, seeds = row["apart"]["forms"], row["apart"]["seeds"]
    if row["steps"] < STEPS or not seeds:
        return Judged(what, 1.0, None, f"it takes {STEPS} steps and two seeds")
    ours, theirs = statistics.fmean(forms), statistics.fmean(seeds)
    return Judged(what, 1.0, theirs / ours if ours else float("inf"), f"{ours:.4f} apart, seeds {theirs:.4f}")


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of networks and forms, means over the seeds: lowered curves are apart from eager ones, those from seeds'."""
    table = Table(title="Trained on CIFAR-10, lowered and as they are", box=box.SIMPLE_HEAD)
    for heading in ("", "form", "steps", "batch", "s/step", "test error", "curves apart"):
        table.add_column(heading, justify="left" if heading in ("", "form") else "right")
    for row in rows:
        for form, kind in zip(FORMS, ("seeds", "forms"), strict=True):
            means = (f"{statistics.fmean(row[of][form]):.4f}" for of in ("seconds", "test_error"))
            distance = f"{statistics.fmean(row['apart'][kind]):.5f}" if row["apart"][kind] else ""
            table.add_row(row["name"], form, str(row["steps"]), str(row["batch"]), *means, distance)
    return table


def lines(name: str, curves: Mapping[tuple[str, int], Curve]) -> str:
    """Return curves as JSON lines, one a step of a run."""
    told = (
        {"network": name, "form": form, "seed": seed, "step": step, "loss": loss}
        for (form, seed), curve in curves.items()
        for step, loss in enumerate(curve.tolist(), start=1)
    )
    return "".join(json.dumps(one) + "\n" for one in told)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks; print the table and what was to be reached, and keep rows and curves."""
    parser = argparse.ArgumentParser(description="Train networks lowered and as they are, and compare curves, time and bits.")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run (default: {STEPS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeated", type=int, default=100, help="steps of the two runs whose bits are compared (default: 100)")
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 32)
    parser.add_argument("--images", type=int, help="the first of each half of the set (default: all)")
    parser.add_argument("--lr", type=float, default=0.1, help="at the height of the cycle (default: 0.1)")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.networks if name not in NETWORKS]:
        parser.error(f"there is no network {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is refused where all is to be deterministic
    torch.backends.cudnn.benchmark = True
    console, device = Console(), torch.device("cuda" if on_gpu else "cpu")
    on = Setting(device, options.batch, options.steps, options.lr)
    images, rows = Images(load("cifar10"), options.images, device), []
    say = functools.partial(console.print, highlight=False)
    for name in options.networks:
        row, curves = examine(name, images, on, options.seeds, options.repeated, say)
        rows.append(row)
        if not options.no_record:
            folder = RESULTS / slug(hardware())
            say(f"Kept in {write_whole(folder / f'lowered_training_{name}.jsonl', lines(name, curves))}")
            say(f"Kept in {write_timings(f'lowered_training_{name}', [row])}")
    console.print(show(rows))
    for one in judged(rows):
        if one.what.partition(" ")[0] in options.networks:
            say(str(one))


if __name__ == "__main__":
    main()
