"""Name the values of a forward after the modules that make them."""

from __future__ import annotations

import builtins
import keyword
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

_OURS = "self torch nn F math Any Tensor Path Group Model load WEIGHTS namedtuple OrderedDict _".split()
_HELPERS = "max_pooled average_pooled subsampled stochastic_depth".split()
_TAKEN = frozenset([*_OURS, *_HELPERS, *keyword.kwlist, *dir(builtins)])
"""What no value may be called: a local name would hide what the statements call."""
_CALLED = frozenset(["torch", "nn", "F", "math", "OrderedDict", *_HELPERS])
"""What statements do call, of that: an argument of such a name has another one."""


def argument_name(node: fx.Node) -> str:
    """Return the name of an argument: the model's own where that hides nothing, else with a line behind it."""
    name = str(node.target)
    return f"{name}_" if name in _CALLED else name


def is_named_tuple(target: Any) -> bool:
    """Whether a call makes a named tuple."""
    return isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields")


def class_name(kind: type) -> str:
    """Return the name of a class of named tuples, another one than its own where the written module has that for something else."""
    return f"{kind.__name__}Tuple" if kind.__name__ in _TAKEN or kind.__name__.startswith("Masked") else kind.__name__


class Names:
    """A name for each node: an argument's own, for a module's value the shortest end of its path that no other has, else fx's."""

    def __init__(self, nodes: Sequence[fx.Node], root: nn.Module) -> None:
        self._used = set(_TAKEN) | {class_name(node.target) for node in nodes if is_named_tuple(node.target)}  # type: ignore[arg-type]
        self._names: dict[fx.Node, str] = {}
        for node in nodes:
            if node.op == "placeholder":
                self._names[node] = argument_name(node).lstrip("*")
                self._used.add(self._names[node])
        paths = list(dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module"))
        made = {path: _made_by(root, path) for path in paths}
        ends = Counter(end for path in made.values() for end in _ends(path))
        self._short = {path: next((end for end in _ends(one) if ends[end] == 1), _identifier(one)) for path, one in made.items()}
        self._passing = next(name for name in ("y", "out", "value", "passing") if name not in self._used)
        self._used.add(self._passing)

    def __getitem__(self, node: fx.Node) -> str:
        if node not in self._names:
            self._names[node] = self._free(self._short[str(node.target)] if node.op == "call_module" else node.name)
        return self._names[node]

    def passing(self, node: fx.Node) -> None:
        """Give a value the name of all those that only the next statement reads."""
        self._names[node] = self._passing

    def same(self, node: fx.Node, written: str) -> None:
        """Give a value the name of what it is written into: of another one, or of a buffer."""
        self._names[node] = written

    def piece(self, node: fx.Node, whole: object, start: int) -> None:
        """Name a piece after the value that it is cut from and its first channel."""
        assert isinstance(whole, fx.Node), "pieces are cut from a value"
        self._names[node] = self._free(f"{self[whole]}_c{start}")

    def _free(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        return name


def _made_by(root: nn.Module, path: str) -> str:
    """Return the path of the outermost sequence of which a module is the last: what it gives is what that one gives."""
    above, _, name = path.rpartition(".")
    owner = root.get_submodule(above) if above else None
    if isinstance(owner, nn.Sequential) and name == next(reversed(owner._modules)):
        return _made_by(root, above)
    return path


def _ends(path: str) -> list[str]:
    """Return the ends of a path that can be names, the shortest first: 0_relu is none, layer1_0_relu is."""
    parts = path.split(".")
    return [end for place in range(len(parts) - 1, -1, -1) if (end := "_".join(parts[place:])).isidentifier()]


def _identifier(path: str) -> str:
    """Return a name for a path that begins with a number."""
    name = "_".join("".join(char if char.isalnum() else "_" for char in part) for part in path.split("."))
    return name if name[:1].isalpha() else f"layer{name.lstrip('_')}"
