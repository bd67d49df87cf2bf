"""What every test of a kernel runs under: memory that was never written is poison."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Let torch fill what `empty` returns: with NaN, or with the greatest integer, which no table can hold."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
