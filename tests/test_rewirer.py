"""swnet.Rewirer: weak links go and long-range ones come while a masked network is trained, as many as there were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from swcompile.errors import SwnetError
from swcompile.modules import MASKED, RewiredModule

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


def model(seed: int = 0, *, p: float = 0.3) -> RewiredModule:
    torch.manual_seed(seed)
    widths = ((3, 16), (16, 16), (16, 16), (16, 16))
    units = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
    net = nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return swnet.transform(net, X, p=p, wiring="kernel")


def masked(module: nn.Module) -> dict[str, Any]:
    return {name: inner for name, inner in module.named_modules() if isinstance(inner, tuple(MASKED.values()))}


def masks(module: nn.Module) -> dict[str, Tensor]:
    return {name: layer.mask[:, :, 0, 0].clone() for name, layer in masked(module).items()}


def optimizer_of(module: nn.Module, kind: str = "sgd") -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.AdamW(module.parameters(), lr=0.01, amsgrad=True)
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, rewirer: swnet.Rewirer, steps: int, x: Tensor = X) -> list[int]:
    moved = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), LABELS[: len(x)]).backward()
        optimizer.step()
        moved.append(rewirer.step())
    return moved


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_links_move_when_it_is_time_and_their_number_stays(kind: str) -> None:
    net = model()
    before, ledger = masks(net), swnet.ledger(net)
    optimizer = optimizer_of(net, kind)
    rewirer = swnet.Rewirer(optimizer, net, every=3, until=10)
    moved = train(net, optimizer, rewirer, 12)
    assert [step for step, count in enumerate(moved, start=1) if count] == [3, 6, 9]
    assert moved[2] > moved[5] > moved[8]
    after = masks(net)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert {name: int(mask.sum()) for name, mask in after.items()} == {name: int(mask.sum()) for name, mask in before.items()}
    assert all(mask.any(1).all() for mask in after.values())
    found = swnet.ledger(net)
    assert (found.after.params, found.after.macs, found.after.links) == (ledger.after.params, ledger.after.macs, ledger.after.links)
    assert found.links_moved > ledger.links_moved


def test_the_weakest_go_and_the_steepest_from_far_come_at_zero() -> None:
    net = model()
    optimizer = optimizer_of(net)
    rewirer = swnet.Rewirer(optimizer, net, every=2, until=4, share=0.4)
    train(net, optimizer, rewirer, 1)
    before = masks(net)
    optimizer.zero_grad()
    dense = copy.deepcopy(net)
    for layer in masked(dense).values():
        layer.mask.fill_(True)  # the weights are zero there: the same function, with the gradients of all links
    F.cross_entropy(dense(X), LABELS).backward()
    F.cross_entropy(net(X), LABELS).backward()
    optimizer.step()
    sizes = {name: layer.weight.detach().double().square().sum((2, 3)) for name, layer in masked(net).items()}
    graph = net.swcompile.census.graph
    wirings = {wiring.layer: wiring for wiring in net.swcompile.plan.layers}
    count = rewirer.step()
    total = 0
    for name, mask in masks(net).items():
        gone, come = before[name] & ~mask, mask & ~before[name]
        total += int(come.sum())
        own = torch.cat([torch.full((tap.width,), tap.feature == graph.layer_by_name[name].feature) for tap in wirings[name].taps])
        wanted = int(0.5 * 0.4 * int(before[name].sum()))  # half way: the cosine is 0
        assert gone.sum() == come.sum() == min(wanted, int((~before[name] & ~own).sum()))
        if not come.any():
            assert own.all()
            continue
        assert not come[:, own].any()
        steep = masked(dense)[name].weight.grad.double().square().sum((2, 3))
        left_out = ~before[name] & ~own & ~come
        assert not left_out.any() or steep[come].min() >= steep[left_out].max() * (1 - 1e-4)
        strongest = torch.zeros_like(mask).scatter_(1, torch.where(before[name], sizes[name], -1).argmax(1, keepdim=True), True)
        assert sizes[name][gone].max() <= sizes[name][before[name] & ~gone & ~strongest].min()
        layer = masked(net)[name]
        for tensor in (layer.weight, optimizer.state[layer.weight]["momentum_buffer"]):
            assert not tensor[gone].any()
            assert not tensor[come].any()
        assert optimizer.state[layer.weight]["momentum_buffer"][mask & ~come].any()
    assert total == count
    train(net, optimizer, rewirer, 1)
    new = {name: mask & ~before[name] for name, mask in masks(net).items()}
    assert sum(mask.any() for mask in new.values()) > 1
    assert all(layer.weight[new[name]].any() for name, layer in masked(net).items() if new[name].any())


def test_a_checkpoint_goes_on_as_if_nothing_had_happened() -> None:
    whole = model()
    optimizer = optimizer_of(whole)
    rewirer = swnet.Rewirer(optimizer, whole, every=3, until=12)
    train(whole, optimizer, rewirer, 5)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    train(whole, optimizer, rewirer, 5)
    again = model(seed=0)
    second = optimizer_of(again)
    after = swnet.Rewirer(second, again, every=3, until=12)
    again.load_state_dict(saved[0]), second.load_state_dict(saved[1]), after.load_state_dict(saved[2])
    train(again, second, after, 5)
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_what_is_saved_and_copied_has_the_links_of_now(tmp_path: Path) -> None:
    net = model()
    optimizer = optimizer_of(net)
    train(net, optimizer, swnet.Rewirer(optimizer, net, every=1, until=9), 3)
    swnet.save(net, tmp_path / "saved")
    torch.manual_seed(1)
    fresh = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()) for a in (3, 16, 16, 16)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    loaded = swnet.load(tmp_path / "saved", fresh)
    for other in (loaded, copy.deepcopy(net)):
        assert torch.equal(other.eval()(X), net.eval()(X))
        assert swnet.ledger(other).links_moved == swnet.ledger(net).links_moved


def test_gradients_are_watched_only_for_the_step_that_rewires() -> None:
    net = model()
    optimizer = optimizer_of(net)
    rewirer = swnet.Rewirer(optimizer, net, every=2, until=5)
    watched = []
    for _ in range(6):
        watched.append(all(layer.watch is not None for layer in masked(net).values()))
        train(net, optimizer, rewirer, 1)
    assert watched == [False, True, False, True, False, False]


def _rank(rank: int, folder: str, done: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    net = model()
    wrapped = nn.parallel.DistributedDataParallel(net)
    optimizer = optimizer_of(net)
    train(wrapped, optimizer, swnet.Rewirer(optimizer, net, every=2, until=9), 7, X[rank * 4 : rank * 4 + 4])
    torch.save({name: mask.int() for name, mask in masks(net).items()}, f"{folder}/{rank}.pt")
    done.wait(240)  # gloo aborts a process whose peer is gone before all has reached it
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_decide_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = torch.multiprocessing.get_context("spawn")
    done = context.Barrier(2)
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), done)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    start = masks(model())
    assert any(not torch.equal(mask.bool(), start[name]) for name, mask in first.items())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"every": 0}, "every=0 is not a number of steps"),
        ({"until": 1.5}, "until=1.5 is not a number of steps"),
        ({"share": 0}, "share=0 is outside"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], message: str) -> None:
    net = model()
    with pytest.raises(SwnetError, match=message):
        swnet.Rewirer(optimizer_of(net), net, **{"every": 1, "until": 2, **asked})


def test_models_and_optimizers_that_it_cannot_work_with_are_refused() -> None:
    net = model()
    block = swnet.transform(nn.Sequential(*(nn.Linear(16, 16) for _ in range(4))), torch.randn(2, 16), p=0.5)
    tile = swnet.transform(nn.Sequential(*(nn.Linear(16, 16) for _ in range(4))), torch.randn(2, 16), p=0.5, wiring="tile")
    for other in (block, tile):
        with pytest.raises(SwnetError, match="has no masks in which single links could move"):
            swnet.Rewirer(optimizer_of(other), other, every=1, until=2)
    with pytest.raises(SwnetError, match="trains none of the masked layers"):
        swnet.Rewirer(optimizer_of(block), net, every=1, until=2)
    with pytest.raises(SwnetError, match="was not made by swnet"):
        swnet.Rewirer(optimizer_of(net), nn.Linear(2, 2), every=1, until=2)
    with pytest.raises(SwnetError, match="holds a number of steps"):
        swnet.Rewirer(optimizer_of(net), net, every=1, until=2).load_state_dict({})
