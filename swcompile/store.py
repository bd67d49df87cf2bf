"""Save a rewired model to a folder and read it back, never through a pickle.

    plan.json              what each layer reads
    weights.safetensors    the state dict, tensors that are shared stored once
    manifest.json          format, versions, example shapes, sizes and hashes of the two above

`write` fills a temporary folder beside the target and renames it, so that a reader sees the whole folder or none. Whatever is
read back is untrusted: names are fixed and so cannot leave the folder, links are refused, sizes are bounded before anything is
read, and every defect is one SwnetError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from swcompile import plan as plans
from swcompile.errors import SwnetError, first_line
from swcompile.modelfile import Shape, check_shape
from swcompile.plan import ALTERED, Plan

VERSION = 1
PLAN, WEIGHTS, MANIFEST = "plan.json", "weights.safetensors", "manifest.json"
REPORT, PLOTS = "report.html", "plots"
MAX_MANIFEST_BYTES = 16 << 20
MAX_HEADER_BYTES = 101 << 20
"""safetensors itself reads headers of up to 100 MB."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that swcompile writes: its name in a manifest and messages, who writes and what replaces it, its files."""

    format: str
    words: str
    writer: str
    replaced: str
    files: frozenset[str]


MODEL = Kind(
    "swcompile-model",
    "a saved model",
    "`swcompile transform` or swnet.save",
    "--force, or swnet.save(..., force=True)",
    frozenset({PLAN, WEIGHTS, MANIFEST, "ledger.json", REPORT, PLOTS, "model.py", "source", "__pycache__"}),
)
EXPORT = Kind(
    "swcompile-export",
    "an export",
    "`swcompile export`",
    "--force",
    frozenset({MANIFEST, "model.py", WEIGHTS, "model.pt2", "model.aot.pt2", "model.onnx", "model.onnx.data", "__pycache__"}),
)


@dataclass(frozen=True)
class Stored:
    """A saved model whose plan has been read; its weights stay on the disk until `fill`."""

    folder: Path
    plan: Plan
    shapes: tuple[Shape, ...]
    aliases: Mapping[str, str]
    weights_bytes: int
    weights_sha256: str
    model: str


# Writing


def write(
    folder: str | Path,
    plan: Plan,
    state: Mapping[str, Any],
    shapes: tuple[Shape, ...],
    *,
    model: str = "",
    extras: Mapping[str, bytes] | None = None,
    force: bool = False,
) -> None:
    """Write a rewired model to a new folder, whole or not at all.

    `state` is its state dict, `shapes` the example inputs that the plan was made for, `model` the name of its class, `extras`
    further files by their path inside the folder. With `force`, a model saved there earlier is replaced: the old one stays until
    the new one is complete. Raises SwnetError where the folder exists, holds files that are not ours, or cannot be written.
    """
    for path in extras or {}:
        assert path.split("/")[0] in MODEL.files, f"{path} is not a file of a saved model"
        assert ".." not in path.split("/"), f"{path} leaves the folder"
    with replacing(folder, kind=MODEL, force=force) as fresh:
        _write_files(fresh, plan, state, shapes, model)
        for path, content in (extras or {}).items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_bytes(content)


def _write_files(fresh: Path, plan: Plan, state: Mapping[str, Any], shapes: tuple[Shape, ...], model: str) -> None:
    (fresh / PLAN).write_bytes(plan.to_json().encode())
    unique, aliases = _unshare(state)
    try:
        save_file(unique, fresh / WEIGHTS)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SwnetError(
            f"The weights cannot be written as safetensors: {first_line(error)}. Choose another folder, or convert them."
        ) from error
    (fresh / WEIGHTS).chmod(stat.S_IMODE((fresh / PLAN).stat().st_mode))  # safetensors leaves 0600, whatever the umask says
    manifest = {
        "format": MODEL.format,
        "version": VERSION,
        "swcompile": version(),
        "torch": torch.__version__.split("+")[0],
        "model": model,
        "seed": plan.options.seed,
        "example_inputs": [[list(sizes), _dtype_name(dtype)] for sizes, dtype in shapes],
        "files": {name: {"bytes": (fresh / name).stat().st_size, "sha256": _digest(fresh / name)} for name in (PLAN, WEIGHTS)},
        "aliases": aliases,
    }
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def version() -> str:
    """Return the version of swcompile that runs, "0" in a checkout that is not installed."""
    try:
        return metadata.version("swcompile")
    except metadata.PackageNotFoundError:
        return "0"


