"""Ctrl-C and SIGTERM: how they end a command, and when they have to wait."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click


class Terminated(KeyboardInterrupt):
    """SIGTERM: temporary files go as they do after Ctrl-C."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End as an interruption whatever an interrupt was turned into on its way (an import wraps it, for one)."""
    caught: list[type[KeyboardInterrupt]] = []
    report = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        caught.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise caught[0]

    def again(lost: Any) -> None:
        """Send an interrupt again that came up in a finalizer, where Python drops it."""
        if caught and issubclass(lost.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if caught[0] is Terminated else signal.SIGINT
            threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        else:
            report(lost)

    before = {number: signal.signal(number, interrupt) for number in _heard()}
    sys.unraisablehook = again
    try:
        yield
    except Exception as error:
        if caught and not isinstance(error, click.Abort):
            raise caught[0] from error
        raise
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def import_torch(begin: Callable[[str], None]) -> None:
    """Import torch, which takes seconds. An interrupt waits: torch aborts where Python that it calls while it is set up raises."""
    begin("importing torch")
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)  # whoever asks twice need not wait

    before = {number: signal.signal(number, hold) for number in _heard()}
    try:
        importlib.import_module("torch")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def end_quietly() -> None:
    """Let an interrupt outside of a command, in Python's own shutdown above all, end the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _heard() -> list[int]:
    """Return which of Ctrl-C and SIGTERM this process listens to: under nohup it may not."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
