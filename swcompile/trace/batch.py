"""Free a graph from the batch size that it was traced with.

Python insists that `len(x)` and `int(x.shape[0])` are plain numbers, so `x.view(len(x), -1)` would hold for the example's batch
only. Such a model is traced with a batch size that nothing else has, a prime, and what is a multiple of it is computed instead.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from swcompile.trace.shapes import Spec

MARK = 107
"""A prime: widths and image sizes are hardly ever multiples of it, and where one is, the comparison of shapes tells."""


def marked(spec: Spec) -> Spec:
    """Return a spec with the telling batch size."""
    return Spec((MARK, *spec.shape[1:]), spec.dtype) if spec.shape else spec


def free_batch(graph: fx.Graph, source: str) -> None:
    """Replace multiples of MARK among the arguments by multiples of the batch size of the input `source`."""
    place = next(node for node in graph.nodes if node.op == "placeholder" and node.target == source)
    behind = [node for node in graph.nodes if node.op == "placeholder"][-1].next
    with graph.inserting_before(behind):
        batch = graph.call_method("size", (place, 0))
    made: dict[int, fx.Node] = {MARK: batch}

    def freed(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([freed(item) for item in value])
        if isinstance(value, dict):
            return {key: freed(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(freed(value.start), freed(value.stop), freed(value.step))
        if type(value) is not int or value == 0 or value % MARK:
            return value
        if value not in made:
            with graph.inserting_after(batch):
                made[value] = graph.call_function(operator.mul, (batch, value // MARK))
        return made[value]

    for node in graph.nodes:
        if node is not batch and node.op not in ("placeholder", "get_attr") and node not in made.values():
            node.args, node.kwargs = freed(node.args), freed(node.kwargs)
    if not batch.users:
        graph.erase_node(batch)
