"""The call, or the command line, that gives the same result again."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from swcompile.plan import Options, Plan

PRINTING = ("as_json", "quiet", "force", "plots")
"""The options of a command line that change nothing in what comes out."""


def call(plan: Plan, inputs: str, given: Sequence[str] = ()) -> str:
    """Return the call of swnet.transform that makes a plan: the input, every option that is not the default, and the seed.

    `inputs` is the example input as Python code, `given` names arguments that only the caller has: batches, a loss function.

    >>> from swcompile.plan import Promise
    >>> plan = Plan("", Options(p=0.2, density=0.5, seed=3), "auto", (), Promise())
    >>> call(plan, "torch.zeros(1, 3, 32, 32)")
    "swnet.transform(model, torch.zeros(1, 3, 32, 32), p='auto', density=0.5, seed=3)"
    """
    asked = dataclasses.replace(plan.options, p=plan.requested_p)
    usual = Options()
    options = [
        f"{field.name}={getattr(asked, field.name)!r}"
        for field in dataclasses.fields(Options)
        if field.name in ("p", "seed") or getattr(asked, field.name) != getattr(usual, field.name)
    ]
    leaves = [f"leaf_modules={list(plan.leaves)!r}"] if plan.leaves else []
    return f"swnet.transform({', '.join(['model', inputs, *options, *leaves, *(f'{name}={name}' for name in given)])})"


def applied(inputs: str, *, moved: bool) -> str:
    """Return the call that carries out a plan which no call of swnet.transform makes: it was given, or links `moved` in training.

    >>> print(applied("torch.zeros(1, 3, 32, 32)", moved=False))
    # plan.json is the plan that was given, as swnet.save writes it.
    swnet.apply(model, swnet.Plan.read('plan.json'), torch.zeros(1, 3, 32, 32))
    """
    said = "is the plan that was given"
    if moved:
        said = "holds the links of now: they were moved in training, and no call of swnet.transform gives them. It is the plan"
    return f"# plan.json {said}, as swnet.save writes it.\nswnet.apply(model, swnet.Plan.read('plan.json'), {inputs})"


def command(context: click.Context) -> str:
    """Return the command line that is running, with the seed, and without what only says how to print.

    Files are named as they were typed; one with all its folders by its name alone, since a report is handed on.
    """
    words = ["swcompile", str(context.info_name)]
    seeded = context.params.get("plan_file") is None  # a plan has its own
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if isinstance(parameter, click.Argument):
            words.append(_here(str(value)))
        elif (name == "seed" and seeded) or (given and name not in PRINTING):
            words += _words(parameter.opts[0], value)
    return shlex.join(words)


def _words(option: str, value: Any) -> list[str]:
    """Return an option as it is typed: a flag alone, one that repeats as often as it was given."""
    if isinstance(value, bool):
        return [option] if value else []
    texts = value if isinstance(value, list | tuple) else [value]
    said = ("=".join(map(str, text)) if isinstance(text, tuple) else _here(str(text)) for text in texts)
    return [word for text in said for word in (option, text)]


def _here(path: str) -> str:
    return os.path.basename(path) if os.path.isabs(path) else path
