"""Carry out a list of runs: one after the other, or several side by side in processes of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

import torch

from benchmarks.lab.display import Display
from benchmarks.lab.grids import Run
from benchmarks.lab.ranks import Ranks, Share, ranks
from benchmarks.lab.training import Progress
from benchmarks.lab.work import Outcome, Setting, carry_out, stopping

INTERVAL = 0.5
"""Seconds between two messages about one run."""


def one_by_one(runs: Sequence[Run], setting: Setting, display: Display) -> bool:
    """Carry out runs in this process, or in these, where torchrun started several; return whether it was asked to stop."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    with stopping() as stop, ranks(setting.way) as group:
        display.silent |= not group.first
        for run in runs:
            if group.told(stop()):
                return True
            display.began(run.name)
            try:
                outcome = carry_out(run, setting, group, functools.partial(display.progressed, run.name), stop)
            except (Exception, SystemExit) as error:
                if group.many:  # the others wait for this one, and cannot be told
                    raise
                display.failed(run.name, error)
            else:
                display.ended(run.name, outcome)
                if outcome == "stopped":
                    return True
    return False


def side_by_side(runs: Sequence[Run], setting: Setting, workers: int, display: Display) -> bool:
    """Carry out runs in several processes, each at one at a time; return whether it was asked to stop.

    The processes end with this one, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    messages, halt = context.Queue(), context.Event()
    told = (setting, messages, halt)
    with stopping() as stop, ProcessPoolExecutor(workers, context, initializer=_begin, initargs=told) as pool:
        futures = {pool.submit(_carry_out, run): run for run in runs}
        pending: set[Future[Outcome]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=INTERVAL, return_when=FIRST_COMPLETED)
            _pass_on(messages, display)
            for future in done:
                _settle(future, futures[future], display)
            if stop() and not halt.is_set():
                halt.set()
                pending = {future for future in pending if not future.cancel()}
        return halt.is_set()


def _settle(future: Future[Outcome], run: Run, display: Display) -> None:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise SystemExit(
            "A worker was killed, perhaps for memory; start again with fewer (--workers). Each run goes on from its checkpoint."
        )
    if error:
        display.failed(run.name, error)
    else:
        display.ended(run.name, future.result())


def _pass_on(messages: Any, display: Display) -> None:
    while True:
        try:
            name, progress = messages.get_nowait()
        except queue.Empty:
            return
        if progress:
            display.progressed(name, progress)
        else:
            display.began(name)


# --- in a worker -------------------------------------------------------------------------------------------------------------

_setting: Setting
_messages: Any
_stop: Callable[[], bool]
_orphaned = threading.Event()
_busy = threading.Lock()


def _end_with_parent() -> None:
    """Wait until the parent is gone, let the run stop that is under way, and end: an idle worker would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    _orphaned.set()
    with _busy:
        os._exit(1)


def _begin(setting: Setting, messages: Any, halt: Any) -> None:
    """Make a process ready; what it is told stays with it, since a queue cannot be sent with each run."""
    global _setting, _messages, _stop

    def stop() -> bool:
        return _orphaned.is_set() or bool(halt.is_set())

    _setting, _messages, _stop = setting, messages, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setting.threads:
        torch.set_num_threads(setting.threads)


def _carry_out(run: Run) -> Outcome:
    with _busy:
        if _stop():
            return "stopped"
        _messages.put((run.name, None))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return carry_out(run, _setting, Ranks(Share(device=device)), _Reporter(run.name), _stop)


class _Reporter:
    """Sends on what a run says, but seldom."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last > INTERVAL:
            self.last = now
            _messages.put((self.name, progress))
