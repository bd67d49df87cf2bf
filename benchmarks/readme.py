"""Write the README's tables of what was measured, from the results that lie here.

python -m benchmarks.readme
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import cpu_table, gpu_table, training_table
from benchmarks.record import RESULTS, write_whole

README = Path(__file__).parent.parent / "README.md"
END = "<!-- end -->\n"
TABLES: Mapping[str, Callable[[Path], str]] = {"training": training_table.table, "CPUs": cpu_table.table, "GPUs": gpu_table.table}
"""The tables, by what their places in the README are called."""


def begin(name: str) -> str:
    """Return the line in front of a table."""
    return f"<!-- python -m benchmarks.readme: {name} -->\n"


def filled(readme: str, results: Path = RESULTS) -> str:
    """Return a README with the tables of now. Raises ValueError where one has no place in it."""
    for name, table in TABLES.items():
        before, found, rest = readme.partition(begin(name))
        _, ended, behind = rest.partition(END)
        if not found or not ended:
            raise ValueError(f"The README has no place for the table of {name}: {begin(name).strip()} and {END.strip()}.")
        readme = before + found + table(results) + ended + behind
    return readme


if __name__ == "__main__":
    write_whole(README, filled(README.read_text(encoding="utf-8")))
