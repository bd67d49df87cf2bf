"""Run a model over a user's batches: what of a batch goes where, in eval mode, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import nn

from swcompile.errors import SwnetError, first_line


def divided(batch: Any, inputs: int, option: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return a batch as the forward's arguments, of which there are `inputs`, and the rest: labels, as a loader gives them.

    Raises SwnetError, naming the option that was given the batch, where it holds too little.
    """
    given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(given) < inputs or not given:
        raise SwnetError(
            f"{option}= was given a batch of {len(given)} values; the model takes {inputs}. Give tensors, or tuples that begin "
            "with the model's inputs."
        )
    return given[:inputs], given[inputs:]


def shown(batches: Iterable[Any], doing: str, option: str) -> Iterator[Any]:
    """Yield the batches, and show on a terminal how many are done."""
    console = Console(stderr=True)
    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a loader of a set whose length nobody knows
        total = None
    try:
        found = iter(batches)
    except TypeError as error:
        raise SwnetError(
            f"{option}= was given a {type(batches).__name__}, of which nothing can be taken. Give an iterable of batches, such as "
            "a DataLoader."
        ) from error
    yield from track(found, doing, total, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def reported(place: int, option: str, whose: str) -> Iterator[None]:
    """Turn what the user's code raises at a batch into a SwnetError."""
    try:
        yield
    except SwnetError:
        raise
    except Exception as error:
        raise SwnetError(
            f"{option}=: at batch {place}, {whose} raised {type(error).__name__}: {first_line(error)}. Give batches that the model "
            "and the loss take."
        ) from error


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode meanwhile; each of its modules goes back to the mode it was in."""
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes.items():
            inner.training = training
