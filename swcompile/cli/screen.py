"""What a command shows: progress on stderr while it works, and then its result on stdout, as text or as one JSON document."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def working(steps: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show progress on stderr and keep stdout clean; yield a function that names the next step."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    with (
        _silenced() if quiet else contextlib.nullcontext(),
        Progress(*columns, console=console, transient=True, disable=hidden, redirect_stdout=False) as bar,
        _stdout_aside(quiet=quiet),
    ):
        task = bar.add_task("starting", total=steps)
        done = -1

        def begin(text: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=text, completed=done)

        yield begin


@contextlib.contextmanager
def _stdout_aside(*, quiet: bool) -> Iterator[None]:
    """Send what the user's code prints to stderr, or nowhere: by print, by os.write(1, ...) or from a process that it starts."""
    with (
        open(os.devnull, "w") as nowhere,
        _pointed(1, nowhere.fileno() if quiet else 2),
        contextlib.redirect_stdout(nowhere if quiet else sys.stderr),
    ):
        yield


@contextlib.contextmanager
def _pointed(number: int, target: int) -> Iterator[None]:
    """Let a file descriptor be a copy of another one; one that is closed stays closed."""
    flush()
    try:
        kept = os.dup(number)
        os.dup2(target, number)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        flush()
        os.dup2(kept, number)
        os.close(kept)


def flush() -> None:
    """Write out what Python holds back of stdout, be that closed or broken."""
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken or closed
            stream.flush()  # type: ignore[union-attr]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Let neither warnings nor our own log be heard, but errors."""
    log = logging.getLogger("swcompile")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def show(document: Mapping[str, Any], shown: Sequence[RenderableType], *, as_json: bool, quiet: bool) -> None:
    """Print the result: as a JSON document, or for people, or with `quiet` not at all."""
    text = f"{json_text(document)}\n" if as_json else "" if quiet else _rendered(shown)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)  # names of files may be no text
    except BrokenPipeError:  # `| head` has read enough; let Python's own flush at the end go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _rendered(shown: Sequence[RenderableType]) -> str:
    console = Console(highlight=False)
    with console.capture() as capture:
        for item in shown:
            console.print(item, markup=False)
    return capture.get()


def json_text(document: object) -> str:
    """Return a document as JSON that every reader takes: without NaN and infinity, which only Python's writes."""
    return json.dumps(plain(document), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """Return the value as JSON has it; a number that JSON does not have becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
