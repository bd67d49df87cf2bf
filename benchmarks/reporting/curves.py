"""Read raw curves, sort them into groups that compare, and say when a run reached a target.

A curve is a file of JSON lines, one an evaluation. Runs compare where grid, model, data and schedule are the same and all other
options but the learning rate are, which is tuned per arm.

    reached(values, target)   the first evaluation at which the median of it and both its neighbours is at or below the target

At the first and last evaluation the missing neighbour is the value itself. The window lies around an evaluation, not behind it,
so that a falling curve without noise counts as there exactly at its first value at or below the target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
Floats = NDArray[np.float64]

ORIGINAL = "original"
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""The shares of the original's budget whose mean errors are the targets: declared by the protocol, before any run."""
COSTS = ("step", "epoch", "macs", "seconds")
TUNING = "-tuning"
"""What the names of grids end with whose runs chose learning rates, on held-out training images: no evidence, and left out."""
NOT_COMPARED = {"name", "lr", "arms"}
"""Options that may differ within a group."""


@dataclass(frozen=True)
class Run:
    """One curve: an arm trained with one seed."""

    records: tuple[Record, ...]

    @property
    def arm(self) -> str:
        return str(self.records[0]["arm"])

    @property
    def seed(self) -> int:
        return int(self.records[0]["seed"])

    @property
    def topology(self) -> int:
        return int(self.records[0].get("topology_seed", self.seed))

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.records[0].get("options", {}))

    @property
    def last(self) -> Record:
        return self.records[-1]

    def values(self, key: str) -> Floats:
        """Return one column of the curve; what is no number, as the loss of a run that diverged, is NaN."""
        return np.array([record[key] for record in self.records], np.float64)

    @property
    def lr(self) -> float:
        """The highest learning rate that was asked for."""
        first = self.records[0]
        return float(first.get("base_lr", self.options.get("lr", first["lr"])))

    def peak(self) -> float | None:
        """Return the most memory that training took, in bytes, where it was measured."""
        found = [record["peak_memory"] for record in self.records if record.get("peak_memory") is not None]
        return max(found, default=None)

    @cached_property
    def schedule(self) -> str:
        """The schedule's name; curves from before there was a choice tell by their learning rates whether it was constant."""
        named = self.options.get("schedule")
        return str(named) if named else "constant" if len({record["lr"] for record in self.records}) == 1 else "decaying"

    @property
    def key(self) -> tuple[str, str, str, str]:
        first = self.records[0]
        return str(first["grid"]), str(self.options.get("model", first["model"])), str(first["data"]), self.schedule


@dataclass(frozen=True)
class Group:
    """The runs that compare: by arm, the original first. `unfinished` are runs that stopped before the budget's end."""

    grid: str
    model: str
    data: str
    schedule: str
    arms: Mapping[str, tuple[Run, ...]]
    unfinished: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.grid}: {self.model}, {self.data}, {self.schedule}"

    @property
    def slug(self) -> str:
        return "-".join((self.grid, self.model, self.data, self.schedule))

    @property
    def kind(self) -> str:
        """How the rate goes: "constant", "plateau" (it falls when the run itself stalls) or "decaying" (it falls by the clock)."""
        return self.schedule if self.schedule in ("constant", "plateau") else "decaying"

    @property
    def originals(self) -> tuple[Run, ...]:
        return self.arms[ORIGINAL]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All finished runs, arm by arm."""
        return tuple(run for runs in self.arms.values() for run in runs)

    @property
    def subset(self) -> str:
        return str(self.originals[0].last.get("subset", self.data))

    @cached_property
    def targets(self) -> dict[float, float]:
        """The mean test error of the original's runs at each share of the budget: at the last evaluation that is not past it."""
        return {share: float(np.mean([_at(run, share) for run in self.originals])) for share in FRACTIONS}


def _at(run: Run, share: float) -> float:
    steps = run.values("step")
    place = int(np.searchsorted(steps, share * steps[-1], side="right")) - 1
    return float(run.records[max(place, 0)]["test_error"])


