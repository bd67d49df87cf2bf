"""What every test of a kernel runs under: memory that was never written is poison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from swkernels import launch


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Let torch fill what `empty` returns: with NaN, or with the greatest integer, which no table can hold."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that are launched from now on."""
    names: list[str] = []
    run = launch.run

    def noting(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        names.append(kernel.fn.__name__)
        run(kernel, programs, *arguments, **options)

    monkeypatch.setattr(launch, "run", noting)
    return names
