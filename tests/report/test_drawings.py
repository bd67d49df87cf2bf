"""The figures: every link is drawn, every name can be, and the bytes are always the same."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from swcompile.report import curve, degrees, layout, matrix, network, paths
from swcompile.report.links import Link
from swcompile.report.profiles import Degrees
from swcompile.report.style import THEME, inline, svg, variables
from tests.report.networks import NAMES, facts_of, residual

FILES = {f"{name}.{kind}" for name in ("network", "curve", "matrix", "paths", "degrees") for kind in ("svg", "png")}


@pytest.fixture(scope="module")
def facts():
    return facts_of(residual(names=NAMES))


def drawn(text: str, kind: str) -> set[int]:
    return {int(place) for place in re.findall(rf'id="(?:network-)?{kind}-(\d+)"', text)}


def test_every_link_is_an_arc_of_its_kinds(facts):
    text = svg(network.draw(facts).figure)
    for kind in ("before", "kept", "came", "gone"):
        assert drawn(text, kind) == {place for place, link in enumerate(facts.links) if getattr(link, kind) > 0}, kind
    assert drawn(text, "came")


def test_a_network_that_stays_as_it_is_has_one_panel():
    facts = facts_of(residual(), p=0.0)
    made = network.draw(facts)
    assert list(made.panels) == ["before"]
    assert list(matrix.draw(facts).panels) == ["matrix-before"]


def test_the_widest_links_are_drawn_where_there_are_too_many(facts, monkeypatch):
    monkeypatch.setattr(network, "MOST_ARCS", 5)
    kept = network.widest(facts.links)
    widths = [max(link.before, link.after) for _, link in kept]
    assert len(kept) == 5
    assert widths == sorted(widths)
    assert min(widths) >= max(max(link.before, link.after) for link in facts.links if link not in [one for _, one in kept])
    assert f"The 5 widest links are drawn, {len(facts.links) - 5:,} narrower ones are not" in network.draw(facts).about


def test_stops_lie_where_the_page_looks_for_them(facts):
    """The pointer's answer rests on these numbers: the drawn names stand at them."""
    made = network.draw(facts, all_names=True)
    text = svg(made.figure)
    axis = made.panels["after"]
    for place in (0, 3, len(facts.stops) - 1):
        name = re.search(rf'<g id="name-{place}">.*?transform="translate\(([\d.]+) ', text, re.DOTALL)
        assert float(name[1]) == pytest.approx(axis.first + axis.step * place, abs=4), place  # of the middle of turned letters
    assert 0 < made.panels["before"].top < made.panels["before"].bottom < axis.top < axis.bottom


def test_figures_are_the_same_to_the_byte_and_well_formed(facts):
    first, second = dict(layout.plots(facts)), dict(layout.plots(facts))
    assert first == second
    assert first.keys() == FILES
    for name, content in first.items():
        assert len(content) > 2_000, name
        if name.endswith("svg"):
            ET.fromstring(content)
        else:
            assert content.startswith(b"\x89PNG")


def test_colours_follow_the_page(facts):
    text = inline(network.draw(facts))
    assert not re.findall(r"(?:stroke|fill): #(?!000000|ffffff)[0-9a-f]{6}", text)
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert {"ink", "soft", "gone", "stage-0"} <= used <= {name for name, _ in THEME.values()}
    assert variables().count("light-dark(") == len(THEME) == len({name for name, _ in THEME.values()})


def test_names_that_look_like_colours_or_ids_stay_as_they_are():
    names = ("#0072b2", "model", ' id="a"', "url(#b)", 'href="#c"', ' x="1.2345"', "; stroke-linejoin: miter")
    text = inline(network.draw(facts_of(residual(names=names)), all_names=True))
    words = html.unescape("\n".join(re.findall(r">([^<]*)<", text)))
    for name in (*names[:1], *names[2:]):
        assert name.strip() in words, name


def test_the_style_sheet_says_nothing_twice():
    rules = [line for line in layout._asset("page.css").splitlines() if line.startswith((".", "svg", "#")) and line.endswith("}")]
    assert len(rules) == len(set(rules)) > 20


def test_ids_are_the_drawings_own(facts):
    for made in (network.draw(facts), matrix.draw(facts), curve.draw(facts), paths.draw(facts), degrees.draw(facts)):
        assert all(name.startswith(f"{made.name}-") for name in re.findall(r' id="([^"]*)"', inline(made)))


def test_there_is_no_curve_where_p_was_not_swept(facts):
    assert curve.draw(replace(facts, sweep=replace(facts.sweep, curve=None))) is None


def test_figures_that_are_no_numbers_are_drawn_as_gaps(facts):
    nothing = replace(facts.sides.before_profile, distance=(float("nan"),) * len(facts.stops), inward=Degrees((), ()))
    swept = replace(facts.sweep.curve, S=(float("nan"),) * 3)
    gaps = replace(facts, sides=replace(facts.sides, before_profile=nothing), sweep=replace(facts.sweep, curve=swept))
    assert dict(layout.plots(gaps)).keys() == FILES
    assert "<!doctype html>" in layout.page(gaps)


def test_the_matrix_has_a_square_for_each_link_of_a_kind(facts):
    text = svg(matrix.draw(facts).figure)
    after = text[text.index('id="axes_2"') :]
    squares = sum(len(re.findall(r"\bz\b", path)) for path in re.findall(r'<path d="([^"]*z[^"]*)"', after))
    wanted = sum(getattr(link, kind) > 0 for link in facts.links for kind in ("kept", "came", "gone"))
    assert squares >= wanted  # the marks of the legend come on top
    assert squares <= wanted + 12


def test_degrees_are_shares_of_channels():
    found = degrees.shares(Degrees((1.0, 5.0), (3, 1)), degrees.np.array([0.0, 2.0, 6.0]))
    assert found.tolist() == [0.75, 0.25]


def test_long_names_keep_their_end():
    assert network.named("a" * 40 + ".conv1").endswith("a.conv1")
    assert len(network.named("a" * 40)) == network.LONGEST_NAME
    assert network.named("a\nb") == "a?b"


def test_a_link_is_as_wide_as_it_was_or_is():
    link = Link(0, 1, 2.0, 3.0, 4.0)
    assert (link.before, link.after) == (6.0, 5.0)
