"""The public functions: from a user's model to a rewired one, and what can be asked of either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram

from swcompile import report as reports
from swcompile import store
from swcompile.check import Ledger
from swcompile.errors import NothingToDoError, SwnetError
from swcompile.frontend import inputs_of, module_of, trace_given
from swcompile.lower import BACKENDS, Lowering
from swcompile.modules import RewiredModule
from swcompile.pipeline import carry_out, certified, make_plan, refuse_nothing, with_statistics
from swcompile.plan import Options, Plan
from swcompile.record import counted, record, refuse_other_masks
from swcompile.report.subjects import facts
from swcompile.scores import Loss, refuse_unfit
from swcompile.survey import MAX_POINTS, Analysis, analyzed
from swcompile.trace import trace, trace_structure
from swcompile.trace.shapes import Spec


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
    traced = trace_given(trace, model, example_inputs, leaf_modules, options)
    made, curve = make_plan(traced, options, batches, loss_fn)
    refuse_nothing(made, options)
    module = carry_out(traced, made, curve, fresh=True)
    if verify:
        module = certified(model, module, example_inputs)
    module = with_statistics(module, calibrate)
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
    return make_plan(trace_given(how, model, example_inputs, leaf_modules, options), options, batches, loss_fn)[0]


def apply(model: nn.Module | ExportedProgram, plan: Plan, example_inputs: object = None) -> RewiredModule:
    """Return a copy of `model` rewired as `plan` says; the plan is verified against the model first."""
    if not isinstance(plan, Plan):
        raise SwnetError(
            f"A {type(plan).__name__} was given as the plan; make one with swnet.plan(model), or read one with Plan.read."
        )
    return carry_out(trace(module_of(model), inputs_of(model, example_inputs), plan.leaves), plan)


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
    return analyzed(trace_given(trace_structure, model, example_inputs, leaf_modules, options), options, points)


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
    return counted(module)


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


def save(module: nn.Module, folder: str | Path, *, force: bool = False) -> None:
    """Write a rewired module to a new folder: plan.json, weights.safetensors and manifest.json, never a pickle.

    With `force`, a model saved there earlier is replaced. Raises SwnetError where the folder exists or cannot be written.
    """
    found = record(module)
    store.write(folder, found.plan, module.state_dict(), found.example_shapes, model=type(module).__name__, force=force)


def load(folder: str | Path, model: nn.Module | ExportedProgram) -> RewiredModule:
    """Return `model` rewired as saved in `folder`, with the saved weights. Never unpickles; everything read is verified.

    `model` is built by the user's own code and gives the structure only. The result is in its train or eval mode.
    """
    stored = store.read(folder)
    example = tuple(Spec(shape, dtype) for shape, dtype in stored.shapes)
    module = carry_out(trace(module_of(model), example, stored.plan.leaves), stored.plan)
    store.fill(module, stored)
    refuse_other_masks(module, stored.plan)
    return module
