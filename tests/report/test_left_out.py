"""What becomes of a result whose report cannot be drawn: it is written all the same, and one line says why there is no page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import swnet
from swcompile import cli, report
from swcompile.report import layout

MODEL = """
from torch import nn

def build_model():
    return nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)], nn.Linear(32, 10))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "left_out_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def transform(*options: str) -> int:
    sys.modules.pop("left_out_net", None)
    return cli.run(("transform", "left_out_net.py", "--input", "2x32", *options))


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("no such colour\nand more")


def test_a_page_that_cannot_be_drawn_costs_nothing_else(folder, monkeypatch, capsys):
    monkeypatch.setattr(layout, "page", broken)
    assert transform() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("report.html was left out: it could not be drawn (RuntimeError: no such colour).")
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"plan.json", "weights.safetensors", "manifest.json", "ledger.json", "model.py", "source"}


def test_figures_that_were_asked_for_and_cannot_be_drawn_are_an_error(folder, monkeypatch, capsys):
    monkeypatch.setattr(layout, "plots", broken)
    assert transform("--plots") == 1
    assert "no such colour" in capsys.readouterr().err
    assert not (folder / "out").exists()


class Unfit:
    """Fail to import matplotlib as one does that was built for another numpy."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "matplotlib":
            raise ImportError("numpy.core.multiarray failed to import")


def test_a_matplotlib_that_does_not_import_is_missing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "meta_path", [Unfit(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "matplotlib")
    assert report.missing() == "matplotlib"
    assert transform() == 0
    why = "a report is drawn by matplotlib, which cannot be imported (numpy.core.multiarray failed to import). Install it anew"
    assert f"report.html was left out: {why}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(swnet.SwnetError, match=r"There is no report: .*cannot be imported"):
        report.require()


def test_what_imports_is_not_missing(monkeypatch):
    assert report.missing() is None
    monkeypatch.setitem(sys.modules, "jinja2", ModuleType("jinja2"))
    assert report.missing() is None
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report.missing() == "jinja2"
