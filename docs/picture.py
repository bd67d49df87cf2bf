"""Draw the README's picture: ResNet-20 before and after, as the report draws it.

python docs/picture.py
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import torch

import swnet

PICTURE = Path(__file__).parent / "network.svg"
EXAMPLE = Path(__file__).parents[1] / "examples" / "resnet20.py"


def drawn() -> str:
    """Return the picture as SVG, on a white ground: the same bytes from the same versions."""
    model = runpy.run_path(str(EXAMPLE))["build_model"]()
    rewired = swnet.transform(model, torch.zeros(2, 3, 32, 32), p=0.3)
    with tempfile.TemporaryDirectory() as folder:
        swnet.report(rewired, Path(folder) / "report.html", plots=True)
        return (Path(folder) / "plots" / "network.svg").read_text(encoding="utf-8")


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
