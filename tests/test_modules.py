"""swcompile.modules: resampling against torch's pooling, gathers, masked layers, and the module that follows both modes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.modules import MaskedConv2d, MaskedLinear, RewiredModule, gather, resample


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
def test_a_feature_of_the_right_size_is_the_very_same_tensor(kind: str) -> None:
    x = maps(2, 3, 5, 7)
    assert resample(x, maps(2, 9, 5, 7), kind) is x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("have", "want"), [((8, 8), (4, 4)), ((9, 6), (3, 2)), ((8, 6), (8, 2)), ((12, 4), (2, 4))])
def test_whole_ratios_are_torchs_pooling_in_values_and_gradients(
    have: tuple[int, int], want: tuple[int, int], layout: torch.memory_format
) -> None:
    ratio = (have[0] // want[0], have[1] // want[1])
    for kind, pool in (("max", F.max_pool2d), ("avg", F.avg_pool2d)):
        x, y = (maps(2, 5, *have).to(memory_format=layout).requires_grad_() for _ in range(2))
        found, wanted = resample(x, maps(2, 1, *want), kind), pool(y, ratio)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        (found * maps(*found.shape)).sum().backward()
        (wanted * maps(*found.shape)).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
    x = maps(2, 5, *have)
    torch.testing.assert_close(resample(x, maps(2, 1, *want), "stride"), x[:, :, :: ratio[0], :: ratio[1]], rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_slice_of_a_feature_is_pooled_as_torch_does_ties_and_nans_included(layout: torch.memory_format) -> None:
    feature = maps(2, 24, 8, 8).mul(2).round().to(memory_format=layout)  # a few values, so that windows have ties
    feature[0, 5, 3, 3] = float("nan")
    x, y = (feature.clone().requires_grad_() for _ in range(2))
    found, wanted = resample(x[:, 3:22], maps(2, 1, 4, 4), "max"), F.max_pool2d(y[:, 3:22], 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    found.backward(maps(*found.shape))
    wanted.backward(maps(*found.shape))
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)


@pytest.mark.parametrize(("have", "want"), [((9, 7), (4, 3)), ((13, 5), (7, 5)), ((5, 5), (3, 2)), ((7, 4), (5, 4))])
def test_odd_sizes_are_pooled_adaptively(have: tuple[int, int], want: tuple[int, int]) -> None:
    x, like = maps(2, 3, *have), maps(2, 1, *want)
    torch.testing.assert_close(resample(x, like, "max"), F.adaptive_max_pool2d(x, want), rtol=0, atol=0)
    torch.testing.assert_close(resample(x, like, "avg"), F.adaptive_avg_pool2d(x, want), rtol=0, atol=0)
    torch.testing.assert_close(resample(x, like, "stride"), F.interpolate(x, want, mode="nearest"), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
def test_smaller_features_are_repeated(kind: str) -> None:
    x = maps(2, 3, 2, 3)
    wanted = x.repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(resample(x, maps(1, 1, 4, 9), kind), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
def test_one_side_larger_and_one_smaller_has_the_right_size(kind: str) -> None:
    found = resample(maps(2, 3, 8, 2), maps(2, 3, 4, 4), kind)
    assert found.shape == (2, 3, 4, 4)
    assert torch.isfinite(found).all()


def test_a_reader_of_vectors_gets_global_pooling() -> None:
    x, like = maps(2, 3, 4, 5), maps(2, 7)
    torch.testing.assert_close(resample(x, like, "avg"), x.mean((2, 3)))
    torch.testing.assert_close(resample(x, like, "max"), x.amax((2, 3)))
    torch.testing.assert_close(resample(x, like, "stride"), x[:, :, 0, 0])


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 12), (4,)), ((2, 3, 7), (3,)), ((2, 3, 4, 6, 8), (2, 3, 4)), ((1, 2, 5, 5, 5), (2, 3, 4))]
)
@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
def test_signals_and_volumes_are_resampled_too(shape: tuple[int, ...], size: tuple[int, ...], kind: str) -> None:
    assert resample(maps(*shape), maps(*shape[:2], *size), kind).shape == (*shape[:2], *size)


def test_gather_lays_taps_side_by_side() -> None:
    x, y = maps(2, 6, 4, 4), maps(2, 5, 8, 8)
    found = gather(x, (x, y), ((0, 4, 6, "max"), (1, 0, 2, "avg"), (0, 0, 1, "max")), 1)
    torch.testing.assert_close(found, torch.cat([x[:, 4:6], F.avg_pool2d(y[:, :2], 2), x[:, :1]], 1), rtol=0, atol=0)


def test_gather_of_tokens_takes_the_last_axis() -> None:
    x, y = maps(2, 7, 6), maps(2, 7, 4)
    torch.testing.assert_close(gather(x, (x, y), ((1, 1, 3, "max"), (0, 0, 2, "max")), 2), torch.cat([y[..., 1:3], x[..., :2]], 2))


# Masked layers.


def masked_net() -> RewiredModule:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(3 if at == 0 else 6, 6, 3, padding=1), nn.ReLU()) for at in range(5)])
    return swnet.transform(model, torch.randn(2, 3, 8, 8), p=0.5, wiring="kernel")


def masked_layers(module: nn.Module) -> list[MaskedConv2d]:
    return [layer for layer in module.modules() if isinstance(layer, MaskedConv2d)]


def dead_weights(layer: MaskedConv2d, of: Tensor) -> Tensor:
    return of[(layer.mask == 0).expand_as(of)]


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    ],
    ids=["sgd", "adamw"],
)
def test_masked_weights_gradients_and_momentum_stay_zero_in_training(make: type[torch.optim.Optimizer]) -> None:
    net = masked_net()
    optimizer = make(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    assert len(masked_layers(net)) >= 3
    for layer in masked_layers(net):
        assert layer.weight.grad is not None
        assert not dead_weights(layer, layer.weight.detach()).any()
        assert not dead_weights(layer, layer.weight.grad).any()
        for value in optimizer.state[layer.weight].values():
            assert value.shape != layer.weight.shape or not dead_weights(layer, value).any()


def test_the_mask_is_part_of_the_state_and_of_a_deepcopy() -> None:
    net = masked_net()
    names = [name for name in net.state_dict() if name.endswith("mask")]
    assert len(names) == len(masked_layers(net))
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(twin(x), net(x), rtol=0, atol=0)
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(masked_layers(net), masked_layers(twin), strict=True))


def test_whatever_lies_in_masked_places_does_not_reach_the_output() -> None:
    net, x = masked_net(), torch.randn(2, 3, 8, 8)
    before = net(x)
    with torch.no_grad():
        for layer in masked_layers(net):
            layer.weight += 7 * (layer.mask == 0)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


def test_a_masked_linear_is_a_linear_of_masked_weights() -> None:
    layer = MaskedLinear(5, 3)
    mask = torch.rand(3, 5) > 0.5
    layer.register_buffer("mask", mask)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight * mask, layer.bias))


# The module.


class Modes(nn.Module):
    """Other code in train than in eval mode, hooks, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if at == 0 else 8, 8, 3, padding=1) for at in range(5))
        self.register_buffer("shift", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift
        for conv in self.convs:
            x = torch.relu(conv(x))
            if not self.training:
                x = x * 2
        return x


def test_train_and_eval_run_their_own_graph() -> None:
    torch.manual_seed(0)
    model, x = Modes(), torch.randn(2, 3, 6, 6)
    same = swnet.transform(model, x, p=0)
    assert same.eval_graph is not None
    for training in (True, False, True):
        torch.testing.assert_close(same.train(training)(x), model.train(training)(x), rtol=0, atol=0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
def test_a_copy_runs_both_graphs_and_keeps_its_ledger(again: type) -> None:
    torch.manual_seed(0)
    model, x = Modes(), torch.randn(2, 3, 6, 6)
    rewired = swnet.transform(model, x, p=0.3)
    twin = again(rewired)
    for training in (True, False):
        torch.testing.assert_close(twin.train(training)(x), rewired.train(training)(x), rtol=0, atol=0)
    assert swnet.ledger(twin) == swnet.ledger(rewired)
    assert "shift" not in twin.state_dict()
    assert next(twin.parameters()).data_ptr() != next(rewired.parameters()).data_ptr()


def test_hooks_of_the_users_root_module_go_on() -> None:
    model, seen = Modes(), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__))
    swnet.transform(model, torch.randn(2, 3, 6, 6), p=0)(torch.randn(1, 3, 6, 6))
    assert seen == ["Modes"]


class Counting(nn.Module):
    """Keeps more than tensors in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
        self.epoch = 3

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_extra_state_of_the_root_stays_in_the_state_dict() -> None:
    model = Counting()
    rewired = swnet.transform(model, torch.zeros(2, 16), p=0.5, dead="allow")
    for module in (rewired, copy.deepcopy(rewired), pickle.loads(pickle.dumps(rewired))):
        assert list(module.state_dict()) == list(model.state_dict())
        assert module.state_dict()["_extra_state"] == {"epoch": 3}
        module.load_state_dict(model.state_dict() | {"_extra_state": {"epoch": 4}}, strict=True)
        assert module.state_dict()["_extra_state"] == {"epoch": 4}
    assert rewired.state_dict()["_extra_state"] == {"epoch": 4}
