"""Learning rates over a run, by torch's own schedulers, and what of them a checkpoint has to hold."""

from __future__ import annotations

from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR, ReduceLROnPlateau

Kind = Literal["constant", "plateau", "one-cycle", "cosine", "steps"]
PATIENCE = 5
"""Epochs without a lower training loss that "plateau" waits through before it halves the rate."""
FEWER = 0.01
"""What a loss must fall by, as a share of itself, to count as lower."""


class Schedule:
    """The rate of one optimizer over `total` steps.

    "constant" stays; "plateau" halves after PATIENCE epochs without a lower training loss (not the test error: who looks at that
    has trained on it); "one-cycle" goes up and down again, and the momentum against it; "cosine" falls to 0; "steps" divides by
    ten after half and three quarters.
    """

    def __init__(self, kind: Kind, optimizer: Optimizer, lr: float, total: int) -> None:
        self.optimizer = optimizer
        self.by_epoch = kind == "plateau"
        self.torch = _scheduler(kind, optimizer, lr, total)

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def stepped(self) -> None:
        """Go on to the rate of the next step."""
        if not isinstance(self.torch, ReduceLROnPlateau):
            self.torch.step()

    def epoch_done(self, loss: float) -> None:
        """Take note of an epoch's mean training loss."""
        if isinstance(self.torch, ReduceLROnPlateau):
            self.torch.step(loss)

    def state(self) -> dict[str, Any]:
        """Return what changes as training goes on, in JSON's types; the optimizer's own state holds the rate."""
        return {key: value for key, value in self.torch.state_dict().items() if _is_plain(value)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; the optimizer must have been loaded."""
        self.torch.load_state_dict(state)


def _scheduler(kind: Kind, optimizer: Optimizer, lr: float, total: int) -> LRScheduler:
    match kind:
        case "constant":
            return MultiStepLR(optimizer, [])
        case "plateau":
            return ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE, threshold=FEWER)
        case "one-cycle":
            return OneCycleLR(optimizer, lr, total_steps=total)
        case "cosine":
            return CosineAnnealingLR(optimizer, total)
        case "steps":
            return MultiStepLR(optimizer, [total // 2, total * 3 // 4], gamma=0.1)
    raise SystemExit(f"There is no schedule {kind!r}; take one of constant, plateau, one-cycle, cosine, steps.")


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | None) or (
        isinstance(value, list) and all(isinstance(part, int | float) for part in value)
    )
