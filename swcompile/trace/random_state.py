"""The state of torch's, Python's and numpy's random generators: read, compared, put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

_States = tuple[torch.Tensor, Any, Any]


@contextmanager
def random_state() -> Iterator[Callable[[], bool]]:
    """Leave the caller's random state as it was. Yields a function that tells whether anything was drawn so far."""
    before = _states()
    try:
        yield lambda: _told(_states()) != _told(before)
    finally:
        with _disable_current_modes():
            torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def _states() -> _States:
    with _disable_current_modes():  # under fake tensors the state would be one, and hold nothing
        return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _told(states: _States) -> tuple[bytes, Any, bytes]:
    with _disable_current_modes():
        return states[0].numpy().tobytes(), states[1], states[2][1].tobytes() + repr(states[2][2:]).encode()
