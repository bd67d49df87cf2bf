"""The page as text: what it holds, that names cannot become markup, and that it fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import swnet
from benchmarks.vision import torchvision_models
from swcompile import report
from swcompile.report import layout
from tests import zoo
from tests.report.networks import HOSTILE, NAMES, facts_of, residual


class Page(HTMLParser):
    """Collect the elements of a page with their attributes, the text of scripts, and what can be read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open == "script" else self.words).append(data)

    def handle_endtag(self, tag: str) -> None:
        self.open = ""


@pytest.fixture(scope="module")
def hostile() -> str:
    facts = facts_of(residual(names=NAMES))
    provenance = replace(facts.provenance, command=f"swcompile transform '{HOSTILE}'")
    return layout.page(replace(facts, provenance=provenance, remarks=(HOSTILE,), notes=((HOSTILE, HOSTILE), *facts.notes)))


def test_names_are_text_wherever_they_stand(hostile):
    page = Page(hostile)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.words)
    for name in NAMES[2:]:
        assert name in "".join(page.words), name


def test_the_data_cannot_end_its_script(hostile):
    script = Page(hostile).scripts[0]
    assert not set("<>&") & set(script)
    data = json.loads(script)
    assert [stop[0] for stop in data["stops"]][2] == HOSTILE
    assert len(data["links"]) == len(facts_of(residual()).links)


def test_only_the_pages_own_script_may_run(hostile):
    page = Page(hostile)
    policy = next(attributes["content"] for _, attributes in page.elements if attributes.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_nothing_is_fetched(hostile):
    fetching = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}
    for tag, attributes in Page(hostile).elements:
        for name in fetching & attributes.keys():
            assert str(attributes[name]).startswith(("#", "data:,")), (tag, name, attributes[name])
    assert not re.findall(r"@import|url\((?!#)", hostile)
    assert set(re.findall(r"https?://[^\s\"'<]+", hostile)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_occur_once_and_references_lead_somewhere(hostile):
    elements = Page(hostile).elements
    ids = [str(attributes["id"]) for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {
        name
        for _, each in elements
        for key in ("for", "aria-labelledby", "aria-describedby")
        for name in (each.get(key) or "").split()
    }
    assert wanted <= set(ids)


def test_the_page_says_what_was_done():
    module = swnet.transform(zoo.resnet_basic(), p=0.4, seed=2)
    text, ledger = "".join(Page(swnet.report(module)).words), swnet.ledger(module)
    for said in (f"{ledger.after.params:,}", ledger.layers[3].layer, "the stem", torch.__version__.split("+")[0], "seed=2"):
        assert said in text, said
    assert "rewired, at p = 0.4 (asked: 0.4)" in text.replace("network before and after it was rewired", "rewired")
    assert swnet.report(module) == swnet.report(module)


def test_what_was_only_analyzed_or_changes_nothing_says_so():
    assert "nothing has been rewired" in layout.page(facts_of(residual()))
    assert "no layer can be rewired as asked" in layout.page(facts_of(residual(), p=0.0))
    same = swnet.report(swnet.transform(zoo.mlp(), p=0))
    assert "the plan moves no link" in same


def test_names_of_files_that_are_no_text_are_spelled_out():
    facts = facts_of(residual())
    made = layout.page(replace(facts, provenance=replace(facts.provenance, command="swcompile transform net_\udcff.py")))
    assert r"swcompile transform net_\udcff.py" in made
    assert made.encode()


def test_where_p_was_not_swept_the_page_says_why():
    facts = facts_of(residual())
    made = layout.page(replace(facts, sweep=replace(facts.sweep, curve=None, why="Not drawn: because.")))
    assert "Not drawn: because." in made
    assert 'class="curve"' not in made


def test_a_table_of_very_many_layers_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(layout, "MOST_ROWS", 4)
    assert f"{len(facts_of(residual()).stops) - 4} layers more have no row here" in layout.page(facts_of(residual()))


def test_resnet50_stays_far_below_3_megabytes(tmp_path):
    with torch.device("meta"):
        model = torchvision_models().resnet50(weights=None)
    made = swnet.report(swnet.analyze(model, torch.zeros(2, 3, 224, 224, device="meta"), p=0.3, points=2), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == made
    assert len(made.encode()) < 1_000_000
    assert len(re.findall('id="network-came-', made)) > 50


def test_plots_lie_beside_the_page_and_replace_older_ones(tmp_path):
    module = swnet.transform(zoo.mlp(), p=0.4)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "paths.png").write_text("an older one")
    swnet.report(module, tmp_path / "page.html", plots=True)
    assert (tmp_path / "plots" / "paths.png").read_bytes().startswith(b"\x89PNG")
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")}
    assert found == {"page.html", *(f"plots/{name}" for name in report.plots(facts_of(residual())))}


def test_what_cannot_be_written_is_one_error(tmp_path):
    module = swnet.transform(zoo.mlp(), p=0.4)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "page.html", tmp_path / "folder"):
        with pytest.raises(swnet.SwnetError, match=r"The report .* cannot be written: .*\. Choose another place\."):
            swnet.report(module, path)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]
    with pytest.raises(swnet.SwnetError, match="is no name of one"):
        swnet.report(module, "")
    with pytest.raises(swnet.SwnetError, match=r"Say where: path='report\.html'"):
        swnet.report(module, plots=True)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        swnet.SwnetError, match=r"drawn by matplotlib, which is not installed. Install it: pip install 'swcompile\[report\]'"
    ):
        swnet.report(swnet.transform(zoo.mlp(), p=0.4))


def test_importing_swnet_imports_no_matplotlib():
    program = "import sys, swnet; assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
