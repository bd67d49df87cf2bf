"""Where the files of a grid lie, and which of its runs are there.

<results>/<grid>/<run>.jsonl                            a finished curve; one that is not finished is not there
<results>/<grid>/.running/<run>/checkpoint-<step>/      a run under way
<results>/<grid>/.running/<run>.lock                    held by who trains it; the system lets it go when that process ends
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.lab.checkpoint import flush_folder, latest, write_flushed
from benchmarks.lab.grids import Grid, Run, Task

LATER = {"control": None, "skips": "keep"}
"""What curves from before there was a choice of it do not say, and what it was."""


def read_curve(file: Path) -> list[dict[str, Any]]:
    """Read one curve."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_curves(grid: Grid, folder: Path) -> list[list[dict[str, Any]]]:
    """Read all curves of a grid's folder, by task, arm and seed."""
    names = [arm.name for task in grid.tasks for arm in task.arms]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    curves = [curve for curve in map(read_curve, sorted(folder.glob("*.jsonl"))) if curve]
    return sorted(curves, key=lambda curve: (places.get(curve[0]["arm"], len(places)), curve[0]["arm"], curve[0]["seed"]))


class Place:
    """The files of one run."""

    def __init__(self, results: Path, run: Run) -> None:
        self.run = run
        folder = results / run.grid
        self.curve = folder / f"{run.name}.jsonl"
        self.work = folder / ".running" / run.name
        self._lock = folder / ".running" / f"{run.name}.lock"

    def lock(self) -> FileLock:
        """Return the lock, not yet taken; taking it raises filelock.Timeout at once where another process has it."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._lock, timeout=0)

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return latest(self.work) is not None

    def finished(self) -> bool:
        """Tell whether the curve is there; raise SystemExit where the file holds another run's."""
        if not self.curve.exists():
            return False
        if not same(read_curve(self.curve)[0], self.run):
            raise SystemExit(f"{self.curve} was made under other options; move it away, or use another folder (--results).")
        return True

    def publish(self, records: Sequence[dict[str, Any]]) -> None:
        """Put the curve in its place, whole, and only then remove the checkpoints."""
        self.work.mkdir(parents=True, exist_ok=True)
        part = self.work / "curve"
        write_flushed(part, "".join(json.dumps(record) + "\n" for record in records))
        part.replace(self.curve)
        flush_folder(self.curve.parent)
        self.clear()

    def clear(self) -> None:
        """Remove checkpoints; first from sight, since a folder does not go at once."""
        gone = self.work.with_name(f"{self.work.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if self.work.exists():
            self.work.rename(gone)
            shutil.rmtree(gone)

    def forget(self) -> None:
        """Remove the curve, too."""
        self.curve.unlink(missing_ok=True)
        self.clear()


def same(found: dict[str, Any], run: Run) -> bool:
    """Tell whether a curve's first record is of this run, whatever its grid was called when it was made."""
    defaults = {field.name: field.default for field in dataclasses.fields(Task)}
    said = LATER | {"base_lr": found["options"]["lr"]} | found
    options = defaults | found["options"]
    wanted = run.identity
    return all(said.get(key) == value for key, value in wanted.items() if key not in ("grid", "options")) and all(
        options[key] == value for key, value in wanted["options"].items()
    )
