"""What a report says of a layer graph, stage by stage, and without the folders of this machine."""

from __future__ import annotations

import os
import sysconfig

import pytest

from swcompile import graphfile
from swcompile.report.facts import by_stage
from swcompile.report.local import local, local_file
from tests.report.networks import facts_of, residual


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
