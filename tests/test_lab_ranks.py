"""Rewired models that train on two ranks, under DistributedDataParallel and FSDP2, end where one process brings them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import swnet

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(8) % 10


def _model(wiring: str) -> nn.Module:
    """Return a rewired net without norms, which would see the share of a rank."""
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for channels, width in ((3, 16), (16, 16), (16, 32), (32, 32), (32, 32)):
        body += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
    plain = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).double()
    return swnet.transform(plain, X[:2], p=0.4, wiring=wiring).train()


def _sharded_by_layer(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            fully_shard(module)
    return fully_shard(model)


WAYS = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "fully_shard": fully_shard,
    "fully_shard by layer": _sharded_by_layer,
}


def _train(model: nn.Module, mine: slice) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(X[mine]), LABELS[mine]).backward()
        optimizer.step()
    return {name.removeprefix("module."): _whole(value) for name, value in model.state_dict().items()}


def _whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def _rank(rank: int, folder: str, way: str, wiring: str, done: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = WAYS[way](_model(wiring))
    shapes = [getattr(parameter, "_local_tensor", parameter).shape for parameter in model.parameters()]
    torch.save((_train(model, slice(4 * rank, 4 * rank + 4)), shapes), f"{folder}/{rank}.pt")
    done.wait(240)  # gloo aborts a process whose peer is gone before all has reached it
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize(("way", "wiring"), [*((way, "block") for way in WAYS), ("fully_shard", "kernel")])
def test_two_ranks_end_where_one_process_does(way: str, wiring: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = torch.multiprocessing.get_context("forkserver")  # which has imported torch once for all ranks
    context.set_forkserver_preload(["swnet"])
    done = context.Barrier(2)
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), way, wiring, done)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    start = {name: value.clone() for name, value in _model(wiring).state_dict().items()}
    expected = _train(_model(wiring), slice(None))
    for rank in range(2):
        found, shapes = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
        whole = [parameter.shape for parameter in _model(wiring).parameters()]
        assert (shapes == whole) == (way == "DistributedDataParallel")
    assert any(not torch.equal(start[name], value) for name, value in expected.items())
