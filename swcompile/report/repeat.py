"""The call that gives the same result again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from swcompile.plan import Options, Plan


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
