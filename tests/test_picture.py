"""The README's picture is of the network that it is said to be of."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_picture_is_drawn_from_the_compiler_of_now() -> None:
    names = runpy.run_path(str(ROOT / "docs" / "picture.py"))
    assert names["PICTURE"].read_text(encoding="utf-8") == names["drawn"](), "run python docs/picture.py"
    assert "](docs/network.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
