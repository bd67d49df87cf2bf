"""Rewire a masked network while it is trained: weak links go, long-range ones come, and their number stays.

    rewirer = swnet.Rewirer(optimizer, model, every=100, until=10_000)
    for images, labels in loader:
        optimizer.zero_grad()
        loss_fn(model(images), labels).backward()
        optimizer.step()
        rewirer.step()

Every so many steps each masked layer drops the links with the smallest weights, and takes up as many long-range ones that it does
not have, those by which the loss has its largest gradients; they start at zero. The share of links that move falls to nothing
like a cosine. Source: RigL, Evci et al., arXiv 1911.11134, algorithm 1; here only links from far come back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swcompile.check import own_columns
from swcompile.errors import SwnetError
from swcompile.modules import MASKED, RewiredModule
from swcompile.record import record


class _GradientSum:
    """Adds up the gradients of a layer's live weights: one backward, or several where they are accumulated."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def __call__(self, gradient: Tensor) -> None:
        self.total = gradient.detach().clone() if self.total is None else self.total + gradient.detach()


@dataclass(frozen=True)
class _Site:
    """A masked layer, and which columns of its mask are long-range: no part of the input that it had at the start."""

    name: str
    layer: Any
    far: Tensor


class Rewirer:
    """Move the weakest links of a masked network to long-range places during training, at a constant number of links.

    Args:
        optimizer: what trains the network; what it remembers of links that go or come (momentum and the like) becomes zero.
        model: what swnet.transform(..., wiring="kernel") returned, not wrapped; DistributedDataParallel goes around it.
        every: how many steps lie between two rewirings.
        until: the step from which on links stay as they are.
        share: the share of each layer's links that the first rewiring moves.

    Ranks of a process group add up their gradients, and so decide alike. Nothing is random: the same training gives the same links.
    A checkpoint consists of the state dicts of model, optimizer and rewirer. swnet.ledger and swnet.save go by the links of now.

    Raises:
        SwnetError: where the model has no masks, the optimizer does not train them, or a number is out of range.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, *, every: int, until: int, share: float = 0.3) -> None:
        for name, count in (("every", every), ("until", until)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise SwnetError(f"{name}={count!r} is not a number of steps; take a whole number from 1 up.")
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise SwnetError(
                f"share={share!r} is outside (0, 1]; it is the share of a layer's links that the first rewiring moves."
            )
        self.optimizer, self.every, self.until, self.share = optimizer, every, until, float(share)
        self.sites = _sites(model)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(site.layer.weight) in trained for site in self.sites):
            raise SwnetError("The optimizer trains none of the masked layers; give it the parameters of this very model.")
        self.steps = 0
        self._watch()

    def step(self) -> int:
        """Count a step of the optimizer, and rewire where it is time. Return how many links moved."""
        self.steps += 1
        if not self._due(self.steps):
            self._watch()
            return 0
        moved = sum(self._rewire(site) for site in self.sites)
        self._watch()
        return moved

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint has to hold besides the state dicts of model and optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint; load the model's and the optimizer's state dicts as well."""
        steps = state.get("steps")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise SwnetError(
                f"A rewirer's state dict holds a number of steps; this one has {steps!r}. Give what state_dict returned."
            )
        self.steps = steps
        self._watch()

    def _due(self, step: int) -> bool:
        return step % self.every == 0 and step < self.until

    def _watch(self) -> None:
        """Let layers add up gradients during the step that ends in a rewiring, and only then."""
        due = self._due(self.steps + 1)
        for site in self.sites:
            site.layer.watch = _GradientSum() if due else None

    @torch.no_grad()
    def _rewire(self, site: _Site) -> int:
        weight, mask, watch = site.layer.weight, site.layer.mask, site.layer.watch
        gradient = _over_ranks(watch.total, weight)
        live = mask.reshape(mask.shape[:2])
        size, wanted = _norms(weight.detach()), _norms(gradient)
        far = ~live & site.far.to(live.device)
        count = int(0.5 * self.share * (1 + math.cos(math.pi * self.steps / self.until)) * int(live.sum()))
        spare = live & ~_last_of_row(size, live)
        count = min(count, int(spare.sum()), int((far & (wanted > 0)).sum()))
        if not count:
            return 0
        gone, come = _first(size, spare, count), _first(-wanted, far, count)
        changed = (gone | come).reshape(mask.shape)
        mask.copy_(mask & ~gone.reshape(mask.shape) | come.reshape(mask.shape))
        for tensor in (weight, *self.optimizer.state.get(weight, {}).values()):
            if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                tensor.masked_fill_(changed, 0)
        return count


def _sites(model: nn.Module) -> list[_Site]:
    found = record(model)
    if not isinstance(model, RewiredModule) or found.census is None or found.plan.options.wiring != "kernel":
        raise SwnetError(
            f"wiring={found.plan.options.wiring!r} has no masks in which single links could move. Make the model with "
            "wiring='kernel'."
        )
    columns = own_columns(found.plan, found.census.graph)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, tuple(MASKED.values()))}
    return [_Site(name, layer, ~torch.from_numpy(columns[name])) for name, layer in layers.items() if name in columns]


def _over_ranks(gradient: Tensor | None, weight: Tensor) -> Tensor:
    """Return the gradient added up over all ranks; zeros where no backward has reached the layer."""
    total = torch.zeros_like(weight) if gradient is None else gradient
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return torch.nan_to_num(total, 0.0, 0.0, 0.0)


def _norms(values: Tensor) -> Tensor:
    """Return the norm of each link's weights: (out, in)."""
    norms: Tensor = torch.linalg.vector_norm(values.double().reshape(*values.shape[:2], -1), dim=2)
    return norms


def _last_of_row(size: Tensor, live: Tensor) -> Tensor:
    """Mark the strongest link of each output channel, which stays: a channel that reads nothing would be dead."""
    strongest = torch.where(live, size, -1.0).argmax(1, keepdim=True)
    return torch.zeros_like(live).scatter_(1, strongest, True) & live


def _first(rank: Tensor, among: Tensor, count: int) -> Tensor:
    """Mark the `count` places among some that rank lowest; of equal ones the first."""
    order = torch.where(among, rank, math.inf).flatten().sort(stable=True).indices[:count]
    return torch.zeros(among.numel(), dtype=torch.bool, device=among.device).index_fill_(0, order, True).reshape(among.shape)
