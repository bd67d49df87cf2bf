"""An independent oracle: networks whose rewired forward is written out here, by hand, from the plan's taps.

Nothing of the compiler's rewriting is used: only the plan, the state dict, and torch.nn.functional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.plan import LayerWiring, Plan

WIDTH, GROWTH = 12, 6
IMAGE = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """conv1 to conv6 with relu; maps shrink behind conv2 and conv4."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(1, 7):
            stride = 2 if number in (3, 5) else 1
            setattr(self, f"conv{number}", nn.Conv2d(3 if number == 1 else WIDTH, WIDTH, 3, stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 7):
            x = torch.relu(getattr(self, f"conv{number}")(x))
        return x


class Residual(nn.Module):
    """A stem and four blocks x + b(relu(a(x))), the third one strided with a 1x1 shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.a = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2 if place == 2 else 1, 1) for place in range(4))
        self.b = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1) for _ in range(4))
        self.short = nn.Conv2d(WIDTH, WIDTH, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            inner = torch.relu(a(x))
            x = (self.short(x) if place == 2 else x) + b(inner)
        return x


class Dense(nn.Module):
    """Layer by layer, a bottleneck and a 3x3 convolution of the concatenation of all maps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, GROWTH, 3, 1, 1)
        self.narrow = nn.ModuleList(nn.Conv2d(GROWTH * (place + 1), WIDTH, 1) for place in range(5))
        self.wide = nn.ModuleList(nn.Conv2d(WIDTH, GROWTH, 3, 1, 1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            maps.append(wide(torch.tanh(narrow(torch.cat(maps, 1)))))
        return torch.cat(maps, 1)


class ByHand:
    """Compute layers from a plan's taps: narrow, pool, concatenate, convolve."""

    def __init__(self, plan: Plan, state: Mapping[str, Tensor]) -> None:
        self.wirings: dict[str, LayerWiring] = {wiring.layer: wiring for wiring in plan.layers}
        self.state = state
        self.features: dict[str, Tensor] = {}

    def conv(self, name: str, own: Tensor, stride: int = 1, padding: int = 1, out: int = WIDTH) -> Tensor:
        """Compute a layer of `out` channels; those that the plan removes are zero."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        wiring = self.wirings.get(name)
        x = own
        if wiring is not None:
            x = torch.cat([self._at(self.features[tap.feature], own)[:, tap.start : tap.stop] for tap in wiring.taps], 1)
            if wiring.mask is not None:
                weight = weight * torch.from_numpy(wiring.mask)[:, :, None, None]
        made = F.conv2d(x, weight, bias, stride, padding)
        if wiring is None or not wiring.outputs:
            return made
        whole = made.new_zeros(made.shape[0], out, *made.shape[2:])
        return whole.index_copy(1, torch.cat([torch.arange(*span) for span in wiring.outputs]), made)

    @staticmethod
    def _at(feature: Tensor, own: Tensor) -> Tensor:
        ratio = feature.shape[-1] / own.shape[-1]
        if ratio < 1:
            return feature.repeat_interleave(round(1 / ratio), 2).repeat_interleave(round(1 / ratio), 3)
        return feature if ratio == 1 else F.max_pool2d(feature, round(ratio))

    def chain(self, x: Tensor) -> Tensor:
        self.features["x"] = x
        for number in range(1, 7):
            x = torch.relu(self.conv(f"conv{number}", x, stride=2 if number in (3, 5) else 1))
            self.features["relu" if number == 1 else f"relu_{number - 1}"] = x
        return x

    def residual(self, x: Tensor) -> Tensor:
        self.features["x"] = x
        x = self.features["stem"] = self.conv("stem", x)
        for place in range(4):
            last = "" if place == 0 else f"_{place}"
            inner = self.features[f"relu{last}"] = torch.relu(self.conv(f"a.{place}", x, stride=2 if place == 2 else 1))
            if place == 2:
                x = self.conv("short", x, stride=2, padding=0)
            x = self.features[f"add{last}"] = x + self.conv(f"b.{place}", inner)
        return x

    def dense(self, x: Tensor) -> Tensor:
        self.features["x"] = x
        maps = [self.conv("stem", x, out=GROWTH)]
        for place in range(5):
            last = "" if place == 0 else f"_{place}"
            read = self.features[f"cat{last}"] = torch.cat(maps, 1)
            inner = self.features[f"tanh{last}"] = torch.tanh(self.conv(f"narrow.{place}", read, padding=0))
            maps.append(self.conv(f"wide.{place}", inner, out=GROWTH))
        return torch.cat(maps, 1)


NETS: dict[str, tuple[type[nn.Module], Callable[[ByHand, Tensor], Tensor]]] = {
    "chain": (Chain, ByHand.chain),
    "residual": (Residual, ByHand.residual),
    "dense": (Dense, ByHand.dense),
}


@pytest.mark.parametrize(("wiring", "density"), [("block", 1.0), ("block", 0.5), ("kernel", 1.0)])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("name", NETS)
def test_the_rewired_forward_is_the_one_written_out_by_hand(name: str, p: float, wiring: str, density: float) -> None:
    kind, forward = NETS[name]
    torch.manual_seed(3)
    model = kind().double()
    rewired = swnet.transform(model, IMAGE, p=p, wiring=wiring, density=density, dead="allow")
    plan = rewired.swcompile.plan
    assert p == 0 or (plan.promise.moved > 0 and any(len(wiring.taps) > 1 for wiring in plan.layers))

    state = {key: value.detach().clone().requires_grad_("mask" not in key) for key, value in rewired.state_dict().items()
             if "mask" not in key}  # fmt: skip
    x, same_x = IMAGE.clone().requires_grad_(), IMAGE.clone().requires_grad_()
    wanted, found = forward(ByHand(plan, state), x), rewired(same_x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)

    wanted.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(same_x.grad, x.grad, rtol=1e-12, atol=1e-12)
    for key, parameter in rewired.named_parameters():
        torch.testing.assert_close(
            parameter.grad, state[key].grad, rtol=1e-12, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_the_oracle_itself_gives_the_original_where_the_plan_is_empty() -> None:
    for kind, forward in NETS.values():
        model = kind().double()
        plan = swnet.plan(model, IMAGE, p=0)
        assert plan.layers == ()
        torch.testing.assert_close(forward(ByHand(plan, model.state_dict()), IMAGE), model(IMAGE), rtol=0, atol=0)


def test_kept_columns_hold_the_weights_of_the_original() -> None:
    """At density 0.5 the weight is a slice of the user's, by the plan's columns."""
    model = Chain().double()
    rewired = swnet.transform(model, IMAGE, p=0.3, density=0.5)
    wirings = [wiring for wiring in rewired.swcompile.plan.layers if wiring.width < WIDTH]
    assert wirings
    for wiring in wirings:
        columns = torch.cat([torch.arange(start, stop) for start, stop in wiring.columns])
        sliced, whole = rewired.get_submodule(wiring.layer).weight, model.get_submodule(wiring.layer).weight
        rows = torch.cat([torch.arange(*span) for span in wiring.outputs or ((0, WIDTH),)])
        torch.testing.assert_close(sliced, whole[rows][:, columns], rtol=0, atol=0)
