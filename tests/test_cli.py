"""The command line as a user meets it: what it prints, writes and exits with."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Option
from torch import nn

import swnet
from swcompile import cli, export, modelfile
from swcompile.plan import CHOICES
from swcompile.scores import NEEDS

NET = """
from torch import nn
from net_blocks import conv

print("a print of the user's own")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16), *(conv(16, 16) for _ in range(6)))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""

BLOCKS = """
from torch import nn


def conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
"""

STEM_ONLY = "from torch import nn\nmodel = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())\n"

WRITTEN = {"ledger.json", "manifest.json", "model.py", "plan.json", "report.html", "weights.safetensors",
           "source", "source/net.py", "source/net_blocks.py"}  # fmt: skip

SHAPE = ("--input", "1x3x16x16")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a model of two files, as the working directory."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "net_blocks.py").write_text(BLOCKS)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def swcompile(project, capsys):
    """Run a command line in this process."""

    def run(*arguments: str) -> Result:
        code = cli.run(arguments)
        captured = capsys.readouterr()
        for name in ("net", "net_blocks"):  # a command line starts with nothing imported
            sys.modules.pop(name, None)
        return Result(code, captured.out, captured.err)

    return run


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


COMMAND = [sys.executable, "-m", "swcompile.cli"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}


def started(project: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command line that an interrupt ends, also where the tests themselves run with interrupts ignored (nohup)."""
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *arguments], cwd=project, env=environment(), preexec_fn=default, **pipes)


def command_line(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    return subprocess.run([*COMMAND, *arguments], cwd=project, env=environment(), capture_output=True, text=True, timeout=120)


# transform


def test_transform_writes_everything_and_prints_the_ledger(swcompile, project):
    result = swcompile("transform", "net.py", *SHAPE, "--p", "0.3")
    assert result.code == 0, result.err
    assert listing(project / "out") == WRITTEN
    assert listing(project) - {f"out/{name}" for name in WRITTEN} == {"net.py", "net_blocks.py", "out"}
    assert re.search(r"parameters +([\d,]+) +\1 *\n", result.out)
    assert re.search(r"Net of net\.py, rewired: [\d,]+ links moved, [\d,]+ kept", result.out)
    assert re.search(r"p achieved +0\.\d+", result.out)
    assert "Written to out" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "a print of the user's own" in result.err


def test_nothing_written_names_this_machine(swcompile, project):
    swcompile("transform", "net.py", *SHAPE)
    for path in (project / "out").rglob("*"):
        if path.is_file():
            assert str(project).encode() not in path.read_bytes(), path


def test_the_folder_builds_the_rewired_model_in_a_fresh_process(swcompile, project):
    """Moved elsewhere, without the files it came from, and called `model` like the file inside it."""
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5").code == 0
    (project / "elsewhere").mkdir()
    moved = (project / "out").rename(project / "elsewhere" / "rewired")
    original = modelfile.load_model(moved / "source" / "net.py").model
    expected = swnet.load(moved, original).eval()
    for name in ("net.py", "net_blocks.py"):
        (project / name).unlink()
    program = (
        "import torch\nfrom model import build_model\nmodel = build_model().eval()\n"
        "torch.save(model(torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)), 'result.pt')\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(moved), *sys.path])}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=project, env=env, capture_output=True)
    found = torch.load(project / "result.pt", weights_only=True)
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    torch.testing.assert_close(found, expected(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, original.eval()(x))


def test_out_model_py_says_what_it_is_when_it_is_run(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.3").code == 0
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "out/model.py"], cwd=project, env=env, capture_output=True, text=True, check=True)
    assert "wiring block, p = 0.3" in ran.stdout


def test_out_model_py_ends_quietly_where_its_reader_has_seen_enough(swcompile, project):
    """`python out/model.py | head -0`."""
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.3").code == 0
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "out/model.py"], cwd=project, env=environment(), **pipes) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, "Traceback" in err, "BrokenPipe" in err) == (0, False, False)


def test_the_same_seed_gives_the_same_plan(swcompile, project):
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--seed", seed, "--out", name).code == 0
    plans = [(project / name / "plan.json").read_bytes() for name in "abc"]
    assert plans[0] == plans[1] != plans[2]


def test_a_plan_can_be_applied_again(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--seed", "3").code == 0
    result = swcompile("transform", "net.py", *SHAPE, "--plan", "out/plan.json", "--out", "again")
    assert result.code == 0, result.err
    assert (project / "again" / "plan.json").read_bytes() == (project / "out" / "plan.json").read_bytes()


def test_a_plan_and_options_that_contradict_it_are_a_usage_error(swcompile, project):
    result = swcompile("transform", "net.py", "--plan", "plan.json", "--p", "0.3", "--min-in-degree", "2")
    assert (result.code, result.out) == (2, "")
    assert "so does --p, --min-in-degree. Leave one of the two out" in result.err


def test_json_is_all_that_stdout_carries(swcompile, project):
    result = swcompile("transform", "net.py", *SHAPE, "--json")
    document = json.loads(result.out)
    assert (result.code, document["out"], document["model"]) == (0, "out", "Net")
    assert document["ledger"] == json.loads((project / "out" / "ledger.json").read_text())
    assert document["ledger"]["before"]["params"] == document["ledger"]["after"]["params"]


LOUD = """
import atexit, os, subprocess, sys, threading
print("by print")
sys.__stdout__.write("by the first stdout ")
os.write(1, b"by os.write\\n")
subprocess.run(["echo", "by a process"], check=True)
subprocess.run(["echo", "by a process with our stdout"], check=True, stdout=sys.stdout)
atexit.register(print, "goodbye")
atexit.register(os.write, 1, b"goodbye from below\\n")
"""


@pytest.mark.parametrize(("command", "quiet"), [("transform", False), ("check", True)])
def test_whatever_the_users_code_prints_is_not_in_the_document(project, command, quiet):
    (project / "net.py").write_text(NET + LOUD)
    ran = command_line(project, command, "net.py", *SHAPE, "--json", *(["--quiet"] if quiet else []))
    assert ran.returncode == 0, ran.stderr
    assert isinstance(json.loads(ran.stdout), dict)
    for text in ("by print", "by the first stdout", "by os.write", "by a process\n", "with our stdout"):
        assert (text in ran.stderr) is not quiet, text
    assert "goodbye\n" in ran.stderr


def test_standard_output_is_as_before_afterwards(project, capfd):
    assert cli.run(["check", "net.py", *SHAPE, "--json"]) == 0
    capfd.readouterr()
    os.write(1, b"still there")
    assert capfd.readouterr() == ("still there", "")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(project, closed):
    command = f"{' '.join(COMMAND)} transform net.py {' '.join(SHAPE)} {closed}"
    ran = subprocess.run(command, shell=True, cwd=project, env=environment(), capture_output=True, text=True, timeout=120)
    assert (ran.returncode, listing(project / "out")) == (0, WRITTEN), ran.stderr


def test_quiet_says_nothing_unless_it_fails(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--quiet") == Result(0, "", "")
    again = swcompile("transform", "net.py", *SHAPE, "--quiet")
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith("error: The folder out exists.")


def test_force_replaces_the_folder(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5").code == 0
    before = (project / "out" / "plan.json").read_bytes()
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--seed", "9", "--force").code == 0
    assert (project / "out" / "plan.json").read_bytes() != before
    assert listing(project / "out") == WRITTEN


def test_the_files_own_example_inputs_and_entry_are_used(swcompile, project):
    (project / "net.py").write_text(
        NET + "\nimport torch\nexample_inputs = torch.zeros(1, 3, 24, 24)\ndef other():\n    return Net()\n"
    )
    result = swcompile("transform", "net.py", "--entry", "other")
    assert result.code == 0, result.err
    manifest = json.loads((project / "out" / "manifest.json").read_text())
    assert manifest["example_inputs"] == [[[1, 3, 24, 24], "float32"]]
    assert "'other'" in (project / "out" / "model.py").read_text()
    assert swcompile("transform", "net.py", "--entry", "other", "--force", *SHAPE).code == 0
    manifest = json.loads((project / "out" / "manifest.json").read_text())
    assert manifest["example_inputs"] == [[[1, 3, 16, 16], "float32"]]


def test_the_result_goes_where_it_was_asked_for_though_the_users_file_goes_elsewhere(swcompile, project):
    (project / "elsewhere").mkdir()
    assert swcompile("transform", "net.py", *SHAPE, "--out", "first").code == 0
    (project / "net.py").write_text(NET + "\nimport os\nos.chdir('elsewhere')\n")
    result = swcompile("transform", "net.py", *SHAPE, "--plan", "first/plan.json")
    assert result.code == 0, result.err
    assert listing(project / "out") == WRITTEN
    assert listing(project / "elsewhere") == set()


@pytest.mark.parametrize("command", ["transform", "analyze", "check"])
def test_the_users_file_is_run_once(swcompile, project, command):
    """It may take minutes, fetch something, or forget its main guard."""
    (project / "net.py").write_text(NET + "\nwith open('runs', 'a') as file:\n    file.write('run ')\n")
    assert swcompile(command, "net.py", *SHAPE).code == 0
    assert (project / "runs").read_text() == "run "


def test_a_file_that_the_model_reads_has_its_place_in_the_result(swcompile, project):
    (project / "width.txt").write_text("16")
    (project / "net.py").write_text(NET + "\nfrom pathlib import Path\nPath(__file__).with_name('width.txt').read_text()\n")
    assert swcompile("transform", "net.py", *SHAPE).code == 0
    with pytest.raises(
        swnet.SwnetError, match=r"net\.py failed while it was imported, at net\.py:\d+: FileNotFoundError: .*width\.txt"
    ):
        modelfile.load_model(project / "out" / "model.py")
    assert "the place for other files that this code reads" in (project / "out" / "model.py").read_text()
    (project / "width.txt").rename(project / "out" / "source" / "width.txt")
    assert modelfile.load_model(project / "out" / "model.py").entry_name == "build_model"


def test_a_rewired_model_is_not_rewired_again(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE).code == 0
    result = swcompile("transform", "out/model.py", "--out", "twice")
    assert (result.code, (project / "twice").exists()) == (2, False)
    assert "builds a model that swcompile has rewired already" in result.err


# analyze and check


def test_analyze_shows_the_sweep_and_writes_nothing(swcompile, project):
    before = listing(project)
    result = swcompile("analyze", "net.py", *SHAPE, "--p", "boundary")
    assert result.code == 0, result.err
    assert "clustering" in result.out
    assert "<- boundary: " in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert listing(project) == before


def test_analyze_as_json(swcompile):
    document = json.loads(swcompile("analyze", "net.py", *SHAPE, "--json").out)
    assert len({len(document["curve"][name]) for name in ("p", "C", "L", "S")}) == 1
    assert document["curve"]["p"][0] == 0
    assert document["curve"]["C"][0] == 0
    assert document["p_requested"] == "auto"
    assert 0 < document["p"] <= 1
    assert "body.3.0" in document["eligible"]


def test_check_has_a_row_for_each_layer_with_the_reason(swcompile, project):
    before = listing(project)
    result = swcompile("check", "net.py", *SHAPE)
    assert result.code == 0, result.err
    rows = {line.split()[0]: line for line in result.out.splitlines() if line[:1].isalnum()}
    assert "no: " in rows["body.0.0"]
    assert "no: " in rows["head"]
    assert rows["body.3.0"].rstrip().endswith("yes")
    assert re.search(r"\d of 8 layers can be rewired, [\d.]+% of their weights", result.out)
    assert max(map(len, result.out.splitlines())) <= 80
    assert listing(project) == before


def test_check_as_json(swcompile):
    document = json.loads(swcompile("check", "net.py", *SHAPE, "--json").out)
    by_name = {layer["layer"]: layer for layer in document["layers"]}
    assert len(by_name) == 8
    assert by_name["body.0.0"]["refused"]
    assert by_name["body.3.0"]["refused"] is None
    assert by_name["body.3.0"]["weights"] == 16 * 16 * 9
    assert by_name["body.3.0"]["macs"] == 16 * 16 * 9 * 16 * 16
    assert document["share"]["layers"] == len(document["eligible"])


def test_nothing_to_rewire_is_3_with_the_reasons(swcompile, project):
    (project / "stem.py").write_text(STEM_ONLY)
    for command in ("check", "transform"):
        result = swcompile(command, "stem.py", *SHAPE)
        assert result.code == 3, command
        assert result.err.startswith("error: ")
        assert "Traceback" not in result.err
    assert "0: " in result.err  # transform names the layer and its reason
    assert not (project / "out").exists()


# The report


def command_in(page: Path) -> list[str]:
    """Return the command that a page says repeats it, as words."""
    found = re.search(r'<pre id="command"[^>]*>(.*?)</pre>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return shlex.split(html.unescape(found[1]))


def test_the_report_says_the_very_command_that_repeats_it(swcompile, project):
    asked = ("--p", "0.5", "--keep", "body.2*=0.5", "--keep", "body.3*=0.75", "--head")
    result = swcompile("transform", "net.py", *SHAPE, *asked, "--quiet")
    assert result == Result(0, "", "")
    words = command_in(project / "out" / "report.html")
    assert words == ["swcompile", "transform", "net.py", *SHAPE, *asked[:6], "--seed", "0", "--head"]
    assert swcompile(*words[1:], "--out", "again").code == 0
    assert (project / "again" / "plan.json").read_bytes() == (project / "out" / "plan.json").read_bytes()


def test_a_command_names_no_folder_of_this_machine(swcompile, project):
    assert swcompile("transform", str(project / "net.py"), *SHAPE, "--seed", "3", "--out", str(project / "there")).code == 0
    page = project / "there" / "report.html"
    assert command_in(page) == ["swcompile", "transform", "net.py", *SHAPE, "--out", "there", "--seed", "3"]
    assert str(project) not in page.read_text(encoding="utf-8")


def test_a_plan_is_repeated_by_naming_it(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5").code == 0
    assert swcompile("transform", "net.py", *SHAPE, "--plan", "out/plan.json", "--out", "again").code == 0
    words = command_in(project / "again" / "report.html")
    assert words == ["swcompile", "transform", "net.py", *SHAPE, "--out", "again", "--plan", "out/plan.json"]


def test_transform_names_the_report_and_shows_stages(swcompile):
    result = swcompile("transform", "net.py", *SHAPE, "--p", "0.5")
    assert result.out.endswith("See out/report.html in a browser.\n")
    row = next(line.split() for line in result.out.splitlines() if line.startswith("16x16"))
    layers, kept, came, gone = (int(word.replace(",", "")) for word in row[1:5])
    assert (layers, kept + gone) == (7, 3 + 6 * 16)
    assert came == gone > 0


def test_plots_are_files_of_the_folder_which_is_replaced_with_them(swcompile, project):
    for _ in range(2):
        assert swcompile("transform", "net.py", *SHAPE, "--plots", "--force").code == 0
    found = listing(project / "out") - WRITTEN
    figures = ("network", "curve", "matrix", "paths", "degrees")
    assert found == {"plots", *(f"plots/{name}.{kind}" for name in figures for kind in ("png", "svg"))}


def test_without_matplotlib_all_but_the_report_is_written(swcompile, project, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = swcompile("transform", "net.py", *SHAPE)
    assert (result.code, listing(project / "out")) == (0, WRITTEN - {"report.html"})
    said = " ".join(result.out.split())
    why = "a report is drawn by matplotlib, which is not installed. Install it: pip install 'swcompile[report]'."
    assert said.endswith(f"report.html was left out: {why}")
    for arguments in (("transform", "net.py", "--plots", "--out", "other"), ("analyze", "net.py", "--report", "page.html")):
        result = swcompile(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "There is no report: a report is drawn by matplotlib" in result.err
    assert json.loads(swcompile("transform", "net.py", *SHAPE, "--out", "third", "--json").out)["report"] is None


def test_analyze_writes_the_report_that_was_asked_for_and_nothing_else(swcompile, project):
    before = listing(project)
    (project / "page.html").write_text("an older one")
    result = swcompile("analyze", "net.py", *SHAPE, "--p", "boundary", "--points", "5", "--report", "page.html", "--plots")
    assert result.code == 0, result.err
    assert result.out.endswith("See page.html in a browser.\n")
    assert {name for name in listing(project) - before if not name.startswith("plots")} == {"page.html"}
    assert len(listing(project / "plots")) == 10
    words = command_in(project / "page.html")
    assert words == [
        "swcompile",
        "analyze",
        "net.py",
        *SHAPE,
        "--p",
        "boundary",
        "--seed",
        "0",
        "--points",
        "5",
        "--report",
        "page.html",
    ]


def test_plots_of_an_analysis_need_a_report_to_lie_beside(swcompile):
    result = swcompile("analyze", "net.py", *SHAPE, "--plots")
    assert (result.code, result.out) == (2, "")
    assert "say where that goes, --report FILE" in result.err


def test_a_report_that_cannot_be_written_is_2(swcompile):
    result = swcompile("analyze", "net.py", *SHAPE, "--points", "2", "--report", "nowhere/page.html")
    assert (result.code, result.out) == (2, "")
    assert "cannot be written: No such file or directory. Choose another place." in result.err


# Exit codes, help, and endings


def test_a_bug_is_1_with_a_traceback_and_a_request(swcompile, monkeypatch):
    def broken(*_: object, **__: object) -> nn.Module:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("swcompile.api.transform", broken)
    result = swcompile("transform", "net.py", *SHAPE)
    assert (result.code, result.out) == (1, "")
    assert "Traceback" in result.err
    assert "This is a bug of swcompile" in result.err


@pytest.mark.parametrize(
    "arguments", [[], ["transform"], ["bogus"], ["transform", "net.py", "--seed", "x"], ["check", "net.py", "--no"]]
)
def test_usage_errors_are_2(swcompile, arguments):
    result = swcompile(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: swcompile" in result.err


@pytest.mark.parametrize("command", [None, *cli.cli.commands])
def test_help_reads_well_on_80_columns(swcompile, command):
    lines = swcompile(*filter(None, [command]), "--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")], "a description was cut"
    assert not [line for line in lines if re.match(r"  --\S+ (TEXT|FLOAT|INTEGER RANGE)\b", line)], "click's own names of types"


# export, and graphs for other tools


def test_a_rewired_folder_is_exported_from_the_command_line(swcompile, project):
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5").code == 0
    result = swcompile("export", "out/", "--to", "python")
    assert result.code == 0, result.err
    assert listing(project / "out-python") == {"manifest.json", "model.py", "weights.safetensors"}
    assert "Off by 0 of the largest output at batches of 1 and 3 (1e-05 is allowed)." in result.out
    assert "Written to out-python: model.py, weights.safetensors" in result.out
    named = swcompile("export", "out", "--to", "torch-export", "--out", "there", "--json")
    assert json.loads(named.out) == {
        "out": "there",
        "to": "torch-export",
        "files": ["model.pt2"],
        "open_batch": True,
        "difference": 0.0,
        "tolerance": 1e-05,
        "batches": [1, 3],
    }
    original = modelfile.load_model(project / "out" / "source" / "net.py").model
    x = torch.randn(2, 3, 16, 16)
    program = torch.export.load(project / "there" / "model.pt2").module()
    assert torch.equal(program(x), swnet.load(project / "out", original).eval()(x))
    again = swcompile("export", "out", "--to", "python")
    assert again.code == 2
    assert "The folder out-python exists" in again.err
    itself = swcompile("export", "out", "--to", "python", "--out", "out", "--force")
    assert itself.code == 2
    assert "The folder out holds a saved model, which `swcompile transform` or swnet.save wrote; an export does not" in itself.err
    assert (project / "out" / "plan.json").is_file()
    over = swcompile("transform", "net.py", *SHAPE, "--out", "there", "--force")
    assert (over.code, listing(project / "there")) == (2, {"manifest.json", "model.pt2"})
    assert "The folder there holds an export, which `swcompile export` wrote; a saved model does not replace it." in over.err
    assert swcompile("export", "out", "--to", "python", "--out", "there", "--force").code == 0  # another form is an export, too
    assert listing(project / "there") == {"manifest.json", "model.py", "weights.safetensors"}


def test_export_says_what_to_name(swcompile, project):
    missing = swcompile("export", "nowhere", "--to", "python")
    assert missing.code == 2
    assert "nowhere holds no model.py; name a folder that `swcompile transform` wrote." in missing.err
    (project / "plain").mkdir()
    (project / "plain" / "model.py").write_text(STEM_ONLY)
    plain = swcompile("export", "plain", "--to", "python")
    assert plain.code == 2
    assert "builds a Sequential that swcompile has not rewired; run `swcompile transform` on it." in plain.err
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5").code == 0
    wrong = swcompile("export", "out", "--to", "keras")
    assert wrong.code == 2
    assert "'keras' is not one of 'torch-export', 'onnx', 'python'" in wrong.err
    assert {path.name for path in project.iterdir()} == {"net.py", "net_blocks.py", "out", "plain"}


def test_exports_help_fits_the_screen(swcompile):
    result = swcompile("export", "--help")
    assert "--to torch-export|onnx|python" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_graphs_are_written_for_other_tools(swcompile, project):
    assert swcompile("analyze", "net.py", *SHAPE, "--points", "2", "--graph", "before.json").code == 0
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--graph", "both.json").code == 0
    before, both = (json.loads((project / name).read_text()) for name in ("before.json", "both.json"))
    assert all(edge["before"] == edge["after"] for edge in before["edges"])
    assert [node["id"] for node in before["nodes"]] == [node["id"] for node in both["nodes"]]
    assert any(edge["before"] == 0 < edge["after"] for edge in both["edges"])
    refused = swcompile("transform", "net.py", *SHAPE, "--out", "other", "--graph", "graph.png")
    assert refused.code == 2
    assert "graph.png does not end as a graph file does" in refused.err
    assert not (project / "other").exists()
    assert swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--graph", "both.json", "--force").code == 0  # its own, once more
    plan = (project / "out" / "plan.json").read_bytes()
    over = swcompile("analyze", "net.py", *SHAPE, "--points", "2", "--graph", "out/plan.json")
    assert over.code == 2
    assert "out/plan.json is there already and no layer graph that swcompile wrote; it is not replaced." in over.err
    assert (project / "out" / "plan.json").read_bytes() == plan


def test_a_graph_is_never_a_file_of_the_model_to_be_written(swcompile, project):
    (project / "out").mkdir()
    result = swcompile("transform", "net.py", *SHAPE, "--p", "0.5", "--out", "out", "--force", "--graph", "out/ledger.json")
    assert result.code == 2
    assert "--graph out/ledger.json is a file of the model that goes to out; name another one." in result.err
    assert listing(project / "out") == set()


def test_an_export_is_named_after_its_folder_and_lies_beside_it() -> None:
    here = os.getcwd()
    assert [cli.export._named(name) for name in ("out/", "./out", ".", "..")] == ["out", "out", here, os.path.dirname(here)]
    assert cli.export.FORMS == export.FORMS


@pytest.mark.parametrize("command", ["transform", "analyze", "check"])
def test_help_documents_exit_codes_and_every_choice(swcompile, command):
    result = swcompile(command, "--help")
    assert result.code == 0
    for code in ("0", "1", "2", "3", "130"):
        assert re.search(rf"^    {code} +\w", result.out, re.MULTILINE), code
    for name in CHOICES.keys() - (set() if command == "transform" else {"budget", "init", "score"}):
        offered = [choice for choice in CHOICES[name] if not NEEDS.get(choice)]  # batches are for Python
        assert f"--{name} {'|'.join(offered)}" in result.out


@pytest.mark.parametrize("command", ["transform", "analyze", "check"])
def test_the_defaults_are_those_of_the_python_interface(command):
    function = swnet.transform if command == "transform" else swnet.analyze
    wanted = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    found = {option.name: option.default for option in cli.cli.commands[command].params if isinstance(option, Option)}
    own = {"entry", "inputs", "out", "force", "plan_file", "graph_file", "report_file", "plots", "as_json", "quiet"}
    in_python_only = {"transform": {"calibrate", "batches", "loss_fn", "lower"}, "check": {"points"}}.get(command, set())
    assert wanted.keys() - found.keys() == {"model", "example_inputs"} | in_python_only
    for name in found.keys() - own:
        default = found[name] if isinstance(found[name], int | float | str | tuple) else None  # click's mark for "not given"
        assert default == wanted[name], name


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("swcompile tr", "plain,transform"),
        ("swcompile transform --wir", "plain,--wiring"),
        ("swcompile transform mod", "file,mod"),
        ("swcompile check mod", "file,mod"),
        ("swcompile transform model.py --out o", "dir,o"),
        ("swcompile transform model.py --plan o", "file,o"),
    ],
)
def test_a_shell_completes_commands_options_and_paths(capsys, monkeypatch, words, wanted):
    monkeypatch.setenv("_SWCOMPILE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit) as ended:
        cli.run([])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{wanted}\n")


@pytest.mark.parametrize(("shell", "says"), [("bash", "complete -o nosort"), ("zsh", "#compdef swcompile"), ("fish", "complete ")])
def test_the_script_for_a_shell_is_printed(capsys, monkeypatch, shell, says):
    monkeypatch.setenv("_SWCOMPILE_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit) as ended:
        cli.run([])
    assert ended.value.code == 0
    assert says in capsys.readouterr().out


def test_names_from_files_do_not_steer_the_terminal(swcompile, project):
    (project / "evil.py").write_text("raise ValueError('\\x1b[2J\\x07')\n")
    result = swcompile("check", "evil.py")
    assert result.code == 2
    assert "\x1b" not in result.err
    assert "ValueError: ?[2J?" in result.err


SLOW = {
    "while the model is built": NET + "\nimport sys, time\nprint('ready', file=sys.stderr, flush=True)\ntime.sleep(60)\n",
    "while a finalizer runs, in which Python drops what is raised": NET
    + """
import sys, time

class Slow:
    def __del__(self):
        print("ready", file=sys.stderr, flush=True)
        time.sleep(1)

Slow()
time.sleep(60)
""",
    "while the result is written": NET
    + """
import sys, time
from swcompile import store

write = store._write_files

def slowly(fresh, *arguments):
    write(fresh, *arguments)
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)

