"""Write the modules, parameters and buffers of a network as an __init__, under the names that its state dict has."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Iterator

from torch import nn

from swcompile.export.python import layout
from swcompile.export.python.constructors import constructor, unwritable
from swcompile.export.python.expressions import quoted
from swcompile.export.python.tensors import blank, fresh, values


def is_name(text: str) -> bool:
    """Whether a text can stand behind a dot."""
    return text.isidentifier() and not keyword.iskeyword(text)


class Tree:
    """The modules of a network, and how a program reaches each of them.

    `called` are the paths of the modules that forward calls: each is written as one call of a constructor. Others that hold modules
    are written as a list where their names are 0, 1, 2 ..., and as a Group of named modules else.
    """

    def __init__(self, root: nn.Module, called: Collection[str], read: Collection[str]) -> None:
        self.root, self._called = root, called
        self._entered = {path for leaf in (*called, *read) for path in _above(leaf)} | {""}
        self._first: dict[nn.Module, str] = {}
        self._late: list[str] = []
        self.is_list = _is_list(root)

    def reach(self, path: str) -> str:
        """Return the expression for a module, parameter or buffer: self.layer1[0].conv1."""
        owner: object = self.root
        text = "self"
        for name in path.split(".") if path else ():
            listed = isinstance(owner, nn.Module) and name.isdigit() and _is_list(owner)
            text = f"{text}[{name}]" if listed else f"{text}.{name}" if is_name(name) else f"getattr({text}, {quoted(name)})"
            owner = getattr(owner, name)
        return text

    def lines(self) -> list[str]:
        """Return the body of __init__."""
        if self.is_list:
            made = ["        super().__init__(", "            ["]
            for name, child in _modules(self.root):
                made += self._member("", name, child, 16)
            made += ["            ]", "        )"]
        else:
            made = ["        super().__init__()"]
            for name, child in self._children("", self.root):
                made += self._assigned(name, child)
        return [*made, *self._tensors("", self.root), *self._late, *self._tied(), *self._frozen("", self.root)]

    def _placed(self, path: str, text: str, register: str) -> list[str]:
        """Return the statement that puts what an expression gives where a path leads; `register` does it for names like block-1."""
        above, _, name = path.rpartition(".")
        place = self.reach(path)
        if is_name(name) or place.endswith("]"):
            return layout.statement(f"{place} = {text}", 8)
        return layout.statement(f"{self.reach(above)}.{register}({quoted(name)}, {text})", 8)

    def _tied(self) -> Iterator[str]:
        """Yield the statements that make one parameter of two: modules that are one are so already."""
        seen: dict[nn.Parameter, str] = {}
        for path, parameter in self.root.named_parameters(remove_duplicate=False):
            owner, _, _ = path.rpartition(".")
            if owner and self._first.get(self.root.get_submodule(owner), owner) != owner:
                continue
            first = seen.setdefault(parameter, path)
            if first != path:
                yield from self._placed(path, self.reach(first), "register_parameter")

    def _frozen(self, path: str, module: nn.Module) -> Iterator[str]:
        """Yield the statements that freeze what is frozen: one for the outermost module of which all parameters are."""
        inside = list(module.parameters())
        if inside and not any(parameter.requires_grad for parameter in inside):
            yield from layout.statement(f"{self.reach(path)}.requires_grad_(False)", 8)
            return
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                yield from layout.statement(f"{self.reach(f'{path}.{name}'.lstrip('.'))}.requires_grad_(False)", 8)
        for name, child in _modules(module):
            full = f"{path}.{name}".lstrip(".")
            if self._first.get(child, full) == full:
                yield from self._frozen(full, child)

    def _children(self, path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the children, those that have another name already left for later."""
        for name, child in _modules(module):
            full = f"{path}.{name}".lstrip(".")
            if self._first.setdefault(child, full) == full:
                yield name, child
            else:
                self._late += self._placed(full, self.reach(self._first[child]), "add_module")

    def _assigned(self, name: str, child: nn.Module) -> list[str]:
        if is_name(name):
            return self._made(name, child, 8, f"self.{name} = ")
        return ["        self.add_module(", f"            {quoted(name)},", *self._made(name, child, 12, behind=","), "        )"]

    def _member(self, path: str, name: str, child: nn.Module, indent: int, before: str = "") -> list[str]:
        """Return a module as an element of a list or, with its name in front, of a Group."""
        full = f"{path}.{name}".lstrip(".")
        if self._first.setdefault(child, full) != full:
            self._late += self._placed(full, self.reach(self._first[child]), "add_module")
            return [f"{' ' * indent}{before}nn.Identity(),  # in its place {self._first[child]}, below"]
        return self._made(full, child, indent, before, ",")

    def _made(self, path: str, module: nn.Module, indent: int, before: str = "", behind: str = "") -> list[str]:
        """Return the expression that makes a module and those inside, between two texts."""
        entered = path in self._entered
        text = None if entered and _is_container(module) else constructor(module)
        if text is not None:
            if not entered:
                self._note_inside(path, module)
            self._late += self._attached(path, module)
            return layout.call(text, indent, before, behind)
        if path in self._called and not isinstance(module, nn.Sequential):
            raise unwritable(path, module)
        self._late += self._tensors(path, module)
        if _is_list(module):
            return self._listed(path, module, indent, before, behind)
        return self._grouped(path, module, indent, before, behind)

    def _listed(self, path: str, module: nn.Module, indent: int, before: str, behind: str) -> list[str]:
        """Return modules that are called one by one as a ModuleList, and a Sequential that is called as what it is."""
        margin, called = " " * indent, path in self._called
        members = [self._member(path, name, child, indent + (4 if called else 8)) for name, child in _modules(module)]
        inner = [line for member in members for line in member]
        if called:
            return _joined(f"{margin}{before}nn.Sequential(", inner, f"{margin}){behind}")
        return [f"{margin}{before}nn.ModuleList(", f"{margin}    [", *inner, f"{margin}    ]", f"{margin}){behind}"]

    def _grouped(self, path: str, module: nn.Module, indent: int, before: str, behind: str) -> list[str]:
        """Return modules by name; names that are none in Python (block1-0) as keys."""
        margin, children = " " * indent, list(self._children(path, module))
        if not children:
            return [f"{margin}{before}Group(){behind}"]
        if all(is_name(name) for name, _ in children):
            inner = [line for name, child in children for line in self._member(path, name, child, indent + 4, f"{name}=")]
        else:
            parts = [line for name, child in children for line in self._member(path, name, child, indent + 8, f"{quoted(name)}: ")]
            inner = [f"{margin}    **{{", *parts, f"{margin}    }}"]
        return [f"{margin}{before}Group(", *inner, f"{margin}){behind}"]

    def _note_inside(self, path: str, module: nn.Module) -> None:
        for name, inside in module.named_modules():
            self._first.setdefault(inside, f"{path}.{name}".rstrip("."))

    def _attached(self, path: str, module: nn.Module) -> list[str]:
        """Return the statements that put a layer of one's own beside a layer: what grew there."""
        lines: list[str] = []
        for name, child in module.named_children() if hasattr(module, "weight") else ():
            full = f"{path}.{name}"
            lines += self._made(full, child, 8, f"{self.reach(full)} = ")
        return lines

    def _tensors(self, path: str, module: nn.Module) -> list[str]:
        """Return the statements that give a module its own parameters and buffers."""
        lines: list[str] = []
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fixed = "" if parameter.dtype.is_floating_point or parameter.dtype.is_complex else ", requires_grad=False"
                made = f"nn.Parameter({fresh(parameter)}{fixed})"
                lines += self._placed(f"{path}.{name}".lstrip("."), made, "register_parameter")
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kept = name not in module._non_persistent_buffers_set
                text = blank(buffer) if kept else values(f"{path}.{name}".lstrip("."), buffer)
                inner = f"{quoted(name)}, {text}{'' if kept else ', persistent=False'}"
                lines += layout.statement(f"{self.reach(path)}.register_buffer({inner})", 8)
        return lines


def _above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what lies directly inside, also what has been seen under another name, which named_children leaves out."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _is_list(module: nn.Module) -> bool:
    names = [name for name, _ in _modules(module)]
    return bool(names) and names == [str(place) for place in range(len(module._modules))]


def _is_container(module: nn.Module) -> bool:
    """Whether a module is there for those inside, so that it is written as a list or Group where these are called one by one."""
    return bool(module._modules) and not hasattr(module, "weight")


def _joined(head: str, inner: list[str], tail: str) -> list[str]:
    """Return a call on one line where it fits."""
    line = head + " ".join(part.strip() for part in inner).rstrip(",") + tail.strip()
    return [line] if len(line) <= layout.WIDTH and not any("#" in part for part in inner) else [head, *inner, tail]
