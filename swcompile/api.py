"""The public functions: from a user's model to a rewired one, and what can be asked of either."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.export import ExportedProgram

from swcompile import report as reports
from swcompile import store
from swcompile.calibrate import calibrate as take_statistics
from swcompile.calibrate import is_trained
from swcompile.certificate import certify, certify_masks
from swcompile.check import Census, Ledger, census, check, masks_of, remasked
from swcompile.collector import collector_paused
from swcompile.errors import NothingToDoError, SwnetError, first_line
from swcompile.graph import Coupling, LayerGraph
from swcompile.lower import BACKENDS, Lowering
from swcompile.metrics import Figures, channel_graph, measure
from swcompile.modules import RewiredModule
from swcompile.optimize import optimize, restore_in_place
from swcompile.outlook import outlook
from swcompile.plan import P_POLICIES, Note, Options, Plan
from swcompile.report import repeat
from swcompile.report.facts import Facts, Provenance, Sweep, foresee, gather, note_pairs
from swcompile.rewrite import rewrite
from swcompile.scores import NEEDS, Loss, refuse_unfit
from swcompile.scores import score as score_of
from swcompile.trace import Example, Steps, Traced, coupled, trace, trace_structure
from swcompile.trace.rules import NORM_MODULES
from swcompile.trace.shapes import Spec
from swcompile.verify import verify
from swcompile.wiring import Curve, decide, explain, sweep, wire
from swcompile.wiring.eligible import eligible
from swcompile.wiring.policy import choose_p

MAX_POINTS = 1000
"""The most values of p that a sweep takes: the network is wired and measured anew at each of them."""

POINTS, DEEP, FEW_POINTS = 20, 1_000, 5
"""How many values of p a report's curve has, and how many in networks of more than DEEP layers, where each takes seconds."""

_log = logging.getLogger("swcompile")


