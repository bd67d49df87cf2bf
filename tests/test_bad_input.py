"""Bad input, each kind that users and strangers come up with: one message that says what to do, and nothing left behind.

Through the command line where it reaches, since its messages and its folder are what a user sees; the same errors are
SwnetErrors of the Python interface.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import swnet
from swcompile import cli, modelfile
from swcompile import plan as plans
from swcompile.errors import SwnetError
from swcompile.plan import Plan

NET = """
from torch import nn


def conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16), *(conv(16, 16) for _ in range(6)))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""

SHAPE = ("--input", "1x3x16x16")
Snapshot = dict[str, bytes]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def snapshot(folder: Path) -> Snapshot:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def refused(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail cleanly, and return its message."""

    def run(*arguments: str, code: int = 2) -> str:
        before = snapshot(project)
        assert cli.run(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == "" or arguments[0] == "check"
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert snapshot(project) == before
        return captured.err

    return run


def write(project: Path, source: str) -> str:
    (project / "bad.py").write_text(source)
    return "bad.py"


# The model file


def test_a_file_with_no_model(project, refused):
    said = refused("transform", write(project, "import torch\nx = torch.zeros(3)\n"))
    assert "bad.py holds no model to take: no function build_model or get_model" in said
    assert "Write a function build_model() that returns the model." in said


def test_a_file_with_several_models(project, refused):
    said = refused("transform", write(project, NET + "\nclass Other(Net):\n    pass\n"))
    assert "bad.py holds several models: Net, Other. Say which: --entry Net or --entry Other." in said


def test_a_file_that_is_not_there(refused):
    assert "There is no Python file nothing.py; name one that builds a model" in refused("transform", "nothing.py")


def test_a_model_that_raises_while_it_is_built(project, refused):
    said = refused("transform", write(project, NET + "\ndef build_model():\n    raise RuntimeError('no such checkpoint')\n"))
    assert re.search(
        r"bad\.py failed while build_model\(\) built the model, at bad\.py:\d+: RuntimeError: no such checkpoint", said
    )


def test_a_model_that_raises_in_forward(project, refused):
    said = refused(
        "transform", write(project, NET.replace("return self.head(", "raise KeyError('missing')\n        return self.head("))
    )
    assert "KeyError" in said
    assert "missing" in said


@pytest.mark.parametrize("shape", ["1x1x16x16", "1x3", "16"])
def test_inputs_that_do_not_fit(refused, shape):
    said = refused("transform", "net.py", "--input", shape)
    assert re.search(r"[Ii]nput", said)
    assert str(tuple(map(int, shape.split("x"))))[1:-1] in said or shape in said


def test_too_many_inputs(refused):
    assert re.search(r"[Ii]nput", refused("transform", "net.py", *SHAPE, *SHAPE))


@pytest.mark.parametrize("text", ["1,3,16,16", "1x3x", "1x3:", ""])
def test_an_input_that_is_no_shape(refused, text):
    assert "is not a shape; write sizes such as 1x3x32x32" in refused("transform", "net.py", "--input", text)


# Options


@pytest.mark.parametrize("p", ["-0.1", "1.5", "nan", "inf", "-inf"])
def test_p_outside_its_range(refused, p):
    for command in ("transform", "analyze"):
        assert f"p={float(p)!r} is outside [0, 1]; p is the share of links that become long-range." in refused(
            command, "net.py", *SHAPE, f"--p={p}"
        )


def test_p_that_is_no_policy(refused):
    said = refused("transform", "net.py", *SHAPE, "--p", "best")
    assert "p='best' is not a policy; take a number from 0 to 1 or one of auto, boundary, max_S." in said


@pytest.mark.parametrize("density", ["0", "-1", "1.01", "nan"])
def test_density_outside_its_range(refused, density):
    said = refused("transform", "net.py", *SHAPE, f"--density={density}")
    assert f"density={float(density)!r} is outside (0, 1]; 1 keeps every block, 0.5 half of them." in said


def test_more_than_one_budget(refused):
    said = refused("transform", "net.py", *SHAPE, "--params", "5000", "--macs", "5000")
    assert "params and macs were given; they are different ways to say one thing, so take at most one." in said


@pytest.mark.parametrize("option", ["params", "macs"])
@pytest.mark.parametrize("number", [0, -5])
def test_a_budget_that_is_none(refused, option, number):
    assert f"{option}={number} is not a budget; take a positive number." in refused("transform", "net.py", f"--{option}={number}")


@pytest.mark.parametrize(("option", "words"), [("params", "parameters"), ("macs", "multiply-accumulates")])
def test_a_budget_that_cannot_be_met(refused, option, words):
    said = refused("transform", "net.py", *SHAPE, f"--{option}=1")
    assert f"A budget of 1 {words} was asked for; with one block per layer the model still has" in said
    assert "Take a larger budget" in said


@pytest.mark.parametrize("block", ["0", "-4", "wide"])
def test_a_block_that_is_no_size(refused, block):
    said = refused("transform", "net.py", *SHAPE, f"--block={block}")
    assert "is not a block size; take a positive number of channels, 'auto' or 'producer'." in said


def test_a_block_larger_than_every_width(refused):
    said = refused("transform", "net.py", *SHAPE, "--block", "512")
    assert "block=512 is too large: no layer that could be rewired holds two blocks of 512 channels." in said
    assert "Sizes up to 8 fit at least one layer" in said


@pytest.mark.parametrize(("option", "value"), [("wiring", "spiral"), ("resample", "min"), ("reach", "long"), ("dead", "yes"),
                                               ("skips", "some"), ("budget", "all"), ("init", "zero")])  # fmt: skip
def test_a_word_that_is_no_choice(refused, option, value):
    assert f"{option}={value!r} is not a choice; take one of " in refused("transform", "net.py", *SHAPE, f"--{option}", value)


@pytest.mark.parametrize("option", ["--seed", "--min-in-degree"])
def test_a_negative_number_where_there_is_none(refused, option):
    assert "take a whole number from 0 up" in refused("transform", "net.py", *SHAPE, f"{option}=-1")


def test_density_with_wiring_kernel(refused):
    said = refused("transform", "net.py", *SHAPE, "--wiring", "kernel", "--density", "0.5")
    assert "density does not apply to wiring='kernel'" in said


@pytest.mark.parametrize("points", ["1", "0", "-3", "1001", "1000000"])
def test_a_sweep_of_too_few_or_too_many_points(refused, points):
    said = refused("analyze", "net.py", *SHAPE, f"--points={points}")
    assert f"points={points} were asked for; take a whole number from 2 to 1,000 of values of p." in said


@pytest.mark.parametrize("dtype", ["qint8", "quint4x2"])
def test_an_input_of_a_quantized_dtype(refused, dtype):
    assert f"{dtype} is of quantized tensors, which cannot be traced; take float32" in refused(
        "check", "net.py", "--input", f"1x3x8x8:{dtype}"
    )


# Arguments of the wrong kind


@pytest.mark.parametrize(("given", "what"), [("net.py", "a str"), (None, "a NoneType"), (nn.ReLU, "the class ReLU")])
def test_a_model_that_is_none(given, what, tmp_path):
    for call in (swnet.transform, swnet.plan, swnet.analyze):
        with pytest.raises(SwnetError, match=f"The model that was given is {what}; pass an nn.Module that has been built"):
            call(given)


def test_a_model_is_not_asked_for_its_class():
    class Odd(nn.ReLU):
        @property
        def __class__(self):
            raise ZeroDivisionError

    with pytest.raises(SwnetError, match="Odd"):
        swnet.transform(Odd(), torch.zeros(1, 3))


def test_a_class_that_has_no_name():
    class Meta(type):
        def __getattribute__(cls, name):
            raise ZeroDivisionError("no")

    class Odd(nn.ReLU, metaclass=Meta):
        pass

    with pytest.raises(SwnetError, match=r"The class of the model cannot be asked for its name \(no\); take its metaclass away\."):
        swnet.transform(Odd(), torch.zeros(1, 3))


@pytest.mark.parametrize("given", ["plan.json", {}, None, nn.ReLU()])
def test_a_plan_of_the_wrong_kind(given):
    with pytest.raises(SwnetError, match=rf"A {type(given).__name__} was given as the plan; make one with swnet\.plan\(model\)"):
        swnet.apply(nn.ReLU(), given, torch.zeros(1, 3))
    with pytest.raises(SwnetError, match="The plan is not JSON"):
        Plan.from_json(given)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "", None, 0])
def test_a_plan_by_a_name_that_is_none(name):
    with pytest.raises(SwnetError, match=r"[Nn]ame a plan\.json that swcompile wrote\.$"):
        Plan.read(name)


# Models without memory


@pytest.fixture
def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4)), nn.Linear(16, 4))


def test_a_model_on_the_meta_device_is_rewired_but_not_masked_or_saved(empty, project):
    x = torch.zeros(2, 16)
    rewired = swnet.transform(empty, x, p=0.5, density=0.5)
    assert swnet.ledger(rewired).changed
    assert all(parameter.is_meta for parameter in rewired.parameters())
    with pytest.raises(SwnetError, match=r"on the meta device.*wiring='kernel'.*model\.to_empty\(device='cpu'\), or only plan"):
        swnet.transform(empty, x, p=0.5, wiring="kernel")
    assert swnet.plan(empty, x, p=0.5, wiring="kernel").masks()
    with pytest.raises(SwnetError, match=r"is on the meta device and has no memory; give the model some first: model\.to_empty"):
        swnet.save(rewired, project / "saved")
    assert not (project / "saved").exists()


@pytest.mark.parametrize("wiring", ["block", "kernel"])
def test_a_saved_model_is_not_loaded_into_one_without_memory(empty, project, wiring):
    model = copy.deepcopy(empty).to_empty(device="cpu")
    swnet.save(swnet.transform(model, torch.zeros(2, 16), p=0.5, wiring=wiring), project / "saved")
    with pytest.raises(SwnetError, match=r"on the meta device.*model\.to_empty\(device='cpu'\)"):
        swnet.load(project / "saved", empty)


# Models in which nothing can be done


def test_a_model_with_no_eligible_layer(project, refused):
    file = write(project, "from torch import nn\nmodel = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())\n")
    said = refused("transform", file, *SHAPE, code=3)
    assert "0: " in said
    assert refused("check", file, *SHAPE, code=3)


def test_a_model_with_no_layer_at_all(project, refused):
    file = write(project, "from torch import nn\nmodel = nn.ReLU()\n")
    assert refused("transform", file, *SHAPE, code=3)


# Plans


@pytest.fixture
def document(project: Path) -> dict[str, Any]:
    """A good plan as JSON."""
    model = modelfile.load_model("net.py").model
    made = swnet.plan(model, (torch.zeros(1, 3, 16, 16),), p=0.5, seed=1)
    document: dict[str, Any] = json.loads(made.to_json())
    assert document["layers"]
    return document


@pytest.fixture
def refused_plan(project: Path, refused: Callable[..., str]) -> Callable[[object], str]:
    """Apply a plan that must be refused."""

    def run(plan: object) -> str:
        text = plan if isinstance(plan, str) else json.dumps(plan)
        (project / "plan.json").write_text(text)
        return refused("transform", "net.py", *SHAPE, "--plan", "plan.json")

    return run


def test_the_good_plan_is_taken(project, document, capsys):
    (project / "plan.json").write_text(json.dumps(document))
    assert cli.run(["transform", "net.py", *SHAPE, "--plan", "plan.json"]) == 0, capsys.readouterr().err


def test_a_plan_for_another_model(project, document, refused):
    (project / "plan.json").write_text(json.dumps(document))
    file = write(project, NET.replace("range(6)", "range(5)"))
    said = refused("transform", file, *SHAPE, "--plan", "plan.json")
    assert "The plan was made for another model or input size: its fingerprint is" in said
    assert "Make a new plan" in said


def test_a_plan_from_a_newer_version(document, refused_plan):
    assert "The plan has version 2, this swcompile reads up to 1; install a newer swcompile." in refused_plan(
        document | {"version": 2}
    )


def test_a_plan_with_a_tap_out_of_range(document, refused_plan):
    wiring = document["layers"][0]
    start, stop = wiring["taps"][0][1:3]
    wiring["taps"][0][1:3] = [start + 1000, stop + 1000]
    assert re.search(r"In the plan, body\.\d\.0 taps .*; .* has \d+ channels", refused_plan(document))


def test_a_plan_with_a_cycle(document, refused_plan):
    model = modelfile.load_model("net.py").model
    graph = swnet.analyze(model, (torch.zeros(1, 3, 16, 16),)).graph
    later = [feature for feature in graph.features if feature.is_map][-1]
    document["features"].append(later.name)
    tap = document["layers"][0]["taps"][0]
    assert graph.layer_by_name[document["layers"][0]["layer"]].feature != later.name
    tap[0] = len(document["features"]) - 1
    said = refused_plan(document)
    assert "cannot tap" in said
    assert "so the tap would make a cycle" in said


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_plan_with_nan(document, refused_plan, constant):
    text = json.dumps(document).replace('"requested_p": 0.5', f'"requested_p": {constant}')
    assert constant in text
    assert f"The plan contains {constant}, which is not a number that it may hold." in refused_plan(text)


def test_a_plan_with_a_billion_channels(document, refused_plan):
    document["layers"][0]["taps"][0][1:3] = [0, 10**9]
    assert re.search(r"has \d+ channels", refused_plan(document))


def test_a_plan_with_a_mask_of_a_billion_rows(document, refused_plan):
    wiring = document["layers"][0]
    width = sum(tap[2] - tap[1] for tap in wiring["taps"])
    wiring["mask"] = {"shape": [10**9, width], "bits": ""}
    assert "the mask of layers[0] has 0 bytes" in refused_plan(document)


def test_masks_belong_to_wiring_kernel(document, refused_plan):
    changed = copy.deepcopy(document)
    changed["options"]["wiring"] = "kernel"
    assert "has no mask; wiring='kernel' gives one to every layer. Make a new plan" in refused_plan(changed)
    changed = copy.deepcopy(document)
    bits = base64.b64encode(b"\xff" * 32).decode()
    changed["layers"][0] |= {"mask": {"shape": [16, 16], "bits": bits}, "columns": []}
    assert "has a mask; wiring='block' gives one to no layer. Make a new plan" in refused_plan(changed)


def test_a_plan_larger_than_any(document, refused_plan, monkeypatch):
    monkeypatch.setattr(plans, "MAX_BYTES", 100)
    assert re.search(r"plan\.json is [\d,]+ bytes; a plan has at most 100\.", refused_plan(document))


@pytest.mark.parametrize("text", ["", "not json", "{", "[" * 100_000, "nul"])
def test_a_plan_that_is_not_json(refused_plan, text):
    assert "The plan is not JSON" in refused_plan(text)


@pytest.mark.parametrize("plan", [[], {}, 3, None, {"format": "zip"}])
def test_json_that_is_not_a_plan(refused_plan, plan):
    assert 'This is not a plan: its "format" should be "swcompile-plan".' in refused_plan(plan)


def test_a_plan_that_is_not_text_or_not_there(project, refused):
    (project / "plan.json").write_bytes(b"\xff\xfe\x00")
    assert "The plan plan.json is not text in UTF-8" in refused("transform", "net.py", *SHAPE, "--plan", "plan.json")
    assert "The plan gone.json cannot be read: No such file" in refused("transform", "net.py", *SHAPE, "--plan", "gone.json")


PATHS = ("format", "version", "fingerprint", "options", "options.p", "options.seed", "options.block", "requested_p", "features",
         "layers", "promise", "promise.units", "notes", "bypassed")  # fmt: skip
VALUES = (None, True, -1, 10**400, 1.5, "", "\x00", "../../etc/passwd", [], [[]], [None], {}, {"a": []}, [1, 2], ["x", "y"])


@pytest.mark.parametrize("path", PATHS)
def test_any_value_of_another_type_anywhere_in_a_plan(document, path):
    """Refused as SwnetError, or the plan that it then is; never another exception."""
    for value in VALUES:
        changed = copy.deepcopy(document)
        *outer, last = path.split(".")
        place = changed[outer[0]] if outer else changed
        place[last] = value
        try:
            text = json.dumps(changed)
            plan = Plan.from_json(text)
        except SwnetError:
            continue
        assert Plan.from_json(plan.to_json()) == plan, (path, value)


# Saved models


@pytest.fixture
def saved(project: Path) -> tuple[Path, nn.Module]:
    model = modelfile.load_model("net.py").model
    swnet.save(swnet.transform(model, (torch.zeros(1, 3, 16, 16),), p=0.5), project / "saved")
    return project / "saved", model


def test_what_was_saved_is_loaded(saved):
    folder, model = saved
    x = torch.randn(2, 3, 16, 16)
    first, second = (swnet.load(folder, copy.deepcopy(model)).eval() for _ in range(2))
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=0)
    assert swnet.load(folder, model.eval()).training is False
    assert swnet.load(folder, model.train()).training is True


def test_a_saved_model_for_another_model(saved):
    folder, _ = saved
    with pytest.raises(SwnetError, match="The plan was made for another model or input size"):
        swnet.load(folder, nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)))


def test_weights_that_do_not_match(saved, project):
    folder, _ = saved
    (project / "other.py").write_text(NET.replace("padding=1)", "padding=1, bias=False)"))
    other = modelfile.load_model(project / "other.py").model
    with pytest.raises(SwnetError, match=r"The saved weights do not match the model: .*body\.\d\.0\.bias is not in the model"):
        swnet.load(folder, other)


def test_weights_of_another_dtype(saved):
    folder, model = saved
    with pytest.raises(SwnetError, match=r"The plan was made for another|float32 of shape .*, the model's float64 of shape|double"):
        swnet.load(folder, model.double())


def test_loading_never_touches_the_model_it_is_given(saved):
    folder, model = saved
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    swnet.load(folder, model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Output folders


def test_an_output_folder_that_exists(project, refused):
    (project / "out").mkdir()
    said = refused("transform", "net.py", *SHAPE)
    assert "The folder out exists. Choose another one, or replace it: --force" in said


def test_an_output_folder_of_somebody_else_is_not_replaced(project, refused):
    (project / "out").mkdir()
    (project / "out" / "thesis.tex").write_text("mine")
    said = refused("transform", "net.py", *SHAPE, "--force")
    assert "The folder out holds files that do not belong to a saved model (thesis.tex); it is not replaced." in said
    assert "it is not replaced" in refused("transform", "net.py", *SHAPE, "--force", "--out", ".")


def test_an_output_folder_inside_a_file(refused):
    said = refused("transform", "net.py", *SHAPE, "--out", "net.py/deep/out")
    assert "The folder net.py/deep/out cannot be written: net.py is not a folder. Choose another place." in said


def test_an_output_folder_without_a_name(refused):
    said = refused("transform", "net.py", *SHAPE, "--out", "")
    assert "'' was given as the folder to write, and is no name of one. Name a new folder, such as 'out'." in said


def test_folders_above_the_output_are_not_left_behind(project, refused):
    file = write(project, "from torch import nn\nmodel = nn.ReLU()\n")
    assert refused("transform", file, *SHAPE, "--out", "no/such/out", code=3)


def test_an_output_that_is_a_file(refused):
    assert "net.py exists and is not a folder." in refused("transform", "net.py", *SHAPE, "--out", "net.py")


def test_an_output_folder_that_cannot_be_written(refused, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    said = refused("transform", "net.py", *SHAPE)
    assert re.search(r"The folder \S*out cannot be written: Permission denied\. Choose another one\.", said)


@pytest.mark.parametrize("leaves", [5, [5], [None], {"c": 1}])
def test_leaf_modules_of_the_wrong_kind(leaves: object) -> None:
    with pytest.raises(swnet.SwnetError, match=r"leaf_modules=.* was given; give a list of paths"):
        swnet.transform(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.zeros(2, 8), leaf_modules=leaves)


# Names that torch.fx cannot write


@pytest.mark.parametrize("name", ["class", "None", 'q"q', "a\\"])
def test_a_layer_whose_name_is_no_python(name):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    model.add_module(name, nn.Linear(16, 16))
    model.add_module("last", nn.Linear(16, 16))
    with pytest.raises(SwnetError, match=r"which torch\.fx cannot write into code.*Give it another name"):
        swnet.transform(model, torch.randn(2, 16), p=0.5)
