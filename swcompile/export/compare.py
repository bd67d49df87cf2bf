"""Compare an exported form with the module that it was made of: by running both."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from swcompile.errors import SwnetError, first_line, shown
from swcompile.modules import RewiredModule
from swcompile.trace import Example
from swcompile.trace.shapes import Spec

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far an output may be off, as a part of the largest one (of 1, where that is smaller), by the type of the parameters."""
BATCHES = (1, 3)
"""The batch sizes to compare at, where the exported form leaves the batch open."""

Run = Callable[..., Any]
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Comparison:
    """The largest difference that was found, what was allowed, and the batch sizes that were run."""

    difference: float
    tolerance: float
    batches: tuple[int, ...]


def plain(module: RewiredModule) -> RewiredModule:
    """Return a copy on the CPU, in eval mode, that runs the plain decomposition: a lowered module loses its lowering.

    Its parameters lie as they will when they are read back, since convolutions sum in another order by how a weight lies.
    """
    made = copy.deepcopy(module).cpu().eval()
    made.lowering = None
    made.recompile()
    for parameter in made.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return made


def inputs_like(example: Example, batch: int | None, given: Sequence[Tensor] | None = None) -> Inputs:
    """Return inputs of the shapes of an example, drawn from a seed, or those given; with `batch`, in as many rows.

    An input has the batch in front where its first size is that of the first input's. Whole numbers are 0 and 1: what they count
    is not known, and an embedding has at least two rows.
    """
    specs = [spec for spec in example if isinstance(spec, Spec)]
    if len(specs) != len(example):
        raise SwnetError("The model was traced with inputs other than plain tensors, which no exported form takes. Wrap it in a "
                         "module that takes tensors.")  # fmt: skip
    if given is not None and len(given) != len(specs):
        raise SwnetError(f"{len(given)} example inputs were given; the model was traced with {len(specs)}. Give as many.")
    generator = torch.Generator().manual_seed(0)
    made = given if given is not None else [_drawn(spec, generator) for spec in specs]
    return (
        tuple(made)
        if batch is None
        else tuple(_in_rows(one, batch, has_batch(spec, specs)) for one, spec in zip(made, specs, strict=True))
    )


def has_batch(spec: Spec, specs: Sequence[Any]) -> bool:
    """Whether an input's first size is the batch."""
    return bool(spec.shape) and spec.shape[0] == specs[0].shape[0]


def _drawn(spec: Spec, generator: torch.Generator) -> Tensor:
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        return torch.randn(spec.shape, generator=generator, dtype=torch.float32).to(spec.dtype)
    return torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)


def _in_rows(tensor: Tensor, batch: int, batched: bool) -> Tensor:
    if not batched:
        return tensor
    times = math.ceil(batch / len(tensor))
    return torch.cat([tensor.roll(turn, -1) for turn in range(times)])[:batch].contiguous()


def compare(module: RewiredModule, run: Run, inputs: Iterable[Inputs], tolerance: float | None, what: str) -> Comparison:
    """Run a form and the module for each of several inputs. Raises SwnetError where they differ by more than the tolerance."""
    allowed = tolerance_of(module, tolerance)
    worst, batches = 0.0, []
    for given in inputs:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for what draws in eval mode, too
            wanted = module(*given)
        worst = max(worst, difference(_run(run, given, what), wanted))
        batches.append(given[0].shape[0] if given and given[0].dim() else 0)
    if not worst <= allowed:
        raise SwnetError(
            f"What {what} computes differs from the module by {worst:.3g}, more than {allowed:.3g} of the largest output; nothing "
            "was written. Ask for less (--tolerance), or export in float64 to see whether it is rounding: model.double()."
        )
    return Comparison(worst, allowed, tuple(batches))


def tolerance_of(module: RewiredModule, given: float | None) -> float:
    """Return what was asked for, or what goes with the coarsest type of the parameters."""
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
            raise SwnetError(f"tolerance={shown(given)} is not a number from 0 up; take one such as 1e-5.")
        return float(given)
    found = {tensor.dtype for tensor in module.state_dict().values() if isinstance(tensor, Tensor) and tensor.dtype in TOLERANCES}
    return max((TOLERANCES[dtype] for dtype in found), default=TOLERANCES[torch.float32])


def _run(run: Run, given: Inputs, what: str) -> Any:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return run(*given)
    except Exception as error:  # a runtime's own
        raise SwnetError(
            f"What was exported as {what} does not run for a batch of {len(given[0]) if given else 0}: {first_line(error)}. "
            "Nothing was written; take another form."
        ) from error


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference between two outputs, as a part of the largest number in the second, or of 1.

    Infinite where they differ in shape, in where they are finite, or in what is no number (a word, a type).

    >>> difference(torch.tensor([1.0, 20.0]), torch.tensor([1.0, 10.0]))
    1.0
    """
    left, right = ([leaf for leaf in tree_leaves(one) if leaf is not None] for one in (ours, theirs))
    if len(left) != len(right):
        return math.inf
    return max((_apart(one, other) for one, other in zip(left, right, strict=True)), default=0.0)


def _apart(ours: Any, theirs: Any) -> float:
    if not all(isinstance(one, Tensor | int | float | complex) for one in (ours, theirs)):
        return 0.0 if type(ours) is type(theirs) and ours == theirs else math.inf
    return _share(torch.as_tensor(ours), torch.as_tensor(theirs))


def _share(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    one, other = ours.detach().cpu().double(), theirs.detach().cpu().double()
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return math.inf
    if not finite.any():
        return 0.0
    return float((one - other)[finite].abs().max() / max(1.0, float(other[finite].abs().max())))
