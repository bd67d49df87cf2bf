"""What a report says: as the ledger of the real module has it, and without the folders of this machine."""

from __future__ import annotations

import os
import sysconfig

import pytest

import swnet
from swcompile import api, graphfile
from swcompile.report.facts import by_stage
from swcompile.report.local import local, local_file
from tests import zoo
from tests.report.networks import facts_of, residual


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (zoo.resnet_basic, {"p": 0.4}),
        (zoo.densenet, {"p": 0.3, "density": 0.6}),
        (zoo.mlp, {"wiring": "kernel"}),
        (zoo.resnet_basic, {"p": 0.3, "wiring": "kernel", "skips": "remove"}),
    ],
)
def test_an_analysis_foresees_the_ledger(build, options):
    """Figures before anything was rewired are those that are counted afterwards."""
    model = build()
    foreseen = api.facts(swnet.analyze(model, points=5, **options))
    module = swnet.transform(model, **(options | {"p": foreseen.sweep.p}))
    counted = api.facts(module)
    for side, other in (("before", "before"), ("after", "after")):
        told, found = getattr(foreseen.sides, side), getattr(counted.sides, other)
        for name in ("params", "macs", "links", "C", "L", "S", "E", "mean_path", "dead_channels"):
            assert told[name] == pytest.approx(found[name]), (side, name)
    assert foreseen.links == counted.links
    assert foreseen.foreseen
    assert not counted.foreseen


def test_stages_are_the_sizes_that_layers_read():
    facts = facts_of(residual())
    assert facts.stages == ("16x16", "8x8", "vectors")
    assert [facts.stages[stop.stage] for stop in facts.stops] == ["16x16"] * 6 + ["8x8"] * 4 + ["vectors"]
    rows = list(by_stage(facts))
    assert [row[:2] for row in rows] == [("16x16", 5), ("8x8", 4), ("vectors", 1)]
    assert sum(row[2] + row[4] for row in rows) == sum(stop.before.reads for stop in facts.stops)
    assert sum(row[3] for row in rows) > 0
    assert rows[-1][5] == facts.sides.before_profile.distance[-1]


def test_files_are_named_as_a_user_types_them():
    assert local_file(f"{os.getcwd()}/nets/net.py:3") == "nets/net.py:3"
    assert local_file(f"{sysconfig.get_path('purelib')}/torchvision/models/resnet.py:9") == "torchvision/models/resnet.py:9"
    assert local_file("/home/somebody/net.py:3") == "net.py:3"
    assert local("sort (/home/somebody/net.py:3) and 1/2: no file") == "sort (net.py:3) and 1/2: no file"
    assert "somebody" not in str(facts_of(residual()))


@pytest.mark.parametrize("folder", ["/home/J D", "/home/J. D. (old)", "/home/J D/a, b"])
def test_folders_with_spaces_are_left_out_whole(folder):
    assert local_file(f"{folder}/m5.py:13") == "m5.py:13"
    assert local(f"{folder}/m5.py:13") == "m5.py:13"
    said = f"the forward calls sort ({folder}/m5.py:13) and then cumsum ({folder}/m5.py:14), 1/2 of it"
    assert local(said) == "the forward calls sort (m5.py:13) and then cumsum (m5.py:14), 1/2 of it"


def test_packages_in_the_working_directory_are_named_as_packages(monkeypatch):
    """As where an environment lies in the project's own folder."""
    installed = sysconfig.get_path("purelib")
    monkeypatch.chdir(os.path.dirname(installed))
    assert local_file(f"{installed}/torchvision/models/resnet.py:9") == "torchvision/models/resnet.py:9"
    assert local_file(f"{os.getcwd()}/net.py:3") == "net.py:3"


def test_a_graph_file_names_no_folder_of_this_machine():
    assert "somebody" not in str(dict(graphfile.as_networkx(residual()).nodes(data=True)))
    assert graphfile.as_networkx(residual()).nodes["stem"]["where"] == "net.py:4"


def test_the_curve_that_a_policy_chose_by_is_not_counted_again(monkeypatch):
    module = swnet.transform(zoo.mlp(), p="auto")
    monkeypatch.setattr(api, "sweep", None)
    found = api.facts(module).sweep
    assert found.curve is not None
    assert found.why.startswith("p='auto' chose")
    assert found.requested == "auto"


def test_a_trained_models_p_was_not_swept():
    found = api.facts(swnet.transform(zoo.mlp(), grow=0.2))
    assert found.sweep.curve is None
    assert "was not swept" in found.sweep.why
    assert found.changed


def test_what_is_no_model_of_ours_is_refused():
    with pytest.raises(swnet.SwnetError, match=r"A report of a int was asked for; give what swnet\.transform"):
        swnet.report(3)  # type: ignore[arg-type]
    with pytest.raises(swnet.SwnetError, match=r"was not made by swnet\.transform"):
        swnet.report(zoo.mlp())
