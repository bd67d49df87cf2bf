"""Write the README's table of how fast rewired networks learn, from the raw curves that lie here.

`python -m benchmarks.readme` puts it into the README. `python -m benchmarks.report` has all of it: every target, cost and interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS
from benchmarks.reporting.curves import ORIGINAL, Group, Run, grouped, read
from benchmarks.reporting.ratios import Ratio, compared

GRIDS = ("quick", "breadth", "gains", "core", "full", "densenet40", "densenet40-short")
"""Those whose arms are networks as users get them, and controls."""
HEADINGS = (
    "network, images, learning rate",
    "arm",
    "wrong at the end, %",
    "sooner in steps",
    "at the end",
    "on the clock",
    "made by",
)
HALF, END = 0.5, 1.0


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown: a row for each arm of each group of runs that compare, of which there are several seeds."""
    groups = grouped([run for run in read([results / "convergence"]) if run.key[0] in GRIDS])
    lines = [list(HEADINGS), ["---"] * len(HEADINGS)]
    for group in sorted(groups, key=lambda group: GRIDS.index(group.grid)):
        if len(group.originals) > 1:
            lines += _rows(group)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _rows(group: Group) -> Iterator[list[str]]:
    found = {(one.arm, one.share): one.ratios for one in compared(group, ("step", "seconds"))}
    yield [_what(group), ORIGINAL, _error(group.originals), "1", "1", "1", _by(group)]
    for arm, runs in group.arms.items():
        if arm != ORIGINAL and not runs[0].records[0].get("variant"):
            half, end = found[arm, HALF], found[arm, END]
            yield ["", arm, _error(runs), _times(half["step"]), _times(end["step"]), _times(end["seconds"]), ""]


def _what(group: Group) -> str:
    options = group.originals[0].options
    return f"{group.model}; {group.subset}, {options['epochs']} epochs; {group.schedule}"


def _error(runs: tuple[Run, ...]) -> str:
    ends = [100 * float(run.last["test_error"]) for run in runs]
    deviation = f" ± {np.std(ends, ddof=1):.1f}" if len(ends) > 1 else ""
    return f"{np.mean(ends):.1f}{deviation} ({len(ends)})"


def _times(ratio: Ratio) -> str:
    return str(ratio).replace(" (", "x (", 1) if "(" in str(ratio) else str(ratio)


def _by(group: Group) -> str:
    first = [run.records[0] for run in group.runs]
    commits = sorted({str(one["commit"])[:8] for one in first})
    hardware = sorted({str(one["hardware"]) for one in first})
    return f"`python -m benchmarks.convergence {group.grid}`; {', '.join(hardware)}; `{', '.join(commits)}`"
