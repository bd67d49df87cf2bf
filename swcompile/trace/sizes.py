"""Sizes that remember where in a graph they came from: control flow sees a number, the graph goes on following the input."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

from torch import fx

Make = Callable[[Any], fx.Node]
"""Makes the node that computes a size, given the tracer."""


class Size(int):
    """A size of a traced value: an int wherever Python decides by it, a node wherever an operation is given it.

    `x.view(x.shape[0], -1)` becomes a view with the batch size of the moment, while `if x.shape[2] > 7`, `range(n)` and `int(n)`
    see the example's number. The result of +, -, * and // is a Size again.
    """

    _tracer: weakref.ref[Any]
    _make: Make
    _node: fx.Node | None

    def __new__(cls, value: int, tracer: Any, make: Make) -> Size:
        made = super().__new__(cls, value)
        made._tracer, made._make, made._node = weakref.ref(tracer), make, None
        return made

    def argument(self, tracer: Any) -> fx.Node | int:
        """Return the node that computes the size; the number, where another trace made it (some libraries cache sizes)."""
        if self._tracer() is not tracer or (self._node is not None and self._node._erased):
            return int(self)
        if self._node is None:
            self._node = self._make(tracer)
        return self._node

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def _computed(function: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[Size, Any], Any]:
    def compute(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        operands = (other, self) if swapped else (self, other)
        result = function(*(int(operand) for operand in operands))
        tracer = self._tracer()
        if tracer is None:
            return result

        def make(tracer: Any) -> fx.Node:
            made: fx.Node = tracer.create_node("call_function", function, tracer.create_arg(operands), {})
            return made

        return Size(result, tracer, make)

    return compute


for _function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod):
    _name = _function.__name__
    setattr(Size, f"__{_name}__", _computed(_function, swapped=False))
    setattr(Size, f"__r{_name}__", _computed(_function, swapped=True))