@dataclass(frozen=True)
class Record:
    """What a rewired module remembers: the plan it carries out, the inputs it was traced with, its ledger, the original's graph.

    `curve` is the one over p that a policy chose by, None where none did. `census` is the original as counted, kept where masks may
    come to be others in training. `origin` says where the plan is from: "options" (of `transform`), "plan" (given to `apply` or
    `load`) or "training", in which links were moved; `calibrated`, whether norms took their statistics anew.
    """

    plan: Plan
    example: Example
    ledger: Ledger
    graph: LayerGraph
    curve: Curve | None = None
    census: Census | None = None
    origin: str = "options"
    calibrated: bool = False

    @property
    def example_shapes(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The shape and dtype of each example input that is a tensor."""
        return tuple((spec.shape, spec.dtype) for spec in self.example if isinstance(spec, Spec))


@dataclass(frozen=True)
class Survey:
    """What of a model can be rewired, before anything is computed.

    `refused` pairs each layer that cannot be rewired with the reason, `opaque` each operation that channels cannot be followed
    through with its line, `unreached` each layer that is no part of the graph with the reason. `steps` says what tracing had to do.
    `params` counts the whole model's parameters. `inferred` tells whether the input was guessed. `outlook` says so where published
    evidence has such networks gain little (swcompile.outlook). `options` are those that were asked for, `leaves` the modules that
    tracing left alone because the user said so.
    """

    graph: LayerGraph
    options: Options
    leaves: tuple[str, ...]
    eligible: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    opaque: tuple[tuple[str, str], ...]
    unreached: tuple[tuple[str, str], ...]
    steps: Steps
    example: Example
    inferred: bool
    params: int
    outlook: str | None


@dataclass(frozen=True)
class Analysis(Survey):
    """A survey with the model's figures, and what they become over p.

    `curve` holds C, L and S at each p swept; `p` is the one the policy (or the number asked for) chooses.
    """

    figures: Figures
    curve: Curve
    p: float


def transform(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    p: float | str = "auto",
    density: float = 1.0,
    params: int | None = None,
    macs: int | None = None,
    keep: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    spread: str = "uniform",
    score: str = "distance",
    grow: float = 0.0,
    wiring: str = "block",
    block: int | str = "auto",
    resample: str = "max",
    reach: str = "uniform",
    seed: int = 0,
    head: bool = False,
    dead: str = "auto",
    skips: str = "keep",
    budget: str = "links",
    init: str = "he",
    conv_to_linear: bool = False,
    min_in_degree: int = 1,
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    verify: bool = False,
    calibrate: Iterable[Any] | None = None,
    leaf_modules: Sequence[str | type[nn.Module]] = (),
    lower: str = "auto",
) -> RewiredModule:
    """Return a copy of `model` whose layers also read feature maps from far behind them.

    Args:
        model: any nn.Module, a GraphModule included, or a torch.export.ExportedProgram. It is not changed.
        example_inputs: a tensor, or a tuple of the forward's arguments; only shapes and dtypes matter. Inferred where None.
        p: the share of each layer's input blocks (or links) that become long-range, from 0 to 1, or a policy: "auto", "boundary"
            (the smallest p that makes a small world, S_G >= 1) or "max_S".
        density: the share of input blocks that stay; below 1 the layers' weights become physically smaller.
        params, macs: instead of density, the most parameters or multiply-accumulates that the whole model may have. The result
            has no more, and less only by what makes no whole block.
        keep: instead of density, the share of blocks that stay by patterns of layer names: {"stage3.*": 0.5}.
        spread: how layers share what stays: "uniform", "erk" (wide layers keep less, as in RigL) or "global" (one ranking).
        score: which blocks a budget drops: with "distance" the farthest, in a model that is not trained yet; in a trained one those
            that score lowest by "weight", "norm", "taylor" or "correlation" (swcompile.scores), and then p="auto" is 0.
        grow: instead of moving links, the share of input blocks that are added on top, long-range, at zero weight: what the model
            computes stays the same to the bit until it is trained on.
        wiring: "block" (one wiring per layer, in blocks of channels), "kernel" (link by link, as in the SWNet paper, masked), or
            "tile" (in blocks of outputs and inputs, masked, of which at most half stay: for block-sparse kernels).
        block: channels per block, "auto" or "producer" (all channels of a producer).
        resample: how larger feature maps shrink to the reader's size: "max", "avg" or "stride".
        reach: how far taps reach: "uniform", "near" or "far".
        seed: the same seed, model and options give the same plan on every machine.
        head: whether the last layers (classifiers) may be rewired too.
        dead: "forbid" moves no block that would leave channels unread, "allow" does, "auto" forbids where that leaves enough.
        skips, budget, init, conv_to_linear, min_in_degree: for wiring "kernel"; see swcompile.wiring.kernel.
        batches, loss_fn: what to score by: batches of inputs and targets, gone through once, for "taylor" and "correlation", and
            for "taylor" a function of the output and the targets. Ranks with other batches get other plans: give all the same.
        verify: whether to run the pruned model and a masked one, or a masked model and its live links alone, in float64 and compare
            them (swcompile.certificate).
        calibrate: batches (tensors, or tuples that begin with the model's inputs, such as a DataLoader's) from which the norms of
            a trained model take their statistics anew.
        leaf_modules: paths or classes of modules to leave as they are, with whatever layers lie inside.
        lower: "auto" lowers both modes (swnet.lower) while the weights are on a GPU, where timings of it promise a win; the ledger
            says what and why. "off" does not. Neither `swnet.apply` nor `swnet.load` does: call swnet.lower on what they return.

    Returns:
        A RewiredModule: an ordinary nn.Module with the same signature and, at density 1 of wiring "block", the same state dict.

    Raises:
        SwnetError: with what to do, where the request cannot be carried out; NothingToDoError where no layer could be changed.

    >>> from torch import nn
    >>> net = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)], nn.Linear(32, 10))
    >>> rewired = transform(net, p=0.25)
    >>> ledger(rewired).after.params == ledger(rewired).before.params
    True

    Source: Javaheripi, Rouhani and Koushanfar, arXiv 1904.04862.
    """
    options = Options(
        wiring=wiring,
        p=p,
        density=density,
        params=params,
        macs=macs,
        keep=keep,  # type: ignore[arg-type]  # which it turns into pairs
        spread=spread,
        score=score,
        grow=grow,
        block=block,
        resample=resample,
        reach=reach,
        seed=seed,
        head=head,
        dead=dead,
        skips=skips,
        budget=budget,
        init=init,
        conv_to_linear=conv_to_linear,
        min_in_degree=min_in_degree,
    )
    refuse_unfit(options.score, {"batches": batches, "loss_fn": loss_fn})
    if lower not in ("auto", "off"):
        raise SwnetError(f'lower is "auto" or "off", not {lower!r}; swnet.lower lowers by a backend of your choice.')
    traced = _traced(trace, model, example_inputs, leaf_modules, options)
    made, curve = _decide(traced, options, batches, loss_fn)
    if not made.layers and (options.p != 0 or options.prunes or options.grow):
        raise NothingToDoError(_why_nothing(made))
    module = _carry_out(traced, made, curve, fresh=True)
    if verify:
        module = _certified(model, module, example_inputs)
    module = _with_statistics(module, calibrate)
    if lower == "auto":
        module.lower_by(Lowering("auto", record(module).example, training=True, only_gpus=True))
    return module


def plan(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    p: float | str = "auto",
    density: float = 1.0,
    params: int | None = None,
    macs: int | None = None,
    keep: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    spread: str = "uniform",
    score: str = "distance",
    grow: float = 0.0,
    wiring: str = "block",
    block: int | str = "auto",
    resample: str = "max",
    reach: str = "uniform",
    seed: int = 0,
    head: bool = False,
    dead: str = "auto",
    skips: str = "keep",
    budget: str = "links",
    init: str = "he",
    conv_to_linear: bool = False,
    min_in_degree: int = 1,
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    leaf_modules: Sequence[str | type[nn.Module]] = (),
) -> Plan:
    """Decide what `transform` would do, without touching weights, nor needing any but to score. Arguments as for `transform`."""
    options = Options(
        wiring=wiring,
        p=p,
        density=density,
        params=params,
        macs=macs,
        keep=keep,  # type: ignore[arg-type]  # which it turns into pairs
        spread=spread,
        score=score,
        grow=grow,
        block=block,
        resample=resample,
        reach=reach,
        seed=seed,
        head=head,
        dead=dead,
        skips=skips,
        budget=budget,
        init=init,
        conv_to_linear=conv_to_linear,
        min_in_degree=min_in_degree,
    )
    refuse_unfit(options.score, {"batches": batches, "loss_fn": loss_fn})
    how = trace if options.scored else trace_structure
    return _decide(_traced(how, model, example_inputs, leaf_modules, options), options, batches, loss_fn)[0]


def apply(model: nn.Module | ExportedProgram, plan: Plan, example_inputs: object = None) -> RewiredModule:
    """Return a copy of `model` rewired as `plan` says; the plan is verified against the model first."""
    if not isinstance(plan, Plan):
        raise SwnetError(
            f"A {type(plan).__name__} was given as the plan; make one with swnet.plan(model), or read one with Plan.read."
        )
    found = _module(model)
    return _carry_out(trace(found, _inputs(model, example_inputs), plan.leaves), plan)


def analyze(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    p: float | str = "auto",
    density: float = 1.0,
    params: int | None = None,
    macs: int | None = None,
    keep: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    spread: str = "uniform",
    wiring: str = "block",
    block: int | str = "auto",
    resample: str = "max",
    reach: str = "uniform",
    seed: int = 0,
    head: bool = False,
    dead: str = "auto",
    skips: str = "keep",
    leaf_modules: Sequence[str | type[nn.Module]] = (),
    points: int = 20,
) -> Analysis:
    """Return a model's layer graph, its figures over `points` values of p, and the layers that can be rewired. Needs no weights."""
    options = Options(
        wiring=wiring,
        p=p,
        density=density,
        params=params,
        macs=macs,
        keep=keep,  # type: ignore[arg-type]  # which it turns into pairs
        spread=spread,
        block=block,
        resample=resample,
        reach=reach,
        seed=seed,
        head=head,
        dead=dead,
        skips=skips,
    )
    if not isinstance(points, int) or not 2 <= points <= MAX_POINTS:
        raise SwnetError(f"points={points!r} were asked for; take a whole number from 2 to {MAX_POINTS:,} of values of p.")
    traced = _traced(trace_structure, model, example_inputs, leaf_modules, options)
    curve = sweep(traced.graph, options, points)
    return Analysis(
        **vars(_surveyed(traced, options)),
        figures=measure(channel_graph(traced.graph)),
        curve=curve,
        p=choose_p(curve, options.p) if isinstance(options.p, str) else float(options.p),
    )


