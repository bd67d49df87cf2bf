"""The tour: everything swnet does, on one small network. Read it from top to bottom, it takes five minutes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import swnet

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Six convolutions in a row, like a small VGG: each reads only the one right before it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 16, 32, 32, 32, 32]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = torch.relu_(norm(conv(x)))
            if depth == 2:
                x = nn.functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_1_analyze_shows_the_network_as_a_graph_of_channels(net: Net) -> None:
    analysis = swnet.analyze(net, IMAGE)
    assert [layer.name for layer in analysis.graph.layers][:2] == ["convs.0", "convs.1"]
    assert "convs.3" in analysis.eligible
    assert dict(analysis.refused)["convs.0"] == "the stem: there is no earlier feature that it could read"
    assert analysis.figures.C == 0  # a chain has no triangles; rewired, it gets some, and its paths get shorter
    assert analysis.curve.C[-1] > 0
    assert analysis.curve.L[-1] < analysis.curve.L[0]
    assert 0.2 <= analysis.p <= 1  # what the policy "auto" would choose


def test_2_a_plan_says_what_each_layer_will_read(net: Net) -> None:
    plan = swnet.plan(net, IMAGE, p=0.3, seed=1)
    print(plan)  # "convs.1 reads relu_[0:10] x[2:3] x[0:1] relu_[12:16]": taps, that is, channels of earlier features
    assert "convs.3 reads" in str(plan)
    for wiring in plan.layers:
        layer = next(layer for layer in swnet.analyze(net, IMAGE, points=2).graph.layers if layer.name == wiring.layer)
        assert wiring.width == layer.in_channels  # a layer reads other maps, but as many as before
    assert swnet.plan(net, IMAGE, p=0.3, seed=1).to_json() == plan.to_json()  # on every machine


def test_3_transform_carries_it_out_on_a_copy(net: Net) -> None:
    rewired = swnet.transform(net, IMAGE, p=0.3, seed=1)
    assert rewired(IMAGE).shape == net(IMAGE).shape
    assert not torch.equal(rewired(IMAGE), net(IMAGE))
    rewired.load_state_dict(net.state_dict(), strict=True)  # the same names, the same shapes
    assert isinstance(net, Net)  # and the argument is as it was


def test_4_the_ledger_counts_what_came_out(net: Net) -> None:
    ledger = swnet.ledger(swnet.transform(net, IMAGE, p=0.3, seed=1))
    print(ledger)
    assert ledger.after.params == ledger.before.params
    assert ledger.after.macs == ledger.before.macs
    assert ledger.links_kept + ledger.links_moved == ledger.before.links
    assert ledger.before.long_range == 0 < ledger.after.long_range
    assert ledger.after.mean_path < ledger.before.mean_path  # from input to output


def test_5_with_p_0_it_is_the_original_bit_for_bit(net: Net) -> None:
    same = swnet.transform(net, IMAGE, p=0)
    assert torch.equal(same.eval()(IMAGE), net.eval()(IMAGE))
    assert not swnet.ledger(same).changed


def test_6_with_less_density_layers_become_physically_smaller(net: Net) -> None:
    half = swnet.transform(net, IMAGE, p=0.3, density=0.5)
    outputs = dict(half.swcompile.plan.outputs())["convs.4"]
    made = sum(stop - start for start, stop in outputs)
    assert 0 < made < 32, "nobody reads the others any more"
    assert half.get_submodule("convs.4").weight.shape == (made, 16, 3, 3)
    assert swnet.ledger(half).after.params < swnet.ledger(half).before.params


def test_7_it_trains_like_any_module(net: Net) -> None:
    rewired = swnet.transform(net, IMAGE, p=0.3).train()
    optimizer = torch.optim.SGD(rewired.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(rewired(IMAGE), torch.tensor([3, 7]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_8_save_and_load_need_no_pickle(net: Net, tmp_path: Path) -> None:
    rewired = swnet.transform(net, IMAGE, p=0.3)
    swnet.save(rewired, tmp_path / "net")
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == ["manifest.json", "plan.json", "weights.safetensors"]
    loaded = swnet.load(tmp_path / "net", Net())
    assert torch.equal(loaded.eval()(IMAGE), rewired.eval()(IMAGE))


def test_9_link_by_link_as_in_the_paper(net: Net) -> None:
    masked = swnet.transform(net, IMAGE, p=0.3, wiring="kernel")
    ledger = swnet.ledger(masked)
    assert ledger.after.links == ledger.before.links  # single k x k kernels moved, none was added
    assert ledger.after.stored_params > ledger.after.params  # kept in dense layers under a mask


def test_10_what_cannot_be_done_is_one_error_that_says_why(net: Net) -> None:
    with pytest.raises(swnet.SwnetError, match=r"p=1.5 is outside \[0, 1\]"):
        swnet.transform(net, IMAGE, p=1.5)
