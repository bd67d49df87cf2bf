"""The plan: what each layer shall read, as frozen data that can be printed, saved, compared and verified before use.

A plan is made by a wiring (swcompile.wiring) from a LayerGraph, and carried out by swcompile.rewrite. It refers to the model
by names only, holds no weights, and is untrusted when it comes from a file: `Plan.from_json` checks its form,
swcompile.verify checks it against the graph, and nothing is touched before both have passed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError, shown
from swcompile.graph import Layer, LayerGraph, Run, Tap
from swcompile.rows import Rows

FORMAT = "swcompile-plan"
VERSION = 1
KEYS = (
    "format",
    "version",
    "fingerprint",
    "options",
    "requested_p",
    "features",
    "layers",
    "promise",
    "notes",
    "bypassed",
    "leaves",
)
ALTERED = "It was altered, or not written by swcompile; write it anew: `swcompile transform`, swnet.save or Plan.to_json."
AGAIN = "Make a new plan with swnet.plan(model)."
MAX_NAME = 1000
"""The longest name of a layer or feature that is read: messages repeat them."""
MAX_BYTES = 256 << 20
"""The largest plan file that is read. A kernel-wise plan of VGG16 takes about 2 MB."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "wiring": ("block", "kernel", "tile"),
    "resample": ("max", "avg", "stride"),
    "reach": ("uniform", "near", "far"),
    "dead": ("auto", "forbid", "allow"),
    "skips": ("keep", "remove"),
    "budget": ("links", "params"),
    "init": ("he", "dense"),
    "spread": ("uniform", "erk", "global"),
    "score": ("distance", "weight", "norm", "taylor", "correlation"),
}
BUDGETS: Mapping[str, Any] = {"density": 1.0, "params": None, "macs": None, "keep": ()}
"""The options that say how much is to stay, with the values that keep all."""
MOST_TILES = 0.5
"""The largest density of wiring `tile`, and the one it takes where none is asked for."""
MASKED_WIRINGS = ("kernel", "tile")
"""The wirings that mark the live links of a layer in a mask, and count those."""
P_POLICIES = ("auto", "boundary", "max_S")
BLOCK_RULES = ("auto", "producer")


