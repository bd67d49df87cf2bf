"""Saved models: what is written comes back, and whatever else lies in the folder is one SwnetError."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from swcompile import store
from swcompile.errors import SwnetError
from swcompile.graph import Tap
from swcompile.plan import LayerWiring, Options, Plan, Promise

PLAN = Plan("abc", Options(p=0.3, seed=5), 0.3, (LayerWiring("conv", (Tap("x", 0, 2),), ((0, 2),)),), Promise(4, 1))
SHAPES = (((1, 3, 8, 8), torch.float32), ((1, 7), torch.int64))


class Tied(nn.Module):
    """Two names for one weight, two views of one memory, an empty tensor, a number and several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        memory = torch.arange(16.0)
        self.register_buffer("flat", memory)
        self.register_buffer("square", memory.view(4, 4))
        self.register_buffer("transposed", memory.view(4, 4).t())
        self.register_buffer("part", memory[3:9])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brain", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("channels_last", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    store.write(tmp_path / "out", PLAN, Tied().state_dict(), SHAPES, model="Tied")
    return tmp_path / "out"


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def reseal(folder: Path) -> None:
    """Make the manifest describe the files as they are now: only what is inside them is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        raw = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# There and back


def test_plan_shapes_and_every_tensor_come_back(tmp_path):
    module, other = Tied(), Tied()
    store.write(tmp_path / "out", PLAN, module.state_dict(), SHAPES, model="Tied")
    stored = store.read(tmp_path / "out")
    assert (stored.plan, stored.shapes, stored.model) == (PLAN, SHAPES, "Tied")
    store.fill(other, stored)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
    assert other.decoder.weight is other.encoder.weight
    assert other.channels_last.is_contiguous(memory_format=torch.channels_last)


def test_a_shared_tensor_is_stored_once(saved):
    assert json.loads((saved / "manifest.json").read_text())["aliases"] == {"decoder.weight": "encoder.weight"}
    header = (saved / "weights.safetensors").read_bytes()
    assert b"encoder.weight" in header
    assert b"decoder.weight" not in header


def test_the_same_model_gives_the_same_bytes(tmp_path):
    module = Tied()
    for name in ("a", "b"):
        store.write(tmp_path / name, PLAN, module.state_dict(), SHAPES)
    for name in ("plan.json", "weights.safetensors", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_further_files_are_written_with_it(tmp_path):
    store.write(tmp_path / "out", PLAN, {}, (), extras={"model.py": b"x = 1\n", "source/deep/net.py": b"y"})
    assert listing(tmp_path / "out") == [
        "manifest.json", "model.py", "plan.json", "source", "source/deep", "source/deep/net.py", "weights.safetensors",
    ]  # fmt: skip


def test_the_folder_can_be_moved(saved):
    text = (saved / "manifest.json").read_text() + (saved / "plan.json").read_text()
    assert str(saved.parent) not in text
    store.fill(Tied(), store.read(saved.rename(saved.with_name("moved"))))


# Writing: whole or not at all


def test_an_existing_folder_is_kept_unless_forced(saved):
    before = (saved / "plan.json").read_bytes()
    with pytest.raises(SwnetError, match=r"The folder .*out exists\. Choose another one, or replace it: --force"):
        store.write(saved, PLAN, {}, ())
    assert (saved / "plan.json").read_bytes() == before
    store.write(saved, PLAN, {}, (), force=True)
    assert store.read(saved).shapes == ()
    assert listing(saved.parent)[0] == "out"
    assert len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoint.pt"])
def test_force_does_not_cost_files_that_are_not_ours(saved, name):
    (saved / name).write_text("mine")
    with pytest.raises(SwnetError, match=rf"holds files that do not belong to a saved model \({name}\); it is not replaced"):
        store.write(saved, PLAN, {}, (), force=True)
    assert (saved / name).read_text() == "mine"


def test_force_does_not_replace_a_folder_without_a_manifest(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.py").write_text("mine")
    with pytest.raises(SwnetError, match=r"do not belong to a saved model \(model\.py\)"):
        store.write(tmp_path / "out", PLAN, {}, (), force=True)


@pytest.mark.parametrize("manifest", [b"no json", b"[1]", b"{}", b'{"format": "another"}', b"[" * 100_000])
def test_force_replaces_no_folder_whose_manifest_is_of_another_program(tmp_path, manifest):
    """manifest.json and model.py are names that others give, too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_bytes(manifest)
    (tmp_path / "out" / "model.py").write_text("mine")
    with pytest.raises(SwnetError, match=r"holds a manifest\.json that does not describe a saved model; it is not replaced"):
        store.write(tmp_path / "out", PLAN, {}, (), force=True)
    assert listing(tmp_path / "out") == ["manifest.json", "model.py"]


