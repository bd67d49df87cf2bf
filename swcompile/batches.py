"""Run a model over a user's batches: what of a batch goes where, in eval mode, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from swcompile.errors import SwnetError


def divided(batch: Any, inputs: int, option: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return a batch as the forward's arguments, of which there are `inputs`, and the rest: labels, as a loader gives them.

    Raises SwnetError, naming the option that was given the batch, where it holds too little.
    """
    given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(given) < inputs or not given or not isinstance(given[0], Tensor):
        raise SwnetError(
            f"{option}= was given a batch of {len(given)} values, not tensors enough; the model takes "
            f"{inputs}. Give tensors, or tuples that begin with the model's inputs."
        )
    return given[:inputs], given[inputs:]


def shown(batches: Iterable[Any], doing: str) -> Iterator[Any]:
    """Yield the batches, and show on a terminal how many are done."""
    console = Console(stderr=True)
    total = len(batches) if isinstance(batches, Sized) else None
    yield from track(batches, doing, total, console=console, transient=True, disable=not console.is_terminal)


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
