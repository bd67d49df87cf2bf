"""Write the README's table of what GPUs measured, from the results that lie here: "not measured" until one has.

`python -m benchmarks.readme` puts it into the README.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bench_networks, bench_training, calibration, lowered_training
from benchmarks.bench_networks import BATCH
from benchmarks.record import RESULTS, Judged

Rows = Sequence[dict[str, Any]]


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown: a row for each target, and each GPU that was asked."""
    lines = ["| target | at least | measured |", "|---|---|---|"]
    for hardware, one in _all(results):
        said = "not measured"
        if one.value is not None:
            how = ", ".join(filter(None, (one.how, hardware)))
            said = f"**{one.value:.2f}**, {'met' if one.value >= one.least else 'not met'}; {how}"
        lines.append(f"| {one.what} | {one.least:.2f} | {said} |")
    return "\n".join(lines) + "\n"


PROGRAMS: tuple[tuple[str, Callable[[Rows], Iterable[Judged]]], ...] = (
    ("bench_networks_*", bench_networks.judged),
    ("calibration", calibration.judged),
    ("bench_training_*", bench_training.judged),
    ("lowered_training_*", lowered_training.judged),
)
"""The results of each, and what they are judged by."""


def _all(results: Path) -> Iterator[tuple[str, Judged]]:
    """Yield the targets of each GPU that has results, or of none."""
    for folder in sorted(folder for folder in results.glob("*") if any(_read(folder))) or [results]:
        documents = list(_read(folder))
        hardware = next((document["hardware"] for _, document in documents), "")
        for pattern, judge in PROGRAMS:
            rows = [row for named, document in documents if named == pattern for row in document["rows"]]
            yield from ((hardware, one) for one in judge(rows))


def _read(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the results that a folder has for the targets: in bfloat16, as no CPU is asked, and of the batch they are for."""
    for pattern, _ in PROGRAMS:
        for file in sorted(folder.glob(f"{pattern}.json")):
            document = json.loads(file.read_text(encoding="utf-8"))
            rows = [row for row in document["rows"] if row.get("dtype") == "bfloat16" and row.get("batch", BATCH) == BATCH]
            if rows:
                yield pattern, document | {"rows": rows}
