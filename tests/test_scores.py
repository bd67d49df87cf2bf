"""swcompile.scores: what trained layers need least goes first, and the model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from swcompile.errors import SwnetError
from swcompile.graph import Layer
from swcompile.plan import Options
from swcompile.scores import NEEDS, per_channel, score
from swcompile.trace import Traced, trace
from swcompile.trace.interpret import tensors
from tests import zoo

TRAINED = tuple(how for how in NEEDS if how != "distance")


class Net(nn.Module):
    """Three convolutions with norms between them, the last one over a concatenation, and a classifier over a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(32, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(self.stem(x)))
        b = F.relu(self.bn2(self.conv(a)))
        return self.head(torch.flatten(F.max_pool2d(self.last(torch.cat([a, b], 1)), 2), 1))


X = torch.randn(4, 3, 8, 8)
BATCHES = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(3)]


def given(how: str) -> dict[str, Any]:
    """Return what a score has to be given."""
    return {name: {"batches": BATCHES, "loss_fn": F.cross_entropy}[name] for name in NEEDS[how]}


def numbers(traced: Traced, *asked: Any, **given: Any) -> dict[str, Any]:
    """Return the scores of single channels."""
    widths = {layer.name: layer.in_channels for layer in traced.graph.layers}
    found = score(traced, *asked, **given)
    return {name: one.of([(place, place + 1) for place in range(widths[name])]) for name, one in found.items()}


def kept(module: nn.Module, layer: str) -> list[int]:
    wirings = {wiring.layer: wiring for wiring in module.swcompile.plan.layers}
    return [place for start, stop in wirings[layer].columns for place in range(start, stop)]