def survey(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    leaf_modules: Sequence[str | type[nn.Module]] = (),
    **asked: Any,
) -> Survey:
    """Return what of a model can be rewired, with the options `asked` for, without computing any figures: for `swcompile check`."""
    options = Options(**asked)
    return _surveyed(_traced(trace_structure, model, example_inputs, leaf_modules, options), options)


def _surveyed(traced: Traced, options: Options) -> Survey:
    layers, notes = eligible(traced.graph, options)
    return Survey(
        graph=traced.graph,
        options=options,
        leaves=tuple(sorted(traced.leaves)),
        eligible=tuple(layer.name for layer in layers),
        refused=tuple((note.layer, note.reason) for note in notes),
        opaque=traced.graph.opaque,
        unreached=traced.unreached,
        steps=traced.steps,
        example=traced.example,
        inferred=traced.inferred,
        params=traced.graph.params,
        outlook=outlook(traced.graph, normed=any(isinstance(module, NORM_MODULES) for module in traced.root.modules())),
    )


def lower(model: nn.Module, example_inputs: object = None, *, backend: str = "auto", training: bool = False) -> RewiredModule:
    """Return a copy of a model that, in eval mode without gradients, reads feature maps where they lie, where that is faster.

    Maps that layers gather from are written once, as they are made, into a slab with channels last, or are left where they are;
    gather, norm, activation and a 1x1 convolution or linear layer behind it (with norm and activation) run as one, and that concat
    is never made. A layer masked in tiles (wiring "tile") runs over what its clusters of outputs read, which saves as much work as
    it has masked. In train mode, and where a gradient is asked for, the model runs as before: call it under torch.no_grad() or
    torch.inference_mode(). Its modules, its state dict and what it computes are the same, up to the rounding of another order of
    sums; under torch.autocast, too, whose types it keeps. Left alone are models that write into their values, concats of several
    types or read by their strides, those of which no layer says that their channels are as many for every input, and what a module
    with hooks does. `swnet.save` does not keep it: lower what `swnet.load` returns.

    "auto" predicts from timings of the device's operations what each gather would take, and leaves alone what gains nothing;
    `swcompile bench --calibrate` makes these timings. A CPU that has none goes by those of another; a GPU by those shipped for the
    nearest of its vendor and major compute capability, and is left alone where there is none. It chooses at the first call of a
    kind: by device, a CPU's threads, dtype, autocast, layout, and the power of two of each size. Inside torch.compile and
    torch.export, what was chosen for the example inputs runs; under autocast, once a call like them has come under it. Calls with
    keywords, or with anything but tensors, and those in torch.func under autocast, run as before. `swnet.ledger` says what was
    chosen and why.

    With `training`, train mode is lowered, too: gather, batch norm, activation and layer run as one operation, which keeps nothing
    for the backward pass but the maps that it reads, and computes the rest anew there; the statistics of a map are taken once for
    all that read it, over all processes for nn.SyncBatchNorm, and its gradient is corrected for them once. A layer masked in tiles
    runs over what is live alone there, too. It computes what the model does, gradients and running statistics among it, in less
    memory, and in plain torch, but for tiles, mostly not in less time: "auto" goes by timings of steps through gathers with a norm.
    Gradients cannot be differentiated again, nor asked for in batches (is_grads_batched). What is drawn at random behind a lowered
    layer (dropout, torch.randn_like) is drawn by the layout of a map, and so falls elsewhere. Layers masked otherwise, modules with
    hooks, forward-mode differentiation and torch.func run as before.

    Args:
        model: what `transform` made, or any model that it takes; that is then traced, and nothing else is changed.
        example_inputs: as for `transform`; a model that `transform` made has its own.
        backend: "auto"; "torch", every gather that can be in plain torch operations, on any device; or "triton", every concat of
            feature maps by the kernels of swkernels, on a GPU.
        training: whether train mode is lowered, too.

    Raises:
        SwnetError: a backend that there is not, a model that cannot be traced, or, for "triton", a concat that has to stay.
        NothingToDoError: a SwnetError, where there is no concat that could be lowered.
    """
    if backend not in BACKENDS:
        raise SwnetError(f"There is no backend {backend!r}; there are {', '.join(BACKENDS)}.")
    module = model if isinstance(model, RewiredModule) else transform(model, example_inputs, p=0.0, lower="off")
    lowering = Lowering(backend, record(module).example, training)
    made = module.with_lowering(lowering)
    first = made.programs[0]
    if not first.choices or not first.choices.gathers:
        why = first.choices.why if first.choices else "the model does not run for its example inputs"
        raise NothingToDoError(f"There is nothing to lower: {why}.")
    if first.graph is None and backend != "auto":
        raise SwnetError(f"It cannot be lowered: {first.choices.why}.")
    return made


