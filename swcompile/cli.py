"""The command line: `swcompile transform`, `analyze`, `check`, `export` and `bench`.

Torch is imported inside the commands, so that `--help` and a typing error answer at once, and Ctrl-C during that import ends as
cleanly as later. What a command found goes to stdout; progress, the prints of the user's code and errors go to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from swcompile.errors import NothingToDoError, SwnetError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, fx

    from swcompile.api import Analysis, Survey
    from swcompile.graph import LayerGraph
    from swcompile.modelfile import ModelFile
    from swcompile.plan import Plan
    from swcompile.report.facts import Facts

DONE, BUG, BAD_INPUT, NOTHING_TO_DO, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a bug of swcompile: please report it with what was printed
  2    bad usage or bad input: one message says what to do
  3    nothing can be rewired: the reason for each layer is printed
  130  interrupted (143: terminated): nothing is left half-written
"""

BUG_REPORT = "This is a bug of swcompile, not of your model. Please report it with the lines above and, if you can, the model file."

FORMS = ("torch-export", "onnx", "python")
"""Those of swcompile.export, which imports torch."""

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


class Terminated(KeyboardInterrupt):
    """SIGTERM: temporary files go as they do after Ctrl-C."""


# Options that commands share


def _options(*decorators: Decorator) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _completed_by(kind: str) -> Callable[..., list[CompletionItem]]:
    """Let a shell complete an argument by its files, or by its folders ("dir")."""
    return lambda context, parameter, incomplete: [CompletionItem(incomplete, type=kind)]


_model_options = _options(
    click.argument("path", metavar="MODEL.PY", shell_complete=_completed_by("file")),
    click.option("--entry", metavar="NAME", help="The function, class or nn.Module in the file that is the model."),
    click.option(
        "--input", "inputs", multiple=True, metavar="SHAPE", help="An example input: 1x3x32x32, or 1x128:int64. Repeatable."
    ),
)
_screen_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
)
_graph_options = _options(
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
_graph_file_option = click.option(
    "--graph", "graph_file", metavar="FILE", help="Write the layer graph for other tools: .graphml, .dot or .json."
)
_budget_options = _options(
    click.option("--budget", default="links", metavar="links|params", help="Wiring kernel: what stays constant. [default: links]"),
    click.option("--init", default="he", metavar="he|dense", help="Wiring kernel: initialisation. [default: he]"),
    click.option("--conv-to-linear", is_flag=True, default=False, help="Wiring kernel: links from maps to linear layers too."),
    click.option("--min-in-degree", type=int, default=1, metavar="N", help="Wiring kernel: links that a channel keeps at least. "
                 "[default: 1]"),
)  # fmt: skip


# What commands do alike


@contextlib.contextmanager
def _working(steps: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show progress on stderr and keep stdout clean; yield a function that names the next step."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    with (
        _silenced() if quiet else contextlib.nullcontext(),
        Progress(*columns, console=console, transient=True, disable=hidden, redirect_stdout=False) as bar,
        _stdout_aside(quiet=quiet),
    ):
        task = bar.add_task("starting", total=steps)
        done = -1

        def begin(text: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=text, completed=done)

        yield begin


@contextlib.contextmanager
def _stdout_aside(*, quiet: bool) -> Iterator[None]:
    """Send what the user's code prints to stderr, or nowhere: by print, by os.write(1, ...) or from a process that it starts."""
    with (
        open(os.devnull, "w") as nowhere,
        _pointed(1, nowhere.fileno() if quiet else 2),
        contextlib.redirect_stdout(nowhere if quiet else sys.stderr),
    ):
        yield


@contextlib.contextmanager
def _pointed(number: int, target: int) -> Iterator[None]:
    """Let a file descriptor be a copy of another one; one that is closed stays closed."""
    _flush()
    try:
        kept = os.dup(number)
        os.dup2(target, number)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, number)
        os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken or closed
            stream.flush()  # type: ignore[union-attr]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    log = logging.getLogger("swcompile")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _show(document: Mapping[str, Any], shown: Sequence[RenderableType], *, as_json: bool, quiet: bool) -> None:
    text = f"{_json(document)}\n" if as_json else "" if quiet else _rendered(shown)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)  # names of files may be no text
    except BrokenPipeError:  # `| head` has read enough; let Python's own flush at the end go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _rendered(shown: Sequence[RenderableType]) -> str:
    console = Console(highlight=False)
    with console.capture() as capture:
        for item in shown:
            console.print(item, markup=False)
    return capture.get()


