"""Write a layer graph, before and after rewiring, for other tools: GraphML, DOT, or JSON as networkx has it (node-link data).

nodes    inputs, layers, sums, and operations that channels cannot be followed through
edges    from what makes channels to who reads them: how many of them before, and how many after
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, Run
from swcompile.plan import LayerWiring, Plan
from swcompile.report.local import local_file

Reads = dict[int, int]
"""How many channels are read of each producer."""


def as_networkx(graph: LayerGraph, plan: Plan | None = None) -> nx.DiGraph[str]:
    """Return a layer graph as networkx's; without a plan, `after` is what it was before.

    Nodes have `kind`, `channels` and, where some went, `channels_after`; layers also `in_channels`, `kernel_size`, `groups`,
    `reads` (the shape of what they read, without the batch), `stage` (0 for the highest resolution) and `where` (file:line).
    """
    made: nx.DiGraph[str] = nx.DiGraph(name=graph.name, plan="" if plan is None else plan.digest)
    names = _unique(producer.name for producer in graph.producers)
    wirings = {} if plan is None else {wiring.layer: wiring for wiring in plan.layers}
    outputs = {} if plan is None else plan.outputs()
    bypassed = {} if plan is None else dict(plan.bypassed)
    layers = {layer.producer: layer for layer in graph.layers}
    stages = _stages(graph)
    for place, producer in enumerate(graph.producers):
        layer = layers.get(place)
        facts: dict[str, Any] = {"kind": producer.kind if layer is None else layer.kind, "channels": producer.channels}
        facts |= {} if layer is None else _facts(graph, layer, stages)
        if layer is not None and layer.name in outputs:
            facts["channels_after"] = sum(stop - start for start, stop in outputs[layer.name])
        made.add_node(names[place], **facts)
    for place, producer in enumerate(graph.producers):
        layer = layers.get(place)
        if layer is None:
            before = _count(run for part in producer.parts for run in part)
            kept = bypassed.get(producer.name)
            after = before if kept is None else _count(producer.parts[kept])
        else:
            before = _count(graph.feature_by_name[layer.feature].runs)
            after = _count(_live(graph, wirings[layer.name])) if layer.name in wirings else before
        for source in dict.fromkeys((*before, *after)):
            made.add_edge(names[source], names[place], before=before.get(source, 0), after=after.get(source, 0))
    return made


def _unique(names: Iterable[str]) -> list[str]:
    """Return names, with a number behind those that another one has already."""
    found: dict[str, int] = {}
    made = []
    for name in names:
        found[name] = found.get(name, 0) + 1
        made.append(name if found[name] == 1 else f"{name} ({found[name]})")
    return made


def _stages(graph: LayerGraph) -> Mapping[int, int]:
    """Return the place of each resolution among those that the layers have, the highest first."""
    return {size: place for place, size in enumerate(sorted({layer.positions for layer in graph.layers}, reverse=True))}


def _facts(graph: LayerGraph, layer: Layer, stages: Mapping[int, int]) -> dict[str, Any]:
    shape = graph.feature_by_name[layer.feature].shape[1:]
    return {
        "in_channels": layer.in_channels,
        "kernel_size": "x".join(map(str, layer.kernel_size)),
        "groups": layer.groups,
        "reads": "x".join(map(str, shape)),
        "stage": stages[layer.positions],
        "where": local_file(layer.where),
    }


def _count(runs: Iterable[Run]) -> Reads:
    """Return how many different channels of each producer runs hold."""
    found: dict[int, set[int]] = {}
    for run in runs:
        channels = range(run.first, run.first + run.width * run.step, run.step) if run.step else (run.first,)
        found.setdefault(run.producer, set()).update(channels)
    return {producer: len(channels) for producer, channels in found.items()}


def _live(graph: LayerGraph, wiring: LayerWiring) -> Iterator[Run]:
    """Yield what a layer reads: of a masked one, the channels that some output reads."""
    taps = (*wiring.taps, *wiring.grown)
    read: NDArray[np.bool_] | None = None if wiring.mask is None else np.asarray(wiring.mask.any(0))
    for run in graph.runs_of(taps):
        if read is None:
            yield run
        else:
            places = np.flatnonzero(read[run.start : run.stop]).tolist()
            yield from (run.cut(run.start + place, run.start + place + 1) for place in places)


# Files

FORMAT = "swcompile-graph"
"""Stands at the head of every file: a comment where the format has such, else a key beside the graph, which readers pass over."""


def _graphml(graph: nx.DiGraph[str]) -> str:
    return "\n".join([f"<!-- {FORMAT} -->", *nx.generate_graphml(graph)]) + "\n"


def _json(graph: nx.DiGraph[str]) -> str:
    return json.dumps({"format": FORMAT, **nx.node_link_data(graph, edges="edges")}, indent=1) + "\n"


def _dot(graph: nx.DiGraph[str]) -> str:
    """Return a graph in Graphviz's language: links that came are bold, those that went are dashed."""
    lines = [f"// {FORMAT}", f"digraph {_quoted(str(graph.graph['name']))} {{", "  rankdir=LR;", "  node [shape=box];"]
    for name, facts in graph.nodes(data=True):
        lines.append(f"  {_quoted(name)} [{_attributes({'label': _label(name, facts), **facts})}];")
    for source, target, reads in graph.edges(data=True):
        style = "dashed" if not reads["after"] else "bold" if not reads["before"] else "solid"
        lines.append(f"  {_quoted(source)} -> {_quoted(target)} [{_attributes({'style': style, **reads})}];")
    return "\n".join([*lines, "}"]) + "\n"


