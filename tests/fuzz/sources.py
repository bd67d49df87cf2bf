"""Mutations of model files: tokens and bytes of good ones, and statements that somebody could write, each where it hurts.

Whatever is made here is run, as a user's model file is. So nothing in it can write a file, start a process or wait for ever:
mutations only move what the good files hold and what is listed here.
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence
from random import Random

from . import raw
from .statements import (
    ANSWERS,
    BASES,
    BOTTOMS,
    BUILT,
    EFFECTS,
    ERRORS,
    EXAMPLE_INPUTS,
    FORWARDS,
    INITS,
    METAS,
    METHODS,
    NET,
    RESULTS,
    TOPS,
)
from .subjects import EXAMPLES, MODELS

GOOD = {
    path.stem: path.read_text(encoding="utf-8")
    for path in (*sorted(MODELS.glob("*.py")), EXAMPLES / "plain_mlp.py", EXAMPLES / "resnet20.py", EXAMPLES / "unet.py")
}

NUMBERS = ("0", "1", "2", "3", "7", "16", "-1", "0.5", "1e400", "True", "None", "''", "()", "[]", "64", "0x10", "1j", "(1, 1)")
WORDS = (
    "self",
    "x",
    "nn",
    "torch",
    "super",
    "len",
    "int",
    "str",
    "type",
    "object",
    "Tensor",
    "None",
    "repr",
    "range",
    "tuple",
    "F",
)
SIGNS = tuple("+ - * / // % @ ** . , : ; = == != -> := ( ) [ ] { } ~ & | < > += @= ... * **".split())


def tokens(draw: Random, text: str) -> str:
    """Change one to four tokens: another of its kind, none, twice, or the neighbour's place."""
    for _ in range(draw.choice([1, 1, 2, 3, 4])):
        spans = _spans(text)
        if spans:
            text = _edit(draw, text, spans)
    return text


def _spans(text: str) -> list[tuple[int, int, int]]:
    """Return kind, start and stop of each token, as far as the text can be read."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start, stop = (starts[min(row - 1, len(starts) - 1)] + column for row, column in (token.start, token.end))
            if token.string.strip() and token.type != tokenize.COMMENT:
                found.append((token.type, start, stop))
    except (tokenize.TokenError, SyntaxError):
        pass
    return found


def _edit(draw: Random, text: str, spans: Sequence[tuple[int, int, int]]) -> str:
    place = draw.randrange(len(spans))
    kind, start, stop = spans[place]
    _, first, last = spans[min(place + 1, len(spans) - 1)]
    alike = [text[begin:end] for other, begin, end in spans if other == kind]
    pool = {tokenize.NUMBER: NUMBERS, tokenize.NAME: WORDS, tokenize.OP: SIGNS}.get(kind, NUMBERS)
    how = draw.choice(["alike", "alike", "alike", "pool", "pool", "delete", "twice", "swap", "keyword"])
    if how == "swap":
        return text[:start] + text[first:last] + text[stop:first] + text[start:stop] + text[last:] if first >= stop else text
    if how == "keyword":  # `while` is left out: it is the one way to write a loop that does not end
        new = draw.choice([word for word in keyword.kwlist if word != "while"])
    else:
        new = {
            "alike": draw.choice(alike),
            "pool": draw.choice(pool),
            "delete": "",
            "twice": f"{text[start:stop]} {text[start:stop]}",
        }[how]
    return text[:start] + new + text[stop:]


def hostile(draw: Random) -> str:
    """Return a file that does what no model file should, at one place or two."""
    holes = {
        "top": "",
        "above": "",
        "bases": "nn.Module",
        "body": "",
        "init": "",
        "forward": "",
        "result": "self.last(x)",
        "build": "",
        "built": "Net()",
        "bottom": "example_inputs = torch.zeros(2, 8)",
    }
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3])):
        _dig(draw, holes, draw.choice(list(_WAYS)))
    return NET.format(**holes)


def _dig(draw: Random, holes: dict[str, str], way: str) -> None:
    hole, choices = _WAYS[way]
    if way == "method":
        holes["body"] += _method(draw)
    elif way == "inputs":
        holes["bottom"] += f"\nexample_inputs = {draw.choice(choices)}"
    elif hole == "bottom":
        holes["bottom"] += f"\n{draw.choice(choices)}"
    else:
        holes[hole] = draw.choice(choices)
    if "Meta" in holes["bases"] and not holes["above"]:
        holes["above"] = draw.choice(METAS)


_WAYS: dict[str, tuple[str, Sequence[str]]] = {
    "error above": ("above", ERRORS),
    "error below": ("bottom", ERRORS),
    "error in init": ("init", ERRORS),
    "error in forward": ("forward", ERRORS),
    "error in build": ("build", ERRORS),
    "effect above": ("above", EFFECTS),
    "effect below": ("bottom", EFFECTS),
    "effect in build": ("build", EFFECTS),
    "method": ("body", METHODS),
    "method again": ("body", METHODS),
    "result": ("result", RESULTS),
    "forward": ("forward", FORWARDS),
    "forward again": ("forward", FORWARDS),
    "init": ("init", INITS),
    "init again": ("init", INITS),
    "built": ("built", BUILT),
    "built again": ("built", BUILT),
    "bases": ("bases", BASES),
    "bottom": ("bottom", BOTTOMS),
    "inputs": ("bottom", EXAMPLE_INPUTS),
    "top": ("top", TOPS),
}


def _method(draw: Random) -> str:
    """Return a method or attribute of nn.Module's name that answers nonsense."""
    name, answer = draw.choice(METHODS), draw.choice(ANSWERS)
    known = not any(word in answer for word in ("self", "super", "/", "exit"))  # where the class is made, rather than asked
    return draw.choice(
        [
            f"    def {name}(self, *args, **kwargs): return {answer}\n",
            f"    def {name}(self, *args, **kwargs): return {answer}\n",
            f"    @property\n    def {name}(self): return {answer}\n",
            f"    {name} = {answer if known else None}\n",
        ]
    )


