"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    for root, package in ((ROOT, "swcompile"), (ROOT / "kernels", "swkernels"))
    for file in (root / package).rglob("*.py")
    if ">>>" in file.read_text(encoding="utf-8")
)


def test_there_are_examples() -> None:
    assert {"swcompile.api", "swcompile.graph", "swcompile.wiring", "swkernels.taps"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert failed == 0