store._write_files = slowly
""",
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("when", SLOW)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_half_written(swcompile, project, when, old, number, code):
    if old:
        assert swcompile("transform", "net.py", *SHAPE).code == 0
    (project / "net.py").write_text(SLOW[when])
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with started(project, "transform", "net.py", *SHAPE, "--force") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready"):
                break
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


LEAVING = """
import atexit, sys, time

@atexit.register
def leave():
    print("leaving", file=sys.stderr, flush=True)
    time.sleep(60)
"""


def test_an_interruption_while_python_shuts_down_shows_no_traceback(project):
    (project / "net.py").write_text(NET + LEAVING)
    with started(project, "check", "net.py", *SHAPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("leaving"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_an_interruption_at_any_moment_leaves_nothing_or_the_whole_result(project):
    """Six moments of a run, one drawn from each sixth; the first blink of an eye belongs to Python's own start."""
    arguments = ("transform", "net.py", *SHAPE, "--out", "new/deep/out")
    begun = time.monotonic()
    assert command_line(project, *arguments).returncode == 0
    whole, lasts = listing(project), time.monotonic() - begun
    shutil.rmtree(project / "new")
    for sixth in range(6):
        moment = max(0.3, (sixth + random.random()) / 6 * lasts)
        with started(project, *arguments) as process:
            time.sleep(moment)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        if listing(project) == whole:  # it was done, though perhaps not with saying so
            shutil.rmtree(project / "new")
        else:
            # Where the interrupt came up in code that a C extension ran (torch, as it is imported), Python ends itself by the
            # signal after all: 130 to a shell, too.
            assert process.returncode in (130, -signal.SIGINT), (moment, err)
            assert (out, listing(project)) == ("", {"net.py", "net_blocks.py"}), (moment, err)
        assert "Traceback" not in err, moment


