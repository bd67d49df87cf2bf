"""Run one computation in several forms, in turns in one process: time, memory and result of each; on a GPU in CUDA graphs.

A form is built when its turn comes, by a function that returns a call without arguments. One that fails, at whatever point, says
why, and the others go on.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swcompile.errors import first_line

Call = Callable[[], Tensor]
Key = TypeVar("Key", bound=Hashable)
WARMUP = 3
"""Calls before anything is captured or timed: in them torch allocates, and cuDNN and Triton choose."""
FORCED_CAT: dict[str, Any] = {"force_pointwise_cat": True, "max_pointwise_cat_inputs": 1000}
"""What lets Inductor fuse a concat of any number of maps into what reads it; by itself it does so for up to 8."""


@dataclass(frozen=True)
class Outcome:
    """What came of a form: the milliseconds of each round, the bytes that a call takes at its peak, what it makes; or why not.

    `peak` is above what lay there before the call, which is weights and inputs; None on a CPU.
    """

    times: NDArray[np.float64] | None = None
    peak: int | None = None
    made: Tensor | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Reference:
    """The result in double precision, and the largest relative error that a form may have: twice that of the plain form."""

    exact: Tensor
    allowed: float

    @classmethod
    def of(cls, plain: Tensor, exact: Tensor) -> Reference:
        """Take the error of `plain` for the measure, or the rounding of its type where it has less."""
        error = relative_error(plain, exact)
        assert error < 1, "the plain form makes nothing to compare with"
        return cls(exact, 2 * max(error, torch.finfo(plain.dtype).eps / 2))


def relative_error(made: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the differences, over that of the exact values; infinite where a value is not finite."""
    off = (made.to(exact) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    return float(off.nan_to_num(torch.inf, torch.inf))


def tuned(model: nn.Module, call: Callable[[nn.Module], Tensor], **options: Any) -> nn.Module:
    """Return a model compiled by Inductor as far tuned as it gets, CUDA graphs aside, and `call` it once for that.

    The options are set around that call, too: Dynamo looks up `freezing` as it traces, before torch.compile sets its own. Given to
    torch.compile they tell one compiled form of a model from the other, which would else run the other's code.
    """
    from torch import _dynamo, _inductor

    chosen = _inductor.list_mode_options("max-autotune-no-cudagraphs") | options
    made: Any = torch.compile(model, fullgraph=True, dynamic=False, options=chosen)
    with _inductor.config.patch(chosen), _dynamo.config.patch(recompile_limit=64):  # models of a class share their code's 8
        call(made)
    return made  # type: ignore[no-any-return]  # torch's and torchvision's are untyped


def side_by_side(
    builds: Mapping[Key, Callable[[], Call]],
    device: torch.device,
    rounds: int,
    begin: Callable[[Key], None] = lambda _: None,
    make: Callable[[Key, Call], Tensor] = lambda _, ready: ready(),
) -> dict[Key, Outcome]:
    """Build the forms one by one, then time them in turns, each round in the other order.

    `begin` is told each that is built. `make` returns what is kept as its result, by calling what will be timed: for a form that
    changes its own state, from the state that it wants.
    """
    ready: dict[Key, Call] = {}
    # One pool: a graph writes whatever it reads there, so that a form's memory can be another's while it does not run.
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    outcomes: dict[Key, Outcome] = {}
    for key, build in builds.items():
        begin(key)
        try:
            ready[key], outcomes[key] = _prepared(build(), device, functools.partial(make, key), pool)
        except Exception as error:  # whatever a compiler, a kernel or the allocator raises is a result, too
            outcomes[key] = Outcome(failed=why(error))
        if outcomes[key].failed:
            release(device)
    times: dict[Key, list[float]] = {key: [] for key in ready}
    for place in range(rounds):
        for key in list(ready)[:: 1 if place % 2 else -1]:
            try:
                times[key].append(milliseconds(ready[key], device))
            except RuntimeError as error:  # a GPU tells of a kernel's fault when it gets there, and then fails whatever comes
                outcomes[key] = Outcome(failed=why(error))
                del ready[key]
    timed = {key: Outcome(np.array(times[key]), outcomes[key].peak, outcomes[key].made) for key in ready}
    return {key: timed.get(key, outcome) for key, outcome in outcomes.items()}


def _prepared(call: Call, device: torch.device, make: Callable[[Call], Tensor], pool: Any) -> tuple[Call, Outcome]:
    """Return a call that is ready to be timed, its peak of memory, and what it makes when it runs that way."""
    for _ in range(WARMUP):
        call()
    peak = peak_bytes(call, device)
    ready = captured(call, device, pool)
    made = make(ready).detach().clone()  # where it lies, the next replay of any graph may write
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return ready, Outcome(peak=peak, made=made)


def captured(call: Call, device: torch.device, pool: Any = None) -> Call:
    """Return a call that replays a CUDA graph of `call` and returns the tensor in which its result then is; on a CPU `call`.

    Graphs of one pool (torch.cuda.graph_pool_handle) share memory: a result stands until another of them is replayed.
    """
    if device.type != "cuda":
        return call
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):  # what is set up for each stream cannot be set up in a capture
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        made = call()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call: from when an idle GPU begins to when it is done, or on a CPU of the wall clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begun, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begun.record()
    call()
    done.record()
    done.synchronize()
    return begun.elapsed_time(done)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that a call holds at a time, above what lay there before, on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def release(device: torch.device) -> None:
    """Give back memory that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def why(error: BaseException) -> str:
    """Say in a line what went wrong, and during what else: a capture that an exception ended says itself only that it ended."""
    said = f"{type(error).__name__}: {first_line(error)}"
    before = error.__cause__ or error.__context__
    return said if before is None else f"{said} (after {type(before).__name__}: {first_line(before)})"