def ledger(module: nn.Module) -> Ledger:
    """Return what was done to a module that `transform`, `apply` or `load` made, and what `lower` chose."""
    found = record(module)
    lowered = module.programs if isinstance(module, RewiredModule) else ()
    return replace(found.ledger, lowered=tuple(one.choices for one in lowered if one.choices is not None))


def report(subject: nn.Module | Analysis, path: str | Path | None = None, *, plots: bool = False) -> str:
    """Return one HTML page that shows a network before and after; with `path`, write it there, too.

    It is one file that fetches nothing: the network as a picture, C, L and S over p, the connection matrix, path lengths and
    degrees, the ledger, each layer, what was left alone and why, and the call that repeats it.

    Args:
        subject: what `transform`, `apply`, `load` or `lower` made, or what `analyze` returned: then the page shows what the plan at
            the chosen p would make of the network.
        path: the file to write; an older one is replaced, whole or not at all. Its folder has to exist.
        plots: whether to write the figures as PNG and SVG, too, into a folder `plots` beside the page.

    Returns:
        The page; a notebook shows it by IPython.display.HTML.

    Raises:
        SwnetError: where the subject is none of these, the extra `report` is not installed, or the file cannot be written.

    >>> from torch import nn
    >>> net = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)], nn.Linear(32, 10))
    >>> report(transform(net, p=0.25))[:15]
    '<!doctype html>'
    """
    if plots and path is None:
        raise SwnetError("plots=True writes files beside the page, which is not written either. Say where: path='report.html'.")
    found = facts(subject)
    made = reports.page(found)
    if path is not None:
        store.write_files(path, made.encode(), reports.plots(found) if plots else {})
    return made