@dataclass(frozen=True)
class Options:
    """What the user asked of a wiring. Every field is an argument of `swnet.transform`, which explains it.

    `skips`, `budget`, `conv_to_linear` and `min_in_degree` belong to the wiring `kernel`, `init` to this and `tile`; `score` and
    `grow` to `block`; `block`, `dead`, `reach`, `spread` and the budgets (`density`, `params`, `macs`, `keep`: at most one of
    them) to `block` and `tile`. `keep` may be given as a mapping, and is kept as pairs.
    Raises SwnetError for a value outside its range.
    """

    wiring: str = "block"
    p: float | str = "auto"
    density: float = 1.0
    params: int | None = None
    macs: int | None = None
    keep: tuple[tuple[str, float], ...] = ()
    spread: str = "uniform"
    score: str = "distance"
    grow: float = 0.0
    block: int | str = "auto"
    resample: str = "max"
    reach: str = "uniform"
    seed: int = 0
    head: bool = False
    dead: str = "auto"
    skips: str = "keep"
    budget: str = "links"
    init: str = "he"
    conv_to_linear: bool = False
    min_in_degree: int = 1

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise SwnetError(f"{name}={shown(value)} is not a choice; take one of {', '.join(map(repr, choices))}.")
        for name in ("head", "conv_to_linear"):
            if not isinstance(getattr(self, name), bool):
                raise SwnetError(f"{name}={shown(getattr(self, name))} is not a truth value; write True or False.")
        self._check_p()
        if not _is_real(self.density) or not 0 < self.density <= 1:
            raise SwnetError(f"density={shown(self.density)} is outside (0, 1]; 1 keeps every block, 0.5 half of them.")
        if self.block not in BLOCK_RULES and not _is_count(self.block, at_least=1):
            raise SwnetError(
                f"block={shown(self.block)} is not a block size; take a positive number of channels, 'auto' or 'producer'."
            )
        if not _is_count(self.seed, at_least=0):
            raise SwnetError(f"seed={shown(self.seed)} is not a seed; take a whole number from 0 up.")
        if not _is_count(self.min_in_degree, at_least=0):
            raise SwnetError(f"min_in_degree={shown(self.min_in_degree)} is not a degree; take a whole number from 0 up.")
        for name in ("params", "macs"):
            self._check_budget(name)
        self._check_keep()
        self._check_grow()
        given = [name for name in BUDGETS if getattr(self, name) != BUDGETS[name]]
        if len(given) > 1:
            raise SwnetError(f"{' and '.join(given)} were given; they are different ways to say one thing, so take at most one.")
        if self.wiring == "tile":
            self._check_tile(bool(given))
        if self.wiring == "kernel" and given:
            raise SwnetError(f"{given[0]} does not apply to wiring='kernel', which keeps the number of links; use wiring='block'.")
        if self.scored and not given:
            raise SwnetError(
                f"score={self.score!r} says which blocks a budget drops, and there is none; give density, params, macs or keep."
            )

    def _check_grow(self) -> None:
        if not _is_real(self.grow) or not 0 <= self.grow <= 1:
            raise SwnetError(f"grow={shown(self.grow)} is outside [0, 1]; it is the share of input blocks that are added on top.")
        changes = [name for name in ("p", *BUDGETS) if getattr(self, name) not in (BUDGETS.get(name, 0), "auto")]
        if self.grow and changes:
            raise SwnetError(
                f"grow adds links and leaves what the model computes as it is, which {changes[0]} would change. Take one of the "
                "two, or transform the result a second time."
            )
        if self.grow and self.wiring == "kernel":
            raise SwnetError("grow does not apply to wiring='kernel', which keeps the number of links; use wiring='block'.")

    def _check_tile(self, given: bool) -> None:
        if not given:
            object.__setattr__(self, "density", MOST_TILES)
        share = max([share for _, share in self.keep], default=self.density)
        if share > MOST_TILES and self.params is None and self.macs is None:
            raise SwnetError(
                f"wiring='tile' keeps at most {MOST_TILES:g} of a layer's tiles, and {self.asked_to_keep} is more: every way to "
                "run more of them is slower than the dense layer. Take less, or wiring='block'."
            )
        for name, why in (("score", self.scored), ("grow", bool(self.grow)), ("spread", self.spread == "global")):
            if why:
                raise SwnetError(f"{name}={getattr(self, name)!r} does not apply to wiring='tile'; use wiring='block'.")

    def _check_budget(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not _is_real(value) or not 1 <= value < 1 << 63:
            raise SwnetError(f"{name}={shown(value)} is not a budget; take a positive number.")
        object.__setattr__(self, name, int(value))

    def _check_keep(self) -> None:
        given: Any = self.keep
        pairs = tuple(given.items()) if isinstance(given, Mapping) else given
        try:
            kept = tuple((pattern, share) for pattern, share in pairs)
        except (TypeError, ValueError):
            kept = (("", 0),)
        for pattern, share in kept:
            if not _is_name(pattern) or not pattern or not _is_real(share) or not 0 < share <= 1:
                raise SwnetError(
                    f"keep={shown(given)} does not give shares by name; write a share above 0 and up to 1 for each pattern of "
                    "layer names, such as keep={'stage3.*': 0.5}."
                )
        object.__setattr__(self, "keep", kept)

    @property
    def prunes(self) -> bool:
        """Whether blocks may have to go."""
        return any(getattr(self, name) != default for name, default in BUDGETS.items())

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights of a trained model are to mean what they did, so that no block moves unless asked for."""
        return self.scored or bool(self.grow)

    @property
    def scored(self) -> bool:
        """Whether the weights of a trained model say which blocks go."""
        return self.score != "distance"

    @property
    def asked_to_keep(self) -> str:
        """Say in words how much is to stay."""
        if self.params is not None:
            return f"at most {self.params:,} parameters"
        if self.macs is not None:
            return f"at most {self.macs:,} multiply-accumulates"
        return "keep " + ", ".join(f"{name}={share:g}" for name, share in self.keep) if self.keep else f"density {self.density:g}"

    def _check_p(self) -> None:
        if isinstance(self.p, str):
            if self.p not in P_POLICIES:
                raise SwnetError(f"p={shown(self.p)} is not a policy; take a number from 0 to 1 or one of {', '.join(P_POLICIES)}.")
        elif not _is_real(self.p) or not 0 <= self.p <= 1:
            raise SwnetError(f"p={shown(self.p)} is outside [0, 1]; p is the share of links that become long-range.")

    @property
    def number(self) -> float:
        """The rewiring probability; only for options whose policy has been resolved."""
        assert not isinstance(self.p, str), "the policy of p has not been resolved"
        return float(self.p)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_count(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value < 1 << 63


@dataclass(frozen=True)
class LayerWiring:
    """Say what one layer reads instead of its feature.

    `taps`, concatenated in order, are the layer's new input. `columns` says which input channels of the user's weight serve
    them, in ascending order; its width is that of the taps. For link-by-link wirings `columns` is empty and `mask`, of shape
    (out_channels, sum of tap widths), marks the live links. `outputs` are the output channels that stay, where nobody reads the
    others any more; empty where all do. `grown` are taps that a second layer beside this one reads, whose weights start at zero
    and whose output is added to this one's. Taps and columns number channels as the user's model does.
    """

    layer: str
    taps: tuple[Tap, ...]
    columns: tuple[tuple[int, int], ...] = ()
    mask: NDArray[np.bool_] | None = None
    outputs: tuple[tuple[int, int], ...] = ()
    grown: tuple[Tap, ...] = ()

    @property
    def width(self) -> int:
        return sum(tap.width for tap in self.taps)

    @property
    def reads(self) -> tuple[Tap, ...]:
        """All that is read, what was added on top included."""
        return (*self.taps, *self.grown)

    def out(self, layer: Layer) -> int:
        """Return how many output channels stay."""
        return sum(stop - start for start, stop in self.outputs) if self.outputs else layer.out_channels

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerWiring):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in ("layer", "taps", "columns", "outputs", "grown"))
        if self.mask is None or other.mask is None:
            return same and self.mask is other.mask
        return same and np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.layer, self.taps, self.columns, self.outputs, self.grown))


@dataclass(frozen=True)
class Promise:
    """Counts that the rewired module must show: the check counts them again on the module itself.

    `units` is how many blocks (wiring `block`) or links (`kernel`) the eligible layers had, of which `moved` became taps and
    `pruned` are gone, and `grown` came on top. `params` and `macs` are the changes to the model's totals, per sample for macs.
    """

    units: int = 0
    moved: int = 0
    pruned: int = 0
    params: int = 0
    macs: int = 0
    grown: int = 0

    @property
    def p(self) -> float:
        """The achieved share of moved units among those that are left."""
        left = self.units - self.pruned
        return self.moved / left if left else 0.0


@dataclass(frozen=True)
class Note:
    """Say why a layer was left alone, or got less than was asked for; the layer "*" stands for the whole network."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.layer == "*" else f"{self.layer}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """A wiring decided: layers that change, and what they will read. Layers not listed stay as they are.

    `options.p` is always a number here; `requested_p` keeps what was asked. `bypassed` lists sums (fx node, index of the addend
    that stays) that wiring `kernel` removes with skips="remove". `leaves` are the paths of modules that tracing left alone because
    the user said so; a plan holds for the graph that was traced like that.
    """

    fingerprint: str
    options: Options
    requested_p: float | str
    layers: tuple[LayerWiring, ...]
    promise: Promise
    notes: tuple[Note, ...] = ()
    bypassed: tuple[tuple[str, int], ...] = ()
    leaves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert not isinstance(self.options.p, str), "a plan holds a number for p"

    @property
    def digest(self) -> str:
        """A hash of the plan's bytes, the same on every machine and rank."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def taps(self) -> dict[str, tuple[Tap, ...]]:
        """Return what each changed layer reads."""
        return {wiring.layer: wiring.taps for wiring in self.layers}

    def reads(self) -> dict[str, tuple[Tap, ...]]:
        """Return all that each changed layer reads, what was added on top included."""
        return {wiring.layer: wiring.reads for wiring in self.layers}

    def outputs(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return the output channels that stay of each layer that loses some."""
        return {wiring.layer: wiring.outputs for wiring in self.layers if wiring.outputs}

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Return the mask of each layer that has one."""
        return {wiring.layer: wiring.mask for wiring in self.layers if wiring.mask is not None}

    def describe(self) -> str:
        """Say in words what the plan does, a line a layer."""
        unit = "blocks" if self.options.wiring == "block" else "links"
        done = self.promise
        head = (
            f"wiring {self.options.wiring}, p = {self.options.number:g} (asked: {self.requested_p}), "
            f"{self.options.asked_to_keep}, seed {self.options.seed}: "
            f"{done.moved} of {done.units - done.pruned} {unit} moved (p = {done.p:.4f})"
        )
        head += f", {done.pruned} {unit} pruned" if done.pruned else ""
        lines = [head + (f", {done.grown} {unit} added" if done.grown else "")]
        for wiring in self.layers:
            shown = " ".join(map(str, wiring.taps[:12])) + (" ..." if len(wiring.taps) > 12 else "")
            live = "" if wiring.mask is None else f", {int(wiring.mask.sum())} live links"
            left = sum(stop - start for start, stop in wiring.outputs)
            lines.append(f"  {wiring.layer} reads {shown} ({wiring.width} channels{live})" + (f" and makes {left}" if left else ""))
            lines.extend([f"    and adds {' '.join(map(str, wiring.grown[:12]))}"] if wiring.grown else [])
        lines.extend(f"  {name} is bypassed: input {index} takes its place" for name, index in self.bypassed)
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()

    def to_json(self) -> str:
        """Return the plan as JSON: the same plan gives the same text, byte for byte."""
        names = sorted({tap.feature for wiring in self.layers for tap in wiring.reads})
        index = {name: place for place, name in enumerate(names)}

        def plain(taps: Sequence[Tap]) -> list[list[int | str]]:
            return [[index[tap.feature], tap.start, tap.stop, tap.resample] for tap in taps]

        layers = [
            {
                "layer": wiring.layer,
                "taps": plain(wiring.taps),
                "columns": [list(column) for column in wiring.columns],
                "mask": None if wiring.mask is None else _pack(wiring.mask),
                "outputs": [list(span) for span in wiring.outputs],
                "grown": plain(wiring.grown),
            }
            for wiring in self.layers
        ]
        document = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "options": dataclasses.asdict(self.options),
            "requested_p": self.requested_p,
            "features": names,
            "layers": layers,
            "promise": dataclasses.asdict(self.promise),
            "notes": [[note.layer, note.reason] for note in self.notes],
            "bypassed": [list(item) for item in self.bypassed],
            "leaves": list(self.leaves),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan. Raises SwnetError for anything that is not exactly a plan of this version."""
        return _Reader(parse(text, "The plan")).plan()

    @staticmethod
    def read(path: str | Path) -> Plan:
        """Read a plan from a file of at most MAX_BYTES."""
        if not isinstance(path, str | Path):
            raise SwnetError(f"{path!r} was given as the name of a plan; name a plan.json that swcompile wrote.")
        file = Path(path)
        try:
            with open(file, "rb", opener=_without_waiting) as opened:
                facts = os.fstat(opened.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise SwnetError(f"The plan {file.name} is not a plain file. Name a plan.json that swcompile wrote.")
                if facts.st_size > MAX_BYTES:
                    raise SwnetError(f"{file.name} is {facts.st_size:,} bytes; a plan has at most {MAX_BYTES:,}. {ALTERED}")
                return Plan.from_json(opened.read(MAX_BYTES).decode())
        except UnicodeDecodeError as error:
            raise SwnetError(f"The plan {file.name} is not text in UTF-8. {ALTERED}") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", error)
            raise SwnetError(
                f"The plan {file.name or path} cannot be read: {reason}. Name a plan.json that swcompile wrote."
            ) from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file that may turn out to be a pipe, for which nobody writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _pack(mask: NDArray[np.bool_]) -> dict[str, Any]:
    bits = base64.b64encode(np.packbits(mask, bitorder="little").tobytes()).decode()
    return {"shape": list(mask.shape), "bits": bits}


def parse(text: str, what: str) -> Any:
    """Read untrusted JSON. Raises SwnetError for NaN, infinities, and a key that occurs twice: readers differ in what they take."""

    def refuse(constant: str) -> float:
        raise SwnetError(f"{what} contains {constant}, which is not a number that it may hold. {ALTERED}")

    def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise SwnetError(f'{what} has the key "{twice[:80]}" twice in one object, where once is allowed. {ALTERED}')
        return made

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=single)
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: it is not even text
        raise SwnetError(f"{what} is not JSON ({error}). {ALTERED}") from error


class _Reader:
    """Turn untrusted JSON into a Plan, or say at which key it goes wrong."""

    def __init__(self, document: Any) -> None:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise SwnetError(f'This is not a plan: its "format" should be "{FORMAT}". {ALTERED}')
        version = document.get("version")
        if not isinstance(version, int) or not _is_count(version, at_least=1):
            raise SwnetError(f"The plan's version is {shown(version)}; it should be a whole number, today {VERSION}. {ALTERED}")
        if version > VERSION:
            raise SwnetError(f"The plan has version {version}, this swcompile reads up to {VERSION}; install a newer swcompile.")
        unknown = sorted(document.keys() - KEYS)
        if unknown:
            raise SwnetError(
                f'The plan has a key "{unknown[0][:80]}"; the keys of version {VERSION} are {", ".join(KEYS)}. {ALTERED}'
            )
        self.document = document

    def plan(self) -> Plan:
        names = self._list("features", str)
        options = self._record("options", Options)
        if isinstance(options.p, str):
            raise SwnetError(f"The plan's options.p is a policy; a plan holds the number that was chosen. {ALTERED}")
        requested = self._get("requested_p")
        if not _is_name(requested) and not _is_real(requested):
            raise self._wrong("requested_p", "a number or the name of a policy", requested)
        return Plan(
            fingerprint=self._text("fingerprint"),
            options=options,
            requested_p=requested,
            layers=tuple(self._wiring(item, names, place) for place, item in enumerate(self._list("layers", dict))),
            promise=self._record("promise", Promise),
            notes=tuple(Note(*self._pair(item, (str, str), "notes")) for item in self._list("notes", list)),
            bypassed=tuple(self._bypassed(item) for item in self._list("bypassed", list)),
            leaves=tuple(self._list("leaves", str)),
        )

    def _get(self, key: str) -> Any:
        if key not in self.document:
            raise SwnetError(f'The plan has no "{key}". {ALTERED}')
        return self.document[key]

    @staticmethod
    def _wrong(key: str, wanted: str, found: object) -> SwnetError:
        return SwnetError(f'In the plan, "{key}" should be {wanted}; it is {str(found)[:80]!r}. {ALTERED}')

    def _text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "text", value)
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self._wrong(key, f"a list of {kind.__name__}", value)
        if kind is str and not all(map(_is_name, value)):
            raise self._wrong(key, f"a list of names of at most {MAX_NAME:,} characters", value)
        return value

    def _pair(self, item: list[Any], kinds: tuple[type, type], key: str) -> tuple[Any, Any]:
        if len(item) != 2 or not all(isinstance(value, kind) for value, kind in zip(item, kinds, strict=True)):
            raise self._wrong(key, "a list of pairs", item)
        return item[0], item[1]

    def _bypassed(self, item: list[Any]) -> tuple[str, int]:
        name, kept = self._pair(item, (str, int), "bypassed")
        if not _is_name(name) or not _is_count(kept, at_least=0):
            raise self._wrong("bypassed", "a list of pairs of a name and a small number", item)
        return name, kept

    def _record(self, key: str, kind: type[Any]) -> Any:
        value = self._get(key)
        names = {field.name for field in dataclasses.fields(kind)}
        if not isinstance(value, dict) or set(value) != names:
            raise self._wrong(key, f"an object with the keys {', '.join(sorted(names))}", value)
        hints = get_type_hints(kind)
        for name, item in value.items():
            if get_origin(hints[name]) is tuple:  # which the class itself checks
                continue
            allowed = get_args(hints[name]) or (hints[name],)
            if type(item) not in allowed and not (type(item) is int and float in allowed):
                raise self._wrong(f"{key}.{name}", " or ".join(option.__name__ for option in allowed), item)
        return kind(**value)

    def _wiring(self, item: dict[str, Any], names: Sequence[str], place: int) -> LayerWiring:
        key = f"layers[{place}]"
        lists = ("taps", "columns", "outputs", "grown")
        if set(item) != {"layer", "mask", *lists} or not _is_name(item["layer"]):
            raise self._wrong(key, "an object with layer, taps, columns, mask, outputs and grown", item)
        if not all(isinstance(item[name], list) for name in lists):
            raise self._wrong(key, "an object whose taps, columns, outputs and grown are lists", item)
        taps, grown = (tuple(self._tap(tap, names, f"{key}.{name}") for tap in item[name]) for name in ("taps", "grown"))
        columns, outputs = (
            tuple(
                self._pair(span, (int, int), f"{key}.{name}") if isinstance(span, list) else self._bad(f"{key}.{name}", span)
                for span in item[name]
            )
            for name in ("columns", "outputs")
        )
        mask = None if item["mask"] is None else self._mask(item["mask"], sum(tap.width for tap in taps), key)
        return LayerWiring(item["layer"], taps, columns, mask, outputs, grown)

    def _bad(self, key: str, found: object) -> Any:
        raise self._wrong(key, "a list of pairs", found)

    def _tap(self, item: Any, names: Sequence[str], key: str) -> Tap:
        if not isinstance(item, list) or len(item) != 4 or not all(_is_count(value, at_least=0) for value in item[:3]):
            raise self._wrong(key, "a list of [feature, start, stop, resample]", item)
        index, start, stop, resample = item
        if index >= len(names):
            raise SwnetError(f"In the plan, {key} names feature number {index}; there are {len(names)}. {ALTERED}")
        if start >= stop or resample not in CHOICES["resample"]:
            raise self._wrong(key, "channels start < stop and a way to resample", item)
        return Tap(names[index], start, stop, resample)

    def _mask(self, item: Any, width: int, key: str) -> NDArray[np.bool_]:
        if not isinstance(item, dict) or set(item) != {"shape", "bits"} or not isinstance(item["bits"], str):
            raise self._wrong(f"{key}.mask", "an object with shape and bits", item)
        shape = item["shape"]
        if not isinstance(shape, list) or len(shape) != 2 or not all(_is_count(size, at_least=1) for size in shape):
            raise self._wrong(f"{key}.mask.shape", "two sizes", shape)
        if shape[1] != width:
            raise SwnetError(f"In the plan, the mask of {key} is {shape[1]} wide; its taps are {width}. {ALTERED}")
        try:
            raw = base64.b64decode(item["bits"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._wrong(f"{key}.mask.bits", "base64", item["bits"]) from error
        if len(raw) != -(-shape[0] * shape[1] // 8):
            raise SwnetError(
                f"In the plan, the mask of {key} has {len(raw)} bytes; {shape[0]} x {shape[1]} bits need more or fewer. {ALTERED}"
            )
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=shape[0] * shape[1], bitorder="little")
        return bits.reshape(shape).astype(np.bool_)


def own_taps(layer: Layer, columns: Sequence[tuple[int, int]], resample: str = "max") -> tuple[Tap, ...]:
    """Return what a layer reads that keeps `columns` of its own input and takes up nothing else."""
    return tuple(Tap(layer.feature, start, stop, resample) for start, stop in columns)


def without_unread(wirings: Sequence[LayerWiring], graph: LayerGraph, rows: Rows) -> list[LayerWiring]:
    """Return the wirings with every output channel removed that nobody reads and nothing holds, in the order of the network."""
    made = {wiring.layer: wiring for wiring in wirings}
    live = rows.read({wiring.layer: wiring.taps for wiring in wirings})
    outputs, columns = rows.outputs(live), rows.columns(live)
    for layer in graph.layers:
        if layer.name in outputs or layer.name in columns:
            whole = columns.get(layer.name, ((0, layer.in_channels),))
            known = made.get(layer.name) or LayerWiring(layer.name, own_taps(layer, whole), whole)
            made[layer.name] = dataclasses.replace(known, outputs=outputs.get(layer.name, ()))
    return [made[layer.name] for layer in graph.layers if layer.name in made]


def channel_ids(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Return a number for each channel of a value: equal ones are the same channel of the same producer."""
    return np.concatenate([(run.producer << 32) + run.first + np.arange(run.width, dtype=np.int64) * run.step for run in runs])


def weight_of(layer: Layer, width: int, out: int, live: int | None = None) -> tuple[int, int]:
    """Return the parameters and multiply-accumulates of a layer that reads `width` channels and makes `out`.

    `live` is how many of its links there are, where not all. The bias counts, and what its own norms carry for each input channel.
    """
    links = live if live is not None else out if layer.depthwise else width // layer.groups * out
    return links * layer.kernel_area + layer.bias * out + width * layer.chain_params, links * layer.kernel_area * layer.positions


def weight_left(layer: Layer, wiring: LayerWiring | None) -> tuple[int, int]:
    """Return the parameters and multiply-accumulates of a layer as a wiring leaves it, or as it was."""
    if wiring is None:
        return weight_of(layer, layer.in_channels, layer.out_channels)
    own = weight_of(layer, wiring.width, wiring.out(layer), None if wiring.mask is None else int(wiring.mask.sum()))
    beside = weight_grown(layer, wiring)
    return own[0] + beside[0], own[1] + beside[1]


def weight_grown(layer: Layer, wiring: LayerWiring) -> tuple[int, int]:
    """Return the parameters and multiply-accumulates of what reads the taps that were added on top; it has no bias."""
    width = sum(tap.width for tap in wiring.grown)
    links = width * layer.out_channels
    return links * layer.kernel_area + width * layer.chain_params, links * layer.kernel_area * layer.positions


def promised_change(wirings: Sequence[LayerWiring], graph: LayerGraph, rows: Rows | None = None) -> tuple[int, int]:
    """Return by how many parameters and multiply-accumulates per sample the wirings change the model.

    Masked layers count live links; norms lose what they carry for each channel that goes. `rows` are the graph's, where they are
    at hand.
    """
    params = macs = 0
    for wiring in wirings:
        layer = graph.layer_by_name[wiring.layer]
        after, before = weight_left(layer, wiring), weight_left(layer, None)
        params += after[0] - before[0]
        macs += after[1] - before[1]
    outputs = {wiring.layer: wiring.outputs for wiring in wirings if wiring.outputs}
    if outputs:
        for carrier, kept in (rows or Rows(graph)).stay(outputs):
            params -= 0 if carrier.depthwise else int((~kept).sum()) * carrier.params
    return params, macs