def enormous(draw: Random) -> str:
    """Return a file that is too large, too deep or too long for somebody on its way."""
    good = GOOD["plain"]
    return draw.choice(
        [
            good + "\nx = " + "(" * 150 + ")" * 150,
            good + "\nx = " + "-" * 5_000 + "1",
            good + "\nx = " + "+".join(["1"] * 20_000),
            good + "\nx = " + "[" * 3_000,
            good + "\n" + "\n".join(f"name{number} = {number}" for number in range(20_000)),
            good + "\n" + "\n".join(f"def f{number}(): return model" for number in range(5_000)),
            good + "\nx = '" + "a" * 5_000_000 + "'",
            good + "\n" + "#" * 5_000_000,
            good + "\n" * 1_000_000,
            good + "\n" + "".join(" " * depth + "if True:\n" for depth in range(120)) + " " * 120 + "pass",
            good + "\nx" + ".a" * 3_000,
            good + "\nx = " + "9" * 10_000,
            "\n".join(
                f"class Net{number}(__import__('torch').nn.Module):\n    def forward(self, x): return x" for number in range(300)
            ),
        ]
    )


def encoded(draw: Random, text: str) -> bytes:
    """Return a good file as bytes that are not quite it: other encodings and line ends, null bytes."""
    return draw.choice(
        [
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-8-sig"),
            lambda: text.replace("\n", "\r\n").encode(),
            lambda: text.replace("\n", "\r").encode(),
            lambda: text.encode() + b"\0",
            lambda: text.encode() + b"\n# \xff\xfe",
            lambda: b"# -*- coding: latin-1 -*-\n" + text.encode() + "\nx = 'é'".encode("latin-1"),
            lambda: b"# coding: utf-16\n" + text.encode(),
            lambda: b"",
            lambda: b"\n",
            lambda: b"\xff" * 100,
            lambda: text.replace("    ", "\t", 3).encode(),
            lambda: raw.mutate(draw, text.encode())[0],
            lambda: raw.mutate(draw, text.encode())[0],
            lambda: raw.mutate(draw, text.encode())[0],
        ]
    )()


def mutate(draw: Random) -> tuple[bytes, str]:
    """Return a model file that is not as it should be, and say how it was made."""
    name = draw.choice(sorted(GOOD))
    match draw.choice(["tokens"] * 8 + ["hostile"] * 12 + ["encoded"] * 2 + ["enormous"]):
        case "tokens":
            return tokens(draw, GOOD[name]).encode("utf-8", "surrogatepass"), f"model file: tokens of {name}"
        case "hostile":
            return hostile(draw).encode("utf-8", "surrogatepass"), "model file: hostile"
        case "encoded":
            return encoded(draw, GOOD[name]), f"model file: encoding of {name}"
        case _:
            return enormous(draw).encode(), "model file: enormous"
