"""What swnet.lower chose: for each gather of a network and each kind of call, the form in which it runs, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One gather: the layer or operation that it ends with, its form ("plain", "torch" or "triton"), and the predicted seconds.

    `plain_seconds` is for the gather as it was, `seconds` for the form that was chosen, None where nothing was predicted. What
    several gathers share (a concat, a map in a slab) is divided among them.
    """

    layer: str
    form: str
    plain_seconds: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Choices:
    """What was chosen for one kind of call: its inputs and device in words, why, and each gather."""

    call: str
    why: str
    gathers: tuple[Choice, ...]

    def __str__(self) -> str:
        count = Counter(choice.form for choice in self.gathers)
        forms = ", ".join(f"{count[form]} {'left alone' if form == 'plain' else f'by {form}'}" for form in sorted(count))
        return f"lowered for {self.call}: {len(self.gathers)} gathers, {forms}; {self.why}"