def test_a_reader_that_has_seen_enough_is_no_error(project):
    """`swcompile check net.py | head -0`."""
    with started(project, "check", "net.py", *SHAPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, err) == (0, "a print of the user's own\n")


def test_the_command_line_answers_without_torch():
    program = "import sys, swcompile.cli\nassert swcompile.cli.run(['--help']) == 0\nassert 'torch' not in sys.modules\n"
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stdout=-3
    )


IMPORTING = """
import os, signal, sys
from swcompile import cli


class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.write(2, signal.getsignal(signal.SIGINT).__qualname__.encode())
            os._exit(0)


signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it, as a shell's background does
sys.meta_path.insert(0, Watch())
cli.run(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["transform net.py", "analyze net.py", "check net.py", "export out --to python", "bench"])
def test_an_interrupt_waits_wherever_torch_is_imported_first(project, command):
    """A stage imported in front of it would bring torch along, outside of what holds interrupts back."""
    program = [sys.executable, "-c", IMPORTING, *command.split()]
    ran = subprocess.run(program, cwd=project, env=environment(), capture_output=True, text=True, timeout=60)
    assert ran.stderr == "import_torch.<locals>.hold"


@pytest.mark.parametrize("line", ["sys.stdout.close()", "sys.stderr.close()"])
def test_the_error_is_said_though_the_users_code_closes_its_streams(project, line):
    (project / "net.py").write_text(f"import sys\n{line}\nraise KeyError('x')\n")
    done = command_line(project, "check", "net.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: net.py failed while it was imported, at net.py:3: KeyError: 'x'.")


def test_a_file_whose_name_is_no_text(project):
    (project / "net_\udcff.py").write_text(NET)
    done = command_line(project, "transform", "net_\udcff.py", *SHAPE)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (0, [])
    assert "net_\\udcff.py, rewired" in done.stdout


def test_bench_times_gathers_and_calibrates(swcompile, tmp_path, monkeypatch):
    from swcompile import bench
    from swcompile.lower import calibrate, rates

    monkeypatch.setattr(bench, "STAGES", {"block 1": (4, 8, 2)})
    monkeypatch.setattr(bench, "OUTPUTS", 8)
    found = swcompile("bench", "--device", "cpu", "--batch", "2", "--json")
    assert found.code == 0
    rows = json.loads(found.out)["rows"]
    assert [(row["name"], row["form"]) for row in rows] == [
        *(("copy", "ceiling"), ("product", "ceiling")),
        *(("block 1", "plain"), ("block 1", "torch"), ("block 1", "put")),
    ]
    assert all(0 < row["ms"][0] <= row["ms"][1] <= row["ms"][2] for row in rows)
    assert [row["ratio"] is None for row in rows] == [True, True, False, False, True]
    assert rows[3]["shape"] == [2, 72, 4, 4]

    shown = swcompile("bench", "--device", "cpu", "--batch", "1")
    assert "block 1" in shown.out
    assert "ceiling" in shown.out

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, small in (("SIDES", (4,)), ("CHANNELS", (8, 16)), ("OUTPUTS", (8,)), ("BATCHES", {"cpu": (1,)})):
        monkeypatch.setattr(calibrate, name, small)
    kept = swcompile("bench", "--calibrate", "--device", "cpu")
    assert kept.code == 0
    assert "Kept in" in kept.out
    known = rates.known(torch.device("cpu"))
    assert len(known.of(torch.float32)["torch map"].timings) == 2


def test_bench_times_the_device_that_is_asked_for(swcompile, tmp_path, monkeypatch):
    from swcompile import bench
    from swcompile.lower import rates

    timed = []

    def calibrated(device, begin):
        timed.append(device)
        return rates.Rates("a GPU", {}, {})

    def microbenchmarks(device, dtype, batch, begin):
        timed.append((device, dtype, batch))
        return iter(())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(bench, "calibrated", calibrated)
    monkeypatch.setattr(bench, "microbenchmarks", microbenchmarks)
    assert swcompile("bench", "--calibrate", "--device", "cuda:1").code == 0
    assert "GPU 1" in swcompile("bench", "--device", "cuda:1").out
    assert "GPU None" in swcompile("bench").out
    gpus = [torch.device(name) for name in ("cuda:1", "cuda:1", "cuda")]
    assert timed == [gpus[0], (gpus[1], torch.bfloat16, 256), (gpus[2], torch.bfloat16, 256)]
    for none in ("cuda:2", "cuda:", "cuda:-1", "cuda:01", "cpu:0"):
        found = swcompile("bench", "--device", none)
        assert found.code == 2
        assert f"There is no device '{none}' here; there is cpu, cuda, cuda:0, cuda:1." in found.err


@pytest.mark.parametrize("options", [(), ("--calibrate",)])
def test_benchs_bar_ends_full(swcompile, options, tmp_path, monkeypatch):
    from swcompile import bench
    from swcompile.lower import calibrate

    bars = []

    @contextlib.contextmanager
    def working(steps, *, quiet):
        begun = []
        yield begun.append
        bars.append((steps, len(begun)))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("swcompile.cli.bench.working", working)
    monkeypatch.setattr(bench, "ceilings", lambda *_: iter(()))
    monkeypatch.setattr(bench, "timed_gather", lambda *_: iter(()))
    monkeypatch.setattr(calibrate, "_timed_all", lambda *_: iter(()))
    monkeypatch.setitem(calibrate.DTYPES, "cpu", (torch.float32, torch.float64))
    assert swcompile("bench", "--device", "cpu", *options).code == 0
    assert bars == [(1, 1), (2, 2) if options else (5, 5)]


def test_the_forms_that_bench_times_compute_the_same():
    from swcompile import bench

    gather = bench.Gather(2, 5, (16, 8, 8), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        expected = gather.plain()
        for form in (gather.by_torch, gather.by_triton, *gather.forms().values()):
            torch.testing.assert_close(form(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu"), "There is no device 'tpu'"),
        (("--device", "cuda:7"), "There is no device 'cuda:7' here; there is cpu"),
        (("--dtype", "int8", "--device", "cpu"), "There is no dtype 'int8'"),
        (("--calibrate", "--batch", "2"), "leave out --dtype and --batch"),
        (("--batch", "0"), "0 is not in the range"),
    ],
)
def test_bench_refuses_what_there_is_not(swcompile, options, message):
    found = swcompile("bench", *options)
    assert found.code == 2
    assert message in found.err
