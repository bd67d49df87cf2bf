"""The learning rate of each arm: all try the same rates, and a held-out part of the training set decides, never the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lab.grids import Arm, Grid, Run, Task
from benchmarks.lab.store import Place, read_curve

SEED = 100
"""Of weights, order and topology in tuning: none of those that are compared afterwards."""


def tuning_runs(grid: Grid) -> Iterator[Run]:
    """Yield a grid's runs of tuning, whose curves are kept in a folder of their own."""
    for task in grid.tasks:
        for arm in task.arms:
            yield from _of(grid, task, arm)


def _of(grid: Grid, task: Task, arm: Arm) -> Iterator[Run]:
    for lr in task.lrs:
        yield Run(f"{grid.name}-tuning", replace(task, epochs=task.tuning_epochs), arm, SEED, SEED, lr, tuning=True)


def chosen_rates(grid: Grid, results: Path) -> Mapping[tuple[str, str], float]:
    """Return the rate of each (task, arm), of those tasks of which the tuning is there for every arm.

    Half a tuning is none: some arms would be tuned and others not.
    """
    rates: dict[tuple[str, str], float] = {}
    for task in grid.tasks:
        runs = {arm.name: list(_of(grid, task, arm)) for arm in task.arms}
        places = {name: [Place(results, run) for run in arm_runs] for name, arm_runs in runs.items()}
        if task.lrs and all(place.finished() for arm_places in places.values() for place in arm_places):
            for name, arm_places in places.items():
                rates[task.name, name] = best([(place.run.lr, read_curve(place.curve)) for place in arm_places])
    return rates


def best(curves: Sequence[tuple[float, Sequence[Mapping[str, Any]]]]) -> float:
    """Return the rate of the curve with the lowest mean held-out error over the last quarter of its evaluations.

    A run that diverged is the worst; of equals the lowest rate is taken.
    """

    def score(curve: Sequence[Mapping[str, Any]]) -> float:
        last = curve[-math.ceil(len(curve) / 4) :]
        diverged = any(record["train_loss"] is None for record in last)
        return math.inf if diverged else sum(record["test_error"] for record in last) / len(last)

    return min(curves, key=lambda pair: (score(pair[1]), pair[0]))[0]
