"""What a grid's curves say at a glance: what each arm ends with, and how soon it gets to the original's last training loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.lab.grids import ORIGINAL

Curve = Sequence[Mapping[str, Any]]


def reached(curve: Curve, key: str, target: float) -> int | None:
    """Return the step of the first evaluation around which the median of three is at or below the target, or None."""
    values = [finite(record[key]) for record in curve]
    for place in range(1, len(curve)):
        if statistics.median(values[place - 1 : place + 2]) <= target:
            return int(curve[place]["step"])
    return None


def finite(value: float | None) -> float:
    """Return a loss as a number: what a curve writes as null was not finite."""
    return math.inf if value is None else value


def by_task(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Return the curves that compare, together: of one task, and so of one set of options."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(repr(sorted(curve[0]["options"].items())), []).append(curve)
    return list(groups.values())


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
    table = Table(title=f"{titled(last)}: after {last['epoch']:g} epochs on {last['subset']}", box=box.SIMPLE_HEAD)
    for heading in ("arm", "seeds", "params", "million MACs", "training loss", "test error", "s/step"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, runs in arms.items():
        ends = [run[-1] for run in runs]
        macs = statistics.fmean(end["macs"] / end["step"] / end["options"]["batch"] for end in ends)
        params = statistics.fmean(end["params"] for end in ends)
        pace = statistics.fmean(end["seconds"] / end["step"] for end in ends)
        measured = (spread([finite(end[key]) for end in ends]) for key in ("train_loss", "test_error"))
        table.add_row(arm, str(len(ends)), f"{params:,.0f}", f"{macs / 1e6:.1f}", *measured, f"{pace:.3f}")
    return table


def titled(record: Mapping[str, Any]) -> str:
    """Name what curves that compare are of."""
    return f"{record['options']['model']}, {record['options']['schedule']} rate"


def spread(values: Sequence[float]) -> str:
    """Return a mean with its standard deviation, where there is one."""
    known = len(values) > 1 and all(map(math.isfinite, values))
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if known else "")


def report(curves: Sequence[Curve]) -> Table:
    """Return the table: how soon each run reaches the mean loss that the originals end with, and what it ends with itself."""
    originals = comparable(curves)[ORIGINAL.name]
    target = statistics.fmean(finite(curve[-1]["train_loss"]) for curve in originals)
    total = originals[0][-1]
    wanted = f"steps to a training loss of {target:.3f}, the original's at the end"
    table = Table(title=f"{titled(total)}: {wanted} ({total['subset']})", box=box.SIMPLE_HEAD)
    for heading in ("arm", "seed", "training loss", "test error", "params", "steps to target", "sooner by", "s/step"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for curve in curves:
        last = curve[-1]
        steps = last["step"] if last["arm"] == ORIGINAL.name else reached(curve, "train_loss", target)
        sooner = "not reached" if steps is None else f"{total['step'] / steps:.2f}x"
        pace = last["seconds"] / last["step"]
        losses = (f"{finite(last['train_loss']):.3f}", f"{last['test_error']:.3f}")
        table.add_row(last["arm"], str(last["seed"]), *losses, f"{last['params']:,}", str(steps or "-"), sooner, f"{pace:.3f}")
    return table


def by_epoch(curve: Curve) -> str:
    """Return the training loss after each epoch, in one line."""
    losses = (f"{finite(record['train_loss']):.3f}" for record in curve if float(record["epoch"]).is_integer())
    return f"training loss by epoch, {curve[0]['arm']}, seed {curve[0]['seed']}: {' '.join(losses)}"