def facts(subject: object, command: str | None = None) -> Facts:
    """Return what a report shows of a rewired module or an analysis; `command` is what repeats it, a call where None."""
    if isinstance(subject, Analysis):
        return _foreseen(subject, command)
    if not isinstance(subject, nn.Module):
        raise SwnetError(
            f"A report of a {type(subject).__name__} was asked for; give what swnet.transform or swnet.analyze returned."
        )
    found, counted = record(subject), ledger(subject)
    certificate = [] if counted.certificate is None else [str(counted.certificate)]
    return gather(
        found.graph.name,
        found.graph,
        found.plan,
        (counted.before.as_dict(), counted.after.as_dict()),
        _swept(found),
        _provenance(found.plan, found.example, command or _call(found), found.plan.digest),
        notes=note_pairs(counted.notes),
        remarks=(*_about_opaque(counted.opaque), *certificate, *map(str, counted.lowered)),
    )


def _foreseen(analysis: Analysis, command: str | None) -> Facts:
    """Return the facts of a model under the plan that its analysis would lead to."""
    options, graph = analysis.options, analysis.graph
    made = replace(wire(graph, replace(options, p=analysis.p)), requested_p=options.p, leaves=analysis.leaves)
    chosen = [explain(analysis.curve, options.p)] if isinstance(options.p, str) else []
    return gather(
        graph.name,
        graph,
        made,
        foresee(graph, made, analysis.figures),
        Sweep(analysis.p, options.p, analysis.curve, ". ".join(chosen)),
        _provenance(made, analysis.example, command or repeat.call(made, _inputs_as_code(analysis.example))),
        notes=(*note_pairs(made.notes), *analysis.unreached),
        remarks=(*_about_opaque(analysis.opaque), *([analysis.outlook] if analysis.outlook else [])),
        foreseen=True,
    )


def _swept(found: Record) -> Sweep:
    """Return the curve that the p of a plan lies on, counted anew where the record has none."""
    options, policy = found.plan.options, found.plan.requested_p
    if found.curve is None and options.keeps_weights:
        return Sweep(options.number, policy, None, "Not drawn: p was not swept, since a trained model's weights keep their places.")
    curve = found.curve or sweep(found.graph, options, POINTS if len(found.graph.layers) <= DEEP else FEW_POINTS)
    return Sweep(options.number, policy, curve, explain(curve, policy) if policy in P_POLICIES else "")


