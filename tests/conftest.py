"""Triton's kernels run in its interpreter in the tests, on tensors of the CPU; it has to be told before a kernel is imported."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")


class TorchRandom:
    """Torch's random numbers, in the terms of Python's: what Hypothesis needs to draw a failing example's again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # Hypothesis holds it weakly
hypothesis.register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test at the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that are launched from now on."""
    from swkernels import launch  # not before the interpreter is asked for

    names: list[str] = []
    run = launch.run

    def noting(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        names.append(kernel.fn.__name__)
        run(kernel, programs, *arguments, **options)

    monkeypatch.setattr(launch, "run", noting)
    return names
