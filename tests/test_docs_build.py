"""The documentation builds without a warning, shows every public name, and fetches nothing from the net."""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sphinx.application import Sphinx
from sphinx.util import logging

import swnet

DOCS = Path(__file__).parents[1] / "docs"
FETCHED = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"|@import|url\(\"?https?:")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages, in which any warning is an error."""
    out, said = tmp_path_factory.mktemp("docs"), io.StringIO()
    sphinx = Sphinx(DOCS, DOCS, out, out / ".doctrees", "html", status=None, warning=said, warningiserror=True)
    sphinx.build()
    assert sphinx.statuscode == 0, said.getvalue()
    return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx's extensions' own
def test_every_page_is_there_and_fetches_nothing(built: Path) -> None:
    pages = sorted(built.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in DOCS.glob("*.md")}
    for file in [*pages, *built.glob("_static/**/*.css")]:
        assert not FETCHED.search(file.read_text(encoding="utf-8")), file.name
    reference = (built / "api.html").read_text(encoding="utf-8")
    assert all(f'id="swnet.{name}"' in reference for name in swnet.__all__)
    assert "--wiring" in (built / "command-line.html").read_text(encoding="utf-8")


def test_a_public_name_that_no_page_shows_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(DOCS / "conf.py"))
    shown: Any = dict.fromkeys(names["public"]() - {"swnet.transform", "swnet.Plan.to_json"})
    environment = SimpleNamespace(get_domain=lambda _: SimpleNamespace(objects=shown))
    said: list[str] = []
    monkeypatch.setattr(logging.SphinxLoggerAdapter, "warning", lambda _, text, name: said.append(text % name))
    names["undocumented"](None, environment)
    assert said == [f"swnet.{name} is public and is documented on no page" for name in ("Plan.to_json", "transform")]
