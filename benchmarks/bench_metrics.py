"""What do the figures of a channel graph cost, alone and over p, beside networkx and igraph on the same graph in the same run?

    python benchmarks/bench_metrics.py                  all tables, about five minutes
    python benchmarks/bench_metrics.py --skip-others    without networkx and igraph

figures   C and L apart, of VGG16 rewired link by link, where they are published
measure   everything that `measure` does, for block wirings of three networks and for a residual network of 10,000 layers
sweep     20 values of p from 0 to 1, as `analyze` and p="auto" take them: block wirings on the plans themselves, in at most 2 s;
          link by link in closed form, and then one wiring at the p chosen, counted exactly, in at most 5 s (ResNet-50: 20 s)
others    the same C and L by networkx and igraph

Graphs are made outside of the timing. Each figure is the best of a few runs; one that takes long is run once. `seconds` is the
clock's time, `cpu_seconds` the processor's time of all threads, which other programs disturb less: ratios are ratios of that, and a
target is met if either meets it. Matrix products get one thread, since further ones spin while they wait; what we share between
threads ourselves is shared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import igraph
import networkx as nx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.graphs import chain, densenet201, residual, resnet50, vgg16
from benchmarks.record import write_timings
from swcompile.graph import LayerGraph
from swcompile.metrics import ChannelGraph, channel_graph, measure
from swcompile.metrics.bits import unpack
from swcompile.metrics.clustering import clustering, expand
from swcompile.metrics.paths import paths
from swcompile.plan import Options, Plan
from swcompile.wiring import choose_p, sweep, wire_block, wire_kernel

NETWORKS: Mapping[str, Callable[[], LayerGraph]] = {"VGG16": vgg16, "ResNet-50": resnet50, "DenseNet-201": densenet201}
PUBLISHED = {0.1: (0.053, 1.828), 0.5: (0.176, 1.817), 0.85: (0.229, 1.817)}
"""C and L of VGG16's convolutions under Algorithm 1 of SWANN (IEEE JETCAS 11(4), 2021)."""
SMALL = (3, 24, 24, 48, 48, 48, 96, 96)
"""Widths of a chain that networkx gets through."""
SWEEP_SECONDS = 2.0
EXACT_SECONDS: Mapping[str, float] = {"ResNet-50": 20.0}
"""The target for a wiring link by link at one p, counted exactly; 5 s where it is not named."""
PATIENCE = 5.0
"""No repetition once a figure has taken so many seconds."""

WIDTH = 120
"""Columns of the printed tables, which say nothing where they are cut."""

Row = dict[str, Any]
Result = TypeVar("Result")


def timed(run: Callable[[], Result], repeats: int) -> tuple[Result, float, float]:
    """Return the result of a call, and its shortest time on the clock and on the processor."""
    clock: list[float] = []
    processor: list[float] = []
    while True:
        start = time.perf_counter(), time.process_time()
        made = run()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
        if len(clock) >= repeats or sum(clock) > PATIENCE:
            return made, min(clock), min(processor)


def rewired(graph: LayerGraph, plan: Plan) -> ChannelGraph:
    """Return the channel graph of a network under a plan."""
    return channel_graph(graph, plan.taps(), plan.masks(), bypassed=plan.bypassed)


def link_by_link(graph: LayerGraph, p: float) -> ChannelGraph:
    """Return the channel graph of a network rewired link by link."""
    return rewired(graph, wire_kernel(graph, Options(wiring="kernel", p=p)))


def figures(name: str, graph: LayerGraph, p: float, repeats: int) -> list[Row]:
    """Time C and L of a network rewired link by link."""
    made = link_by_link(graph, p)
    runs = {"C": lambda: clustering(made.classes).C, "L": lambda: paths(made.classes).L}
    fixed = {"table": "figures", "network": name, "wiring": "kernel", "p": p, "V": made.nodes, "E": made.edges}
    rows = []
    for figure, run in runs.items():
        value, clock, processor = timed(run, repeats)
        row = {"name": f"{figure} of {name}, kernel, p = {p:g}"} | fixed
        rows.append(row | {"figure": figure, "value": value, "seconds": clock, "cpu_seconds": processor})
    return rows


def everything(name: str, graph: LayerGraph, p: float, repeats: int) -> Row:
    """Time all that `measure` does for a network under a block wiring."""
    taps = wire_block(graph, Options(p=p)).taps() if p else {}
    made, clock, processor = timed(lambda: measure(channel_graph(graph, taps)), repeats)
    fixed = {"table": "measure", "network": name, "wiring": "block", "p": p, "V": made.V, "E": made.E}
    told = {"C": made.C, "L": made.L, "S": made.S, "exact": made.exact, "seconds": clock, "cpu_seconds": processor}
    return {"name": f"{name}, block, p = {p:g}"} | fixed | told


def swept(name: str, graph: LayerGraph, wiring: str, repeats: int) -> list[Row]:
    """Time a sweep of 20 points, and after one in closed form the wiring at the p chosen and its exact figures."""
    options = Options(wiring=wiring)
    curve, clock, processor = timed(lambda: sweep(graph, options), repeats)
    p = choose_p(curve, "auto")
    fixed = {"table": "sweep", "network": name, "wiring": wiring, "chosen_p": p}
    told = {"exact": curve.exact, "seconds": clock, "cpu_seconds": processor, "target_seconds": SWEEP_SECONDS}
    rows = [{"name": f"{name}, {wiring}, over p", "points": len(curve.p)} | fixed | told]
    if not curve.exact:
        made, clock, processor = timed(lambda: measure(link_by_link(graph, p)), repeats)
        target = EXACT_SECONDS.get(name, 5.0)
        told = {"exact": made.exact, "seconds": clock, "cpu_seconds": processor, "target_seconds": target}
        rows.append({"name": f"{name}, {wiring}, wired and counted", "points": 1} | fixed | told)
    return rows