def test_force_does_not_cost_an_onnx_file_that_was_put_beside_a_model(saved):
    (saved / "model.onnx").write_text("mine")
    with pytest.raises(SwnetError, match=r"do not belong to a saved model \(model\.onnx\)"):
        store.write(saved, PLAN, {}, (), force=True)


def test_force_replaces_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    store.write(tmp_path / "out", PLAN, {}, (), force=True)
    assert store.read(tmp_path / "out").plan == PLAN


def test_force_replaces_no_file_and_no_link(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    (tmp_path / "file").write_text("mine")
    for name, what in (("link", "a link, which is not replaced"), ("file", "not a folder")):
        with pytest.raises(SwnetError, match=f"exists and is {what}. Choose another name, or remove it."):
            store.write(tmp_path / name, PLAN, {}, (), force=True)
    assert (tmp_path / "link").is_symlink()


def test_a_folder_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SwnetError, match=r"cannot be written: file is not a folder\. Choose another place\."):
        store.write(tmp_path / "file" / "deep" / "out", PLAN, {}, ())
    assert listing(tmp_path) == ["file"]


def test_folders_above_it_are_made(tmp_path):
    store.write(tmp_path / "no" / "such" / "out", PLAN, {}, ())
    assert store.read(tmp_path / "no" / "such" / "out").plan == PLAN
    assert [path.name for path in (tmp_path / "no" / "such").iterdir()] == ["out"]


@pytest.mark.parametrize("folder", ["", "a\0b", None, 3])
def test_what_is_no_name_of_a_folder(folder):
    with pytest.raises(
        SwnetError, match=r"was given as the folder to write, and is no name of one\. Name a new folder, such as 'out'\."
    ):
        store.write(folder, PLAN, {}, ())
    with pytest.raises(SwnetError, match="There is no folder"):
        store.read(folder)


@pytest.mark.parametrize("target", ["out", "no/such/out"])
def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, target):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SwnetError, match=r"cannot be written: No space left on device\. Choose another one"):
        store.write(tmp_path / target, PLAN, {}, ())
    assert listing(tmp_path) == []


def test_a_folder_whose_content_is_secret(saved, monkeypatch):
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SwnetError, match=r"cannot be written: Permission denied\. Choose another one\."):
        store.write(saved, PLAN, {}, (), force=True)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        store.write(tmp_path / "out", PLAN, {"weight": torch.zeros(2)}, ())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["rename", "rmtree"])