def _label(name: str, facts: Mapping[str, Any]) -> str:
    return f"{name}\n{facts['kind']}, {facts.get('channels_after', facts['channels'])}"


def _attributes(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_quoted(str(value))}" for key, value in facts.items())


def _quoted(text: str) -> str:
    """Return a string of DOT: in its quotes only a quote needs a backslash, and one at the end must not hide the closing quote."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}"'


WRITERS: Mapping[str, Callable[[nx.DiGraph[str]], str]] = {".graphml": _graphml, ".dot": _dot, ".json": _json}
"""By the ending of the file's name."""

BEGINNINGS: Mapping[str, str] = {
    ".graphml": f"<!-- {FORMAT} -->\n<graphml ",
    ".dot": f"// {FORMAT}\ndigraph ",
    ".json": f'{{\n "format": "{FORMAT}",\n "directed": true,\n',
}
"""What a file of ours begins with, and so may be replaced: whatever a graph is like, no other program begins its file like that."""


def check_path(name: str | Path) -> Path:
    """Return where to write, absolute.

    Raises SwnetError for an ending that says no format, and for a file that is there and no layer graph of ours.
    """
    path = Path(os.path.abspath(name))
    if path.suffix not in WRITERS:
        raise SwnetError(f"{name} does not end as a graph file does; name one that ends in {', '.join(WRITERS)}.")
    if path.is_dir():
        raise SwnetError(f"{name} is a folder; name a file to write the graph to.")
    if not path.parent.is_dir():
        raise SwnetError(f"{name} cannot be written: there is no folder {path.parent.name}. Make it first, or name another file.")
    if os.path.lexists(path) and not _is_ours(path):
        raise SwnetError(f"{name} is there already and no layer graph that swcompile wrote; it is not replaced. Name another file.")
    return path


def _is_ours(path: Path) -> bool:
    """Whether a plain file begins as the writer of its ending begins."""
    if path.is_symlink() or not path.is_file():  # a link, or a pipe that never ends
        return False
    beginning = BEGINNINGS[path.suffix].encode()
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def write(path: Path, graph: LayerGraph, plan: Plan | None = None) -> None:
    """Write a layer graph to a file, whole or not at all, in the format that its name ends in. Raises SwnetError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_text(WRITERS[check_path(path).suffix](as_networkx(graph, plan)), encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        raise SwnetError(f"{path.name} cannot be written: {error.strerror or error}. Name another file.") from error
    finally:
        part.unlink(missing_ok=True)
