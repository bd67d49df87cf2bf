"""What a report is of, a rewired module or an analysis, and the facts about it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from swcompile.errors import SwnetError
from swcompile.plan import P_POLICIES, Plan
from swcompile.record import Record, counted, record
from swcompile.report import repeat
from swcompile.report.facts import Facts, Provenance, Sweep, foresee, gather, note_pairs
from swcompile.report.inputs import as_code
from swcompile.scores import NEEDS
from swcompile.store import version
from swcompile.survey import Analysis
from swcompile.trace import Example
from swcompile.wiring import explain, sweep, wire

POINTS, DEEP, FEW_POINTS = 20, 1_000, 5
"""How many values of p a report's curve has, and how many in networks of more than DEEP layers, where each takes seconds."""


def facts(subject: object, command: str | None = None) -> Facts:
    """Return what a report shows of a rewired module or an analysis; `command` is what repeats it, a call where None."""
    if isinstance(subject, Analysis):
        return _foreseen(subject, command)
    if not isinstance(subject, nn.Module):
        raise SwnetError(
            f"A report of a {type(subject).__name__} was asked for; give what swnet.transform or swnet.analyze returned."
        )
    found, ledger = record(subject), counted(subject)
    certificate = [] if ledger.certificate is None else [str(ledger.certificate)]
    return gather(
        found.graph.name,
        found.graph,
        found.plan,
        (ledger.before.as_dict(), ledger.after.as_dict()),
        _swept(found),
        _provenance(found.plan, found.example, command or _call(found), found.plan.digest),
        notes=note_pairs(ledger.notes),
        remarks=(*_about_opaque(ledger.opaque), *certificate, *map(str, ledger.lowered)),
    )


def _foreseen(analysis: Analysis, command: str | None) -> Facts:
    """Return the facts of a model under the plan that its analysis would lead to."""
    options, graph = analysis.options, analysis.graph
    made = replace(wire(graph, replace(options, p=analysis.p)), requested_p=options.p, leaves=analysis.leaves)
    chosen = [explain(analysis.curve, options.p)] if isinstance(options.p, str) else []
    return gather(
        graph.name,
        graph,
        made,
        foresee(graph, made, analysis.figures),
        Sweep(analysis.p, options.p, analysis.curve, ". ".join(chosen)),
        _provenance(made, analysis.example, command or repeat.call(made, as_code(analysis.example))),
        notes=(*note_pairs(made.notes), *analysis.unreached),
        remarks=(*_about_opaque(analysis.opaque), *([analysis.outlook] if analysis.outlook else [])),
        foreseen=True,
    )


def _swept(found: Record) -> Sweep:
    """Return the curve that the p of a plan lies on, counted anew where the record has none."""
    options, policy = found.plan.options, found.plan.requested_p
    if found.curve is None and options.keeps_weights:
        return Sweep(options.number, policy, None, "Not drawn: p was not swept, since a trained model's weights keep their places.")
    curve = found.curve or sweep(found.graph, options, POINTS if len(found.graph.layers) <= DEEP else FEW_POINTS)
    return Sweep(options.number, policy, curve, explain(curve, policy) if policy in P_POLICIES else "")


def _provenance(made: Plan, example: Example, command: str, digest: str = "") -> Provenance:
    """Return what repeats a result; the plan of an analysis has no digest, since notes of tracing and policy are still to come."""
    versions = ("swcompile", version()), ("torch", torch.__version__.split("+")[0]), ("Python", platform.python_version())
    return Provenance(command, tuple(map(str, example)), versions, made.options.seed, digest)


def _call(found: Record) -> str:
    """Return the call that gives a plan again, and so its digest."""
    inputs = as_code(found.example)
    if found.origin != "options":
        return repeat.applied(inputs, moved=found.origin == "training")
    given = (*NEEDS.get(found.plan.options.score, ()), *(["calibrate"] if found.calibrated else []))
    return repeat.call(found.plan, inputs, given)


def _about_opaque(operations: Sequence[tuple[str, str]]) -> list[str]:
    named = ", ".join(f"{name} ({where})" if where else name for name, where in dict.fromkeys(operations))
    return [f"Channels are not followed through {named}: what is around them stays as it is."] if named else []
