"""Turn a budget of parameters or multiply-accumulates into a density."""

from __future__ import annotations

from dataclasses import replace

from swcompile.errors import SwnetError
from swcompile.graph import LayerGraph
from swcompile.plan import Options, promised_change
from swcompile.wiring.block import wire_block

STEPS = 20
"""Halvings of the interval of densities: to within a millionth, finer than any block."""


def to_budget(
    graph: LayerGraph, options: Options, total_params: int, *, params: int | None = None, macs: int | None = None
) -> Options:
    """Return the options with the largest density whose plan keeps within the budget, which is for the whole model.

    Raises SwnetError where even one block per layer is too many.
    """
    total_macs = sum(layer.links * layer.kernel_area * layer.positions for layer in graph.layers)
    limit, total = (params, total_params) if params is not None else (macs, total_macs)
    assert limit is not None
    probe = replace(options, p=0.0)

    def size(density: float) -> int:
        change = promised_change(wire_block(graph, replace(probe, density=density)).layers, graph)
        return total + (change[0] if params is not None else change[1])

    low, high = 2.0**-STEPS, 1.0
    if size(high) <= limit:
        return options
    if size(low) > limit:
        what = "parameters" if params is not None else "multiply-accumulates"
        raise SwnetError(
            f"A budget of {limit:,} {what} was asked for; with one block per layer the model still has {size(low):,} of {total:,}. "
            "Take a larger budget, or a smaller block."
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return replace(options, density=low)
