"""Which score finds what a trained network can spare? A ResNet-20 trained on CIFAR-10, pruned to half its multiply-accumulates.

python -m benchmarks.bench_scores --epochs 12      train (once: the weights stay in the data folder), prune by each score
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.convergence import Arm, Grid, Images, steps, test_error
from benchmarks.data import folder, load
from benchmarks.models import resnet20, seeded

console = Console()


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
    save_file(model.state_dict(), file)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune by each score, fine-tune, and print the table."""
    parser = argparse.ArgumentParser(description="Prune a trained network by each score.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    grid = grid_of(options.epochs)
    images = Images(load(grid.data), grid)
    trained(grid, options.seed, images, folder() / f"resnet20-cifar10-{grid.epochs}-epochs-seed{options.seed}.safetensors")


if __name__ == "__main__":
    main()
