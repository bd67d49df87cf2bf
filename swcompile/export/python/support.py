"""The functions and classes that stand beside a written module, each only where that one needs it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from swcompile.export.python import layout
from swcompile.export.python.expressions import quoted
from swcompile.export.python.statements import RESAMPLERS

GROUP = '''class Group(nn.Module):
    """Modules by the names that they had in the original."""

    def __init__(self, /, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
'''

MASKED = '''class {kind}(nn.{plain}):
    """A {plain} with the live links marked in `mask`, which comes with the weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
{register}

    def forward(self, input: Tensor) -> Tensor:
        return {call}
'''

STOCHASTIC_DEPTH = '''def stochastic_depth(x: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """Zero samples (mode "row"), or the batch, with probability `p` in training."""
    if not training or p == 0:
        return x
    rows = x.shape[0] if mode == "row" else 1
    keep = torch.empty([rows] + [1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
    keep.bernoulli_(1 - p)
    return x * (keep.div_(1 - p) if p < 1 else keep)
'''

_SAID = {
    "max": "max-pooled if larger, repeated if smaller",
    "avg": "averaged if larger, repeated if smaller",
    "stride": "subsampled if larger, repeated if smaller",
}
_ALL = {"max": "x.flatten(2).amax(-1)", "avg": "x.flatten(2).mean(-1)", "stride": "x.flatten(2)[..., 0]"}
_POOLED = {"max": "F.{adaptive}max_pool{rank}d(x, {size})", "avg": "F.{adaptive}avg_pool{rank}d(x, {size})"}


def masked(kind: str) -> str:
    """Return the class of a masked layer: MaskedConv2d, ..."""
    plain = kind.removeprefix("Masked")
    shape, call = "self.weight.shape", "F.linear(input, self.weight * self.mask, self.bias)"
    if plain != "Linear":
        shape = f"*self.weight.shape[:2], {', '.join('1' * int(plain[-2]))}"
        call = "self._conv_forward(input, self.weight * self.mask, self.bias)"
    register = layout.statement(f'self.register_buffer("mask", torch.ones({shape}, dtype=torch.bool))', 8)
    return MASKED.format(kind=kind, plain=plain, register="\n".join(register), call=call)


def resampler(name: str, uses: Collection[tuple[int, bool]]) -> str:
    """Return the function that brings a map to another one's size, for maps of the dimensions that are in use.

    `uses` are pairs: how many dimensions a map has behind its channels, and whether it goes to a value that has none.
    """
    kind = next(kind for kind, one in RESAMPLERS.items() if one == name)
    lines = [f"def {name}(x: Tensor, like: Tensor) -> Tensor:", f'    """Bring `x` to the size of `like`: {_SAID[kind]}."""']
    if any(flat for _, flat in uses):
        lines += ["    if like.dim() < x.dim():  # no height and width: one number a channel", f"        return {_ALL[kind]}"]
    ranks = sorted({rank for rank, flat in uses if not flat})
    return "\n".join([*lines, *(_to_size(kind, ranks) if ranks else [])]) + "\n"


def _to_size(kind: str, ranks: list[int]) -> list[str]:
    lines = [
        "    have, want = x.shape[2:], like.shape[2:]",
        "    if have == want:",
        "        return x",
        "    if all(a <= b for a, b in zip(have, want, strict=True)):",
        '        return F.interpolate(x, size=tuple(want), mode="nearest")',
        "    times = tuple(a // b for a, b in zip(have, want, strict=True))",
        "    whole = all(a == b * c for a, b, c in zip(have, want, times, strict=True))",
    ]
    if kind == "stride":
        return [
            *lines,
            "    if whole:",
            "        return x[(slice(None), slice(None), *(slice(None, None, c) for c in times))]",
            '    return F.interpolate(x, size=tuple(want), mode="nearest")',
        ]
    for place, rank in enumerate(ranks):
        last = place == len(ranks) - 1
        margin = "    " if last else "        "
        lines += [] if last else [f"    if x.dim() == {rank + 2}:"]
        lines += [f"{margin}if whole:", f"{margin}    return {_POOLED[kind].format(adaptive='', rank=rank, size='times')}"]
        lines += [f"{margin}return {_POOLED[kind].format(adaptive='adaptive_', rank=rank, size='tuple(want)')}"]
    return lines


def named_tuple(name: str, kind: Any) -> str:
    """Return the definition of a class of named tuples."""
    fields = ", ".join(quoted(field) for field in kind._fields)
    return "\n".join(layout.statement(f"{name} = namedtuple({quoted(name)}, [{fields}])", 0)) + "\n"
