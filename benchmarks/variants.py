"""What is tried to make rewired networks learn sooner still: each a change of one choice of the policy, all else as it is.

    near, far              long-range maps drawn by distance to the power -2, or 1, instead of evenly
    avg, stride            maps brought to a lower resolution by average pooling, or by every other pixel, instead of by maxima
    block-1, block-8       blocks of single channels, or of eight
    deep, shallow          p rises from 0 at the first layer to 2p at the last, or falls so; the same number of blocks in all
    no-image               no layer but the first reads the network's input
    tap-scale              a learned factor for each tap, 1 at first: the one variant with more parameters
    only-1x1               layers of larger kernels stay as they are
    dense-init             wiring `kernel` drawn as if no link were masked, instead of for each neuron's own fan-in

Each is a function of a model, an example input, a seed and p, like those in benchmarks.controls, and makes an ordinary rewired
module. Rewiring while training, which is no other network, is the field `rewire_every` of an arm in benchmarks.lab.grids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

import swnet
from swcompile.modules import RewiredModule
from swcompile.plan import Options
from swcompile.survey import survey
from swcompile.wiring.apportion import share_out
from swcompile.wiring.block import BlockWiring
from swcompile.wiring.repair import Move

Variant = Callable[[nn.Module, Tensor, int, float], RewiredModule]


def changed(model: nn.Module, example: Tensor, seed: int, p: float, **options: Any) -> RewiredModule:
    """Return a model rewired under other options than the default ones."""
    return swnet.transform(model, example, p=p, seed=seed, **options)


# --- p by depth, and fewer sources -------------------------------------------------------------------------------------------


class Rising(BlockWiring):
    """Wiring `block` with a p that rises with depth."""

    def wanted(self, p: float) -> list[int]:
        """Return p's number of moves, shared out by a weight that rises from 0 at the first site to 2 at the last."""
        sizes = [kept.count for kept in self.kept]
        ideal = [p * weight * size for weight, size in zip(self.weights(), sizes, strict=True)]
        return share_out(round(p * sum(sizes)), ideal, sizes, [site.layer.groups for site in self.sites])

    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each site."""
        return np.linspace(0.0, 2.0, len(self.sites))


class Falling(Rising):
    """Wiring `block` with a p that falls with depth."""

    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each site."""
        return np.linspace(2.0, 0.0, len(self.sites))


class WithoutImage(BlockWiring):
    """Wiring `block` whose long-range maps never are the network's input."""

    def _draw_at(self, place: int, count: int, weights: NDArray[np.float64] | None) -> list[Move]:
        site = self.sites[place]
        producers = site.catalogue.producers[: site.available]
        allowed = np.isin(producers, self._layers)
        allowed[site.barred] = False
        room = sum(site.catalogue.pieces[index].width for index in np.flatnonzero(allowed))
        while count and sum(site.slots[slot].width for slot in self.kept[place].movable(count)) > room:
            count -= site.layer.groups
        return super()._draw_at(place, count, allowed.astype(np.float64)) if count > 0 else []

    @property
    def _layers(self) -> Sequence[int]:
        return [layer.producer for layer in self.graph.layers]


def planned(wiring: type[BlockWiring], model: nn.Module, example: Tensor, seed: int, p: float) -> RewiredModule:
    """Return a model rewired by another class of wiring."""
    plan = wiring(survey(model, example).graph, Options(p=p, seed=seed)).plan(p)
    return swnet.apply(model, plan, example)


# --- a factor for each tap ---------------------------------------------------------------------------------------------------


class TapScale(nn.Module):
    """Multiplies each column of a weight (out, in, *kernel) by the factor of the tap that it reads, which is to scale the map."""

    of: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(len(widths)))
        self.register_buffer("of", torch.repeat_interleave(torch.tensor(widths)), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the scaled weight."""
        return weight * self.factors[self.of].reshape(1, -1, *[1] * (weight.dim() - 2))


def tap_scale(model: nn.Module, example: Tensor, seed: int, p: float) -> RewiredModule:
    """Return a rewired model whose rewired layers learn a factor for each tap."""
    plan = swnet.plan(model, example, p=p, seed=seed)
    made = swnet.apply(model, plan, example)
    for wiring in plan.layers:
        layer = made.get_submodule(wiring.layer)
        if layer.weight.shape[1] == sum(tap.stop - tap.start for tap in wiring.taps):  # no groups, each of which reads a part
            parametrize.register_parametrization(layer, "weight", TapScale([tap.stop - tap.start for tap in wiring.taps]))
    return made


def only_1x1(model: nn.Module, example: Tensor, seed: int, p: float) -> RewiredModule:
    """Return a model in which convolutions of larger kernels stay as they are."""
    wider = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)]
    return changed(model, example, seed, p, leaf_modules=wider)


VARIANTS: Mapping[str, Variant] = {
    **{reach: partial(changed, reach=reach) for reach in ("near", "far")},
    **{resample: partial(changed, resample=resample) for resample in ("avg", "stride")},
    **{f"block-{size}": partial(changed, block=size) for size in (1, 8)},
    "deep": partial(planned, Rising),
    "shallow": partial(planned, Falling),
    "no-image": partial(planned, WithoutImage),
    "tap-scale": tap_scale,
    "only-1x1": only_1x1,
    "dense-init": partial(changed, wiring="kernel", init="dense"),
}
