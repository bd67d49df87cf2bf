"""The layer graph as a file: what other tools read is what the graph and the plan say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile import graphfile
from swcompile.errors import SwnetError
from swcompile.graph import LayerGraph
from swcompile.plan import Plan


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(torch.relu(x))
        return self.head(self.two(x).mean((2, 3)))


def planned(**options: Any) -> tuple[LayerGraph, Plan]:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    return swnet.analyze(model, x, points=2).graph, swnet.plan(model, x, **options)


def test_nodes_are_layers_and_sums_with_their_facts() -> None:
    graph, plan = planned(p=0.5)
    made = graphfile.as_networkx(graph, plan)
    assert made.nodes["two"]["kind"] == "Conv2d"
    assert made.nodes["two"] | {"where": ""} == {
        "kind": "Conv2d",
        "channels": 8,
        "in_channels": 8,
        "kernel_size": "3x3",
        "groups": 1,
        "reads": "8x8x8",
        "stage": 1,
        "where": "",
    }
    assert Path(made.nodes["two"]["where"]).name.startswith("test_graphfile.py:")
    assert made.nodes["one"]["stage"] == 0
    assert {facts["kind"] for _, facts in made.nodes(data=True)} == {"input", "Conv2d", "Linear", "sum"}


def test_edges_count_channels_before_and_after() -> None:
    graph, plan = planned(p=0.5)
    before, after = graphfile.as_networkx(graph), graphfile.as_networkx(graph, plan)
    total = next(name for name, facts in before.nodes(data=True) if facts["kind"] == "sum")
    assert [(source, reads["before"]) for source, _, reads in before.in_edges("two", data=True)] == [(total, 8)]
    assert all(reads["before"] == reads["after"] for _, _, reads in before.edges(data=True))
    assert plan.layers
    for wiring in plan.layers:
        edges = list(after.in_edges(wiring.layer, data=True))
        for source, _, reads in edges:
            place = [producer.name for producer in graph.producers].index(source)
            assert reads["after"] == sum(run.width for run in graph.runs_of(wiring.taps) if run.producer == place)
        assert sum(reads["after"] for *_, reads in edges) == 8
        assert any(reads["before"] == 0 for *_, reads in edges)


def test_a_masked_layer_reads_what_some_output_reads() -> None:
    graph, plan = planned(p=0.5, wiring="kernel")
    made = graphfile.as_networkx(graph, plan)
    for wiring in plan.layers:
        assert wiring.mask is not None
        assert sum(reads["after"] for *_, reads in made.in_edges(wiring.layer, data=True)) == int(wiring.mask.any(0).sum())


def test_what_goes_with_pruning_is_told() -> None:
    model, x = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)]), torch.randn(2, 8, 8, 8)
    plan = swnet.plan(model, x, p=0.3, density=0.4)
    made = graphfile.as_networkx(swnet.analyze(model, x, points=2).graph, plan)
    assert plan.outputs()
    for name, spans in plan.outputs().items():
        assert made.nodes[name]["channels_after"] == sum(stop - start for start, stop in spans)


def test_files_read_back_as_the_same_graph(tmp_path: Path) -> None:
    graph, plan = planned(p=0.5)
    wanted = graphfile.as_networkx(graph, plan)
    for ending in (".graphml", ".json", ".dot"):
        graphfile.write(tmp_path / f"graph{ending}", graph, plan)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graph.dot", "graph.graphml", "graph.json"]
    read = nx.read_graphml(tmp_path / "graph.graphml")
    assert dict(read.nodes(data=True)) == dict(wanted.nodes(data=True))
    assert set(read.edges) == set(wanted.edges)
    data = json.loads((tmp_path / "graph.json").read_text())
    assert nx.utils.graphs_equal(nx.node_link_graph(data, edges="edges"), wanted)
    assert (tmp_path / "graph.dot").read_text().count(" -> ") == wanted.number_of_edges()


@pytest.mark.parametrize("ending", graphfile.WRITERS)
def test_only_a_graph_of_ours_is_replaced(ending: str, tmp_path: Path) -> None:
    graph, plan = planned(p=0.5)
    file = tmp_path / f"graph{ending}"
    graphfile.write(file, graph)
    graphfile.write(file, graph, plan)
    written = file.read_bytes()
    (tmp_path / f"link{ending}").symlink_to(file)
    for name, content in (("foreign", plan.to_json().encode()), ("empty", b""), ("binary", b"\xff\xfe")):
        (tmp_path / f"{name}{ending}").write_bytes(content)
    for name in ("foreign", "empty", "binary", "link"):
        with pytest.raises(SwnetError, match=f"{name}{ending} is there already and no layer graph that swcompile wrote"):
            graphfile.write(tmp_path / f"{name}{ending}", graph, plan)
    assert (file.read_bytes(), (tmp_path / f"empty{ending}").read_bytes()) == (written, b"")


def foreign(ending: str) -> str:
    """Return a graph of somebody else's that looks like ours: the same attributes and edges, by networkx or typed in."""
    graph: nx.DiGraph[str] = nx.DiGraph(name="Sequential", plan="", format="swcompile-graph")
    graph.add_edge("input", "0", before=4, after=4)
    if ending == ".graphml":
        return "\n".join(nx.generate_graphml(graph)) + "\n"
    if ending == ".json":
        return json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n"
    return 'digraph "Sequential" {\n  rankdir=LR;\n  node [shape=box];\n  "input" -> "0" [before="4", after="4"];\n}\n'


@pytest.mark.parametrize("ending", graphfile.WRITERS)
def test_a_graph_by_somebody_else_is_not_ours_for_looking_like_it(ending: str, tmp_path: Path) -> None:
    graph, plan = planned(p=0.5)
    file = tmp_path / f"graph{ending}"
    file.write_text(foreign(ending), encoding="utf-8")
    with pytest.raises(SwnetError, match=f"graph{ending} is there already and no layer graph that swcompile wrote"):
        graphfile.write(file, graph, plan)
    assert file.read_text(encoding="utf-8") == foreign(ending)


def test_dot_quotes_whatever_a_name_holds() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph(name='a "graph"')
    graph.add_node('x"];\n evil [y="', kind="Conv2d", channels=1)
    graph.add_node("back\\", kind="sum", channels=2)
    graph.add_edge('x"];\n evil [y="', "back\\", before=0, after=2)
    lines = graphfile._dot(graph).splitlines()
    assert lines[1] == 'digraph "a \\"graph\\"" {'
    assert len(lines) == 4 + 2 + 1 + 1
    assert '"back\\\\" [label=' in lines[5]
    assert lines[6] == '  "x\\"];\\n evil [y=\\"" -> "back\\\\" [style="bold", before="0", after="2"];'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("graph.png", r"graph.png does not end as a graph file does; name one that ends in .graphml, .dot, .json"),
        ("none/graph.dot", "there is no folder none. Make it first"),
        ("folder.dot", "is a folder; name a file"),
    ],
)
def test_bad_names_say_what_to_do(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.dot").mkdir()
    with pytest.raises(SwnetError, match=message):
        graphfile.check_path(tmp_path / name)
