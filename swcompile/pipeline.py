"""From a traced model to a rewired one: decide; verify, rewrite, optimize and check; then take statistics, certify."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from swcompile.calibrate import calibrate, is_trained
from swcompile.certificate import certify, certify_masks
from swcompile.check import census, check
from swcompile.collector import collector_paused
from swcompile.errors import NothingToDoError, SwnetError
from swcompile.frontend import inputs_of, module_of
from swcompile.graph import Coupling
from swcompile.modules import RewiredModule
from swcompile.optimize import optimize, restore_in_place
from swcompile.plan import Note, Options, Plan
from swcompile.record import Record
from swcompile.rewrite import rewrite
from swcompile.scores import Loss, score
from swcompile.trace import Traced, coupled, trace
from swcompile.verify import verify
from swcompile.wiring import Curve, decide

_log = logging.getLogger("swcompile")


@collector_paused()
def make_plan(
    traced: Traced, options: Options, batches: Iterable[Any] | None = None, loss_fn: Loss | None = None
) -> tuple[Plan, Curve | None]:
    """Return the plan, and the curve over p that it was chosen by, if any was."""
    scores = score(traced, options.score, batches, loss_fn) if options.scored else {}
    made, curve = decide(traced.graph, options, scores)
    notes = (*made.notes, *(Note("*", said) for said in _said(traced)))
    return replace(made, notes=notes, leaves=tuple(sorted(traced.leaves))), curve


def _said(traced: Traced) -> Iterator[str]:
    """Yield what a user should know of how the model was traced."""
    if traced.inferred:
        yield f"the example input {', '.join(map(str, traced.example))} was inferred from the first layer"
    for island in traced.steps.islands:
        where = f" ({island.where})" if island.where else ""
        yield f"{island.path} stays as it is, with the layers inside: {island.reason}{where}"
    if traced.steps.assigned:
        yield traced.steps.about_assigned
    for what in traced.steps.fixed:
        yield f"the {what} is fixed to that of the example, since Python code in the forward decides by it"


@collector_paused()
def carry_out(traced: Traced, made: Plan, curve: Curve | None = None, *, fresh: bool = False) -> RewiredModule:
    """Verify, rewrite, optimize and check: the rest of the way, once a plan is there."""
    if made.outputs() and traced.graph.coupling == Coupling():
        traced = coupled(traced)
    verify(made, traced.graph)
    _refuse_masks_without_memory(traced, made)
    counted = census(traced)
    rewrite(traced, made)
    for graph in traced.graphs:
        optimize(graph)
    restore_in_place(traced)
    module = RewiredModule.assemble(traced.root, traced.train_graph, traced.eval_graph)
    ledger = check(module, made, counted, traced.example, fresh=fresh)
    kept, origin = counted if made.masks() else None, "options" if fresh else "plan"
    module.swcompile = Record(made, traced.example, ledger, counted.graph, curve, kept, origin)
    return module


def _refuse_masks_without_memory(traced: Traced, made: Plan) -> None:
    if made.masks() and any(parameter.is_meta for parameter in traced.root.parameters()):
        raise SwnetError(
            f"The model is on the meta device, where tensors have no values, and wiring={made.options.wiring!r} marks live links "
            "by values. Give it memory first, model.to_empty(device='cpu'), or only plan: swnet.plan needs none."
        )


def with_statistics(module: RewiredModule, batches: Iterable[Any] | None) -> RewiredModule:
    """Take the statistics of norms anew, or say that a trained model needs it; the ledger notes either."""
    found: Record = module.swcompile
    if batches is not None:
        norms, seen = calibrate(module, batches, len(found.example))
        said = f"{norms} norms took their statistics anew from {seen} batches"
        if not norms:
            said = "calibrate= found no norm module with statistics, so none took any anew"
            _log.warning("%s", said)
    elif not found.ledger.computes_the_same and is_trained(module):
        said = (
            "the model has been trained (its norms have seen data), and rewiring changes what it computes: train it further, "
            "and give calibrate= some batches to begin with, or take grow= to add links that leave it as it is"
        )
        _log.warning("%s", said)
    else:
        return module
    counted = replace(found.ledger, notes=(*found.ledger.notes, Note("*", said)))
    module.swcompile = replace(found, ledger=counted, calibrated=batches is not None)
    return module


def certified(model: object, module: RewiredModule, example_inputs: object) -> RewiredModule:
    """Return the module with a certificate in its ledger."""
    found: Record = module.swcompile
    masked = bool(found.plan.masks())
    if not found.ledger.links_pruned and not masked:
        raise SwnetError("verify=True compares removed channels with masked ones, and none were removed. Leave it out.")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise SwnetError(
            "verify=True runs the model, which is on the meta device, without values. Leave it out, or give it memory."
        )
    given = inputs_of(model, example_inputs)
    inputs = found.example if given is None else given if isinstance(given, tuple) else (given,)
    if masked:
        certificate = certify_masks(module, inputs)
    else:
        certificate = certify(coupled(trace(module_of(model), given, found.plan.leaves)), found.plan, module, inputs)
    module.swcompile = replace(found, ledger=replace(found.ledger, certificate=certificate))
    return module


def refuse_nothing(made: Plan, options: Options) -> None:
    """Raise NothingToDoError, with the reasons, for a plan that changes no layer where `options` asked for a change."""
    if made.layers or (options.p == 0 and not options.prunes and not options.grow):
        return
    reasons = "\n".join(f"  {note}" for note in made.notes) or "  its forward calls no convolution and no linear layer"
    asked = f"grow={made.options.grow:g}" if made.options.grow else f"p={made.requested_p}, {made.options.asked_to_keep}"
    raise NothingToDoError(f"Nothing can be rewired as asked ({asked}):\n{reasons}")
