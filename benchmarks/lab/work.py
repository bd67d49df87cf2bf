"""Carry out one run as whoever does it sees it: take its lock, train it or find it done, put its curve in its place."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from filelock import Timeout

from benchmarks.data import folder, load
from benchmarks.lab.folders import InFolders
from benchmarks.lab.grids import Run, Task
from benchmarks.lab.images import InMemory, Pictures
from benchmarks.lab.ranks import Ranks, Share, Way
from benchmarks.lab.store import Place
from benchmarks.lab.training import Conditions, Progress, Stopped, train

Outcome = Literal["trained", "there", "elsewhere", "stopped"]
OUTCOMES: tuple[Outcome, ...] = ("trained", "there", "elsewhere", "stopped")
FOLDERS = ("imagefolder",)


@dataclass(frozen=True)
class Setting:
    """How and where runs are carried out."""

    results: Path
    conditions: Conditions
    threads: int | None = None
    """Threads of each process; None leaves them as they are."""
    image_workers: int = 0
    """Processes that decode images from folders, for each run."""
    way: Way = "ddp"


@functools.lru_cache(1)
def pictures(task: Task, share: Share, held_out: bool, image_workers: int, root: Path) -> Pictures:
    """Return a task's images out of the data folder; the last ones are kept, for the next run is mostly of the same task."""
    if task.data in FOLDERS:
        return InFolders(root / task.data, task, share, held_out=held_out, workers=image_workers)
    return InMemory(load(task.data, root), task, share, held_out=held_out)


def carry_out(
    run: Run,
    setting: Setting,
    ranks: Ranks,
    observe: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a run unless it is there or another process is at it; all ranks do the same.

    Raises:
        SystemExit: where a file in its place is of another run, or its images are not there.
    """
    place = Place(setting.results, run)
    with ExitStack() as held:
        outcome = OUTCOMES[ranks.told(OUTCOMES.index(_taken(place, held)) if ranks.first else 0)]
        if outcome != "trained":
            return outcome
        images = pictures(run.task, ranks.share, run.tuning, setting.image_workers, folder())
        try:
            records = train(run, images, place.work, ranks=ranks, conditions=setting.conditions, observe=observe, stop=stop)
        except Stopped:
            return "stopped"
        if ranks.first:
            place.publish(records)
        ranks.wait()
    return "trained"


def _taken(place: Place, held: ExitStack) -> Outcome:
    """Take a run's lock and say what is to come of it."""
    try:
        held.enter_context(place.lock())
    except Timeout:
        return "elsewhere"
    if place.finished():
        place.clear()  # a kill in the middle of `publish` leaves checkpoints behind
        return "there"
    return "trained"


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed or an end was asked for. The second Ctrl-C ends at once."""
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
