"""Show how far a grid is, and for how much longer it will go on."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from benchmarks.lab.grids import Run
from benchmarks.lab.training import Progress as Reached


@dataclass
class Active:
    """A run under way: when it was first heard of, how far it was then and is now, of 1."""

    since: float
    first: float
    share: float

    def cost(self, now: float) -> float | None:
        """Return the seconds that the whole run takes, by what it has done since; None before that says anything."""
        done = self.share - self.first
        return (now - self.since) / done if done > 0 else None


class Estimate:
    """The time left, by what the runs of the same arm took, else those of the same task, else all."""

    def __init__(self, runs: Sequence[Run], workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.kinds = {run.name: (run.task.name, run.arm.name) for run in runs}
        self.waiting = set(self.kinds)
        self.active: dict[str, Active] = {}
        self.costs: dict[tuple[str, str], list[float]] = {}
        self.workers, self.clock = workers, clock

    def reached(self, name: str, share: float) -> None:
        """Take note of how far a run is."""
        self.waiting.discard(name)
        if name in self.active:
            self.active[name].share = share
        else:
            self.active[name] = Active(self.clock(), share, share)

    def ended(self, name: str, *, whole: bool) -> None:
        """Take note that a run is not to be waited for any longer, and whether it came to its end: then it tells what one costs."""
        self.waiting.discard(name)
        run = self.active.pop(name, None)
        if run and whole:
            run.share = 1.0  # the last steps may not have been told
            if cost := run.cost(self.clock()):
                self.costs.setdefault(self.kinds[name], []).append(cost)

    def left(self) -> float | None:
        """Return the seconds left, or None before anything is known."""
        now = self.clock()
        known = {kind: list(costs) for kind, costs in self.costs.items()}
        for name, run in self.active.items():
            if cost := run.cost(now):
                known.setdefault(self.kinds[name], []).append(cost)
        if not known:
            return None
        under_way = [self._cost(name, known) * (1 - run.share) for name, run in self.active.items()]
        to_come = [self._cost(name, known) for name in self.waiting]
        return max([(sum(under_way) + sum(to_come)) / self.workers, *under_way])

    def _cost(self, name: str, known: dict[tuple[str, str], list[float]]) -> float:
        kind = self.kinds[name]
        alike = known.get(kind) or [cost for (task, _), costs in known.items() if task == kind[0] for cost in costs]
        return statistics.fmean(alike or [cost for costs in known.values() for cost in costs])


class Display:
    """Bars on a terminal, one of all runs and one of each under way; a line for each that ends, anywhere."""

    def __init__(self, runs: Sequence[Run], workers: int, console: Console) -> None:
        self.estimate, self.console = Estimate(runs, workers), console
        self.outcomes: dict[str, str] = {}
        self.silent = False
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.bars = Progress(*columns, MofNCompleteColumn(), console=console, transient=True, disable=not console.is_terminal)
        self.all = self.bars.add_task("all runs", total=len(runs), note="")
        self.lines: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def began(self, name: str) -> None:
        """Show that somebody turned to a run."""
        if not self.silent:
            self.lines[name] = self.bars.add_task(name, total=None, note="")

    def progressed(self, name: str, progress: Reached) -> None:
        """Show how far a run is."""
        if self.silent:
            return
        self.estimate.reached(name, progress.step / progress.steps)
        note = f"test error {progress.last['test_error']:.3f}" if progress.last else None
        shown = {"completed": progress.step, "total": progress.steps} | ({"note": note} if note else {})
        if name in self.lines:
            self.bars.update(self.lines[name], **shown)
        self.bars.update(self.all, note=self._left())

    def ended(self, name: str, outcome: str) -> None:
        """Say what came of a run."""
        if self.silent:
            return
        self.estimate.ended(name, whole=outcome == "trained")
        self.outcomes[name] = outcome
        if name in self.lines:
            self.bars.remove_task(self.lines.pop(name))
        self.bars.advance(self.all)
        said = {
            "trained": "trained",
            "there": "is there already",
            "elsewhere": "is in another process's hands",
            "stopped": "stopped, its checkpoint written",
        }
        left = self._left()
        self.console.print(f"{name}  {said.get(outcome, outcome)}{left and f'; {left}'}", highlight=False)

    def failed(self, name: str, error: BaseException) -> None:
        """Say why a run broke off; the others go on."""
        self.ended(name, f"FAILED: {error or type(error).__name__}")
        self.outcomes[name] = "failed"
        if not isinstance(error, SystemExit):
            self.console.print("".join(traceback.format_exception(error)), highlight=False, markup=False)

    def _left(self) -> str:
        left = self.estimate.left()
        return "" if left is None or not (self.estimate.active or self.estimate.waiting) else f"about {_spoken(left)} left"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60}:{minutes % 60:02} h"
