"""Lowered models that train on several ranks end where the models themselves do: DistributedDataParallel, and FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import swnet
from swcompile.modules import TRAINING
from tests.zoo import densenet as bottlenecked

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(8) % 10


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = bottlenecked().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def _in_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model)


def _sharded_by_layer(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            fully_shard(module)
    return fully_shard(model)


WAYS = {"DistributedDataParallel": _in_parallel, "fully_shard": _sharded, "fully_shard by layer": _sharded_by_layer}


def _train(model: nn.Module, rank: int) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    mine = slice(4 * rank, 4 * rank + 4)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(X[mine]), LABELS[mine]).backward()
        optimizer.step()
    return {name: _whole(value) for name, value in model.state_dict().items()}


def _whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def _rank(rank: int, folder: str, way: str, done: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    lowered = swnet.lower(_model(), X[:4], backend="torch", training=True).train()
    ran: list[int] = []
    program = lowered._programs[TRAINING]
    assert program.run is not None
    run = program.run
    object.__setattr__(program, "run", lambda *args, **kwargs: (ran.append(1), run(*args, **kwargs))[1])
    found, expected = _train(WAYS[way](lowered), rank), _train(WAYS[way](copy.deepcopy(_model())), rank)
    torch.save((found, expected, len(ran)), f"{folder}/{rank}.pt")
    done.wait(240)  # gloo aborts a process whose peer is gone before all has reached it
    torch.distributed.destroy_process_group()


def _meet(target: Any, tmp_path: Path, *arguments: Any) -> list[Any]:
    """Run two ranks, and return what each saved."""
    context = torch.multiprocessing.get_context("spawn")
    done = context.Barrier(2)
    ranks = [context.Process(target=target, args=(rank, str(tmp_path), *arguments, done)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    return [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]


class _Synchronised(nn.Module):
    """Three layers that each read all maps in front of them, behind a norm over processes and one of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.SyncBatchNorm(6 + 4 * number, eps=10.0 ** -(number + 2)) for number in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * number, 4, 1) for number in range(3))
        self.head = nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.first(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(torch.tanh(conv(torch.relu(norm(torch.cat([*maps], 1))))))
        return self.head(torch.cat(maps, 1).mean((2, 3)))


def _synchronised() -> nn.Module:
    torch.manual_seed(0)
    return _Synchronised().double().train()


def _steps(model: nn.Module, mine: slice) -> dict[str, Any]:
    """Train on some of the images, with the gradients of all."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (functional.cross_entropy(model(X[mine]), LABELS[mine], reduction="sum") / 8).backward()
        for parameter in model.parameters() if torch.distributed.is_initialized() else ():
            torch.distributed.all_reduce(parameter.grad)  # DistributedDataParallel refuses nn.SyncBatchNorm on a CPU
        optimizer.step()
    return model.state_dict()


def _synchronising_rank(rank: int, folder: str, done: Any) -> None:
    torch.set_num_threads(1)
    lowered, gathered = swnet.lower(_synchronised(), X[:5], backend="torch", training=True).train(), []
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    all_gather = torch.distributed.all_gather
    torch.distributed.all_gather = lambda *args, **kwargs: (gathered.append(1), all_gather(*args, **kwargs))[1]
    found = _steps(lowered, slice(5) if rank == 0 else slice(5, 8))
    torch.save((found, len(gathered)), f"{folder}/{rank}.pt")
    done.wait(240)
    torch.distributed.destroy_process_group()


def _overlap(model: nn.Module, rank: int) -> float:
    """Return the share of a step's gradients that come after the first bucket has been sent off, which it hides behind."""
    came: list[str] = []
    parallel = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.005)
    parallel.register_comm_hook(None, lambda _, bucket: (came.append("bucket"), _sent(bucket))[1])
    mine = slice(4 * rank, 4 * rank + 4)
    functional.cross_entropy(parallel(X[mine]), LABELS[mine]).backward()  # the first step orders the buckets by what comes first
    for parameter in model.parameters():
        parameter.register_hook(lambda _: came.append("gradient"))
    came.clear()
    functional.cross_entropy(parallel(X[mine]), LABELS[mine]).backward()
    assert came.count("bucket") > 4
    behind = came[came.index("bucket") :].count("gradient")
    return behind / came.count("gradient")


def _sent(bucket: Any) -> Any:
    whole = bucket.buffer() / 2
    return torch.distributed.all_reduce(whole, async_op=True).get_future().then(lambda found: found.value()[0])


def _overlapping_rank(rank: int, folder: str, done: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    lowered = swnet.lower(_model(), X[:4], backend="torch", training=True).train()
    torch.save((_overlap(lowered, rank), _overlap(_model(), rank)), f"{folder}/{rank}.pt")
    done.wait(240)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_gradients_are_sent_while_others_are_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the model's own: a layer gives its own, where a region that is one operation would give all at its end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for lowered, plain in _meet(_overlapping_rank, tmp_path):
        assert plain > 0.8
        assert lowered >= plain - 0.05


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("way", WAYS)
def test_ranks_end_where_those_of_the_model_itself_do(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = _meet(_rank, tmp_path, way)
    for found, expected, ran in told:
        assert ran == (0 if way == "fully_shard by layer" else 3)  # whose hooks must run
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
    ours, theirs = ({name.removeprefix("module."): value for name, value in found.items()} for found, _, _ in told)
    start = _model()
    for name, value in start.named_parameters():
        assert torch.equal(ours[name], theirs[name])
        assert not torch.equal(ours[name], value)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_norms_over_processes_end_where_one_process_with_the_whole_batch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nn.SyncBatchNorm itself runs in one process only. The ranks have five and three images."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = _steps(_synchronised(), slice(8))
    for found, gathered in _meet(_synchronising_rank, tmp_path):
        assert gathered == 3 * 3, "once a map and step"
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
