"""Tables for a terminal of 80 columns: the ledger, the sweep over p, and what can be rewired layer by layer.

Each takes plain data and returns something that rich prints. Names of layers are text, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swcompile.graph import Layer, LayerGraph

FIGURES: Mapping[str, str] = {
    "params": "parameters",
    "stored_params": "parameters stored, masked ones too",
    "macs": "multiply-accumulates",
    "executed_macs": "multiply-accumulates run",
    "links": "links",
    "long_range": "long-range share of links",
    "p_requested": "p requested",
    "p_achieved": "p achieved",
    "dead_channels": "dead channels",
    "V": "channels (V)",
    "E": "edges (E)",
    "graph_density": "graph density",
    "C": "clustering (C)",
    "L": "path length (L)",
    "S": "small-worldness (S)",
    "unreachable": "pairs without a path",
    "in_degree": "links into a channel, mean",
    "out_degree": "links out of a channel, mean",
    "mean_path": "mean path, input to output",
    "effective_depth": "effective depth",
    "peak_bytes": "feature maps at once, bytes",
}
"""The figures of a ledger that are shown, in this order; ledger.json holds more."""

ONLY_WHERE_DIFFERENT: Mapping[str, str] = {"stored_params": "params", "executed_macs": "macs"}
ONLY_AFTER = ("p_requested", "p_achieved")

SHOWN_LAYERS = 8
"""How many layers are named behind a reason that they share."""


def ledger(before: Mapping[str, object], after: Mapping[str, object], notes: Iterable[tuple[str, str]] = ()) -> RenderableType:
    """Show the figures of a model before and after it was rewired, and (layer, reason) for those that were left alone.

    >>> from rich.console import Console
    >>> Console(width=80).print(ledger({"links": 1200, "L": 2.0}, {"links": 900, "L": 1.5}))
                      before   after   change
    ─────────────────────────────────────────
    links              1,200     900   -25.0%
    path length (L)        2     1.5   -25.0%
    """
    table = _table("", "before >", "after >", "change >")
    for row in ledger_rows(before, after):
        table.add_row(*row)
    return Group(table, *map(Text, verdict(after.get("S"))), *_reasons(notes))


def ledger_rows(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[tuple[str, str, str, str]]:
    """Yield each figure that is worth a row: its name in words, its value before and after, and the change."""
    for name, words in FIGURES.items():
        old, new = (_number(side.get(name)) for side in ({} if name in ONLY_AFTER else before, after))
        if _worth_a_row(name, before, after):
            yield words, figure(old), figure(new), _change(old, new)


def _number(value: object) -> object:
    """Return the mean of degrees, any other figure as it is."""
    return value.get("mean") if isinstance(value, Mapping) else value


def _worth_a_row(name: str, before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    other = ONLY_WHERE_DIFFERENT.get(name)
    if other is not None:
        return (before.get(name), after.get(name)) != (before.get(other), after.get(other))
    if name == "unreachable":
        return bool(before.get(name) or after.get(name))
    return before.get(name) is not None or after.get(name) is not None


def verdict(small_worldness: object) -> Iterator[str]:
    """Say so where a network is no small world."""
    if isinstance(small_worldness, float) and small_worldness < 1:
        yield "S is below 1: not a small world by the paper's measure (p='boundary' asks for one)."


def stages(rows: Iterable[tuple[str, int, float, float, float, float, float]]) -> RenderableType:
    """Show by the size of maps what layers read: layers, channels that stayed, came and went, and the mean distance from the input.

    A channel that a mask leaves to some of a layer's outputs counts by their share.
    """
    table = _table("reads", "layers >", "kept >", "came in >", "no longer read >", "from input >", "after >")
    for size, count, *figures in rows:
        table.add_row(Text(size), str(count), *(figure(round(channels)) for channels in figures[:3]), *map(figure, figures[3:]))
    return table


def sweep(rows: Iterable[tuple[float, float, float, float]], chosen: float, rule: str) -> RenderableType:
    """Show clustering, path length and small-worldness over p, and which p the rule takes."""
    table = _table("p >", "clustering C >", "path length L >", "small-worldness S >", "")
    points = sorted(rows)
    nearest = min((abs(row[0] - chosen) for row in points), default=0.0)
    for row in points:
        mark = f"<- {rule}: {figure(chosen)}" if abs(row[0] - chosen) == nearest else ""
        table.add_row(*map(figure, row), Text(mark))
    return table


@dataclass(frozen=True)
class Share:
    """How much of a model's layers can be rewired, and how much there is."""

    layers: int
    all_layers: int
    params: int
    all_params: int
    macs: int
    all_macs: int

    def __str__(self) -> str:
        parts = (
            f"{self.layers} of {self.all_layers} layers can be rewired",
            f"{_percent(self.params, self.all_params)} of their weights",
            f"{_percent(self.macs, self.all_macs)} of their multiply-accumulates",
        )
        return ", ".join(parts) + "."


def share(graph: LayerGraph, refused: Mapping[str, str]) -> Share:
    """Count the layers that can be rewired, their weights and multiply-accumulates per sample, biases aside."""
    free = [layer for layer in graph.layers if layer.name not in refused]
    return Share(
        layers=len(free),
        all_layers=len(graph.layers),
        params=sum(map(_weights, _once(free))),
        all_params=sum(map(_weights, _once(graph.layers))),
        macs=sum(_weights(layer) * layer.positions for layer in free),
        all_macs=sum(_weights(layer) * layer.positions for layer in graph.layers),
    )


