"""What of a model can be rewired, and its figures over p: what is known before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from swcompile.frontend import trace_given
from swcompile.graph import LayerGraph
from swcompile.metrics import Figures, channel_graph, measure
from swcompile.outlook import outlook
from swcompile.plan import Options
from swcompile.trace import Example, Steps, Traced, trace_structure
from swcompile.trace.rules import NORM_MODULES
from swcompile.wiring import Curve, sweep
from swcompile.wiring.eligible import eligible
from swcompile.wiring.policy import choose_p

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAX_POINTS = 1000
"""The most values of p that a sweep takes: the network is wired and measured anew at each of them."""


@dataclass(frozen=True)
class Survey:
    """What of a model can be rewired.

    `refused` pairs each layer that cannot be rewired with the reason, `opaque` each operation that channels cannot be followed
    through with its line, `unreached` each layer that is no part of the graph with the reason. `steps` says what tracing had to do.
    `params` counts the whole model's parameters. `inferred` tells whether the input was guessed. `outlook` says what the evidence
    has such networks gain (swcompile.outlook), None where nothing can be rewired. `options` are those that were asked for, `leaves`
    the modules that tracing left alone because the user said so.
    """

    graph: LayerGraph
    options: Options
    leaves: tuple[str, ...]
    eligible: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    opaque: tuple[tuple[str, str], ...]
    unreached: tuple[tuple[str, str], ...]
    steps: Steps
    example: Example
    inferred: bool
    params: int
    outlook: str | None


@dataclass(frozen=True)
class Analysis(Survey):
    """A survey with the model's figures, and what they become over p.

    `curve` holds C, L and S at each p swept; `p` is the one the policy (or the number asked for) chooses.
    """

    figures: Figures
    curve: Curve
    p: float


def survey(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    leaf_modules: Sequence[str | type[nn.Module]] = (),
    **asked: Any,
) -> Survey:
    """Return what of a model can be rewired, with the options `asked` for, without wiring anything: for `swcompile check`."""
    options = Options(**asked)
    return surveyed(trace_given(trace_structure, model, example_inputs, leaf_modules, options), options)


def surveyed(traced: Traced, options: Options) -> Survey:
    """Return what of a traced model can be rewired, with the options that were asked for."""
    layers, notes = eligible(traced.graph, options)
    normed = any(isinstance(module, NORM_MODULES) for module in traced.root.modules())
    return Survey(
        graph=traced.graph,
        options=options,
        leaves=tuple(sorted(traced.leaves)),
        eligible=tuple(layer.name for layer in layers),
        refused=tuple((note.layer, note.reason) for note in notes),
        opaque=traced.graph.opaque,
        unreached=traced.unreached,
        steps=traced.steps,
        example=traced.example,
        inferred=traced.inferred,
        params=traced.graph.params,
        outlook=outlook(traced.graph, normed=normed) if layers else None,
    )


def analyzed(traced: Traced, options: Options, points: int) -> Analysis:
    """Return the survey of a traced model with its figures, and with those at `points` values of p."""
    curve = sweep(traced.graph, options, points)
    return Analysis(
        **vars(surveyed(traced, options)),
        figures=measure(channel_graph(traced.graph)),
        curve=curve,
        p=choose_p(curve, options.p) if isinstance(options.p, str) else float(options.p),
    )
