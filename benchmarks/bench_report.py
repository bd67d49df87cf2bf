"""What does a report cost? ResNet-152 and DenseNet-201 are to open in less than 2 s, ResNet-50's page to be smaller than 3 MB.

    python -m benchmarks.bench_report                    # needs Chromium in the PATH, and the extra `test`

Each page is opened in headless Chromium until it has been painted, the best of a few times, since noise only ever adds. Beside the
clock stands the time of the page's own thread, which other programs on the machine disturb less; painting is done by other threads.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, sync_playwright
from rich import box
from rich.console import Console
from rich.table import Table

import swnet
from benchmarks.record import write_timings
from benchmarks.vision import torchvision_models

MODELS = {"resnet50": 0.3, "resnet152": 0.3, "densenet201": 0.2}
"""The networks, by their names in torchvision, and p."""
OPEN_SECONDS, SMALL_BYTES = 2.0, 3_000_000
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def make(name: str, p: float, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write the report of a rewired network; return the file and what is known of it."""
    with torch.device("meta"):
        model = getattr(torchvision_models(), name)(weights=None)
    rewired = swnet.transform(model, torch.zeros(2, 3, 224, 224, device="meta"), p=p)
    file = folder / f"{name}.html"
    start = time.process_time()
    page = swnet.report(rewired, file)
    layers = len(swnet.ledger(rewired).layers)
    return file, {
        "name": name,
        "p": p,
        "layers": layers,
        "bytes": len(page.encode()),
        "made_cpu_seconds": time.process_time() - start,
    }


def opened(browser: Browser, file: Path) -> tuple[float, float, int]:
    """Return the seconds until a page has been painted, on the clock and in the page's own thread, and how many arcs it shows."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(60_000)  # another program may have the cores
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    tab.goto(file.as_uri())
    tab.evaluate(PAINTED)
    clock = time.perf_counter() - start
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    arcs = tab.locator("svg.network .arc").count()
    tab.close()
    return clock, metrics["TaskDuration"], arcs


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return a row for each network."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        launched = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**launched)  # type: ignore[arg-type]
        for name, p in MODELS.items():
            file, row = make(name, p, Path(folder))
            clock, thread, _ = zip(*(opened(browser, file) for _ in range(repeats)), strict=True)
            rows.append({**row, "repeats": repeats, "open_seconds": min(clock), "open_thread_seconds": min(thread)})
        browser.close()
    return rows


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of what was measured."""
    table = Table(title="Reports", box=box.SIMPLE_HEAD)
    for heading in ("", "layers", "kB", "made, CPU s", "opened, s", "of its thread"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        times = (row["made_cpu_seconds"], row["open_seconds"], row["open_thread_seconds"])
        table.add_row(row["name"], str(row["layers"]), f"{row['bytes'] / 1e3:,.0f}", *(f"{value:.2f}" for value in times))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and keep the rows."""
    parser = argparse.ArgumentParser(description="Measure what reports cost, and how fast they open.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    rows = measure(options.repeats)
    console = Console()
    console.print(show(rows))
    slowest, small = max(row["open_seconds"] for row in rows), rows[0]["bytes"]
    console.print(f"The slowest opens in {slowest:.2f} s, to be {OPEN_SECONDS:g}: {'met' if slowest < OPEN_SECONDS else 'NOT MET'}")
    console.print(f"ResNet-50 has {small:,} bytes, to be below {SMALL_BYTES:,}: {'met' if small < SMALL_BYTES else 'NOT MET'}")
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_report', rows)}")


if __name__ == "__main__":
    main()
