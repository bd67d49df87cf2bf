"""The page in a real browser: headless Chromium, by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from benchmarks import bench_report
from swcompile.report import layout
from tests.report.networks import HOSTILE, NAMES, facts_of, residual

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium in the PATH: apt-get install chromium", allow_module_level=True)


@dataclass
class Opened:
    """A page that was opened, with everything that the browser complained of or asked the network for."""

    tab: Tab
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM or "chromium", args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report") / "report.html"
    made.write_text(layout.page(facts_of(residual(names=NAMES))), encoding="utf-8")
    return made


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Callable[..., Opened]]:
    tabs: list[Tab] = []

    def start(**options: Any) -> Opened:
        tab = browser.new_page(**options)
        tab.set_default_timeout(60_000)  # another program may have the cores
        made = Opened(tab)
        tab.on("console", lambda message: made.complaints.append(message.text))
        tab.on("pageerror", lambda error: made.complaints.append(str(error)))
        tab.on("dialog", lambda dialog: made.complaints.append(dialog.message) or dialog.dismiss())
        tab.on("request", lambda request: made.requests.append(request.url))
        tab.goto(file.as_uri())
        tabs.append(tab)
        return made

    yield start
    for tab in tabs:
        tab.close()


def lit(tab: Tab) -> int:
    return int(tab.locator("svg.network .arc.lit").count())


def test_it_opens_without_a_complaint_or_a_request(opened, file):
    """Names that are markup are among the layers: none of them runs, and none becomes an element."""
    page = opened()
    page.tab.wait_for_timeout(200)
    assert page.complaints == []
    assert page.requests == [file.as_uri()]
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("h1").inner_text() == HOSTILE
    facts = facts_of(residual())
    assert page.tab.locator("svg.network .arc").count() == sum(
        getattr(link, kind) > 0 for link in facts.links for kind in ("before", "kept", "came", "gone")
    )
    assert page.tab.locator("#rows tbody tr").count() == len(facts.stops)
    for name in ("network", "curve", "matrix", "paths", "degrees"):
        assert page.tab.locator(f"svg.{name}").bounding_box()["height"] > 150, name


def test_the_pointer_is_told_what_it_is_at(opened):
    tab = opened(viewport={"width": 1280, "height": 1000}).tab
    place = tab.locator("svg.network").bounding_box()
    view, panel = (tab.evaluate(text) for text in ("[box.width, box.height]", "panels.after"))
    tab.mouse.move(
        place["x"] + (panel["first"] + 3 * panel["step"]) / view[0] * place["width"],
        place["y"] + (panel["bottom"] + 10) / view[1] * place["height"],
    )
    said = tab.locator("#tip").inner_text()
    assert NAMES[2] in said  # the third layer, behind the input
    assert "3x3, 16 to 16 channels, reads 16x16" in said
    assert "net.py:" in said
    assert NAMES[2] in tab.locator("#details").inner_text()
    assert lit(tab) > 0


def test_arcs_squares_and_points_say_what_they_are(opened):
    tab = opened().tab
    event = "new PointerEvent('pointermove', {bubbles: true, clientX: 50, clientY: 50})"
    tab.evaluate(f"drawn.find((item) => item.kind === 'came').element.querySelector('path').dispatchEvent({event})")
    assert "came in" in tab.locator("#tip").inner_text()
    tab.locator("svg.curve [id='curve-L-1']").hover(force=True)
    assert tab.locator("#tip").inner_text().startswith("p = 0.5: path length L = ")
    tab.locator("svg.matrix").scroll_into_view_if_needed()
    axis = tab.evaluate("data.panels.matrix['matrix-after']")
    box, wide = tab.locator("svg.matrix").bounding_box(), tab.evaluate("document.querySelector('svg.matrix').viewBox.baseVal.width")
    scale = box["width"] / wide
    tab.mouse.move(box["x"] + axis["first"] * scale, box["y"] + (axis["top"] + 1.5 * axis["step"]) * scale)
    assert tab.locator("#tip").inner_text() == "stem reads x: 3 channels read before and after"


def test_keys_go_from_layer_to_layer_and_into_the_table(opened):
    tab = opened().tab
    tab.locator("#picture").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
    assert tab.locator("#details").inner_text().startswith("stem: Conv2d 3x3, 3 to 16 channels")
    assert "Left alone, or given less: its 3 input channels make fewer than two blocks" in tab.locator("#details").inner_text()
    tab.keyboard.press("Enter")
    assert tab.locator("tr.here").get_attribute("id") == "layer-1"
    tab.locator("#picture").focus()
    tab.keyboard.press("End")
    assert tab.locator("#details").inner_text().startswith("head: Linear")
    tab.keyboard.press("Escape")
    assert tab.locator("#details").inner_text() == "No layer is chosen."
    assert lit(tab) == 0


def test_zoom_makes_the_picture_wider_and_shows_more_names(opened):
    tab = opened(viewport={"width": 400, "height": 800}).tab
    wide, names = (tab.evaluate(text) for text in ("svg.clientWidth", "names.filter((n) => !n.matches('.fine')).length"))
    tab.locator("[data-zoom=in]").click()
    tab.locator("#picture").focus()
    tab.keyboard.press("+")
    assert tab.evaluate("svg.clientWidth") == pytest.approx(wide * 2.25, rel=0.01)
    assert tab.evaluate("names.filter((n) => !n.matches('.fine')).length") >= names
    assert tab.locator("#zoom").inner_text() == "225%"
    tab.keyboard.press("0")
    assert tab.evaluate("svg.clientWidth") == wide


def test_links_are_filtered_by_kind_and_by_stage(opened):
    tab = opened().tab
    every = tab.locator("svg.network .arc").count()
    tab.locator("input[name=kind][value=came]").uncheck()
    off = tab.locator("svg.network .arc.off").count()
    assert off == tab.locator("svg.network [id^=network-came-]").count() > 0
    for stage in range(3):
        tab.locator(f"input[name=stage][value='{stage}']").uncheck()
    assert tab.locator("svg.network .arc.off").count() == every
    tab.locator("input[name=stage][value='1']").check()
    assert 0 < tab.locator("svg.network .arc:not(.off)").count() < every - off


def test_the_table_is_searched_by_all_words(opened):
    tab = opened().tab
    tab.locator("#search").fill("conv2d 8x8")
    assert tab.locator("#rows tbody tr:visible").count() == 4
    assert tab.locator("#found").inner_text() == "4 of 11"
    tab.locator("#search").fill("no such layer")
    assert tab.locator("#rows tbody tr:visible").count() == 0
    tab.locator("#search").fill("")
    assert tab.locator("#rows tbody tr:visible").count() == 11


COLOURS = "getComputedStyle(document.body).{}.match(/[\\d.]+/g).slice(0, 3).map(Number)"


def contrast(tab: Tab) -> float:
    """Return the contrast of text and ground as WCAG 2 counts it; 4.5 is its least for text."""
    light = []
    for name in ("color", "backgroundColor"):
        parts = [value / 255 for value in tab.evaluate(COLOURS.format(name))]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_both_schemes_and_changes_by_the_button(opened, scheme):
    tab = opened(color_scheme=scheme).tab
    ground = "getComputedStyle(document.body).backgroundColor"
    before, drawn = tab.evaluate(ground), "getComputedStyle(document.querySelector('svg.network text')).fill"
    assert contrast(tab) > 12
    assert tab.evaluate(drawn) == tab.evaluate("getComputedStyle(document.body).color")
    tab.locator("#theme").click()
    assert tab.evaluate(ground) != before
    assert contrast(tab) > 12


def test_a_narrow_screen_scrolls_figures_and_not_the_page(opened):
    tab = opened(viewport={"width": 400, "height": 800}).tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert tab.evaluate("picture.scrollWidth > picture.clientWidth")


def test_it_prints(opened):
    tab = opened(color_scheme="dark").tab
    tab.emulate_media(media="print")
    assert not tab.locator("#tools").is_visible()
    assert tab.locator("svg.network").is_visible()
    assert tab.evaluate(COLOURS.format("backgroundColor")) > [240, 240, 240]
    assert tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") > 1


@pytest.mark.parametrize("name", ["resnet152", "densenet201"])
def test_large_networks_open_within_2_seconds(browser: Browser, name: str, tmp_path: Path) -> None:
    """Counted is what the page's own thread worked, as other programs may have the cores."""
    made, _ = bench_report.make(name, bench_report.MODELS[name], tmp_path)
    _, of_its_thread, arcs = bench_report.opened(browser, made)
    assert arcs > 500
    assert 0 < of_its_thread < bench_report.OPEN_SECONDS
