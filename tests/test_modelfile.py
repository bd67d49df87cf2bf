"""Finding the model in a user's file: which one is taken, what is said when none can be, and what is left behind."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from swcompile.errors import SwnetError
from swcompile.modelfile import ModelFile, load_model, parse_input

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a file and return its path; forget at the end what was imported."""

    def make(source: str, name: str = "net.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        return file

    before = dict(sys.modules)
    yield make
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name == "parts":
            del sys.modules[name]


def width(found: ModelFile) -> int:
    return found.model.conv.out_channels


def test_a_builder_comes_before_a_module_and_a_module_before_a_class(write):
    file = write(NET + "model = Net(5)\ndef build_model():\n    return Net(6)\n", "one.py")
    assert (width(load_model(file)), load_model(file).entry_name) == (6, "build_model")
    assert load_model(write(NET + "model = Net(5)\n", "two.py")).entry_name == "model"
    assert load_model(write(NET + "def get_model():\n    return Net()\n", "three.py")).entry_name == "get_model"
    assert load_model(write(NET, "four.py")).entry_name == "Net"


@pytest.mark.parametrize(("entry", "expected"), [("Net", 4), ("wide", 9), ("instance", 7)])
def test_an_entry_is_a_class_a_function_or_a_module(write, entry, expected):
    file = write(NET + "instance = Net(7)\ndef wide():\n    return Net(9)\ndef build_model():\n    return Net(6)\n")
    assert width(load_model(file, entry)) == expected


def test_classes_that_need_arguments_are_imported_or_cannot_run_are_no_candidates(write):
    rest = """
from torch.nn import Identity
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
    def forward(self, x):
        return x
class Base(nn.Module):
    pass
Alias = Net
"""
    assert load_model(write(NET + rest)).entry_name == "Net"


def test_two_names_of_one_function_are_one_candidate(write):
    assert load_model(write(NET + "def build_model():\n    return Net()\nget_model = build_model\n")).entry_name == "build_model"


def test_several_candidates_are_listed_with_what_to_type(write):
    file = write(NET + "class Other(Net):\n    pass\n")
    with pytest.raises(SwnetError, match=r"net\.py holds several models: Net, Other\. Say which: --entry Net or --entry Other\.$"):
        load_model(file)


def test_no_candidate_says_what_was_looked_for_and_what_was_found(write):
    with pytest.raises(SwnetError, match=r"no function build_model or get_model.*Write a function build_model\(\)"):
        load_model(write("x = 1\n", "empty.py"))
    with pytest.raises(SwnetError, match=r"Found: class Net needs width\. Write a function"):
        load_model(write(NET.replace("width=4", "width"), "needs.py"))
    with pytest.raises(SwnetError, match=r"say so: --entry net or --entry tiny\."):
        load_model(write("from torch import nn\nnet = nn.Sequential()\ndef tiny():\n    return net\n", "other.py"))


def test_a_wrong_entry_is_refused(write):
    file = write(NET + "number = 3\ndef text():\n    return 'x'\ndef deep(depth):\n    return Net()\n")
    with pytest.raises(SwnetError, match=r"defines nothing called 'Nett'\. .*--entry text"):
        load_model(file, "Nett")
    with pytest.raises(SwnetError, match=r"number in net\.py is of type int; --entry names"):
        load_model(file, "number")
    with pytest.raises(SwnetError, match=r"text\(\) in net\.py returned an object of type str; it should return an nn\.Module"):
        load_model(file, "text")
    with pytest.raises(SwnetError, match=r"deep in net\.py needs arguments: depth\. Write a function build_model\(\)"):
        load_model(file, "deep")


def test_a_failing_build_names_the_users_exception_file_and_line(write):
    file = write(
        "import torch\ndef build_model():\n    return helper()\ndef helper():\n    return torch.zeros(2) @ torch.zeros(3)\n"
    )
    with pytest.raises(
        SwnetError, match=r"net\.py failed while build_model\(\) built the model, at net\.py:5: RuntimeError: "
    ) as caught:
        load_model(file)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = (\n", r"at bad\.py:1: SyntaxError"),
        ("import torch\nimport no_such_package\n", r"at bad\.py:2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", r"at bad\.py:1: SystemExit: 3"),
        ("raise GeneratorExit\n", r"at bad\.py:1: GeneratorExit"),
        ("class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E\n", r"at bad\.py:\d: E\. Run"),
        ("from .sibling import x\n", r"at bad\.py:1: ImportError: attempted relative import"),
        ("# coding: no-such\n", r"at bad\.py:\d: SyntaxError: unknown encoding"),
        ("\n\n1 / 0\n", r"at bad\.py:3: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_imported_leaves_no_module(write, source, said):
    before, path = set(sys.modules), list(sys.path)
    with pytest.raises(SwnetError, match="failed while it was imported, " + said):
        load_model(write(source, "bad.py"))
    assert set(sys.modules) - before == set()
    assert sys.path == path


def test_names_of_any_kind(write):
    for name in ("my.net.py", "my-net.py", "сеть.py", "class.py"):
        assert width(load_model(write(NET, name))) == 4, name
    file = write(
        "from torch import nn\nclass Сеть(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 5, 3)\n", "u.py"
    )
    assert load_model(file, "Сеть").model.out_channels == 5


def test_a_file_that_makes_up_its_names_has_no_model(write):
    with pytest.raises(SwnetError, match="holds no model to take"):
        load_model(write("def __getattr__(name):\n    raise RuntimeError(name)\n", "made_up.py"))


def test_a_wrong_entry_shows_the_class_that_there_is(write):
    with pytest.raises(SwnetError, match=r"defines nothing called ''\. If it is one of these, say so: --entry Net\.$"):
        load_model(write(NET), "")


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "notes.txt", "a\0b.py", "a" * 300 + ".py"])
def test_what_is_no_python_file_is_refused(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SwnetError, match="There is no Python file"):
        load_model(tmp_path / name)


def test_siblings_are_found_and_nothing_is_left_behind(write, tmp_path):
    write("from torch import nn\nfrom parts.deep import WIDTH\nclass Conv(nn.Conv2d):\n    pass\n", "sib_blocks.py")
    write("WIDTH = 4\n", "parts/deep.py")
    file = write("from torch import nn\nfrom sib_blocks import Conv, WIDTH\nmodel = nn.Sequential(Conv(3, WIDTH, 3))\n")
    before, path, writes = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    found = load_model(file)
    assert {source.name for source in found.sources} == {"net.py", "sib_blocks.py", "deep.py"}
    assert found.root == tmp_path
    assert set(sys.modules) - before == {"net", "sib_blocks", "parts", "parts.deep"}
    assert (sys.path, sys.dont_write_bytecode) == (path, writes)
    assert not list(tmp_path.rglob("__pycache__"))


def test_siblings_of_the_same_name_in_two_folders_do_not_mix(write):
    for folder, value in (("a", 4), ("b", 8)):
        write(f"WIDTH = {value}\n", f"{folder}/sib_config.py")
        write(NET + "from sib_config import WIDTH\nmodel = Net(WIDTH)\n", f"{folder}/net.py")
    first = load_model(write("", "a/other.py").with_name("net.py"))
    config = sys.modules["sib_config"]
    second = load_model(first.root.parent / "b" / "net.py")
    assert (width(first), width(second)) == (4, 8)
    assert sys.modules["sib_config"] is config


def test_a_file_in_a_package_can_import_relatively(write, tmp_path):
    write("", "sib_package/__init__.py")
    write("WIDTH = 6\n", "sib_package/config.py")
    found = load_model(write(NET + "from .config import WIDTH\nmodel = Net(WIDTH)\n", "sib_package/net.py"))
    assert (width(found), found.root) == (6, tmp_path)
    assert {source.name for source in found.sources} == {"__init__.py", "config.py", "net.py"}


@pytest.mark.parametrize(
    ("line", "shapes"),
    [
        ("example_inputs = torch.zeros(1, 3, 8, 8)", [(1, 3, 8, 8)]),
        ("example_inputs = [torch.zeros(1, 3), torch.zeros(2)]", [(1, 3), (2,)]),
        ("def example_inputs():\n    return (torch.zeros(2, 2),)", [(2, 2)]),
    ],
)
def test_example_inputs_are_a_value_or_a_function(write, line, shapes):
    inputs = load_model(write(NET + line + "\n")).example_inputs
    assert inputs is not None
    assert [tuple(item.shape) for item in inputs] == shapes


def test_example_inputs_of_another_kind_are_refused(write):
    assert load_model(write(NET, "none.py")).example_inputs is None
    with pytest.raises(SwnetError, match=r"example_inputs in net\.py should be a tensor or a tuple of tensors; it is dict"):
        load_model(write(NET + "example_inputs = {'x': 1}\n"))
    with pytest.raises(SwnetError, match=r"example_inputs in n2\.py needs arguments: size"):
        load_model(write(NET + "def example_inputs(size):\n    return 1\n", "n2.py"))
    with pytest.raises(SwnetError, match=r"n3\.py failed while example_inputs\(\) was called, at n3\.py:\d+: ZeroDivisionError"):
        load_model(write(NET + "def example_inputs():\n    return 1 / 0\n", "n3.py"))


def test_parse_input():
    image, tokens = parse_input("1x3x32x32"), parse_input("1x128:int64")
    assert (tuple(image.shape), image.dtype) == ((1, 3, 32, 32), torch.float32)
    assert (tuple(tokens.shape), tokens.dtype) == ((1, 128), torch.int64)


@pytest.mark.parametrize("text", ["", "x", "1x3x", "1,3,32", "1x-3", "1x3:", "3.5x2", "²x3", "1x3x999999999999999999"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(SwnetError, match="is not a shape; write sizes such as 1x3x32x32"):
        parse_input(text)


@pytest.mark.parametrize("text", ["0x3", "1x100000x100000"])
def test_a_size_nobody_means_is_refused(text):
    with pytest.raises(SwnetError, match="is not a size to try; take sizes from 1 up"):
        parse_input(text)


@pytest.mark.parametrize("text", ["1x3:float31", "1x3:nn", "1x3:__doc__"])
def test_a_dtype_that_is_none_is_refused(text):
    with pytest.raises(SwnetError, match="is not a dtype; take float32"):
        parse_input(text)


def test_a_model_taken_from_elsewhere_by_entry(write):
    found = load_model(write("from torch.nn import Identity as plain\n"), "plain")
    assert isinstance(found.model, nn.Identity)


# What the file's own code may do


@pytest.mark.parametrize("line", ["sys.path = None", "sys.path = ['x']", "sys.path.clear()", "os.chdir('/')"])
def test_the_path_and_the_working_directory_are_as_before(write, line):
    path, entries, folder = sys.path, list(sys.path), os.getcwd()
    load_model(write(f"import os, sys\n{NET}\ndef build_model():\n    {line}\n    return Net()\n"))
    assert sys.path is path
    assert sys.path == entries
    assert os.getcwd() == folder


@pytest.mark.parametrize("found", ["3", "None", "Odd()", "named(3)", "named('a\\0b.py')", "named('\\ud800')"])
def test_any_object_may_stand_among_the_modules(write, found):
    """Lazy modules and stand-ins do: they may answer anything, or raise."""
    odd = "class Odd:\n    def __getattr__(self, name):\n        return 1 / 0\n"
    named = "def named(file):\n    made = type(sys)('odd')\n    made.__file__ = file\n    return made\n"
    try:
        assert width(load_model(write(f"import sys\n{odd}{named}sys.modules['odd'] = {found}\n{NET}"))) == 4
        with pytest.raises(SwnetError, match="ZeroDivisionError"):
            load_model(write(f"import sys\n{odd}{named}sys.modules['odd'] = {found}\n1 / 0\n", "other.py"))
    finally:
        sys.modules.pop("odd", None)


@pytest.mark.parametrize(
    "source",
    [
        "example_inputs = type('S', (list,), {'__len__': lambda self: 1 / 0})()",
        "build_model = type('B', (), {'__call__': lambda self: Net(), '__eq__': lambda self, other: 1 / 0})()\n"
        "get_model = build_model",
        "class Meta(type):\n    @property\n    def __name__(cls):\n        return 1 / 0\nclass Odd(nn.Module, metaclass=Meta):\n"
        "    def forward(self, x):\n        return x",
    ],
)
def test_objects_that_raise_when_they_are_asked_are_the_files_fault(write, source):
    with pytest.raises(
        SwnetError, match=r"net\.py failed while a model was looked for in it, at net\.py:\d+: ZeroDivisionError: division"
    ):
        load_model(write(NET + source + "\n"))


@pytest.mark.parametrize("said", ["1 / 0", "3", "sys.exit(3)"])
def test_an_exception_that_cannot_say_what_it_is(write, said):
    with pytest.raises(SwnetError, match=r"net\.py failed while it was imported, at net\.py:\d+: OddError\. Run"):
        load_model(
            write(f"import sys\nclass OddError(Exception):\n    def __str__(self):\n        return {said}\nraise OddError\n")
        )


def test_a_package_file_that_puts_something_else_in_its_place(write):
    write("", "pack/__init__.py")
    with pytest.raises(
        SwnetError, match=r"net\.py failed while it was imported.*it put an object of type int in place of its module"
    ):
        load_model(write("import sys\nsys.modules[__name__] = 3\n", "pack/net.py"))


def test_a_link_to_what_is_no_python_file(write, tmp_path):
    write(NET, "blob")
    (tmp_path / "net.py").symlink_to(tmp_path / "blob")
    with pytest.raises(SwnetError, match=r"net\.py is a link to blob, which is no Python file; name one, such as model\.py\."):
        load_model(tmp_path / "net.py")
