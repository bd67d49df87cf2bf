"""Runs that are killed, stopped, shared, or moved to another number of processes come to the curves of undisturbed ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout

from benchmarks.lab import checkpoint
from benchmarks.lab.store import Place
from tests import tiny_grid
from tests.tiny_grid import LONG, SHARED, TINY

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.tiny_grid"])
"""So that a process of a test starts at once, not with seconds of imports."""
OF_THE_CLOCK = {"seconds", "step_seconds", "peak_memory", "date"}
KILLS = 20

Curves = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def start(arguments: Sequence[str], *told: Any) -> Any:
    process = FORKS.Process(target=tiny_grid.main, args=(arguments, *told))
    process.start()
    return process


def ended(process: Any, seconds: float = 240) -> int | None:
    process.join(seconds)
    code: int | None = process.exitcode
    return code


def steps_logged(log: Path) -> int:
    return log.read_text().count("\n")


def curves(results: Path, grid: str = "tiny") -> Curves:
    """Read a grid's curves without what the clock says."""
    return {
        file.name: [
            {key: value for key, value in json.loads(line).items() if key not in OF_THE_CLOCK}
            for line in file.read_text().splitlines()
        ]
        for file in sorted((results / grid).glob("*.jsonl"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Curves, float]:
    results = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(["tiny", "--list", "--results", str(results)], data)) == 0  # imports whatever there is to import
    began = time.monotonic()
    assert ended(start(["tiny", "--results", str(results)], data)) == 0
    found = curves(results)
    assert len(found) == len(list(TINY.runs())) == 12
    assert all(len(curve) == 6 for curve in found.values())
    return found, time.monotonic() - began


def test_a_grid_killed_at_twenty_random_moments_comes_to_the_curves_of_an_undisturbed_one(
    tmp_path: Path, data: Path, undisturbed: tuple[Curves, float]
) -> None:
    expected, took = undisturbed
    log, command = tmp_path / "log", ["tiny", "--results", str(tmp_path), "--checkpoint-seconds", "0"]
    draw = random.Random(0)
    under_way = 0
    log.touch()
    for _ in range(KILLS):
        # Moments are drawn among steps, not seconds: a busy machine would be killed before its first step every time.
        until, beyond = steps_logged(log) + draw.randrange(12), draw.uniform(0, took / 100)
        process = start(command, data, {}, log)
        while steps_logged(log) < until and process.is_alive():
            time.sleep(0.002)
        process.join(beyond)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        under_way += any(checkpoint.latest(folder) for folder in (tmp_path / "tiny" / ".running").glob("*/"))
    assert under_way >= KILLS // 4
    assert ended(start(command, data, {}, log)) == 0
    assert curves(tmp_path) == expected
    taken = Counter(log.read_text().splitlines())
    assert len(taken) == 12 * 18
    again = taken.total() - len(taken)  # a step whose checkpoint was not yet whole when the kill came
    assert again <= KILLS
    assert not [file for file in (tmp_path / "tiny" / ".running").iterdir() if file.suffix != ".lock"]


def test_an_interrupted_command_says_so_and_goes_on_from_the_very_step(
    tmp_path: Path, data: Path, undisturbed: tuple[Curves, float]
) -> None:
    log, command = tmp_path / "log", ["tiny", "--results", str(tmp_path)]
    process = start(command, data, {}, log, tmp_path / "out")
    while not log.exists() or steps_logged(log) < 40:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    told = (tmp_path / "out").read_text()
    assert "Stopped. The same command goes on where it was." in told
    assert "stopped, its checkpoint written" in told
    assert "Traceback" not in told
    assert ended(start(command, data, {}, log)) == 0
    assert set(Counter(log.read_text().splitlines()).values()) == {1}
    assert curves(tmp_path) == undisturbed[0]


def test_two_commands_share_a_grid(tmp_path: Path, data: Path, undisturbed: tuple[Curves, float]) -> None:
    log, command = tmp_path / "log", ["tiny", "--results", str(tmp_path)]
    both = [start(command, data, {}, log) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert curves(tmp_path) == undisturbed[0]
    taken = Counter(log.read_text().splitlines())
    assert (len(taken), taken.total()) == (12 * 18, 12 * 18)


def test_workers_train_side_by_side(tmp_path: Path, data: Path) -> None:
    for workers in ("1", "2"):
        command = ["shared", "--results", str(tmp_path / workers), "--workers", workers, "--threads", "1"]
        assert ended(start(command, data, {}, None, tmp_path / "out")) == 0
    told = (tmp_path / "out").read_text()
    assert told.count("-original-seed0  trained") == told.count("-block-p0.3-seed0  trained") == 2
    assert curves(tmp_path / "1", "shared") == curves(tmp_path / "2", "shared") != {}


def children(process: int) -> list[int]:
    return [int(one) for task in Path(f"/proc/{process}/task").iterdir() for one in (task / "children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not tell of its processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_command(number: int, code: int, tmp_path: Path, data: Path) -> None:
    command = ["long", "--results", str(tmp_path), "--workers", "2", "--threads", "1", "--checkpoint-seconds", "0.1"]
    process = start(command, data, {}, None, tmp_path / "out")
    places = [Place(tmp_path, run) for run in LONG.runs()]
    deadline = time.monotonic() + 240
    while not all(place.begun for place in places):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(Timeout):
        places[0].lock().acquire()
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, number)
    assert ended(process) == code
    for place in places:
        with place.lock().acquire(timeout=60):
            assert place.begun
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    told = (tmp_path / "out").read_text()
    assert ("Stopped. The same command goes on where it was." in told) == (number == signal.SIGINT)
    assert "Traceback" not in told


# --- several processes a run -------------------------------------------------------------------------------------------------


def launch(count: int, command: Sequence[str], data: Path, log: Path | None = None) -> list[Any]:
    """Start what torchrun would."""
    if count == 1:
        return [start(command, data, {}, log)]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [start(command, data, meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log) for rank in range(count)]


def finish(processes: Sequence[Any]) -> None:
    assert [ended(process) for process in processes] == [0] * len(processes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Curves:
    results = tmp_path_factory.mktemp("alone")
    finish(launch(1, ["shared", "--results", str(results)], data))
    return curves(results, "shared")


def assert_close(found: Curves, expected: Curves, *, processes: int) -> None:
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert len(found[name]) == len(curve) == 3
        for record, wanted in zip(found[name], curve, strict=True):
            for key in ("step", "epoch", "macs", "lr", "params", "test_error", "options"):
                assert record[key] == wanted[key]
            assert record["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
        assert found[name][-1]["processes"] == processes


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("way", [[], ["--shard"]], ids=["DistributedDataParallel", "fully_shard"])
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)], ids=["from 2 to 1", "from 1 to 2"])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, data: Path, alone: Curves, first: int, then: int, way: Sequence[str]
) -> None:
    command = ["shared", "--results", str(tmp_path), "--checkpoint-seconds", "0", *way]
    processes = launch(first, command, data)
    running = tmp_path / "shared" / ".running"
    deadline = time.monotonic() + 240
    while not any("block" in str(place) for place in running.glob("*/checkpoint-[5-9]")):
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.002)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        ended(process)
    (name,) = [run.name for run in SHARED.runs() if "block" in run.name]
    found = checkpoint.latest(running / name)
    assert found is not None
    step = checkpoint.rest_of(found)["step"]
    assert 5 <= step < 18
    finish(launch(then, command, data, tmp_path / "log"))
    assert (tmp_path / "log").read_text().splitlines()[0] == f"{name} {step + 1}"
    block = f"{name}.jsonl"
    assert_close({block: curves(tmp_path, "shared")[block]}, {block: alone[block]}, processes=then)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_stop_together_and_go_on_to_the_very_curve_with_norms_and_dropout(tmp_path: Path, data: Path) -> None:
    command = ["tiny", "--arms", "block-p0.3", "--seeds", "0", "--tasks", "net-cifar10"]
    finish(launch(2, [*command, "--results", str(tmp_path / "whole")], data))
    log, stopped = tmp_path / "log", [*command, "--results", str(tmp_path / "stopped")]
    processes = launch(2, stopped, data, log)
    while not log.exists() or steps_logged(log) < 12:  # a line of each rank
        time.sleep(0.002)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)  # as torchrun does when it is asked to end
    assert [ended(process) for process in processes] == [130, 130]
    finish(launch(2, stopped, data, log))
    assert set(Counter(log.read_text().splitlines()).values()) == {2}
    assert curves(tmp_path / "stopped") == curves(tmp_path / "whole") != {}