def _provenance(made: Plan, example: Example, command: str, digest: str = "") -> Provenance:
    """Return what repeats a result; the plan of an analysis has no digest, since notes of tracing and policy are still to come."""
    versions = ("swcompile", store.version()), ("torch", torch.__version__.split("+")[0]), ("Python", platform.python_version())
    return Provenance(command, tuple(map(str, example)), versions, made.options.seed, digest)


def _call(found: Record) -> str:
    """Return the call that gives a plan again, and so its digest."""
    inputs = _inputs_as_code(found.example)
    if found.origin != "options":
        return repeat.applied(inputs, moved=found.origin == "training")
    given = (*NEEDS.get(found.plan.options.score, ()), *(["calibrate"] if found.calibrated else []))
    return repeat.call(found.plan, inputs, given)


def _inputs_as_code(example: Example) -> str:
    """Return example inputs as Python code that makes some like them; by their name where they hold what has no such code."""
    try:
        items = [_as_code(item) for item in example]
    except ValueError:
        return "example_inputs"
    return items[0] if len(items) == 1 and not isinstance(example[0], tuple | list) else _tuple_of(items)


def _as_code(item: object) -> str:
    """Return one example input as Python code. Raises ValueError for an object of a class that is not Python's own."""
    if isinstance(item, Spec):
        kind = "" if item.dtype == torch.float32 else f", dtype={item.dtype}"
        sizes = ", ".join(map(str, item.shape)) or "()"
        return f"torch.zeros({sizes}{kind})"
    if type(item) is dict:
        return f"{{{', '.join(f'{_as_code(key)}: {_as_code(value)}' for key, value in item.items())}}}"
    if type(item) is list or type(item) is tuple:
        items = [_as_code(one) for one in item]
        return f"[{', '.join(items)}]" if type(item) is list else _tuple_of(items)
    if item is None or type(item) in (bool, int, str) or (type(item) is float and np.isfinite(item)):
        return repr(item)
    raise ValueError(f"no code for a {type(item).__name__}")


