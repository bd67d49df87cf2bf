"""Write the README's table of what GPUs measured, from the results that lie here: "not measured" until one has.

python -m benchmarks.gpu_table
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import bench_networks, calibration
from benchmarks.record import RESULTS, Judged, write_whole

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- python -m benchmarks.gpu_table -->\n", "<!-- end -->\n"


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


def _all(results: Path) -> Iterator[tuple[str, Judged]]:
    """Yield the targets of each GPU that has results, or of none."""
    measured = sorted({file.parent for name in ("bench_networks_*", "calibration") for file in results.glob(f"*/{name}.json")})
    for folder in measured or [results]:
        documents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("bench_networks_*.json"))]
        documents.append(_read(folder / "calibration.json"))
        hardware = next((document["hardware"] for document in documents if document), "")
        for judge, of in ((bench_networks.judged, documents[:-1]), (calibration.judged, documents[-1:])):
            rows = [row for document in of for row in document.get("rows", [])]
            yield from ((hardware, one) for one in judge(rows))


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return read


def filled(readme: str, results: Path = RESULTS) -> str:
    """Return a README with the table of now."""
    before, _, rest = readme.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return before + BEGIN + table(results) + END + behind


if __name__ == "__main__":
    write_whole(README, filled(README.read_text(encoding="utf-8")))
