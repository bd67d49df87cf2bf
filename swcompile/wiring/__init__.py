"""Wirings: from a layer graph and options to a plan. Pure and seeded; no torch."""

from __future__ import annotations

from dataclasses import replace

from swcompile.graph import LayerGraph
from swcompile.plan import Note, Options, Plan
from swcompile.wiring.block import wire_block
from swcompile.wiring.kernel import wire_kernel
from swcompile.wiring.policy import Curve, choose_p, explain, resolve, sweep
from swcompile.wiring.score import NO_SCORES, Scores
from swcompile.wiring.tile import wire_tile

__all__ = ["Curve", "choose_p", "decide", "explain", "resolve", "sweep", "wire", "wire_block", "wire_kernel", "wire_tile"]


def wire(graph: LayerGraph, options: Options, scores: Scores = NO_SCORES) -> Plan:
    """Return the plan that the options ask for; a policy for p is resolved first and told in a note.

    `scores` are those that `options.score` names: for each layer how much it needs what it reads.

    >>> from swcompile.graph import GraphBuilder
    >>> build = GraphBuilder("chain")
    >>> x = build.input("x", 8)
    >>> for name in ("a", "b", "c"):
    ...     x = build.layer(name, build.feature(f"{name} reads", x, (1, 8, 4, 4)), 8)
    >>> build.sink(x)
    >>> print(wire(build.finish(), Options(p=0.25, head=True)))  # doctest: +ELLIPSIS
    wiring block, p = 0.25 (asked: 0.25), density 1, seed 0: 4 of 16 blocks moved (p = 0.2500)
    ...
    """
    return decide(graph, options, scores)[0]


def decide(graph: LayerGraph, options: Options, scores: Scores = NO_SCORES) -> tuple[Plan, Curve | None]:
    """Return the plan, as `wire` does, and the curve over p that a policy chose by, None where it took none."""
    numbered, curve = resolve(graph, options, scores)
    if options.wiring == "block":
        plan = wire_block(graph, numbered, scores)
    else:
        plan = wire_tile(graph, numbered) if options.wiring == "tile" else wire_kernel(graph, numbered)
    if not isinstance(options.p, str):
        return plan, None
    why = _TRAINED if curve is None else explain(curve, options.p)
    return replace(plan, requested_p=options.p, notes=(*plan.notes, Note("*", why))), curve


_TRAINED = "p='auto' chose 0: the weights of a trained model would mean nothing to other maps"
