"""What a rewired module remembers of how it was made, brought up to now: in training its masks may move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from swcompile.check import Census, Ledger, Masks, check, masks_of, remasked
from swcompile.errors import SwnetError
from swcompile.graph import LayerGraph
from swcompile.modules import RewiredModule
from swcompile.plan import Plan
from swcompile.trace import Example
from swcompile.trace.shapes import Spec
from swcompile.wiring import Curve


@dataclass(frozen=True)
class Record:
    """What a rewired module remembers: the plan it carries out, the inputs it was traced with, its ledger, the original's graph.

    `curve` is the one over p that a policy chose by, None where none did. `census` is the original as counted, kept where masks may
    come to be others in training. `origin` says where the plan is from: "options" (of `transform`), "plan" (given to `apply` or
    `load`) or "training", in which links were moved; `calibrated`, whether norms took their statistics anew.
    """

    plan: Plan
    example: Example
    ledger: Ledger
    graph: LayerGraph
    curve: Curve | None = None
    census: Census | None = None
    origin: str = "options"
    calibrated: bool = False

    @property
    def example_shapes(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The shape and dtype of each example input. Raises SwnetError where one is no tensor, which a manifest cannot hold."""
        shapes = tuple((spec.shape, spec.dtype) for spec in self.example if isinstance(spec, Spec))
        if len(shapes) < len(self.example):
            raise SwnetError("This model was traced with inputs other than plain tensors, which a manifest cannot hold; save its "
                             "state dict and plan instead: swnet.ledger, Plan.to_json and swnet.apply.")  # fmt: skip
        return shapes


def record(module: nn.Module) -> Record:
    """Return the plan, example and ledger of a rewired module, by its masks of now. Raises SwnetError for any other module."""
    found = getattr(module, "swcompile", None)
    if not isinstance(found, Record):
        raise SwnetError(
            f"This {type(module).__name__} was not made by swnet.transform, swnet.apply or swnet.load; it has no ledger."
        )
    if found.census is None or not isinstance(module, RewiredModule):
        return found
    masks = masks_of(module, found.census.graph)
    if not _differing(found.plan, masks):
        return found
    plan = remasked(found.plan, found.census.graph, masks)
    counted = check(module, plan, found.census, found.example)
    module.swcompile = replace(found, plan=plan, ledger=replace(counted, certificate=found.ledger.certificate), origin="training")
    current: Record = module.swcompile
    return current


def counted(module: nn.Module) -> Ledger:
    """Return the ledger of a rewired module as it is now, with what `swnet.lower` chose so far."""
    found = record(module)
    lowered = module.programs if isinstance(module, RewiredModule) else ()
    return replace(found.ledger, lowered=tuple(one.choices for one in lowered if one.choices is not None))


def refuse_other_masks(module: RewiredModule, plan: Plan) -> None:
    """Refuse weights whose masks are not the plan's: one of the two is not what was saved."""
    found: Record = module.swcompile
    masks = {} if found.census is None else masks_of(module, found.census.graph)
    if other := _differing(plan, masks):
        raise SwnetError(
            f"The saved weights have another mask for {other[0]} than the saved plan; one of the two was altered. Save anew."
        )


def _differing(plan: Plan, masks: Masks) -> list[str]:
    """Return the layers whose masks are not those of the plan."""
    return [name for name, mask in plan.masks().items() if not np.array_equal(mask, masks[name])]