def write_files(path: str | Path, page: bytes, plots: Mapping[str, bytes]) -> None:
    """Write a report, and its plots into a folder `plots` beside it. Each file is replaced whole or not at all.

    Raises SwnetError where a file cannot be written.
    """
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise SwnetError(f"{path!r} was given as the file to write, and is no name of one. Name one, such as 'report.html'.")
    file = Path(path)
    files = {file: page, **{file.parent / PLOTS / name: content for name, content in plots.items()}}
    part = file
    try:
        if plots:
            (file.parent / PLOTS).mkdir(exist_ok=True)
        for target, content in files.items():
            part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            part.write_bytes(content)
            part.replace(target)
    except OSError as error:
        raise SwnetError(f"The report {path} cannot be written: {error.strerror or error}. Choose another place.") from error
    finally:
        if part != file:
            with contextlib.suppress(OSError), _undisturbed():
                part.unlink(missing_ok=True)


def _unshare(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor once, on the CPU and contiguous, and which names stand for which."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[object, str] = {}
    owned: set[int] = set()
    for name, value in state.items():
        tensor = _storable(name, value)
        first = seen.setdefault(_identity(tensor), name)
        if first != name:
            aliases[name] = first
            continue
        plain = tensor.cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in owned or storage.nbytes() != plain.nbytes:
            plain = plain.clone()  # another view of the same memory: safetensors wants each tensor to own its own
        owned.add(storage.data_ptr())
        unique[name] = plain
    return unique, aliases


def _storable(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise SwnetError(
            f"{name} is extra state of type {type(value).__name__}; only tensors are saved, since anything else would need "
            "a pickle. Keep it in a buffer, or save it yourself."
        )
    if value.is_meta:
        raise SwnetError(
            f"{name} is on the meta device and has no memory; give the model some first: model.to_empty(device='cpu')."
        )
    if value.layout is not torch.strided or value.is_quantized:
        raise SwnetError(f"{name} is a sparse or quantized tensor; only plain ones are saved. Convert it first.")
    return value.detach()


def _identity(tensor: Tensor) -> object:
    """Return a key that two tensors have in common when they are the same memory, read the same way."""
    if tensor.numel() == 0:
        return object()
    place = tensor.untyped_storage().data_ptr()
    return tensor.device, place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


@contextlib.contextmanager
def replacing(folder: str | Path, *, kind: Kind, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which takes its place when the block ends well and vanishes when it does not.

    So do folders above it that did not exist. `kind` and `force` are those of check_target.
    """
    target = check_target(folder, kind=kind, force=force)
    missing = [parent for parent in target.parents if not os.path.lexists(parent)]
    token = secrets.token_hex(4)
    fresh = target.with_name(f".{target.name}.new-{token}")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        with _undisturbed():
            _swap(fresh, target, target.with_name(f".{target.name}.old-{token}"), kind=kind, force=force)
    except OSError as error:
        raise SwnetError(f"The folder {folder} cannot be written: {error.strerror or error}. Choose another one.") from error
    finally:
        with _undisturbed():
            shutil.rmtree(fresh, ignore_errors=True)
            for parent in missing:
                with contextlib.suppress(OSError):  # not empty: it holds the result
                    parent.rmdir()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended: cleaning up must not stop halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread, and only there may one ask for them
        return
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda sent, _: came.append(sent))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for held in came:
            signal.raise_signal(held)


def _swap(fresh: Path, target: Path, old: Path, *, kind: Kind, force: bool) -> None:
    if not os.path.lexists(target):
        fresh.rename(target)
        return
    check_target(target, kind=kind, force=force)
    try:
        target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():  # the second one failed
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def check_target(folder: str | Path, *, kind: Kind, force: bool = False) -> Path:
    """Return the absolute path of a folder that may be written. Raises SwnetError where it may not, and says why.

    `force` replaces what swcompile wrote, and nothing else: `--out . --force` must not cost anybody their files. It replaces a
    folder of the same kind alone: an export must not cost anybody the model that it was made of, nor a model an export.
    """
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise SwnetError(f"{folder!r} was given as the folder to write, and is no name of one. Name a new folder, such as 'out'.")
    try:
        return _free(Path(os.path.abspath(folder)), str(folder), kind, force)
    except OSError as error:
        raise SwnetError(f"The folder {folder} cannot be written: {error.strerror or error}. Choose another one.") from error


def _free(target: Path, folder: str, kind: Kind, force: bool) -> Path:
    above = next((parent for parent in target.parents if os.path.lexists(parent)), target)
    if not above.is_dir():
        raise SwnetError(f"The folder {folder} cannot be written: {above.name} is not a folder. Choose another place.")
    if not os.path.lexists(target):
        return target
    if target.is_symlink() or not target.is_dir():
        what = "a link, which is not replaced" if target.is_symlink() else "not a folder"
        raise SwnetError(f"{folder} exists and is {what}. Choose another name, or remove it.")
    if not force:
        raise SwnetError(f"The folder {folder} exists. Choose another one, or replace it: {kind.replaced}.")
    _check_kind(target, folder, kind)
    return target


def _check_kind(target: Path, folder: str, kind: Kind) -> None:
    """Raise SwnetError where a folder holds something, and that is not all of a kind."""
    found = sorted(entry.name for entry in target.iterdir())
    held = _kind_of(target / MANIFEST) if MANIFEST in found else None
    if held is not None and held is not kind:
        raise SwnetError(
            f"The folder {folder} holds {held.words}, which {held.writer} wrote; {kind.words} does not replace it. Choose another."
        )
    foreign = [name for name in found if name not in kind.files]
    if foreign or (found and MANIFEST not in found):
        shown = ", ".join((foreign or found)[:5])
        raise SwnetError(
            f"The folder {folder} holds files that do not belong to {kind.words} ({shown}); it is not replaced. Choose another."
        )
    if found and held is None:
        raise SwnetError(f"The folder {folder} holds a {MANIFEST} that does not describe {kind.words}; it is not replaced. Choose "
                         "another.")  # fmt: skip


def _kind_of(manifest: Path) -> Kind | None:
    """Return the kind of folder that a manifest describes, None where it describes none of ours."""
    with _opened(manifest) as file:
        raw = _bounded(file, MANIFEST, MAX_MANIFEST_BYTES)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return next((kind for kind in (MODEL, EXPORT) if isinstance(document, dict) and document.get("format") == kind.format), None)


# Reading


def read(folder: str | Path) -> Stored:
    """Read the manifest and the plan of a saved model. Raises SwnetError for anything that is not exactly what `write` wrote."""
    if not isinstance(folder, str | Path) or not os.path.isdir(folder):  # which, unlike Path.is_dir, takes any name
        raise SwnetError(f"There is no folder {folder} to load; write one with swnet.save or `swcompile transform`.")
    root = Path(folder)
    with _opened(root / MANIFEST) as file:
        manifest = _Manifest(_bounded(file, MANIFEST, MAX_MANIFEST_BYTES))
    size, digest = manifest.file(PLAN)
    with _opened(root / PLAN) as file:
        raw = _bounded(file, PLAN, plans.MAX_BYTES)
    _match(PLAN, len(raw), size, hashlib.sha256(raw).hexdigest(), digest)
    try:
        plan = Plan.from_json(raw.decode())
    except UnicodeDecodeError as error:
        raise SwnetError(f"{PLAN} is not text in UTF-8. {ALTERED}") from error
    return Stored(root, plan, manifest.shapes(), manifest.aliases(), *manifest.file(WEIGHTS), manifest.text("model"))


def fill(module: nn.Module, stored: Stored) -> None:
    """Load the saved weights into a rewired module, strictly. Raises SwnetError, and touches nothing, where they do not match."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        _storable(name, value)
    room = sum(tensor.nbytes for tensor in wanted.values()) + MAX_HEADER_BYTES
    path = stored.folder / WEIGHTS
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > room:
            raise SwnetError(
                f"{WEIGHTS} has {size:,} bytes; this model's weights need at most {room:,}. Build the model as when it was saved."
            )
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _match(WEIGHTS, size, stored.weights_bytes, digest, stored.weights_sha256)
    try:
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()  # of which a small file can hold a million: only what is wanted is looked at
            weights = {name: tensors.get_tensor(name) for name in names if name in wanted}
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OSError) as error:
        raise SwnetError(f"{WEIGHTS} cannot be read as safetensors: {first_line(error)}. Save the model again.") from error
    weights |= {name: weights[first] for name, first in stored.aliases.items() if first in weights and name not in weights}
    _compare(wanted, weights, [name for name in names if name not in wanted])
    module.load_state_dict(weights, strict=True)


def _compare(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], foreign: Sequence[str]) -> None:
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name[:80]} is not in the model" for name in foreign]
    for name in (name for name in wanted if name in weights):
        need, have = wanted[name], weights[name]
        if (need.shape, need.dtype) != (have.shape, have.dtype):
            wrong.append(f"{name} is {_words(have)}, the model's {_words(need)}")
    first: dict[object, str] = {}
    for name, tensor in wanted.items():
        other = first.setdefault(_identity(tensor), name)
        if not wrong and other != name and not torch.equal(weights[name], weights[other]):
            wrong.append(f"{name} and {other} are one tensor in the model, two different ones in the file")
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise SwnetError(
            f"The saved weights do not match the model: {'; '.join(wrong[:5])}{more}. Build the model as when it was saved."
        )