def quieted(*channels: int) -> Net:
    """Return a net in whose `conv` the weights that read some channels are small."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.conv.weight[:, list(channels)] *= 1e-3
    return net


@pytest.mark.parametrize("how", TRAINED)
def test_the_blocks_that_score_lowest_go(how: str) -> None:
    net = quieted(2, 3, 6, 7, 8, 9, 14, 15)
    rewired = swnet.transform(net, X, keep={"conv": 0.5}, block=2, score=how, **given(how))
    assert kept(rewired, "conv") == [0, 1, 4, 5, 10, 11, 12, 13]
    assert rewired(X).isfinite().all()


def test_a_norm_scales_what_its_readers_are_given() -> None:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.bn1.weight[8:] = 1e-3
        net.bn2.weight[:8] = 1e-3
    rewired = swnet.transform(net, X, keep={"conv": 0.5, "last": 0.5, "head": 0.5}, block=8, score="norm", head=True)
    assert kept(rewired, "conv") == list(range(8))
    assert kept(rewired, "last") == [*range(8), *range(24, 32)]
    scores = numbers(trace(net, X), "norm")
    flat = net.last.weight.detach().double().square()
    assert scores["last"][0] / scores["last"][8] == pytest.approx(float(flat[:, 0].sum() / flat[:, 8].sum()) * 1e6, rel=1e-5)


def test_variances_add_up_in_a_sum_and_a_flattened_map_repeats_its_channels() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
            self.conv, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + self.b(x)
            return self.head((self.conv(y) + y).flatten(1))

    net = Residual()
    with torch.no_grad():
        net.a[1].weight.copy_(torch.tensor([3.0, 0, 1, 1]))
        net.b[1].weight.copy_(torch.tensor([4.0, 0, 1, 1]))
        net.conv.weight.fill_(1)
        net.head.weight.fill_(1)
    scores = numbers(trace(net, X), "norm")
    np.testing.assert_allclose(scores["conv"] / scores["conv"].sum(), np.array([25, 0, 2, 2]) / 29)
    assert len(scores["head"]) == 256
    assert np.ptp(scores["head"][:64]) < 1e-12
    assert scores["head"][0] == pytest.approx(26 * scores["head"][64])  # the convolution beside it has no norm, and counts 1


def test_taylor_is_the_squared_change_of_the_loss_averaged_over_batches() -> None:
    torch.manual_seed(1)
    net = Net()
    net(X)
    found = numbers(trace(net, X), "taylor", BATCHES, F.cross_entropy)
    net.eval()
    wanted = {name: np.zeros(module.weight.shape[1]) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    for images, labels in BATCHES:
        net.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        for name, sums in wanted.items():
            weight = net.get_submodule(name).weight
            sums += ((weight.grad * weight).sum((0, 2, 3)).detach().numpy() ** 2) / len(BATCHES)
    for name, sums in wanted.items():
        np.testing.assert_allclose(found[name], sums, rtol=1e-3, atol=1e-9)


def test_of_two_maps_that_are_the_same_one_goes() -> None:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for module in (net.stem, net.bn1):
            module.weight[8:12] = module.weight[:4]
        net.conv.weight[:, 12:] *= 0.9  # by weights alone these would go
        net.conv.weight[:, 4:8] *= 0.9
    by_weight = swnet.transform(net, X, keep={"conv": 0.75}, block=4, score="weight")
    by_correlation = swnet.transform(net, X, keep={"conv": 0.75}, block=4, score="correlation", batches=BATCHES)
    assert set(range(4)) | set(range(8, 12)) <= set(kept(by_weight, "conv"))
    gone = set(range(16)) - set(kept(by_correlation, "conv"))
    assert gone in ({0, 1, 2, 3}, {8, 9, 10, 11})


@pytest.mark.parametrize(("shape", "groups", "transposed"), [((8, 6, 3, 3), 1, False), ((8, 3, 3), 2, False), ((6, 4, 3), 2, True)])
def test_per_channel_sums_over_all_that_reads_a_channel(shape: tuple[int, ...], groups: int, transposed: bool) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    width = 6
    outs = shape[1] * groups if transposed else shape[0]
    layer = Layer("y", "y", 0, "Conv", "x", 0, width, outs, tuple(shape[2:]), groups, transposed=transposed)
    wanted = torch.zeros(width, dtype=torch.float64)
    for channel in range(width):
        if transposed:
            wanted[channel] = values[channel].sum()
        else:
            group, place = divmod(channel, width // groups)
            wanted[channel] = values[group * outs // groups : (group + 1) * outs // groups, place].sum()
    torch.testing.assert_close(per_channel(layer, values), wanted)


@pytest.mark.parametrize("how", TRAINED)
def test_the_model_stays_as_it_was(how: str) -> None:
    net = Net()
    net.conv.weight.requires_grad_(False)
    net.bn1.eval()
    before, modes = copy.deepcopy(net.state_dict()), {name: module.training for name, module in net.named_modules()}
    rewired = swnet.transform(net, X, density=0.5, score=how, **given(how))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for module in (net, rewired):
        assert {name: module.get_submodule(name).training for name in modes} == modes
        assert not module.get_parameter("conv.weight").requires_grad
        assert all(parameter.grad is None for parameter in module.parameters())
        torch.testing.assert_close(module.get_buffer("bn1.running_mean"), before["bn1.running_mean"][: module.bn1.num_features])


@pytest.mark.parametrize("how", TRAINED)
@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_model_can_be_scored(name: str, how: str) -> None:
    model, x = zoo.build(name)
    inputs = x if isinstance(x, tuple) else (x,)

    def loss_fn(output: Any) -> Tensor:
        return torch.stack([leaf.float().square().mean() for leaf in tensors(output)]).sum()

    asked: dict[str, Any] = {"batches": [inputs], "loss_fn": loss_fn}
    traced = trace(model, x)
    scores = numbers(traced, how, **{key: asked[key] for key in NEEDS[how]})
    assert {name: len(values) for name, values in scores.items()} == {y.name: y.in_channels for y in traced.graph.layers}
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in scores.values())
    assert any(values.std() > 0 for values in scores.values())


@pytest.mark.parametrize("how", TRAINED)
def test_an_exported_program_can_be_scored(how: str) -> None:
    net = quieted(*range(8)).eval()
    program = torch.export.export(net, (X,))
    scores = numbers(trace(program.module(), X), how, **given(how))
    wanted = numbers(trace(net, X), how, **given(how))
    if how != "norm":  # its norms are operators
        np.testing.assert_allclose(scores["conv"], wanted["conv"], rtol=1e-4, atol=1e-12)


def test_scores_decide_what_is_moved_last_and_what_fits_besides() -> None:
    net = quieted(*range(8))
    ledger = swnet.ledger(swnet.transform(net, X, density=0.5, score="weight"))
    assert (ledger.after.p_requested, ledger.after.p_achieved) == ("auto", 0.0)
    assert any("p='auto' chose 0" in note.reason for note in ledger.notes)
    moved = swnet.transform(net, X, keep={"conv": 0.75}, block=2, p=0.5, score="weight", head=True)
    reads = next(wiring for wiring in moved.swcompile.plan.layers if wiring.layer == "conv")
    own = [tap for tap in reads.taps if tap.feature == swnet.analyze(net, X).graph.layer_by_name["conv"].feature]
    assert len(own) < len(reads.taps)
    assert set(range(8, 16)) <= {place for tap in own for place in range(tap.start, tap.stop)}
    budget = swnet.transform(net, X, params=5_000, score="weight", spread="global", head=True)
    assert swnet.ledger(budget).after.params <= 5_000


def test_equal_scores_give_equal_plans() -> None:
    net = Net()
    plans = [swnet.plan(net, X, density=0.5, score="taylor", batches=BATCHES, loss_fn=F.cross_entropy) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].options.score == "taylor"
    assert swnet.apply(net, plans[0], X)(X).isfinite().all()


def test_batches_are_gone_through_once() -> None:
    once = iter(BATCHES)
    swnet.transform(Net(), X, density=0.5, score="taylor", batches=once, loss_fn=F.cross_entropy)
    assert next(once, None) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"score": "size"}, "score='size' is not a choice"),
        ({"score": "weight", "density": 1.0}, "says which blocks a budget drops, and there is none"),
        ({"score": "taylor"}, "needs batches=, an iterable of inputs and targets"),
        ({"score": "taylor", "batches": BATCHES}, "needs loss_fn=, which is called with"),
        ({"score": "weight", "batches": BATCHES}, "has no use for. Leave it out, or take score='taylor' or score='correlation'"),
        ({"score": "correlation", "batches": BATCHES, "loss_fn": F.cross_entropy}, "loss_fn= was given, which score='correlation'"),
        ({"score": "taylor", "batches": 5, "loss_fn": F.cross_entropy}, "was given a int, of which nothing can be taken"),
        ({"score": "taylor", "batches": X, "loss_fn": F.cross_entropy}, "at batch 0, the model or loss_fn"),
        ({"score": "taylor", "batches": BATCHES, "loss_fn": lambda out, _: out.detach().sum()}, "depends on no layer's weight"),
        ({"score": "taylor", "batches": BATCHES, "loss_fn": lambda out, _: out.sum() * torch.nan}, "are not finite"),
        ({"score": "correlation", "batches": [X * torch.inf]}, "are not finite"),
        ({"score": "correlation", "batches": []}, "batches= holds no batch"),
        ({"score": "correlation", "batches": [()]}, "batches= was given a batch of 0 values"),
        ({"score": "taylor", "batches": [X], "loss_fn": F.cross_entropy}, "which got 0 more values of the batch raised TypeError"),
        ({"score": "taylor", "batches": BATCHES, "loss_fn": lambda out, _: out}, "did not return a single number"),
        ({"batches": BATCHES}, "batches= was given, which score='distance' has no use for"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SwnetError, match=message.replace("(", r"\(").replace(")", r"\)")):
        swnet.transform(Net(), X, **{"density": 0.5, **asked})


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(SwnetError, match="on the meta device"):
        swnet.plan(Net().to("meta"), X.to("meta"), density=0.5, score="weight")


def test_kernel_wiring_takes_no_score() -> None:
    with pytest.raises(SwnetError, match="score='weight'"):
        Options(wiring="kernel", score="weight")


@pytest.mark.parametrize("offset", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_of_nearly_equal_maps_one_of_each_pair_stays(offset: float, seed: int) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(32, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(torch.cat([F.relu(self.b(y)), y], 1))

    torch.manual_seed(seed)
    net = Twins()
    with torch.no_grad():
        net.a.weight[8:] = net.a.weight[:8] * (1 + 1e-3 * torch.randn(8, 8, 1, 1))
        net.a.bias.fill_(offset)
        net.b.weight.normal_()
        net.b.weight[:, 8:] *= 0.1
    x = torch.randn(16, 8, 32, 32)
    rewired = swnet.transform(net, x, keep={"b": 0.5}, block=1, score="correlation", batches=[x] * 2)
    assert {place % 8 for place in kept(rewired, "b")} == set(range(8))


def test_of_two_equal_blocks_one_stays() -> None:
    class Stems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(3))
            self.c, self.head = nn.Conv2d(24, 16, 1), nn.Conv2d(40, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([stem(x) for stem in self.stems], 1)
            return self.head(torch.cat([F.relu(self.c(y)), y], 1))

    for seed in range(8):
        torch.manual_seed(seed)
        net, x = Stems(), torch.randn(16, 16, 8, 8)
        net.stems[1].load_state_dict(net.stems[0].state_dict())
        rewired = swnet.transform(net, x, keep={"c": 0.67}, block=8, score="correlation", batches=[x] * 4)
        assert set(range(16, 24)) < set(kept(rewired, "c"))


def test_batches_leave_no_trace_in_buffers_and_random_numbers() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            return super().forward(x + 0 * torch.randn_like(x))

    net = Counting()
    net.conv.weight.register_hook(lambda gradient: gradient * 0)
    for how in ("taylor", "correlation"):
        before = torch.get_rng_state()
        rewired = swnet.transform(net, X, density=0.5, score=how, **given(how))
        assert rewired.steps == net.steps == 0
        assert torch.equal(torch.get_rng_state(), before)
    assert numbers(trace(net, X), "taylor", BATCHES, F.cross_entropy)["conv"].any()


def test_a_loader_of_unknown_length_will_do() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(image, label) for images, labels in BATCHES for image, label in zip(images, labels, strict=True)])

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    swnet.transform(Net(), X, density=0.5, score="taylor", batches=loader, loss_fn=F.cross_entropy, calibrate=loader)


def test_scores_work_where_gradients_are_off() -> None:
    with torch.no_grad():
        swnet.transform(Net(), X, density=0.5, score="taylor", batches=BATCHES, loss_fn=F.cross_entropy)


@pytest.mark.parametrize("budget", ["params", "macs"])
def test_a_model_within_its_budget_needs_no_score(budget: str) -> None:
    rewired = swnet.transform(Net(), X, p=0.3, score="weight", **{budget: 10**9})
    assert swnet.ledger(rewired).links_pruned == 0


def test_gates_and_sums_carry_the_scale_on() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.raw, self.bn = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
            self.fc, self.gated, self.summed = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.a(x))
            gate = torch.sigmoid(self.fc(y.mean((2, 3), keepdim=True)))
            return self.gated(y * gate * torch.sigmoid(y)) + self.summed(y + self.raw(x))

    net = Gated()
    with torch.no_grad():
        net.bn.weight[:8] = 0
        net.gated.weight.fill_(1)
        net.summed.weight.fill_(1)
    scores = numbers(trace(net, X), "norm")
    np.testing.assert_allclose(scores["gated"], [0] * 8 + [2] * 8)
    np.testing.assert_allclose(scores["summed"], np.array([1] * 8 + [2] * 8) / 1.5)
