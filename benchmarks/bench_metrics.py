"""What do the figures of a channel graph cost, beside networkx and igraph on the same graph in the same run?

    python benchmarks/bench_metrics.py                  all tables, about two minutes
    python benchmarks/bench_metrics.py --skip-others    without networkx and igraph
    python benchmarks/bench_metrics.py --json FILE      the records as JSON as well

Three tables: link-by-link graphs of VGG16 by the published algorithm, C and L apart, with the values to reproduce; the same for a
graph small enough for the other libraries; everything that `measure` does, for block wirings of three networks and for a
residual network of 10,000 layers. Times are the best of a few runs on one thread; graphs are built outside of the timing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one core, as the figures are stated
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click
import igraph
import networkx as nx
import numpy as np

from swcompile.graph import GraphBuilder, LayerGraph, Run
from swcompile.metrics import channel_graph, measure
from swcompile.metrics.bits import unpack
from swcompile.metrics.clustering import clustering, expand
from swcompile.metrics.paths import paths
from swcompile.plan import Options
from swcompile.wiring import wire_block
from tests.graphs import VGG16, by_algorithm_1, chain, residual

SMALL = (3, 24, 24, 48, 48, 48, 96, 96)
PUBLISHED = {0.1: (0.053, 1.828), 0.5: (0.176, 1.817), 0.85: (0.229, 1.817)}
"""C and L of VGG16's convolutions under Algorithm 1 of SWANN (IEEE JETCAS 11(4), 2021)."""

Record = dict[str, Any]


