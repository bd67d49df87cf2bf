"""Write what was measured with what it was measured on, so that it can be read in ten years."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from swcompile.lower.rates import device_name, slug, version_of

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("swcompile", "torch", "triton", "numpy", "networkx", "igraph")


class Judged(NamedTuple):
    """What was to be reached at least, and what was; None where that was not measured."""

    what: str
    least: float
    value: float | None
    how: str = ""

    def __str__(self) -> str:
        asked = f"{self.what}: at least {self.least:.2f}"
        if self.value is None:
            return f"{asked}; not measured{self.how and f': {self.how}'}"
        return f"{asked}; {self.value:.2f}{self.how and f' ({self.how})'}: {'met' if self.value >= self.least else 'NOT MET'}"


def provenance() -> dict[str, Any]:
    """Return commit, versions, hardware and date."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def commit(root: Path = RESULTS.parent.parent) -> str:
    """Return the commit of a working tree, with "-dirty" where files that git knows were changed, results aside.

    A program that writes several results would else call each but its first one dirty.
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def quartiles(values: NDArray[np.float64]) -> list[float]:
    """Return the quartiles of times or ratios, the median in the middle."""
    return [round(float(value), 4) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def compared(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """Return the ratio of the median times, and the quartiles of the rounds' own ratios."""
    return {"ratio": float(np.median(after) / np.median(before)), "ratio_quartiles": quartiles(after / before)}


def hardware() -> str:
    """Name the accelerator, else the processor and the threads that torch uses."""
    return device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def write_timings(benchmark: str, rows: Sequence[Mapping[str, Any]], results: Path = RESULTS) -> Path:
    """Write `<hardware>/<benchmark>.json` and return its path."""
    told = provenance()
    folder = results / slug(told["hardware"])
    text = json.dumps({"benchmark": benchmark} | told | {"rows": list(rows)}, indent=1) + "\n"
    return write_whole(folder / f"{benchmark}.json", text)


def write_whole(file: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    return part.replace(file)