def _json(document: object) -> str:
    return json.dumps(_plain(document), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return the value as JSON has it; a number that JSON does not have becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _load(path: str, entry: str | None, inputs: Sequence[str]) -> tuple[ModelFile, tuple[Tensor, ...] | None]:
    from swcompile import modelfile

    shapes = tuple(modelfile.parse_input(text) for text in inputs)
    found = modelfile.load_model(path, entry)
    if "swcompile" in vars(found.model):
        raise SwnetError(f"{path} builds a model that swcompile has rewired already. Name the file of the original model.")
    return found, shapes or found.example_inputs


# The commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}, epilog=EXIT_CODES)
@click.version_option(package_name="swcompile")
def cli() -> None:
    """Compile the topology of a PyTorch model: small-world long-range links in, redundant links out."""


@cli.command(epilog=EXIT_CODES)
@_model_options
@click.option(
    "--out", default="out", metavar="FOLDER", shell_complete=_completed_by("dir"), help="Where the result goes. [default: out]"
)
@click.option("--force", is_flag=True, help="Replace a folder that swcompile wrote.")
@click.option(
    "--plan", "plan_file", metavar="PLAN.JSON", shell_complete=_completed_by("file"), help="Apply this plan instead of making one."
)
@click.option(
    "--score",
    default="distance",
    metavar="distance|weight|norm",
    help="Which blocks a budget drops: far ones, or those that a trained model's weights need least. [default: distance]",
)
@click.option(
    "--grow",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Move nothing, and add this share of long-range blocks on top at zero weight. [default: 0]",
)
@click.option("--verify", is_flag=True, default=False, help="Run pruned and masked model in float64, and compare them.")
@click.option("--plots", is_flag=True, help="Write the report's figures as PNG and SVG, too, into plots/.")
@_graph_options
@_budget_options
@_graph_file_option
@_screen_options
def transform(
    path: str,
    entry: str | None,
    inputs: Sequence[str],
    out: str,
    force: bool,
    plan_file: str | None,
    plots: bool,
    graph_file: str | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Rewire the model in MODEL.PY and write it to a folder.

    The folder holds plan.json, weights.safetensors, manifest.json, ledger.json, report.html, model.py, whose build_model() gives
    the rewired model, and source/, the model's own code. It can be moved as a whole.
    """
    if plan_file is not None:
        _refuse_options(asked)
    with _working(5, quiet=quiet) as begin:
        _import_torch(begin)
        from swcompile import api, plan, report, store, tables

        if plots:
            report.require()
        graph_path = _graph_path(graph_file, out)
        target = store.check_target(out, force=force)  # absolute, and the plan is read now: the user's file may change the folder
        made = None if plan_file is None else plan.Plan.read(plan_file)
        begin("building the model")
        found, examples = _load(path, entry, inputs)
        begin("rewiring")
        rewired = api.transform(found.model, examples, **asked) if made is None else api.apply(found.model, made, examples)
        if not api.ledger(rewired).changed:
            raise NothingToDoError(_unchanged(found.entry_name, api.ledger(rewired).notes))
        begin("reporting")
        seen = api.facts(rewired, report.command(click.get_current_context()))
        pages, left_out = _pages(seen, plots=plots)
        begin(f"writing {out}")
        figures = api.ledger(rewired).as_dict()
        _write(target, found, rewired, _json(figures), pages, force=force)
        if graph_path is not None:
            known = api.record(rewired)
            _write_graph(graph_path, known.graph, known.plan)
    page = os.path.join(out, store.REPORT) if pages else None
    document = {"out": out, "report": page, "model": found.entry_name, "plan": api.record(rewired).plan.digest, "ledger": figures}
    notes = [(note["layer"], note["reason"]) for note in figures["notes"]]
    shown = [
        f"{found.entry_name} of {path}, rewired: {_links(figures['links'])}",
        tables.ledger(figures["before"], figures["after"], notes),
        *([] if api.ledger(rewired).certificate is None else [str(api.ledger(rewired).certificate)]),
        "",
        tables.stages(report.by_stage(seen)),
        "",
        f"Written to {out}: model.py there has a build_model() that gives the rewired model.",
        f"See {page} in a browser." if pages else f"{store.REPORT} was left out: {left_out}",
    ]
    _show(document, shown, as_json=as_json, quiet=quiet)


def _pages(seen: Facts, *, plots: bool) -> tuple[dict[str, bytes], str]:
    """Return the report, and with `plots` its figures, as files of the folder; without `plots`, none and why where drawing fails.

    The folder is written once, with all that is in it, so that an interruption leaves nothing; hence it is drawn first.
    """
    from swcompile import report, store

    if report.missing() is not None and not plots:
        return {}, report.absent()
    try:
        pictures = {f"{store.PLOTS}/{name}": content for name, content in report.plots(seen).items()} if plots else {}
        return {store.REPORT: report.page(seen).encode(), **pictures}, ""
    except Exception as error:  # whatever it is: a picture that nobody asked for is not worth the result
        if plots:
            raise
        return {}, f"it could not be drawn ({type(error).__name__}: {first_line(error)})."


def _unchanged(name: str, notes: Sequence[Any]) -> str:
    """Say that a plan, or p = 0, asks for no change, with what the ledger notes of each layer."""
    reasons = "".join(f"\n  {note}" for note in notes)
    return f"Nothing changed in {name}, and nothing was written: the plan (or p = 0 at density 1) moves no link.{reasons}"


def _links(count: Mapping[str, int]) -> str:
    pruned = f", {count['pruned']:,} pruned" if count["pruned"] else ""
    grown = f", {count['grown']:,} added" if count["grown"] else ""
    return f"{count['moved']:,} links moved, {count['kept']:,} kept{pruned}{grown}"


def _refuse_options(asked: Mapping[str, Any]) -> None:
    context = click.get_current_context()
    given = [name for name in asked if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"--plan says how the model is wired, and so does {flags}. Leave one of the two out.")


def _write(out: Path, found: ModelFile, rewired: fx.GraphModule, ledger: str, pages: Mapping[str, bytes], *, force: bool) -> None:
    from swcompile import api, store

    copies = {f"source/{file.relative_to(found.root).as_posix()}": file.read_bytes() for file in found.sources}
    source = next(iter(copies))
    program = MODEL_PY.format(source=source, entry=found.entry_name)
    extras = {**copies, "ledger.json": f"{ledger}\n".encode(), "model.py": program.encode(), **pages}
    made = api.record(rewired)
    name = type(found.model).__name__
    store.write(out, made.plan, rewired.state_dict(), made.example_shapes, model=name, extras=extras, force=force)


MODEL_PY = '''"""A model rewired by swcompile, ready to train or to run.

    from model import build_model          # with this folder on the path
    model = build_model()                  # an ordinary nn.Module, with the weights in weights.safetensors

source/ holds the model's own code as it was, and is the place for other files that this code reads; plan.json says what each
layer reads. Move the folder as a whole.
"""

import contextlib
import os
import sys
from pathlib import Path

import swnet
from swcompile.modelfile import load_model
from torch import nn

HERE = Path(__file__).resolve().parent


def build_original() -> nn.Module:
    """Build the model as it was before it was rewired."""
    return load_model(HERE / {source!r}, {entry!r}).model


def build_model() -> nn.Module:
    """Build the rewired model and load its weights."""
    return swnet.load(HERE, build_original())


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # what the model's own code prints
        model = build_model()
    try:
        print(model.swcompile.plan, flush=True)
    except BrokenPipeError:  # `| head` has read enough; let Python's own flush at the end go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
'''


@cli.command(epilog=EXIT_CODES, short_help="Show the figures over p, and the p that would be chosen.")
@_model_options
@_graph_options
@_graph_file_option
@click.option("--points", type=int, default=20, metavar="N", help="How many values of p. [default: 20]")
@click.option("--report", "report_file", metavar="FILE", help="Write a page that shows what that p would make of the network.")
@click.option("--plots", is_flag=True, help="With --report: its figures as PNG and SVG, too, into plots/ beside it.")
@_screen_options
def analyze(
    path: str,
    entry: str | None,
    inputs: Sequence[str],
    graph_file: str | None,
    report_file: str | None,
    plots: bool,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Show the graph's figures over p, and the p that would be chosen.

    Nothing is rewired, nor written but the report and the file that --graph names.
    """
    if plots and report_file is None:
        raise click.UsageError("--plots writes figures beside the report: say where that goes, --report FILE.")
    file = None if report_file is None else os.path.abspath(report_file)  # now: the user's file may change the folder
    with _working(3 if file is None else 4, quiet=quiet) as begin:
        if file is not None:
            _require_report()
        graph_path = _graph_path(graph_file)
        found, analysis = _analyze(begin, path, entry, inputs, asked)
        if graph_path is not None:
            _write_graph(graph_path, analysis.graph)
        if file is not None:
            begin(f"writing {report_file}")
            _report(analysis, file, plots=plots)
    from swcompile import tables

    curve = {name: _plain(getattr(analysis.curve, name)) for name in ("p", "C", "L", "S")}
    document = {"p_requested": asked["p"], "p": analysis.p, "curve": curve, **_facts(found, analysis), "report": report_file}
    rows = zip(curve["p"], curve["C"], curve["L"], curve["S"], strict=True)
    written = [] if report_file is None else [f"See {report_file} in a browser."]
    _show(document, [tables.sweep(rows, analysis.p, str(asked["p"])), *_remarks(analysis), *written], as_json=as_json, quiet=quiet)


def _require_report() -> None:
    from swcompile import report

    report.require()


def _report(analysis: Analysis, file: str, *, plots: bool) -> None:
    from swcompile import api, report, store

    seen = api.facts(analysis, report.command(click.get_current_context()))
    store.write_files(file, report.page(seen).encode(), report.plots(seen) if plots else {})


@cli.command(epilog=EXIT_CODES)
@_model_options
@_graph_options
@_screen_options
def check(path: str, entry: str | None, inputs: Sequence[str], as_json: bool, quiet: bool, **asked: Any) -> None:
    """Say for each layer whether it can be rewired, and why not.

    Nothing is rewired or written. Ends with 3 where no layer can be.
    """
    with _working(3, quiet=quiet) as begin:
        _import_torch(begin)
        from swcompile import api

        begin("building the model")
        found, examples = _load(path, entry, inputs)
        begin("tracing")
        surveyed = api.survey(found.model, examples, **asked)
    from swcompile import tables

    refused = dict(surveyed.refused)
    rows = tables.layers(surveyed.graph, refused, surveyed.unreached)
    document = {"layers": tables.records(surveyed.graph, refused), **_facts(found, surveyed), "outlook": surveyed.outlook}
    remarks = [*_remarks(surveyed), *([surveyed.outlook] if surveyed.outlook else [])]
    _show(document, [rows, *remarks], as_json=as_json, quiet=quiet)
    if not surveyed.eligible:
        reasons = "".join(f"\n  {layer}: {reason}" for layer, reason in (*surveyed.refused, *surveyed.unreached))
        raise NothingToDoError(f"No layer of {found.entry_name} in {path} can be rewired:{reasons}")


@cli.command(epilog=EXIT_CODES)
@click.argument("folder", metavar="FOLDER")
@click.option("--to", required=True, type=click.Choice(FORMS), metavar="|".join(FORMS), help="The form.")
@click.option("--out", metavar="FOLDER", help="Where it goes. [default: FOLDER-python and the like]")
@click.option("--force", is_flag=True, help="Replace a folder that an earlier export wrote.")
@click.option("--aot", is_flag=True, help="With torch-export: also compile it ahead of time. Takes a C++ compiler.")
@click.option(
    "--tolerance",
    type=float,
    metavar="SHARE",
    help="How far it may be off, as a part of the largest output. [default: 1e-5 in float32]",
)
@_screen_options
def export(
    folder: str, to: str, out: str | None, force: bool, aot: bool, tolerance: float | None, as_json: bool, quiet: bool
) -> None:
    """Write a rewired model in a form that other programs take.

    FOLDER is what transform wrote. python is a readable module of torch's own layers, with its weights beside it; torch-export a
    .pt2 file; onnx a .onnx file. Each is run and compared with the model before it is written.
    """
    target = out or f"{_named(folder)}-{to}"
    with _working(3, quiet=quiet) as begin:
        _import_torch(begin)
        from swcompile import export as exporting
        from swcompile import modelfile, store

        path = store.check_target(target, force=force, kind=exporting.FORMAT)
        begin("building the model")
        model = modelfile.load_rewired(folder)
        begin(f"exporting to {to}")
        done = exporting.export(model, path, to=to, aot=aot, tolerance=tolerance, force=force)
    document = {"out": target, "to": done.to, "files": done.files, "open_batch": done.open_batch, **vars(done.comparison)}
    batches = " and ".join(map(str, done.comparison.batches))
    found, allowed = done.comparison.difference, done.comparison.tolerance
    shown = [
        f"Off by {found:.2g} of the largest output at batches of {batches} ({allowed:.2g} is allowed).",
        *(["Train mode was not compared: the module itself does not run in it on these inputs."] if done.trained is False else []),
        *([] if done.open_batch else ["The batch size is fixed to that of the example, as it is in the model."]),
        f"Written to {target}: {', '.join(done.files)}",
    ]
    _show(document, shown, as_json=as_json, quiet=quiet)


@cli.command(epilog=EXIT_CODES)
@click.option("--calibrate", is_flag=True, help="Time this device's operations, for swnet.lower to choose by.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where to run. [default: cuda where there is one]")
@click.option("--dtype", metavar="DTYPE", help="Of the maps. [default: bfloat16; float32 on a CPU]")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Images at once. [default: 256; 8 on a CPU]")
@_screen_options
def bench(calibrate: bool, device: str | None, dtype: str | None, batch: int | None, as_json: bool, quiet: bool) -> None:
    """Time gathers on this machine, as they are and lowered.

    With --calibrate, time the operations that they consist of, for every dtype, and keep that in your cache folder: swnet.lower
    chooses by it from then on.
    """
    if calibrate and (dtype or batch):
        raise click.UsageError("--calibrate goes over all dtypes and batches: leave out --dtype and --batch.")
    with _working(1, quiet=quiet) as begin:
        _import_torch(begin)
        from swcompile import bench as timing

        where, kind, count = timing.asked(device, dtype, batch)
    with _working(timing.steps(where, calibrating=calibrate), quiet=quiet) as begin:
        rates, file = timing.calibrate(where, begin) if calibrate else (None, None)
        rows = () if calibrate else tuple(timing.microbenchmarks(where, kind, count, begin))
    from swcompile import tables

    if rates is not None:
        document = {"file": str(file), **rates.as_dict()}
        shown = [tables.timings(rates.device, rates.dtypes), f"Kept in {file}"]
    else:
        document = timing.document(where, rows)
        shown = [tables.microbenchmarks(document["device"], rows)]
    _show(document, shown, as_json=as_json, quiet=quiet)


def _named(folder: str) -> str:
    """Return a folder without . and .. at its end: what is called after it lies beside it, not inside."""
    path = os.path.normpath(folder)
    return os.path.abspath(path) if os.path.basename(path) in ("", ".", "..") else path


def _graph_path(name: str | None, out: str | None = None) -> Path | None:
    """Return where --graph writes, checked and absolute before any work: the user's file may change the folder.

    It must not be one of the files that go into the folder `out`.
    """
    from swcompile import graphfile, store

    if name is None:
        return None
    path = graphfile.check_path(name)
    if out is not None and str(path) in {os.path.abspath(os.path.join(out, part)) for part in store.OURS}:
        raise SwnetError(f"--graph {name} is a file of the model that goes to {out}; name another one.")
    return path


def _write_graph(path: Path, graph: LayerGraph, made: Plan | None = None) -> None:
    from swcompile import graphfile

    graphfile.write(path, graph, made)


def _analyze(
    begin: Callable[[str], None], path: str, entry: str | None, inputs: Sequence[str], asked: Mapping[str, Any]
) -> tuple[ModelFile, Analysis]:
    _import_torch(begin)
    from swcompile import api

    begin("building the model")
    found, examples = _load(path, entry, inputs)
    begin("analyzing")
    return found, api.analyze(found.model, examples, **asked)


def _import_torch(begin: Callable[[str], None]) -> None:
    """Import torch, which takes seconds. An interrupt waits: torch aborts where Python that it calls while it is set up raises."""
    begin("importing torch")
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)  # whoever asks twice need not wait

    before = {number: signal.signal(number, hold) for number in _heard()}
    try:
        importlib.import_module("torch")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _facts(found: ModelFile, surveyed: Survey) -> dict[str, Any]:
    """Return what the documents of analyze and check have in common."""
    from swcompile import tables

    return {
        "model": found.entry_name,
        "example_inputs": [str(item) for item in surveyed.example],
        "inferred": surveyed.inferred,
        "tracing": surveyed.steps,
        "eligible": surveyed.eligible,
        "refused": surveyed.refused,
        "unreached": surveyed.unreached,
        "opaque": surveyed.opaque,
        "share": tables.share(surveyed.graph, dict(surveyed.refused)),
    }


def _remarks(surveyed: Survey) -> Iterator[RenderableType]:
    from swcompile import tables

    yield str(tables.share(surveyed.graph, dict(surveyed.refused)))
    steps = surveyed.steps
    yield tables.tracing(steps.step, steps.why, steps.where, steps.fixed)
    if steps.assigned:
        yield f"{steps.about_assigned}."
    if steps.islands:
        yield tables.islands([(island.path, island.reason, island.where) for island in steps.islands])
    if surveyed.opaque:
        yield tables.opaque(surveyed.opaque)


# Running them


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        with _signals():
            code = cli.main(list(arguments), prog_name="swcompile", standalone_mode=False)
            return code if isinstance(code, int) else DONE
    except click.Abort as abort:
        return _interrupted(abort.__cause__)
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except SwnetError as error:
        _complain(f"error: {_printable(str(error))}")
        return NOTHING_TO_DO if isinstance(error, NothingToDoError) else BAD_INPUT
    except Exception:
        _complain(f"{traceback.format_exc()}{BUG_REPORT}")
        return BUG


def _complain(text: str) -> None:
    try:
        click.echo(text, err=True)
    except ValueError:  # the user's code has closed stderr, or stdout while that stood for it
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def _interrupted(cause: BaseException | None) -> int:
    terminated = isinstance(cause, Terminated)
    click.echo("terminated" if terminated else "interrupted", err=True)
    return TERMINATED if terminated else INTERRUPTED


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """End as an interruption whatever an interrupt was turned into on its way (an import wraps it, for one)."""
    caught: list[type[KeyboardInterrupt]] = []
    report = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        caught.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise caught[0]

    def again(lost: Any) -> None:
        """Send an interrupt again that came up in a finalizer, where Python drops it."""
        if caught and issubclass(lost.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if caught[0] is Terminated else signal.SIGINT
            threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        else:
            report(lost)

    before = {number: signal.signal(number, interrupt) for number in _heard()}
    sys.unraisablehook = again
    try:
        yield
    except Exception as error:
        if caught and not isinstance(error, click.Abort):
            raise caught[0] from error
        raise
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[int]:
    """Return which of Ctrl-C and SIGTERM this process listens to: under nohup it may not."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]


def _printable(text: str) -> str:
    """Return the text without what would steer a terminal: names in it may come from a file that somebody sent."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def main() -> NoReturn:
    """Run the command line of this process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Outside of `run`, in Python's own shutdown above all, an interrupt ends the process and does not show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = run(sys.argv[1:])
    _flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what the user's code prints at its exit is no part of the result
    sys.exit(code)


if __name__ == "__main__":
    main()