def _words(tensor: Tensor) -> str:
    return f"{_dtype_name(tensor.dtype)} of shape {str(tuple(tensor.shape))[:80]}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _match(name: str, size: int, wanted_size: int, digest: str, wanted_digest: str) -> None:
    if (size, digest) != (wanted_size, wanted_digest):
        raise SwnetError(
            f"{name} is not the file that {MANIFEST} describes: {size:,} bytes with hash {digest[:12]}, "
            f"not {wanted_size:,} with {wanted_digest[:12]}. It was cut short or altered; save the model again."
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file for reading: no link that leads elsewhere, no pipe that never ends."""
    try:
        if path.is_symlink():  # where O_NOFOLLOW is missing
            raise SwnetError(f"{path.name} is a link; a saved model holds plain files only. Put the file itself there.")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(
            path, "rb", opener=lambda name, _: os.open(name, flags)
        ) as file:  # which, unlike os.fdopen, closes a folder again
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SwnetError(f"{path.name} is not a plain file. {ALTERED}")
            yield file
    except FileNotFoundError as error:
        raise SwnetError(
            f"{path.parent.name} holds no {path.name}; it is not a complete saved model. Name a folder that swnet.save wrote."
        ) from error
    except OSError as error:
        raise SwnetError(
            f"{path.name} cannot be read: {error.strerror or error}. Make it readable, or save the model again."
        ) from error


def _bounded(file: BufferedReader, name: str, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise SwnetError(f"{name} is {size:,} bytes; at most {limit:,} are read. {ALTERED}")
    return file.read(limit)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Manifest:
    """Take an untrusted manifest apart, or say at which key it goes wrong."""

    KEYS = frozenset({"format", "version", "swcompile", "torch", "model", "seed", "example_inputs", "files", "aliases"})

    def __init__(self, raw: bytes) -> None:
        try:
            document = plans.parse(raw.decode(), MANIFEST)
        except UnicodeDecodeError as error:
            raise SwnetError(f"{MANIFEST} is not text in UTF-8. {ALTERED}") from error
        if not isinstance(document, dict) or document.get("format") != MODEL.format:
            raise SwnetError(f'{MANIFEST} does not describe a saved model: its "format" should be "{MODEL.format}". {ALTERED}')
        self.document = document
        version = self._count(document.get("version"), "version")
        if version > VERSION:
            raise SwnetError(
                f"The model was saved in version {version}, this swcompile reads up to {VERSION}; install a newer one."
            )
        if version < 1:
            raise self._wrong("version", f"from 1 to {VERSION}", version)
        for word, names in (("lacks", self.KEYS - document.keys()), ("also has", document.keys() - self.KEYS)):
            if names:
                shown = ", ".join(sorted(names)[:8])[:200]
                raise SwnetError(f"{MANIFEST} {word} the keys {shown}; it should have {', '.join(sorted(self.KEYS))}. {ALTERED}")
        for key in ("swcompile", "torch", "model"):
            self.text(key)
        self._count(document["seed"], "seed")

    @staticmethod
    def _wrong(key: str, wanted: str, found: object) -> SwnetError:
        return SwnetError(f"In {MANIFEST}, {key} should be {wanted}; it is {str(found)[:80]!r}. {ALTERED}")

    def _count(self, value: object, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._wrong(key, "a whole number from 0 up", value)
        return value

    def text(self, key: str) -> str:
        value = self.document[key]
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise self._wrong(key, "a short text", value)
        return value

    def file(self, name: str) -> tuple[int, str]:
        """Return the size and the hash of a file."""
        files = self.document["files"]
        if not isinstance(files, dict) or set(files) != {PLAN, WEIGHTS}:
            raise self._wrong("files", f"an object with {PLAN} and {WEIGHTS}", files)
        facts = files[name]
        if not isinstance(facts, dict) or set(facts) != {"bytes", "sha256"}:
            raise self._wrong(f"files[{name}]", "an object with bytes and sha256", facts)
        digest = facts["sha256"]
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise self._wrong(f"files[{name}].sha256", "64 hexadecimal digits", digest)
        return self._count(facts["bytes"], f"files[{name}].bytes"), digest

    def shapes(self) -> tuple[Shape, ...]:
        items = self.document["example_inputs"]
        if not isinstance(items, list) or len(items) > 64:
            raise self._wrong("example_inputs", "a list of at most 64 [sizes, dtype]", items)
        return tuple(self._shape(item) for item in items)

    def _shape(self, item: object) -> Shape:
        match item:
            case [[*sizes], str(name)] if len(sizes) <= 8:
                found = tuple(self._count(size, "example_inputs") for size in sizes)
                return check_shape(found, name, f"example_inputs in {MANIFEST}")
        raise self._wrong("example_inputs", "a list of [sizes, dtype]", item)

    def aliases(self) -> dict[str, str]:
        found = self.document["aliases"]
        if not isinstance(found, dict) or not all(isinstance(first, str) for first in found.values()):
            raise self._wrong("aliases", "an object of names", found)
        return found
