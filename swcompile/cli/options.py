"""The options that commands share, and what their values are read as.

Which values there are is for `swcompile.plan` to say, as in Python; what is none of a number here is handed on as it was typed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class NumberOrWord(click.ParamType[Any]):
    """A number of the first kind that the text is one of, else the text: the options themselves say which words they take."""

    def __init__(self, name: str, *kinds: type[int] | type[float]) -> None:
        self.name, self.kinds = name, kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        for kind in self.kinds:
            with contextlib.suppress(ValueError):
                return kind(value)
        return value


class NameAndShare(click.ParamType[Any]):
    """NAME=SHARE as a pair; what is no share is left for the options to refuse."""

    name = "layers=share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        layers, _, share = value.rpartition("=")
        with contextlib.suppress(ValueError):
            return layers, float(share)
        return layers or value, share


def _together(*decorators: Decorator) -> Decorator:
    """Make one decorator of several, which help lists in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def completed_by(kind: str) -> Callable[..., list[CompletionItem]]:
    """Let a shell complete an argument by its files, or by its folders ("dir")."""
    return lambda context, parameter, incomplete: [CompletionItem(incomplete, type=kind)]


model_options = _together(
    click.argument("path", metavar="MODEL.PY", shell_complete=completed_by("file")),
    click.option("--entry", metavar="NAME", help="The function, class or nn.Module in the file that is the model."),
    click.option(
        "--input", "inputs", multiple=True, metavar="SHAPE", help="An example input: 1x3x32x32, or 1x128:int64. Repeatable."
    ),
)
screen_options = _together(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
)
graph_options = _together(
    click.option("--p", type=NumberOrWord("p", float), default="auto", metavar="P|auto|boundary|max_S", help="Share of links that "
                 "become long-range. [default: auto]"),
    click.option("--density", type=float, default=1.0, metavar="SHARE", help="Share of links that are kept. [default: 1]"),
    click.option("--params", type=NumberOrWord("params", int, float), metavar="N", help="Instead of --density: at most N "
                 "parameters."),
    click.option("--macs", type=NumberOrWord("macs", int, float), metavar="N", help="Instead of --density: at most N "
                 "multiply-accumulates a sample."),
    click.option("--keep", type=NameAndShare(), multiple=True, default=(), metavar="LAYERS=SHARE", help="Instead of --density: the "
                 "share of links that layers with such names keep, as in 'stage3.*=0.5'. Repeatable."),
    click.option("--spread", default="uniform", metavar="uniform|erk|global", help="How layers share what is kept. [default: "
                 "uniform]"),
    click.option("--wiring", default="block", metavar="block|kernel|tile", help="Move blocks of channels, links, or blocks "
                 "of outputs and inputs. [default: block]"),
    click.option("--block", type=NumberOrWord("block", int), default="auto", metavar="N|auto|producer", help="Channels a block. "
                 "[default: auto]"),
    click.option("--resample", default="max", metavar="max|avg|stride", help="How a larger map is brought to the reader's size. "
                 "[default: max]"),
    click.option("--reach", default="uniform", metavar="uniform|near|far", help="Which sources are drawn more often. [default: "
                 "uniform]"),
    click.option("--seed", type=int, default=0, help="The same seed gives the same plan anywhere. [default: 0]"),
    click.option("--head", is_flag=True, default=False, help="Rewire the classifier too."),
    click.option("--dead", default="auto", metavar="auto|forbid|allow", help="Whether a channel may lose its last reader. "
                 "[default: auto]"),
    click.option("--leaf", "leaf_modules", multiple=True, default=(), metavar="PATH", help="A module to leave alone. Repeatable."),
    click.option("--skips", default="keep", metavar="keep|remove", help="Wiring kernel: the model's shortcuts. [default: keep]"),
)  # fmt: skip
graph_file_option = click.option(
    "--graph", "graph_file", metavar="FILE", help="Write the layer graph for other tools: .graphml, .dot or .json."
)
kernel_options = _together(
    click.option("--budget", default="links", metavar="links|params", help="Wiring kernel: what stays constant. [default: links]"),
    click.option("--init", default="he", metavar="he|dense", help="Wiring kernel: initialisation. [default: he]"),
    click.option("--conv-to-linear", is_flag=True, default=False, help="Wiring kernel: links from maps to linear layers too."),
    click.option("--min-in-degree", type=int, default=1, metavar="N", help="Wiring kernel: links that a channel keeps at least. "
                 "[default: 1]"),
)  # fmt: skip
