"""Which score finds what a trained network can spare? A ResNet-20 trained on CIFAR-10, pruned to half its multiply-accumulates.

    python -m benchmarks.bench_scores                  needs `make data`, pip install 'swcompile[pruning]', 1.5 hours on a core
    python -m benchmarks.bench_scores --epochs 200     as networks of this kind are trained; for a GPU

Trained once: the weights stay in the data folder. Each arm prunes the same weights to the same budget, and is evaluated as it is,
with the statistics of its norms taken anew, and after one epoch of fine-tuning, the same images in the same order. `torch-pruning`
is that library's group-norm pruner, which takes whole channels out; ours takes out what each layer reads, in blocks of channels.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.convergence import Arm, Grid, Images, steps, test_error
from benchmarks.data import folder, load
from benchmarks.models import parameters, resnet20, seeded
from benchmarks.record import write_timings

console = Console()
Pruner = Callable[[nn.Module, int, Images], nn.Module]

BATCHES = 20
"""How many batches of training images the scores and the norms' statistics are taken from."""
LEAST, STEPS = 0.02, 200
"""torch-pruning goes in this many steps to this share of channels, and stops at the first within the budget."""


def grid_of(epochs: int) -> Grid:
    """Return how the original is trained: all images, one cycle up to a learning rate of 0.1."""
    return Grid(name="scores", model="resnet20", data="cifar10", arms=(Arm("original"),), epochs=epochs, lr=0.1)


def trained(grid: Grid, seed: int, images: Images, file: Path) -> nn.Module:
    """Return the trained original, from its file where there is one."""
    model = seeded(resnet20, seed).to(memory_format=torch.channels_last)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model
    per_epoch = len(images.labels) // grid.batch
    for step, (loss, _) in enumerate(steps(model, grid, seed, images), start=1):
        if step % per_epoch == 0:
            console.print(f"epoch {step // per_epoch}/{grid.epochs}  loss {loss:.3f}  test error {test_error(model, images):.3f}")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model


def batches(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches that scores and statistics are taken from."""
    for place, batch in enumerate(images.batches(128, torch.Generator().manual_seed(0))):
        if place == BATCHES:
            return
        yield batch


def by_score(how: str, **asked: Any) -> Pruner:
    """Return what prunes by a score of ours."""

    def prune(model: nn.Module, macs: int, images: Images) -> nn.Module:
        given = {"batches": batches(images)} if how in ("taylor", "correlation") else {}
        given |= {"loss_fn": F.cross_entropy} if how == "taylor" else {}
        return swnet.transform(model, images.test[:2], macs=macs, score=how, **{"p": 0, **given, **asked})

    return prune


def by_torch_pruning(model: nn.Module, macs: int, images: Images) -> nn.Module:
    """Prune by torch-pruning's group-norm pruner, the same share of each layer's channels."""
    import torch_pruning  # of the extra `pruning`, and nobody else's

    copied, example = copy.deepcopy(model), images.test[:1]
    pruner = torch_pruning.pruner.GroupNormPruner(
        copied,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - LEAST,
        iterative_steps=STEPS,
        ignored_layers=[module for module in copied.modules() if isinstance(module, nn.Linear)],
    )
    for _ in range(STEPS):
        if counted(copied, example) <= macs:
            return copied
        pruner.step()
    raise SystemExit(f"torch-pruning did not come down to {macs:,} multiply-accumulates.")


def counted(model: nn.Module, example: Tensor) -> int:
    """Count multiply-accumulates a sample, in one way for all arms."""
    return swnet.analyze(model, example, points=2).graph.macs


ARMS: dict[str, Pruner] = {
    "weight": by_score("weight"),
    "norm": by_score("norm"),
    "taylor": by_score("taylor"),
    "correlation": by_score("correlation"),
    "taylor, global": by_score("taylor", spread="global"),
    "taylor, blocks of 1": by_score("taylor", block=1),
    "taylor, global, blocks of 1": by_score("taylor", block=1, spread="global"),
    "distance (not trained on)": by_score("distance"),
    "torch-pruning group norm": by_torch_pruning,
}


def examine(name: str, model: nn.Module, macs: int, grid: Grid, seed: int, images: Images) -> dict[str, Any]:
    """Prune by one arm and return its counts and test errors."""
    began = time.perf_counter()
    pruned = ARMS[name](model, macs, images)
    seconds = time.perf_counter() - began
    found = counted(pruned, images.test[:2])
    assert found <= macs, f"{name} has {found:,} multiply-accumulates of at most {macs:,}"
    row = {"name": name, "seed": seed, "baseline": "original", "params": parameters(pruned), "macs": found, "budget": macs}
    row |= {"prune_seconds": round(seconds, 2), "error_pruned": test_error(pruned, images)}
    recalibrate(pruned, images)
    row["error_calibrated"] = test_error(pruned, images)
    pruned = pruned.to(memory_format=torch.channels_last)
    for _ in steps(pruned, dataclasses.replace(grid, epochs=1, lr=0.02), seed, images):
        pass
    return row | {"error_tuned": test_error(pruned, images)}


def recalibrate(model: nn.Module, images: Images) -> None:
    """Take the norms' statistics anew, alike for all arms."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    with torch.no_grad():
        for inputs, _ in batches(images):
            model(inputs)
    for norm in norms:
        norm.momentum = 0.1


def show(rows: Sequence[dict[str, Any]], whole: dict[str, Any]) -> Table:
    """Return the table of test accuracies."""
    table = Table(
        title=f"Test accuracy (%) of a ResNet-20 at half its MACs; whole: {100 - 100 * whole['error']:.2f} with "
        f"{whole['params']:,} parameters, {whole['macs']:,} MACs",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("", "parameters", "MACs", "pruned", "calibrated", "one epoch later"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        errors = (f"{100 - 100 * row[f'error_{stage}']:.2f}" for stage in ("pruned", "calibrated", "tuned"))
        table.add_row(row["name"], f"{row['params']:,}", f"{row['macs']:,}", *errors)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune by each arm, fine-tune, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Prune a trained network by each score.")
    parser.add_argument("arms", nargs="*", default=tuple(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--epochs", type=int, default=8, help="how long the original is trained (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    grid = grid_of(options.epochs)
    images = Images(load(grid.data), grid)
    file = folder() / f"resnet20-cifar10-{grid.epochs}-epochs-seed{options.seed}.safetensors"
    model = trained(grid, options.seed, images, file).eval()
    whole = {"error": test_error(model, images), "params": parameters(model), "macs": counted(model, images.test[:2])}
    rows: list[dict[str, Any]] = []
    for name in options.arms:
        rows.append(
            examine(name, model, whole["macs"] // 2, grid, options.seed, images) | {"original": whole, "subset": grid.subset}
        )
        rows[-1] |= {"epochs": grid.epochs}
        console.print(f"{name}: error {rows[-1]['error_pruned']:.4f}, tuned {rows[-1]['error_tuned']:.4f}", highlight=False)
        if not options.no_record:
            write_timings("bench_scores", rows)
    console.print(show(rows, whole))


if __name__ == "__main__":
    main()