def layers(graph: LayerGraph, refused: Mapping[str, str], unreached: Iterable[tuple[str, str]] = ()) -> RenderableType:
    """Show each layer, its share of weights and multiply-accumulates, and why it cannot be rewired where it cannot.

    `unreached` are layers of the model that are no part of its graph, with the reason.
    """
    total = share(graph, refused)
    table = _table("layer", "reads", "makes", "weights >", "MACs >", "can be rewired")
    for layer in graph.layers:
        table.add_row(
            Text(layer.name, overflow="fold"),
            str(layer.in_channels),
            _makes(layer),
            _percent(_weights(layer), total.all_params),
            _percent(_weights(layer) * layer.positions, total.all_macs),
            Text(f"no: {refused[layer.name]}" if layer.name in refused else "yes"),
        )
    for name, reason in unreached:
        table.add_row(Text(name, overflow="fold"), "", "", "", "", Text(f"no: {reason}"))
    return table


def records(graph: LayerGraph, refused: Mapping[str, str]) -> list[dict[str, object]]:
    """Return what `layers` shows as plain data."""
    return [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": list(layer.kernel_size),
            "groups": layer.groups,
            "weights": _weights(layer),
            "macs": _weights(layer) * layer.positions,
            "refused": refused.get(layer.name),
            "where": layer.where,
        }
        for layer in graph.layers
    ]


def tracing(step: str, why: str, where: str, fixed: Sequence[str]) -> RenderableType:
    """Say what tracing had to do, and which sizes of the input the result is fixed to."""
    if step == "plain":
        said = "Traced by torch.fx."
    else:
        said = f"Traced with shapes, since torch.fx alone does not get by: {why}{f' ({where})' if where else ''}."
    held = f" The {' and the '.join(fixed)} stays that of the example: the code decides by it." if fixed else ""
    return Text(said + held)


def islands(found: Sequence[tuple[str, str, str]]) -> RenderableType:
    """Name the modules that stay one call, layers inside and all: path, reason, line."""
    lines = [f"  {path}: {reason}{f' ({where})' if where else ''}" for path, reason, where in found[:SHOWN_LAYERS]]
    more = [f"  and {len(found) - SHOWN_LAYERS} more"] if len(found) > SHOWN_LAYERS else []
    return Text("\n".join(["These modules stay as they are, and the rest is rewired around them:", *lines, *more]))


def opaque(operations: Sequence[tuple[str, str]]) -> RenderableType:
    """Name the operations through which channels cannot be followed."""
    shown = ", ".join(f"{name} ({where})" if where else name for name, where in operations[:SHOWN_LAYERS])
    more = f" and {len(operations) - SHOWN_LAYERS} more" if len(operations) > SHOWN_LAYERS else ""
    return Text(f"Channels are not followed through {shown}{more}: what is around them stays as it is.")


def _table(*headings: str) -> Table:
    """Make a table; a heading that ends in > is of a column of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading.removesuffix(" >")), justify="right" if heading.endswith(">") else "left", overflow="fold")
    return table


def _reasons(notes: Iterable[tuple[str, str]]) -> list[Text]:
    """Say each reason once, with the layers that it holds for; * stands for the whole model."""
    named: dict[str, list[str]] = {}
    for name, reason in notes:
        named.setdefault(reason, []).extend([] if name == "*" else [name])
    lines = []
    for reason, names in named.items():
        more = f" and {len(names) - SHOWN_LAYERS} more" if len(names) > SHOWN_LAYERS else ""
        lines.append(Text(f"{', '.join(names[:SHOWN_LAYERS])}{more}: {reason}".removeprefix(": ")))
    return lines


def _weights(layer: Layer) -> int:
    return layer.links * layer.kernel_area


def _once(found: Iterable[Layer]) -> Iterable[Layer]:
    """Leave out the later call sites of a module that is called several times: its weights exist once."""
    return (layer for layer in found if "@" not in layer.name)


def _makes(layer: Layer) -> str:
    kernel = "x".join(map(str, layer.kernel_size))
    return " ".join(filter(None, (str(layer.out_channels), kernel, f"/{layer.groups}" if layer.groups > 1 else "")))


def figure(value: object) -> str:
    """Return a figure in words: four digits of a share, all of a count, "-" where it has no value."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    if isinstance(value, int | float):
        return f"{int(value):,}"
    return str(value) if isinstance(value, str) else ""


def _change(old: object, new: object) -> str:
    if not isinstance(old, int | float) or not isinstance(new, int | float) or not math.isfinite(old) or not math.isfinite(new):
        return ""
    if old == new:
        return ""
    return f"{100 * (new - old) / abs(old):+.1f}%" if old else f"{'+' if new > 0 else ''}{figure(new)}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def microbenchmarks(device: str, rows: Iterable[Any]) -> RenderableType:
    """Return the table of swcompile.bench.Row, one a gather and form."""
    table = Table(title=Text(f"Gathers on {device}"), box=box.SIMPLE_HEAD)
    for heading in ("", "form", "ms", "quartiles", "ratio", "GB/s", "GFLOP/s"):
        table.add_column(heading, justify="left" if heading in ("", "form") else "right")
    name = ""
    for row in rows:
        low, middle, high = row.ms
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        speeds = (f"{speed:,.0f}" if speed else "" for speed in (row.gbytes, row.gflops))
        table.add_row("" if row.name == name else row.name, row.form, f"{middle:.3g}", f"{low:.3g}-{high:.3g}", ratio, *speeds)
        name = row.name
    return table


def timings(device: str, dtypes: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return the table of a calibration: how far each operation's timings are from what the others say."""
    table = Table(title=Text(f"Timed on {device}"), box=box.SIMPLE_HEAD)
    for heading in ("dtype", "operation", "sizes", "error"):
        table.add_column(heading, justify="left" if heading in ("dtype", "operation") else "right")
    for dtype, operations in dtypes.items():
        for name, found in operations.items():
            table.add_row(dtype, name, str(len(found.timings)), f"{found.error:.0%}")
    return table