def _tuple_of(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _about_opaque(operations: Sequence[tuple[str, str]]) -> list[str]:
    named = ", ".join(f"{name} ({where})" if where else name for name, where in dict.fromkeys(operations))
    return [f"Channels are not followed through {named}: what is around them stays as it is."] if named else []


def record(module: nn.Module) -> Record:
    """Return the plan, example and ledger of a rewired module, by its masks of now. Raises SwnetError for any other module."""
    found = getattr(module, "swcompile", None)
    if not isinstance(found, Record):
        raise SwnetError(
            f"This {type(module).__name__} was not made by swnet.transform, swnet.apply or swnet.load; it has no ledger."
        )
    if found.census is None or not isinstance(module, RewiredModule):
        return found
    masks = masks_of(module, found.census.graph)
    if all(np.array_equal(mask, masks[name]) for name, mask in found.plan.masks().items()):
        return found
    plan = remasked(found.plan, found.census.graph, masks)
    counted = check(module, plan, found.census, found.example)
    module.swcompile = replace(found, plan=plan, ledger=replace(counted, certificate=found.ledger.certificate), origin="training")
    current: Record = module.swcompile
    return current


def save(module: nn.Module, folder: str | Path, *, force: bool = False) -> None:
    """Write a rewired module to a new folder: plan.json, weights.safetensors and manifest.json, never a pickle.

    With `force`, a model saved there earlier is replaced. Raises SwnetError where the folder exists or cannot be written.
    """
    found = record(module)
    _refuse_nested(found.example)
    store.write(folder, found.plan, module.state_dict(), found.example_shapes, model=type(module).__name__, force=force)


def load(folder: str | Path, model: nn.Module | ExportedProgram) -> RewiredModule:
    """Return `model` rewired as saved in `folder`, with the saved weights. Never unpickles; everything read is verified.

    `model` is built by the user's own code and gives the structure only. The result is in its train or eval mode.
    """
    stored = store.read(folder)
    example = tuple(Spec(shape, dtype) for shape, dtype in stored.shapes)
    module = _carry_out(trace(_module(model), example, stored.plan.leaves), stored.plan)
    store.fill(module, stored)
    _refuse_other_masks(module, stored.plan)
    return module


def _refuse_other_masks(module: RewiredModule, plan: Plan) -> None:
    """Refuse weights whose masks are not the plan's: one of the two is not what was saved."""
    found: Record = module.swcompile
    masks = {} if found.census is None else masks_of(module, found.census.graph)
    other = [name for name, mask in plan.masks().items() if not np.array_equal(mask, masks[name])]
    if other:
        raise SwnetError(
            f"The saved weights have another mask for {other[0]} than the saved plan; one of the two was altered. Save anew."
        )


def _traced(
    how: Callable[[nn.Module, object, Sequence[str]], Traced],
    model: object,
    example_inputs: object,
    leaf_modules: Sequence[str | type[nn.Module]],
    options: Options,
) -> Traced:
    found = _module(model)
    traced = _announced(how(found, _inputs(model, example_inputs), _leaves(found, leaf_modules)))
    return coupled(traced) if options.prunes else traced


def _inputs(model: object, given: object) -> object:
    """Return the example inputs that were given, or else those that an exported program was made with and has kept."""
    kept = getattr(model, "example_inputs", None) if given is None and _is_exported(model) else None
    return kept[0] if kept is not None and kept[0] and not kept[1] else given


def _is_exported(model: object) -> bool:
    """Whether this is a torch.export.ExportedProgram: by name, since the import would cost seconds."""
    kind = type(model)
    return (kind.__module__, kind.__name__) == ("torch.export.exported_program", "ExportedProgram")


def _module(model: object) -> nn.Module:
    """Return what is to be traced: a module, the inside of an exported program, or what torch.compile has wrapped."""
    kind = type(model)
    try:
        _ = kind.__name__
    except Exception as error:  # a metaclass of the user's; messages name the class
        raise SwnetError(
            f"The class of the model cannot be asked for its name ({first_line(error)}); take its metaclass away."
        ) from error
    if _is_exported(model):
        exported: Any = model
        return _module(exported.module())
    if kind.__name__ == "OptimizedModule" and isinstance(model, nn.Module):  # of torch.compile
        return _module(model._modules["_orig_mod"])
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SwnetError(f"The model that was given is {what}; pass an nn.Module that has been built, such as Net().")
    if issubclass(kind, nn.DataParallel | DistributedDataParallel):  # isinstance would ask a model's own __class__, too
        raise SwnetError(f"A {type(model).__name__} was given; pass the model inside, model.module, and wrap the result.")
    if issubclass(kind, torch.jit.ScriptModule):
        raise SwnetError(
            "A TorchScript module was given, whose code cannot be traced any more; pass the nn.Module it was made from."
        )
    return model


def _leaves(model: nn.Module, named: Sequence[str | type[nn.Module]]) -> tuple[str, ...]:
    """Return the paths of the modules that a user named, by path or by class."""
    if isinstance(named, str | type):
        named = (named,)
    if not isinstance(named, list | tuple | set | frozenset) or not all(isinstance(item, str | type) for item in named):
        raise SwnetError(f"leaf_modules={str(named)[:80]} was given; give a list of paths, such as 'router', or of module classes.")
    paths: list[str] = []
    for item in named:
        if isinstance(item, str):
            paths.append(item)
            continue
        found = [path for path, module in model.named_modules() if path and isinstance(module, item)]
        if not found:
            raise SwnetError(f"leaf_modules names {item.__name__}, but {type(model).__name__} holds no module of that class.")
        paths += found
    return tuple(dict.fromkeys(paths))


def _announced(traced: Traced) -> Traced:
    if traced.inferred:
        _log.warning(
            "no example input was given; traced with %s, inferred from the first layer", ", ".join(map(str, traced.example))
        )
    return traced


@collector_paused()
def _decide(
    traced: Traced, options: Options, batches: Iterable[Any] | None = None, loss_fn: Loss | None = None
) -> tuple[Plan, Curve | None]:
    """Return the plan, and the curve over p that it was chosen by, if any was."""
    scores = score_of(traced, options.score, batches, loss_fn) if options.scored else {}
    made, curve = decide(traced.graph, options, scores)
    notes = (*made.notes, *(Note("*", said) for said in _said(traced)))
    return replace(made, notes=notes, leaves=tuple(sorted(traced.leaves))), curve


def _said(traced: Traced) -> Iterator[str]:
    """Yield what a user should know of how the model was traced."""
    if traced.inferred:
        yield f"the example input {', '.join(map(str, traced.example))} was inferred from the first layer"
    for island in traced.steps.islands:
        where = f" ({island.where})" if island.where else ""
        yield f"{island.path} stays as it is, with the layers inside: {island.reason}{where}"
    if traced.steps.assigned:
        yield traced.steps.about_assigned
    for what in traced.steps.fixed:
        yield f"the {what} is fixed to that of the example, since Python code in the forward decides by it"


def _why_nothing(made: Plan) -> str:
    reasons = "\n".join(f"  {note}" for note in made.notes) or "  its forward calls no convolution and no linear layer"
    asked = f"grow={made.options.grow:g}" if made.options.grow else f"p={made.requested_p}, {made.options.asked_to_keep}"
    return f"Nothing can be rewired as asked ({asked}):\n{reasons}"


@collector_paused()
def _carry_out(traced: Traced, made: Plan, curve: Curve | None = None, *, fresh: bool = False) -> RewiredModule:
    """Verify, rewrite, optimize and check: the rest of the way, once a plan is there."""
    if made.outputs() and traced.graph.coupling == Coupling():
        traced = coupled(traced)
    verify(made, traced.graph)
    _refuse_masks_without_memory(traced, made)
    counted = census(traced)
    rewrite(traced, made)
    for graph in traced.graphs:
        optimize(graph)
    restore_in_place(traced)
    module = RewiredModule.assemble(traced.root, traced.train_graph, traced.eval_graph)
    ledger = check(module, made, counted, traced.example, fresh=fresh)
    kept, origin = counted if made.masks() else None, "options" if fresh else "plan"
    module.swcompile = Record(made, traced.example, ledger, counted.graph, curve, kept, origin)
    return module


def _with_statistics(module: RewiredModule, batches: Iterable[Any] | None) -> RewiredModule:
    """Take the statistics of norms anew, or say that a trained model needs it; the ledger notes either."""
    found: Record = module.swcompile
    if batches is not None:
        norms, seen = take_statistics(module, batches, len(found.example))
        said = f"{norms} norms took their statistics anew from {seen} batches"
        if not norms:
            said = "calibrate= found no norm module with statistics, so none took any anew"
            _log.warning("%s", said)
    elif not found.ledger.computes_the_same and is_trained(module):
        said = (
            "the model has been trained (its norms have seen data), and rewiring changes what it computes: train it further, "
            "and give calibrate= some batches to begin with, or take grow= to add links that leave it as it is"
        )
        _log.warning("%s", said)
    else:
        return module
    counted = replace(found.ledger, notes=(*found.ledger.notes, Note("*", said)))
    module.swcompile = replace(found, ledger=counted, calibrated=batches is not None)
    return module


def _certified(model: object, module: RewiredModule, example_inputs: object) -> RewiredModule:
    """Return the module with a certificate in its ledger."""
    found: Record = module.swcompile
    masked = bool(found.plan.masks())
    if not found.ledger.links_pruned and not masked:
        raise SwnetError("verify=True compares removed channels with masked ones, and none were removed. Leave it out.")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise SwnetError(
            "verify=True runs the model, which is on the meta device, without values. Leave it out, or give it memory."
        )
    given = _inputs(model, example_inputs)
    inputs = found.example if given is None else given if isinstance(given, tuple) else (given,)
    if masked:
        certificate = certify_masks(module, inputs)
    else:
        certificate = certify(coupled(trace(_module(model), given, found.plan.leaves)), found.plan, module, inputs)
    module.swcompile = replace(found, ledger=replace(found.ledger, certificate=certificate))
    return module


def _refuse_masks_without_memory(traced: Traced, made: Plan) -> None:
    if made.masks() and any(parameter.is_meta for parameter in traced.root.parameters()):
        raise SwnetError(
            f"The model is on the meta device, where tensors have no values, and wiring={made.options.wiring!r} marks live links "
            "by values. Give it memory first, model.to_empty(device='cpu'), or only plan: swnet.plan needs none."
        )


def _refuse_nested(example: tuple[Any, ...]) -> None:
    if not all(isinstance(item, Spec) for item in example):
        raise SwnetError("This model was traced with inputs other than plain tensors, which a manifest cannot hold; save its state "
                         "dict and plan instead: swnet.ledger, Plan.to_json and swnet.apply.")  # fmt: skip
