"""Mutations of JSON that know its structure: other types, strange numbers and texts, keys and items moved, doubled, lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

DEEP = 100_000
LONG = 200_000
"""How deep nestings and how long lists become: far beyond Python's recursion limit, and quick to write."""


class Literal:
    """JSON text that is written as it stands: NaN, a key twice, a list in a list in a list."""

    def __init__(self, text: str) -> None:
        self.text = text


def dumps(value: Any, *, blank: bool = False, plain: bool = False) -> str:
    """Return a document as JSON: `blank` with spaces and line ends, `plain` with characters instead of escapes."""
    if isinstance(value, Literal):
        return value.text
    comma, colon = (",\n ", " : ") if blank else (",", ":")
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key, ensure_ascii=not plain)}{colon}{dumps(value[key], blank=blank, plain=plain)}" for key in value)
        return f"{{{comma.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{comma.join(dumps(item, blank=blank, plain=plain) for item in value)}]"
    return json.dumps(value, ensure_ascii=not plain)


@dataclass(frozen=True)
class Place:
    """Where a value stands: a key of an object, or an index of a list."""

    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    def put(self, value: Any) -> None:
        self.holder[self.key] = value


def find(draw: Random, tree: Any, kind: type | tuple[type, ...] = object) -> Place | None:
    """Return a place by walking down from the top, so that what is high is chosen as often as the many numbers further down."""
    for _ in range(8):
        holder, place = tree, None
        while isinstance(holder, dict | list) and holder:
            key = draw.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
            place = Place(holder, key)
            if isinstance(place.value, kind) and draw.random() < 0.35:
                return place
            holder = place.value
        if place is not None and isinstance(place.value, kind):
            return place
    return None


def _nested(draw: Random) -> Literal:
    depth = draw.choice([3, 30, 900, 5_000, DEEP])
    front, back = draw.choice([("[", "]"), ('{"a":', "}")])
    return Literal(front * depth + "1" + back * draw.choice([depth, depth, depth - 1]))


STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    1 << 31,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63),
    1 << 64,
    1 << 200,
    0.5,
    1.0,
    -0.0,
    1e308,
    5e-324,
    "",
    " ",
    "0",
    "1",
    "max",
    "auto",
    "x",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u0301é\U0001d4b3",
    "../../outside/decoy",
    "/etc/passwd",
    "..",
    "C:\\x",
    "\x1b[2J\x07",
    "\n" * 50,
    "a" * 100_000,
    "%s{0}${x}",
    [],
    [[]],
    [None],
    [0, 0, 4, "max"],
    [0, 4],
    {},
    {"": None},
    {"a": []},
    Literal("NaN"),
    Literal("Infinity"),
    Literal("-Infinity"),
    Literal("1e999"),
    Literal("-1e999"),
    Literal("9" * 5_000),
    Literal("1" + "0" * 400 + ".5"),
    Literal("1e-400"),
    Literal("-0"),
    Literal("01"),
    Literal("0x10"),
    Literal("'a'"),
    Literal("undefined"),
    Literal('"\\ud800"'),
    Literal('"\\q"'),
    Literal('"\t"'),
    Literal("1/2"),
    Literal(""),
)


def _strange(draw: Random) -> Any:
    """Return one of them, as a copy: what is put into a document is changed there."""
    return json_copy(draw.choice(STRANGE))


def replace(draw: Random, tree: Any) -> None:
    """Put a strange value, mostly of another type, where one was."""
    if place := find(draw, tree):
        place.put(_strange(draw))


def nest(draw: Random, tree: Any) -> None:
    """Put a deep nesting where a value was."""
    if place := find(draw, tree):
        place.put(_nested(draw))


def nudge(draw: Random, tree: Any) -> None:
    """Change a number: by one, its sign, its type, its size."""
    if place := find(draw, tree, (int, float)):
        value = place.value
        place.put(
            draw.choice(
                [
                    value + 1,
                    value - 1,
                    -value,
                    value * 2,
                    float(value),
                    str(value),
                    bool(value),
                    value + (1 << 32),
                    draw.randint(0, 20),
                    [value],
                ]
            )
        )