def reached(values: Sequence[float] | Floats, target: float) -> int | None:
    """Return the place of the first value around which the median of three is at or below the target, or None.

    >>> reached([3, 1, 3, 3, 2, 2], 2)
    4
    """
    padded = np.concatenate([values[:1], values, values[-1:]])
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
    found = np.flatnonzero(medians <= target)  # never at a NaN: a run that diverged does not get there
    return int(found[0]) if len(found) else None


def read(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of all *.jsonl below the folders, but for those of tuning.

    Raises SystemExit where there are none, or one is no curve.
    """
    files = sorted({file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*.jsonl"))})
    runs = [run for run in map(_read_one, files) if run is not None and not run.key[0].endswith(TUNING)]
    if not runs:
        raise SystemExit(f"There are no curves (*.jsonl) in {', '.join(map(str, folders))}.")
    return runs


NEEDED = ("grid", "model", "data", "arm", "seed", "lr", "params", *COSTS, "train_loss", "test_error")


def _read_one(file: Path) -> Run | None:
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        missing = [key for record in records for key in NEEDED if key not in record]
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{file} is not a curve of JSON lines: {error}.") from error
    if missing:
        raise SystemExit(f"{file} is not a curve: a line of it has no {missing[0]!r}.")
    return Run(tuple(records)) if records else None


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Sort runs into groups, in the order of their names; runs whose original has no finished curve yet are left out.

    Raises SystemExit where runs of one group do not compare, or there is no group.
    """
    by_key: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    found = [_group(key, by_key[key]) for key in sorted(by_key)]
    if not any(found):
        raise SystemExit(
            f"{', '.join(min(by_key))}: there is no finished curve of an original to compare with; run the grid first."
        )
    return [group for group in found if group is not None]


def waiting(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Return the names of what `grouped` left out."""
    there = {(group.grid, group.model, group.data, group.schedule) for group in groups}
    return [f"{grid}: {', '.join(other)}" for grid, *other in sorted({run.key for run in runs} - there)]


def _group(key: tuple[str, str, str, str], runs: Sequence[Run]) -> Group | None:
    name = ", ".join(key)
    _refuse_others(name, runs)
    end = max(run.last["step"] for run in runs)
    arms: dict[str, list[Run]] = {ORIGINAL: []}
    for run in sorted(runs, key=lambda run: (run.arm, run.seed, run.topology)):
        if run.last["step"] == end:
            arms.setdefault(run.arm, []).append(run)
    if not arms[ORIGINAL]:
        return None
    for arm, found in arms.items():
        if len({(run.seed, run.topology) for run in found}) < len(found):
            raise SystemExit(f"{name}: two curves are of arm {arm} with the same seeds; give each run once.")
    unfinished = tuple(run for run in runs if run.last["step"] != end)
    return Group(*key, {arm: tuple(found) for arm, found in arms.items()}, unfinished)


def _refuse_others(name: str, runs: Sequence[Run]) -> None:
    first = _compared(runs[0])
    for run in runs:
        other = _compared(run)
        if differ := sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key)):
            found = f"{differ[0]} is {first.get(differ[0])!r} in one and {other.get(differ[0])!r} in another"
            raise SystemExit(f"{name}: the curves were made under different options and do not compare: {found}.")


def _compared(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.options.items() if key not in NOT_COMPARED} | {"subset": run.last.get("subset")}


def mean_path(runs: Sequence[Run], x: str, y: str) -> tuple[Floats, Floats, Floats]:
    """Return x and y as means over runs at each evaluation, and y's standard deviation (NaN for one run)."""
    ends = min(len(run.records) for run in runs)
    xs, ys = (np.array([run.values(key)[:ends] for run in runs]) for key in (x, y))
    deviation = ys.std(axis=0, ddof=1) if len(runs) > 1 else np.full(ends, math.nan)
    return xs.mean(axis=0), ys.mean(axis=0), deviation


FAMILIES = {"bottleneck": "resnet", "convnet_c": "cnn"}


def family(model: str) -> str:
    """Return what networks of one architecture and several sizes are called alike.

    >>> family("slim_cnn21"), family("plain_cnn41"), family("resnet18_small"), family("slim_bottleneck29")
    ('cnn', 'cnn', 'resnet', 'resnet')
    """
    bare = model.removeprefix("slim_").removeprefix("plain_").removesuffix("_small").rstrip("0123456789")
    return FAMILIES.get(bare, bare)