def test_signals_wait_until_the_folders_are_in_order(saved, monkeypatch, when, number):
    """One that comes while the old folder is renamed or removed."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    module, act = (Path, Path.rename) if when == "rename" else (shutil, shutil.rmtree)

    def slow(*arguments: object, **options: object) -> object:
        signal.raise_signal(number)
        return act(*arguments, **options)

    monkeypatch.setattr(module, when, slow)
    before = signal.signal(number, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.write(saved, PLAN, {}, (), force=True)
        assert signal.getsignal(number) is interrupted
    finally:
        signal.signal(number, before)
    assert [path.name for path in saved.parent.iterdir()] == ["out"]
    assert store.read(saved).shapes == ()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_an_interruption_leaves_the_old_folder_or_the_new_one(saved, monkeypatch, step, after):
    """Before and after each of the two renames."""
    rename, steps = Path.rename, iter(range(10))

    def interrupted(self: Path, target: Path) -> Path:
        place = next(steps)
        if place == step and not after:
            raise KeyboardInterrupt
        done = rename(self, target)
        if place == step and after:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(saved, PLAN, {}, (), force=True)
    monkeypatch.undo()
    assert [path.name for path in saved.parent.iterdir()] == ["out"]
    assert len(store.read(saved).shapes) == (0 if (step, after) == (1, True) else 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1}, r"layer\._extra_state is extra state of type dict; only tensors are saved"),
        (torch.zeros(2, device="meta"), r"is on the meta device and has no memory"),
        (torch.eye(2).to_sparse(), "is a sparse or quantized tensor; only plain ones are saved"),
    ],
)
def test_what_cannot_be_saved_is_said_and_nothing_is_left(tmp_path, value, said):
    with pytest.raises(SwnetError, match=said):
        store.write(tmp_path / "out", PLAN, {"layer._extra_state": value}, ())
    assert listing(tmp_path) == []


# Reading what somebody else may have written


def test_a_folder_that_is_none_or_incomplete(saved, tmp_path):
    with pytest.raises(SwnetError, match=r"There is no folder .*nowhere to load; write one with swnet\.save"):
        store.read(tmp_path / "nowhere")
    for name in ("plan.json", "manifest.json"):
        copy = shutil.copytree(saved, tmp_path / f"without-{name}")
        (copy / name).unlink()
        with pytest.raises(SwnetError, match=f"holds no {name}; it is not a complete saved model"):
            store.read(copy)
    (saved / "weights.safetensors").unlink()
    with pytest.raises(SwnetError, match=r"holds no weights\.safetensors"):
        store.fill(Tied(), store.read(saved))


@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_read(saved, tmp_path, name, kind):
    moved = (saved / name).rename(tmp_path / name)
    if kind == "link":
        (saved / name).symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(saved / name)
    else:
        (saved / name).mkdir()
    with pytest.raises(SwnetError, match=f"{name} (is a link|is not a plain file|cannot be read)"):
        store.fill(Tied(), store.read(saved))


MANIFESTS = {
    "not json": (b"{", "manifest.json is not JSON"),
    "not text": (b"\xff\xfe\x00", "manifest.json is not text in UTF-8"),
    "deep": (b"[" * 100_000, "manifest.json is not JSON"),
    "a list": (b"[]", 'its "format" should be "swcompile-model"'),
    "another format": (b'{"format": "zip"}', 'its "format" should be "swcompile-model"'),
    "NaN": (b'{"format": NaN}', "manifest.json contains NaN, which is not a number that it may hold"),
    "a key twice": (b'{"format": "x", "format": "swcompile-model"}', 'manifest.json has the key "format" twice'),
    "a key twice inside": (b'{"format": "swcompile-model", "files": {"a": 1, "a": 1}}', 'has the key "a" twice'),
    "nothing else": (b'{"format": "swcompile-model", "version": 1}', "lacks the keys aliases, example_inputs"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_none(saved, case):
    raw, said = MANIFESTS[case]
    (saved / "manifest.json").write_bytes(raw)
    with pytest.raises(SwnetError, match=said):
        store.read(saved)


CHANGES = {
    "newer": ({"version": 2}, r"saved in version 2, this swcompile reads up to 1; install a newer one"),
    "no version": ({"version": "1"}, "version should be a whole number from 0 up; it is '1'"),
    "true version": ({"version": True}, "version should be a whole number"),
    "zero": ({"version": 0}, "version should be from 1 to 1"),
    "more keys": ({"run": "rm"}, "also has the keys run; it should have aliases, example_inputs"),
    "huge seed": ({"seed": 1 << 64}, "seed should be a whole number"),
    "float seed": ({"seed": 1.5}, "seed should be a whole number"),
    "long name": ({"model": "x" * 1000}, "model should be a short text"),
    "escape": ({"model": "\x1b[2J"}, "model should be a short text"),
    "files": ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "files should be an object with plan.json and"),
    "hash": ({"files": {"plan.json": {"bytes": 1, "sha256": "x"}, "weights.safetensors": {}}}, "should be 64 hexadecimal digits"),
    "facts": ({"files": {"plan.json": [], "weights.safetensors": {}}}, "should be an object with bytes and sha256"),
    "inputs": ({"example_inputs": 3}, "example_inputs should be a list of at most 64"),
    "many inputs": ({"example_inputs": [[[1], "float32"]] * 65}, "example_inputs should be a list of at most 64"),
    "an input": ({"example_inputs": [{"shape": [1]}]}, r"example_inputs should be a list of \[sizes, dtype\]"),
    "deep input": ({"example_inputs": [[[1] * 9, "float32"]]}, r"example_inputs should be a list of \[sizes, dtype\]"),
    "negative": ({"example_inputs": [[[-1, 3], "float32"]]}, "example_inputs should be a whole number"),
    "huge": ({"example_inputs": [[[1, 3, 10**9, 10**9], "float32"]]}, "is not a size to try"),
    "dtype": ({"example_inputs": [[[1], "__import__('os')"]]}, "is not a dtype"),
    "long dtype": ({"example_inputs": [[[1], "a" * 100_000]]}, r"'a{76}\.\.\. is not a dtype"),
    "aliases": ({"aliases": []}, "aliases should be an object of names"),
    "alias": ({"aliases": {"a": 1}}, "aliases should be an object of names"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_of_another_form(saved, case):
    change, said = CHANGES[case]
    manifest = json.loads((saved / "manifest.json").read_text()) | change
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SwnetError, match=said):
        store.read(saved)


def test_files_larger_than_any_of_ours_are_not_read(saved, monkeypatch):
    monkeypatch.setattr(store, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(SwnetError, match=r"manifest\.json is [\d,]+ bytes; at most 100 are read"):
        store.read(saved)
    monkeypatch.undo()
    monkeypatch.setattr("swcompile.plan.MAX_BYTES", 100)
    with pytest.raises(SwnetError, match=r"plan\.json is [\d,]+ bytes; at most 100 are read"):
        store.read(saved)


def test_weights_larger_than_the_model_are_not_read(saved):
    with (saved / "weights.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(SwnetError, match="bytes; this model's weights need at most"):
        store.fill(Tied(), store.read(saved))


def test_an_altered_plan_is_noticed(saved):
    (saved / "plan.json").write_text(PLAN.to_json().replace("abc", "abd"))
    with pytest.raises(SwnetError, match=r"plan\.json is not the file that manifest\.json describes: .* save the model again"):
        store.read(saved)


@pytest.mark.parametrize("raw", [b"[]", b"\xff", b"", b'{"format": "swcompile-plan", "version": 9}'])
def test_a_plan_that_is_none(saved, raw):
    (saved / "plan.json").write_bytes(raw)
    reseal(saved)
    with pytest.raises(SwnetError, match="plan"):
        store.read(saved)


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


BROKEN_WEIGHTS = {
    "empty": b"",
    "short": b"\x08\x00",
    "a pickle": b"\x80\x04\x95" + b"\x00" * 100,
    "huge header": struct.pack("<Q", 1 << 60) + b"{}",
    "not json": struct.pack("<Q", 4) + b"oops",
    "outside": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "overflow": header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}}) + b"\x00" * 16,
    "unknown dtype": header({"a": {"dtype": "Z9", "shape": [4], "data_offsets": [0, 16]}}) + b"\x00" * 16,
    "negative": header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}) + b"\x00" * 16,
}


@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
def test_weights_that_are_none(saved, case):
    (saved / "weights.safetensors").write_bytes(BROKEN_WEIGHTS[case])
    reseal(saved)
    with pytest.raises(SwnetError, match=r"weights\.safetensors cannot be read as safetensors: "):
        store.fill(Tied(), store.read(saved))


def test_weights_cut_short_are_noticed(saved):
    raw = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(raw[:-5])
    with pytest.raises(SwnetError, match=r"is not the file that manifest\.json describes.*cut short or altered"):
        store.fill(Tied(), store.read(saved))
    reseal(saved)
    with pytest.raises(SwnetError, match="cannot be read as safetensors"):
        store.fill(Tied(), store.read(saved))


def rewritten(folder: Path, **changes: torch.Tensor | None) -> store.Stored:
    """Save again with some tensors replaced, or left out for None."""
    state = {name: tensor for name, tensor in (Tied().state_dict() | changes).items() if tensor is not None}
    store.write(folder, PLAN, state, SHAPES, force=True)
    return store.read(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": None}, "count is missing"),
        ({"extra": torch.zeros(1)}, "extra is not in the model"),
        ({"part": torch.zeros(5)}, r"part is float32 of shape \(5,\), the model's float32 of shape \(6,\)"),
        ({"count": torch.tensor(7.0)}, r"count is float32 of shape \(\), the model's int64 of shape \(\)"),
        ({"decoder.weight": torch.zeros(4, 4)}, "decoder.weight and encoder.weight are one tensor in the model, two different"),
    ],
)
def test_weights_of_another_model(saved, changes, said):
    module = Tied()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(SwnetError, match=r"The saved weights do not match the model: .*" + said):
        store.fill(module, rewritten(saved, **changes))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_folder_in_place_of_a_file_is_closed_again(saved):
    (saved / "plan.json").unlink()
    (saved / "plan.json").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(SwnetError, match=r"plan\.json cannot be read: Is a directory"):
            store.read(saved)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_a_name_longer_than_any_folder_has(name):
    with pytest.raises(SwnetError, match=r"There is no folder xx?"):
        store.read(name)


def test_names_in_the_weights_are_cut_where_a_message_repeats_them(saved):
    with pytest.raises(SwnetError, match=r"is not in the model") as caught:
        store.fill(Tied(), rewritten(saved, **{"a" * 5000: torch.zeros(2)}))
    assert len(str(caught.value)) < 300
    with pytest.raises(SwnetError, match=r"count is int64 of shape \(1, 1, ") as caught:
        store.fill(Tied(), rewritten(saved, count=torch.zeros([1] * 60, dtype=torch.int64)))
    assert len(str(caught.value)) < 300


def test_tensors_that_the_model_does_not_have_are_counted_and_not_looked_at(saved, monkeypatch):
    """A header of 100 MB can name a million of them."""
    stored = rewritten(saved, **{f"more{number}": torch.zeros(0) for number in range(100)})
    read: list[str] = []

    class Opened:
        def __init__(self, *arguments, **options):
            self.file = safe_open(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(store, "safe_open", Opened)
    with pytest.raises(SwnetError, match=r"more0 is not in the model.*and 95 more"):
        store.fill(Tied(), stored)
    assert not any(name.startswith("more") for name in read)


def test_many_differences_are_counted(saved):
    with pytest.raises(SwnetError, match=r"and \d+ more\. Build the model as when it was saved"):
        store.fill(nn.Linear(3, 3), store.read(saved))


def test_a_model_without_memory_is_refused(saved):
    with pytest.raises(SwnetError, match="is on the meta device and has no memory; give the model some first"):
        store.fill(Tied().to("meta"), store.read(saved))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_any_byte_is_a_swnet_error_or_harmless(saved, data):
    """A byte changed, cut or added anywhere: SwnetError, or the very same model (a blank in the manifest)."""
    name = data.draw(st.sampled_from(["plan.json", "manifest.json", "weights.safetensors"]))
    raw = (saved / name).read_bytes()
    place = data.draw(st.integers(0, len(raw) - 1))
    changed = data.draw(st.sampled_from([raw[:place], raw[:place] + data.draw(st.binary(max_size=3)) + raw[place + 1 :]]))
    module = Tied()
    try:
        (saved / name).write_bytes(changed)
        if data.draw(st.booleans()):
            reseal(saved) if name != "manifest.json" else None
        store.fill(module, store.read(saved))
    except SwnetError:
        pass
    finally:
        (saved / name).write_bytes(raw)
        reseal(saved)