def reword(draw: Random, tree: Any) -> None:
    """Change a text: another one of the document, part of it, other characters."""
    place, other = find(draw, tree, str), find(draw, tree, str)
    if place and other:
        text = place.value
        place.put(
            draw.choice(
                [
                    other.value,
                    text[:-1],
                    text + "x",
                    text.upper(),
                    text[::-1],
                    text + "\0",
                    f"../{text}",
                    f"/{text}",
                    f"{text}@1",
                    text * 3,
                    text.encode("utf-8", "surrogatepass").decode("latin-1"),
                    f" {text}",
                ]
            )
        )


def lose(draw: Random, tree: Any) -> None:
    """Take a key or an item away."""
    if place := find(draw, tree):
        del place.holder[place.key]


def add(draw: Random, tree: Any) -> None:
    """Add a key or an item."""
    if place := find(draw, tree):
        if isinstance(place.holder, dict):
            place.holder[draw.choice(["more", "", "__class__", "run", "\ud800", "a" * 10_000, "format "])] = _strange(draw)
        else:
            place.holder.insert(place.key, draw.choice([json_copy(place.value), _strange(draw)]))


def repeat_key(draw: Random, tree: Any) -> None:
    """Write a key twice in one object."""
    if place := find(draw, tree, dict):
        inside = place.value
        if inside:
            key = draw.choice(sorted(inside))
            again = f"{json.dumps(key)}:{dumps(draw.choice([inside[key], _strange(draw)]))}"
            place.put(Literal(f"{dumps(inside)[:-1]},{again}}}"))


def rename(draw: Random, tree: Any) -> None:
    """Give a key another name."""
    place = find(draw, tree)
    if place and isinstance(place.holder, dict):
        key = place.key
        new = draw.choice([f"{key} ", key.upper(), f"../{key}", key[::-1], draw.choice(sorted(place.holder))])
        place.holder[new] = place.holder.pop(key)


def swap(draw: Random, tree: Any) -> None:
    """Let two values change places, or one stand in both."""
    left, right = find(draw, tree), find(draw, tree)
    if left and right:
        first, second = json_copy(left.value), json_copy(right.value)
        left.put(second)
        if draw.random() < 0.7:
            right.put(first)


def json_copy(value: Any) -> Any:
    """Return a copy, so that no list comes to hold itself."""
    if isinstance(value, dict):
        return {key: json_copy(item) for key, item in value.items()}
    return [json_copy(item) for item in value] if isinstance(value, list) else value


def shuffle(draw: Random, tree: Any) -> None:
    """Put the items of a list in another order."""
    if place := find(draw, tree, list):
        draw.shuffle(place.value)


def lengthen(draw: Random, tree: Any) -> None:
    """Write an item of a list many times."""
    if place := find(draw, tree, list):
        item = json_copy(draw.choice(place.value)) if place.value else _strange(draw)
        once = dumps(item)
        times = draw.choice([3, 100, 10_000, LONG])
        place.put(Literal(f"[{','.join([once] * min(times, 2_000_000 // (len(once) + 1)))}]"))


MUTATIONS: tuple[Callable[[Random, Any], None], ...] = (
    replace,
    replace,
    nudge,
    nudge,
    reword,
    lose,
    add,
    repeat_key,
    rename,
    swap,
    swap,
    shuffle,
    nest,
    lengthen,
)


def mutate(draw: Random, tree: Any) -> tuple[bytes, str]:
    """Change a document once to four times, and return it as bytes with what was done."""
    holder = [tree]  # so that the document itself is a place too
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3, 4])):
        mutation = draw.choice(MUTATIONS)
        mutation(draw, holder)
        done.append(mutation.__name__)
    text = dumps(holder[0] if holder else None, blank=draw.random() < 0.1, plain=draw.random() < 0.1)
    encoding, errors = draw.choice([("utf-8", "surrogatepass")] * 30 + [("utf-16", "surrogatepass"), ("utf-8-sig", "replace")])
    return text.encode(encoding, errors), "json: " + ", ".join(done)
