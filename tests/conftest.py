"""Triton's kernels run in its interpreter in the tests, on tensors of the CPU; it has to be told before a kernel is imported."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")


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