def best(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of a call in seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def resnet50() -> LayerGraph:
    """Return ResNet-50 as a layer graph."""
    build = GraphBuilder("ResNet-50")
    value, name = build.input("x", 3), "x"

    def conv(reads: str, source: tuple[Run, ...], size: int, out: int) -> tuple[Run, ...]:
        feature = build.feature(reads, source, (1, source[-1].stop, size, size))
        return build.layer(f"conv{len(build.layers)}", feature, out)

    value, name = conv("x", value, 224, 64), "stem"
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            size, width, label = 56 >> stage, 64 << stage, f"stage{stage}.{block}"
            made = conv(f"{label}.2", conv(f"{label}.1", conv(name, value, size, width), size, width), size, 4 * width)
            value, name = build.add(label, made, conv(name, value, size, 4 * width) if block == 0 else value), label
    build.sink(build.layer("head", build.feature("pooled", value, (1, 2048)), 1000, kind="Linear"))
    return build.finish()


def densenet201() -> LayerGraph:
    """Return DenseNet-201 as a layer graph."""
    build = GraphBuilder("DenseNet-201")
    value = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 224, 224)), 64)
    for stage, layers in enumerate((6, 12, 48, 32)):
        size = 56 >> stage
        for number in range(layers):
            label = f"dense{stage}.{number}"
            inner = build.layer(f"{label}.1", build.feature(label, value, (1, value[-1].stop, size, size)), 128)
            made = build.layer(f"{label}.2", build.feature(f"{label}.inner", inner, (1, 128, size, size)), 32)
            value = build.cat(value, made)
        if stage < 3:
            feature = build.feature(f"stage{stage}", value, (1, value[-1].stop, size, size))
            value = build.layer(f"transition{stage}", feature, value[-1].stop // 2)
    build.sink(build.layer("head", build.feature("pooled", value, (1, value[-1].stop)), 1000, kind="Linear"))
    return build.finish()


def link_by_link(widths: Sequence[int], p: float, repeats: int) -> Record:
    """Time C and L of a chain under Algorithm 1."""
    made = by_algorithm_1(widths, p)
    graph = made.classes
    layers = made.original.layers
    taps = {layer.name: taps for layer, taps in zip(layers, made.reads, strict=True)}
    masks = {layers[index].name: mask for index, mask in made.masks.items()}
    return {
        "graph": f"chain of {len(widths)}, kernel, p = {p:g}",
        "V": made.nodes,
        "E": made.edges,
        "C": clustering(graph).C,
        "L": paths(graph).L,
        "seconds_graph": best(lambda: channel_graph(made.original, taps, masks).classes, repeats),
        "seconds_C": best(lambda: clustering(graph), repeats),
        "seconds_L": best(lambda: paths(graph), repeats),
    }


def others(widths: Sequence[int], p: float, *, with_networkx: bool) -> list[Record]:
    """Time the other libraries on a chain under Algorithm 1, each against ours in the same run."""
    made = by_algorithm_1(widths, p)
    wide, _ = expand(made.classes)
    edges = np.argwhere(np.triu(unpack(wide.rows, wide.count)))
    ours = {"C": best(lambda: clustering(made.classes), 3), "L": best(lambda: paths(made.classes), 3)}
    value = {"C": clustering(made.classes).C, "L": paths(made.classes).L}
    theirs = igraph.Graph(n=wide.count, edges=edges.tolist())
    runs: dict[tuple[str, str], Callable[[], float]] = {
        ("igraph", "C"): lambda: theirs.transitivity_avglocal_undirected(mode="zero"),
        ("igraph", "L"): lambda: theirs.average_path_length(directed=False),
    }
    if with_networkx:
        slow = nx.Graph(edges.tolist())
        runs["networkx", "C"] = lambda: nx.average_clustering(slow)
        runs["networkx", "L"] = lambda: nx.average_shortest_path_length(slow)
    records = []
    for (library, figure), run in runs.items():
        start = time.perf_counter()
        found = run()
        taken = time.perf_counter() - start
        assert abs(found - value[figure]) < 1e-9, (library, figure, found, value[figure])
        record = {"graph": f"V = {made.nodes}, E = {made.edges}", "library": library, "figure": figure, "seconds": taken}
        records.append(record | {"ours": ours[figure], "ratio": taken / ours[figure]})
    return records


def whole(name: str, graph: LayerGraph, p: float, repeats: int) -> Record:
    """Time everything that `measure` does for a network under a block wiring."""
    taps = wire_block(graph, Options(p=p)).taps() if p else {}
    figures = measure(channel_graph(graph, taps))
    return {
        "graph": f"{name}, block, p = {p:g}",
        "V": figures.V,
        "E": figures.E,
        "classes": len(channel_graph(graph, taps).weight),
        "C": figures.C,
        "L": figures.L,
        "S": figures.S,
        "exact": figures.exact,
        "seconds": best(lambda: measure(channel_graph(graph, taps)), repeats),
    }


def show(title: str, records: Sequence[Record]) -> None:
    """Print records as a table."""
    cells = [list(records[0]), *([_shown(value) for value in record.values()] for record in records)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    click.echo(f"\n{title}")
    for row in cells:
        click.echo("  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@click.command(help=__doc__)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the records here as well.")
@click.option("--repeats", default=5, show_default=True, help="Runs of which the best counts.")
@click.option("--skip-others", is_flag=True, help="Leave out networkx and igraph.")
def main(file: Path | None, repeats: int, skip_others: bool) -> None:
    tables = {"Link by link, VGG16": [link_by_link(VGG16, p, repeats) for p in PUBLISHED]}
    for p, record in zip(PUBLISHED, tables["Link by link, VGG16"], strict=True):
        assert abs(record["C"] - PUBLISHED[p][0]) < 1.5e-3, record
        assert abs(record["L"] - PUBLISHED[p][1]) < 1.5e-3, record
    nets = {"VGG16": chain(VGG16), "ResNet-50": resnet50(), "DenseNet-201": densenet201()}
    tables["Everything, block wiring"] = [whole(name, graph, p, repeats) for name, graph in nets.items() for p in (0, 0.3, 0.8)]
    tables["Everything, 10,000 layers"] = [whole("residual", residual(5_000, 16), 0, 1)]
    if not skip_others:
        tables["Other libraries"] = others(SMALL, 0.5, with_networkx=True) + others(VGG16, 0.85, with_networkx=False)
    for title, records in tables.items():
        show(title, records)
    if file is not None:
        file.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
