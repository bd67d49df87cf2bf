"""Small networks for the tests of the report, as graphs without a model, and their facts."""

from __future__ import annotations

from swcompile.graph import GraphBuilder, LayerGraph
from swcompile.metrics import channel_graph, measure
from swcompile.plan import Options, Plan
from swcompile.report.facts import Facts, Provenance, Sweep, foresee, gather, note_pairs
from swcompile.wiring import sweep, wire

HOSTILE = "</script><script>alert(1)</script>"
NAMES = ("stem", HOSTILE, "a\"b'c", "$x_1$\n\x1b[2J", "<img src=x onerror=alert(2)>", "слой", "层", "a&amp;b")
"""Names that a model may give its layers."""


def residual(blocks: int = 4, names: tuple[str, ...] = ()) -> LayerGraph:
    """Return a stem, blocks of two convolutions with a shortcut, and a head; the first layers have `names`."""
    build = GraphBuilder(names[1] if names else "residual")
    given = iter(names)

    def layer(name: str, value: tuple, size: int) -> tuple:
        name = next(given, name)
        read = build.feature(f"{name} reads", value, (2, value[-1].stop, size, size))
        return build.layer(name, read, 16, kernel_size=(3, 3), positions=size * size, where=f"/home/somebody/net.py:{len(name)}")

    x = layer("stem", build.input("x", 3), 16)
    for block in range(blocks):
        size = 16 if block < blocks // 2 else 8
        inside = layer(f"block{block}.second", layer(f"block{block}.first", x, size), size)
        x = build.add(f"add{block}", x, inside)
    build.sink(build.layer("head", build.feature("pooled", x, (2, 16)), 10, kind="Linear"))
    return build.finish()


def facts_of(graph: LayerGraph, **options: float | str) -> Facts:
    """Return the facts of a network under the plan that options make."""
    asked = Options(**({"p": 0.4, "block": 4} | options))  # type: ignore[arg-type]
    plan: Plan = wire(graph, asked)
    figures = measure(channel_graph(graph))
    return gather(
        graph.name,
        graph,
        plan,
        foresee(graph, plan, figures),
        Sweep(plan.options.number, plan.requested_p, sweep(graph, asked, 3)),
        Provenance("swnet.transform(model, p=0.4, seed=0)", ("2x3x16x16",), (("swcompile", "0"),), 0, plan.digest),
        notes=note_pairs(plan.notes),
        foreseen=True,
    )