def others(name: str, graph: LayerGraph, p: float, repeats: int, *, with_networkx: bool) -> list[Row]:
    """Time the other libraries on a network rewired link by link, each against ours in the same run."""
    made = link_by_link(graph, p)
    wide, _ = expand(made.classes)
    edges = np.argwhere(np.triu(unpack(wide.rows, wide.count))).tolist()
    ours = {"C": timed(lambda: clustering(made.classes).C, repeats), "L": timed(lambda: paths(made.classes).L, repeats)}
    theirs = igraph.Graph(n=wide.count, edges=edges)
    runs: dict[tuple[str, str], Callable[[], float]] = {
        ("igraph", "C"): lambda: theirs.transitivity_avglocal_undirected(mode="zero"),
        ("igraph", "L"): lambda: theirs.average_path_length(directed=False),
    }
    if with_networkx:
        slow = nx.Graph(edges)
        runs["networkx", "C"] = lambda: nx.average_clustering(slow)
        runs["networkx", "L"] = lambda: nx.average_shortest_path_length(slow)
    fixed = {"table": "others", "network": name, "wiring": "kernel", "p": p, "V": made.nodes, "E": made.edges}
    rows = []
    for (library, figure), run in runs.items():
        found, clock, processor = timed(run, repeats)
        expected, own_clock, own_processor = ours[figure]
        if abs(found - expected) > 1e-9:
            raise SystemExit(f"{library} finds {figure} = {found} for {name} where we find {expected}: one of us is wrong.")
        told = {"baseline": library, "figure": figure, "seconds": clock, "cpu_seconds": processor}
        own = {"our_seconds": own_clock, "our_cpu_seconds": own_processor, "ratio": processor / own_processor}
        rows.append({"name": f"{library}, {figure} of {name}, p = {p:g}"} | fixed | told | own)
    return rows


COLUMNS: Mapping[str, Sequence[str]] = {
    "figures": ("E", "value", "seconds", "cpu_seconds"),
    "measure": ("V", "C", "L", "S", "exact", "seconds", "cpu_seconds"),
    "sweep": ("points", "exact", "chosen_p", "seconds", "cpu_seconds", "target_seconds"),
    "others": ("E", "cpu_seconds", "our_cpu_seconds", "ratio"),
}


def show(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each kind of row."""
    tables = []
    for kind, columns in COLUMNS.items():
        table = Table(title=kind, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("", no_wrap=True)
        for heading in columns:
            table.add_column(heading.replace("_", " "), justify="right")
        for row in rows:
            if row["table"] == kind:
                table.add_row(row["name"], *(_shown(row[column]) for column in columns))
        if table.row_count:
            tables.append(table)
    return tables


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def verdict(rows: Sequence[Row]) -> str:
    """Say which targets were met and which not, by the clock or the processor: on a busy machine the clock runs on."""
    aimed = [row for row in rows if "target_seconds" in row]
    taken = {row["name"]: min(row["seconds"], row["cpu_seconds"]) for row in aimed}
    late = [row for row in aimed if taken[row["name"]] > row["target_seconds"]]
    told = [f"{row['name']}: {taken[row['name']]:.1f} s, not {row['target_seconds']:g}" for row in late]
    return f"{len(aimed) - len(late)} of {len(aimed)} targets are met." + "".join(f"\nNot met: {line}" for line in told)


def run(repeats: int, blocks: int, *, with_others: bool) -> list[Row]:
    """Measure everything; ends the program where a figure is not the published one."""
    networks = {name: build() for name, build in NETWORKS.items()}
    rows = [row for p in PUBLISHED for row in figures("VGG16", vgg16(), p, repeats)]
    for row in rows:
        expected = dict(zip("CL", PUBLISHED[row["p"]], strict=True))[row["figure"]]
        if abs(row["value"] - expected) > 1.5e-3:
            raise SystemExit(f"{row['name']}: {row['value']:.4f} where {expected} is published.")
    rows += [everything(name, graph, p, repeats) for name, graph in networks.items() for p in (0, 0.3, 0.8)]
    rows.append(everything(f"residual, {2 * blocks + 2:,} layers", residual(blocks), 0, 1))
    for wiring in ("block", "kernel"):
        rows += [row for name, graph in networks.items() for row in swept(name, graph, wiring, repeats)]
    if with_others:
        rows += others("a small chain", chain(SMALL), 0.5, repeats, with_networkx=True)
        rows += others("VGG16", vgg16(), 0.85, repeats, with_networkx=False)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and keep the rows."""
    parser = argparse.ArgumentParser(description="Measure what the figures of a channel graph cost.")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts (default: 5)")
    parser.add_argument("--skip-others", action="store_true", help="leave out networkx and igraph")
    parser.add_argument("--blocks", type=int, default=5000, help="blocks of two layers of the residual network (default: 5000)")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    with threadpool_limits(1):
        rows = run(options.repeats, options.blocks, with_others=not options.skip_others)
    console = Console(width=WIDTH)
    for table in show(rows):
        console.print(table)
    console.print(verdict(rows), highlight=False)
    if not options.no_record:
        console.print(f"Kept in {write_timings('bench_metrics', rows)}")


if __name__ == "__main__":
    main()
