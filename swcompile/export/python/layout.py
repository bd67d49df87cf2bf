"""Break statements into lines of at most WIDTH characters, as ruff and black do by default.

Where these would put each of many names on a line of its own, a page for every gather, lines are filled instead, and the
statement is marked so that a formatter leaves it:

    y = torch.cat([
        stem_c0, stem_c16, layer1_c8,
        layer1_c32,
    ], 1)  # fmt: skip
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 88
"""What ruff and black take where nobody has told them."""
_OPEN, _CLOSE = "([{", ")]}"
_SKIP = "  # fmt: skip"


def statement(text: str, indent: int) -> list[str]:
    """Return a statement as lines behind `indent` spaces."""
    margin = " " * indent
    if len(margin) + len(text) <= WIDTH:
        return [margin + text]
    start = _opening(text)
    if start is not None:
        head, inner, tail = text[: start + 1], text[start + 1 : -1], text[-1]
        if len(margin) + len(head) <= WIDTH and len(margin) + 4 + len(inner) <= WIDTH:
            return [margin + head, f"{margin}    {inner}", margin + tail]
    lines = _listed(margin, text)
    return [*lines[:-1], lines[-1] + _SKIP]


def unpacking(names: Sequence[str], value: str, indent: int) -> list[str]:
    """Return an assignment of a value's pieces to names."""
    margin = " " * indent
    targets = ", ".join(names) + ("," if len(names) == 1 else "")
    if len(margin) + len(targets) + len(f" = {value}") <= WIDTH:
        return [f"{margin}{targets} = {value}"]
    lines = [f"{margin}(", *_filled(names, indent + 4), *_listed(margin, f") = {value}")]
    return [*lines[:-1], lines[-1] + _SKIP]


def call(text: str, indent: int, before: str = "", behind: str = "") -> list[str]:
    """Return a call, as an element of a list or the value of an argument, as lines: one, or three, or one for each argument."""
    margin = " " * indent
    if len(margin) + len(before) + len(text) + len(behind) <= WIDTH:
        return [margin + before + text + behind]
    start = text.index("(")
    head, inner, tail = margin + before + text[: start + 1], text[start + 1 : -1], f"{margin}){behind}"
    if len(margin) + 4 + len(inner) <= WIDTH:
        return [head, f"{margin}    {inner}", tail]
    return [head, *(f"{margin}    {piece.rstrip(',')}," for piece in pieces(inner)), tail]


def _listed(margin: str, text: str) -> list[str]:
    """Break a text inside of its longest list, or else its last brackets, and fill the lines."""
    if len(margin) + len(text) + len(_SKIP) <= WIDTH:
        return [margin + text]
    spans = _spans(text)
    lists = [(start, stop) for start, stop in spans if text[start] == "[" and text[start - 1] in " (["]  # else an index
    if not spans:
        return [margin + text]
    start, stop = max(lists or spans[-1:], key=lambda span: span[1] - span[0])
    items = [piece.rstrip(",") for piece in pieces(text[start + 1 : stop])]
    return [margin + text[: start + 1], *_filled(items, len(margin) + 4), margin + text[stop:]]


def _filled(items: Sequence[str], indent: int) -> list[str]:
    """Return items with commas behind them, as many a line as there is room for."""
    lines: list[str] = []
    line = " " * indent
    for item in items:
        if line.strip() and len(line) + len(item) + 1 > WIDTH:
            lines.append(line.rstrip())
            line = " " * indent
        line += f"{item}, "
    return [*lines, line.rstrip()]


def _opening(text: str) -> int | None:
    """Return where the bracket opens that the text's last character closes."""
    return next((start for start, stop in _spans(text) if stop == len(text) - 1), None)


def _spans(text: str) -> list[tuple[int, int]]:
    """Return where brackets open and close, outside of string literals, in the order in which they close."""
    opened: list[int] = []
    found: list[tuple[int, int]] = []
    for place, char in _outside_of_strings(text):
        if char in _OPEN:
            opened.append(place)
        elif char in _CLOSE:
            found.append((opened.pop() if opened else 0, place))
    return found


def pieces(text: str) -> list[str]:
    """Cut a text at its outermost commas, which stay with what is in front of them.

    >>> pieces("3, (1, 2), bias=False")
    ['3,', '(1, 2),', 'bias=False']
    """
    found: list[str] = []
    depth = begin = 0
    for place, char in _outside_of_strings(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if char == "," and depth == 0:
            found.append(text[begin : place + 1].strip())
            begin = place + 1
    last = text[begin:].strip()
    return [*found, last] if last else found


def _outside_of_strings(text: str) -> list[tuple[int, str]]:
    """Return the characters that are in no string literal, with their places."""
    found: list[tuple[int, str]] = []
    quote, escaped = "", False
    for place, char in enumerate(text):
        if quote:
            closes, escaped = char == quote and not escaped, char == "\\" and not escaped
            quote = "" if closes else quote
        elif char in "'\"":
            quote, escaped = char, False
        else:
            found.append((place, char))
    return found
