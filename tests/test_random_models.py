"""Networks drawn at random from a grammar of everyday operations: what must hold for any of them.

A model is a program, a list of steps (operation, three choices). A step reads values made earlier and adds new ones; choices are
taken modulo what is there, so that every program is valid and hypothesis can shrink it. Values nobody read go to the head.

The last test compares rewired models of up to 60 layers with tests/interpreter.py. The full run, and another one:

    SWCOMPILE_EXAMPLES=1000 python -m pytest tests/test_random_models.py -k interpreter
    SWCOMPILE_EXAMPLES=1000 SWCOMPILE_SEED=1 python -m pytest tests/test_random_models.py -k interpreter
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, assume, event, given, reject, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.errors import NothingToDoError
from swcompile.modules import RewiredModule
from swcompile.optimize import drop_unread
from swcompile.plan import Options, Plan, Promise
from swcompile.rewrite import rewrite
from swcompile.trace import Traced, coupled, trace
from tests.interpreter import Interpreter


class Step(NamedTuple):
    kind: str
    first: int
    second: int
    third: int


LAYERS = ("conv", "conv_bn_relu", "strided", "grouped")
MORE_LAYERS = ("pre", "depthwise", "transposed", "again")
OPERATIONS = tuple("bn relu overwrite cat split slice add mul gate pool upsample shuffle".split())
MORE_OPERATIONS = tuple("iadd resize split3 alias".split())
PAIRS = ("cat", "add", "mul", "iadd", "assign")
SAVING = ("bn", "relu", "mul", "pool", "gate")
"""Operations whose inputs torch keeps for the backward pass, as every layer's; overwriting such a value cannot be trained."""
WIDTHS = (8, 4, 6, 12)
WIDEST, LARGEST = 40, 14


class Random(nn.Module):
    """Run a program. It is run once while the model is built, so that each layer gets the width that it will meet."""

    def __init__(self, program: Sequence[Step], size: tuple[int, int], head: str, depth: int = 60) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[Step, tuple[int, ...], str]] = []
        self.head, self.size = head, size
        values, unread, kept = [torch.randn(2, 3, *size)], {0}, {0}
        for number, step in enumerate(program):
            reads = _reads(step, values)
            name = self._name(step, number, values[reads[0]].shape[1])
            read = [values[at] for at in reads]
            if name is None or not _sensible(step, read) or (step.kind in WRITING and _storage(read[0]) in kept):
                continue
            layer = None if name in self.layers else _layer(step, read[0].shape[1])
            if layer is not None and self.depth == depth:
                continue
            if layer is not None:
                self.layers[name] = layer
            with torch.no_grad():
                made = self._run(step, read, name)
            if step.kind in SAVING or name in self.layers:
                kept.update(map(_storage, read))
            if step.kind in ("relu", "overwrite", "conv_bn_relu"):  # keep their results
                kept.update(map(_storage, made))
            unread = (unread - set(reads)) | set(range(len(values), len(values) + len(made)))
            values += made
            self.steps.append((step, reads, name))
        self.ends = sorted(unread)
        self.fc = nn.Linear(sum(self._end(values[end]).shape[1] for end in self.ends), 5)

    def _name(self, step: Step, number: int, channels: int) -> str | None:
        """Return what the step's module is called, if it has one: "again" calls an earlier one that fits."""
        if step.kind != "again":
            return f"{step.kind}{number}"
        fitting = [name for _, reads, name in self.steps if name in self.widths and self.widths[name] == channels]
        return fitting[step.second % len(fitting)] if fitting else None

    @property
    def widths(self) -> dict[str, int]:
        """How many channels the convolutions read."""
        return {name: layer.in_channels for name, layer in self.layers.items() if isinstance(layer, nn.Conv2d)}

    @property
    def depth(self) -> int:
        """The number of layers, the last one included."""
        return 1 + sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in self.layers.modules())

    def extra_repr(self) -> str:
        return f"{[(tuple(step), reads) for step, reads, _ in self.steps]}, size={self.size}, head={self.head!r}"

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, reads, name in self.steps:
            values += self._run(step, [values[at] for at in reads], name)
        return self.fc(torch.cat([self._end(values[end]) for end in self.ends], 1))

    def _end(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.head == "flatten" else x.mean((2, 3))

    def _run(self, step: Step, values: list[Tensor], name: str) -> list[Tensor]:
        x = values[0]
        if step.kind == "gate":
            return [x * torch.sigmoid(self.layers[name](x.mean((2, 3), keepdim=True)))]
        if name in self.layers:
            return [self.layers[name](x)]
        if step.kind == "split":
            left, right = x.chunk(2, dim=1)
            return [left, right]
        if step.kind == "split3":
            first = x.shape[1] // 3
            left, middle, right = torch.split(x, [first, first, x.shape[1] - 2 * first], dim=1)
            return [left, middle, right]
        return [_function(step, x, values[-1])]


WRITING = ("overwrite", "iadd", "assign")


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _reads(step: Step, values: list[Tensor]) -> tuple[int, ...]:
    """Return what a step reads: most often one of the latest values."""
    source = len(values) - 1 - step.first % min(len(values), 6)
    if step.kind not in PAIRS:
        return (source,)
    start = 1 if step.kind == "cat" else 0
    sized = [at for at, value in enumerate(values) if value.shape[2:] == values[source].shape[2:]]
    fitting = [at for at in sized if start or values[at].shape == values[source].shape]
    return source, fitting[step.second % len(fitting)]


def _sensible(step: Step, values: list[Tensor]) -> bool:
    """Whether the result is neither too large nor empty, and does not overwrite the caller's input."""
    channels, height, width = values[0].shape[1:]
    limits = {
        "cat": sum(value.shape[1] for value in values) <= WIDEST,
        "upsample": height <= LARGEST // 2,
        "transposed": height <= LARGEST // 2,
        "resize": max(height, width) <= LARGEST - 2,
        "pool": height > 3,
        "strided": height > 3,
        "split": channels > 3,
        "split3": channels > 3,
        "slice": channels > 3,
        "assign": channels > 3,
        "shuffle": channels % 2 == 0,
        "iadd": values[0] is not values[-1] or step.third % 2 == 0,
    }
    return limits.get(step.kind, True)


def _layer(step: Step, channels: int) -> nn.Module | None:
    width, kernel = WIDTHS[step.second % len(WIDTHS)], (3, 1)[step.third % 2]
    if step.kind in LAYERS:
        groups = 2 if step.kind == "grouped" and channels % 2 == 0 else 1
        conv = nn.Conv2d(channels, width, kernel, 2 if step.kind == "strided" else 1, kernel // 2, groups=groups)
        return conv if step.kind != "conv_bn_relu" else nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    if step.kind == "pre":
        return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels), nn.Conv2d(channels, width, kernel, 1, kernel // 2))
    if step.kind == "depthwise":
        return nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
    if step.kind == "transposed":
        return nn.ConvTranspose2d(channels, width, 2, 2)
    if step.kind == "gate":
        return nn.Conv2d(channels, channels, 1)
    if step.kind == "relu":
        return (nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(channels), nn.GELU())[step.third % 4]
    return nn.BatchNorm2d(channels) if step.kind == "bn" else None


def _function(step: Step, x: Tensor, y: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    if step.kind == "overwrite":
        choices = (torch.relu_, lambda x: F.relu(x, inplace=True), lambda x: x.mul_(0.5), lambda x: x.clamp_(min=-0.5))
        return choices[step.third % 4](x)
    if step.kind == "cat":
        return torch.cat((x, y), dim=1)
    if step.kind == "add":
        return x + y if step.third % 2 else torch.add(x, y, alpha=0.5)
    if step.kind == "iadd":
        x += y
        return x
    if step.kind == "assign":
        start, stop = channels // 4, channels // 2
        x = x if step.third % 3 else x.clone()
        x[:, start:stop] = y[:, channels - stop + start :]
        return x
    if step.kind == "alias":
        return x if step.third % 2 else x.contiguous()
    if step.kind == "mul":
        return x * (torch.tanh(y) if step.third % 3 else y)
    if step.kind == "slice":
        return x[:, channels // 3 :]
    if step.kind == "pool":
        return F.max_pool2d(x, 2) if step.third % 2 else F.adaptive_avg_pool2d(x, (height // 2 + 1, width // 2))
    if step.kind == "upsample":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    if step.kind == "resize":
        return F.interpolate(x, size=(height + 1, width + 2), mode="nearest")
    assert step.kind == "shuffle"
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


NUMBER = st.integers(0, 11)
STEP = st.builds(Step, st.sampled_from([*LAYERS * 3, *OPERATIONS]), NUMBER, NUMBER, NUMBER)
MORE = [*LAYERS * 4, *MORE_LAYERS * 2, *OPERATIONS * 2, *MORE_OPERATIONS * 2]
ANY_STEP = st.builds(Step, st.sampled_from(MORE), NUMBER, NUMBER, NUMBER)
SHORT = st.lists(STEP, min_size=4, max_size=14)
STEM = Step("conv_bn_relu", 0, 0, 0)
SIZES = st.tuples(st.integers(5, 9), st.integers(5, 9))


@st.composite
def random_models(draw: st.DrawFn, steps: st.SearchStrategy[list[Step]] = SHORT) -> Random:
    """Draw a model in float64 that runs forward and backward by itself."""
    program = draw(steps)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(draw(st.integers(0, 99)))
        model = Random([STEM, *program], draw(SIZES), draw(st.sampled_from(["mean", "flatten"]))).double()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # no bias or norm at its default
    return model


QUICK = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize=True,
    phases=(Phase.generate,),  # no shrinking, which takes minutes here; the program of a failure is short and gets printed
)


def _step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None], dict[str, Tensor]]:
    """Return the output of a train-mode step, the gradients and the state, buffers updated."""
    model.zero_grad(set_to_none=True)
    out = model(x.clone())
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return out.detach(), grads, {name: value.clone() for name, value in model.state_dict().items()}


def _input(model: Random, batch: int = 3) -> Tensor:
    size = model.size
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _original(model: Random) -> tuple[Tensor, dict[str, Tensor | None], dict[str, Tensor]]:
    """Step a copy of the model; a program that torch itself cannot train (a value needed later is overwritten) is no example."""
    try:
        return _step(copy.deepcopy(model), _input(model))
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        reject()


def _unoptimized(model: Random, plan: Plan) -> RewiredModule:
    """Return the plain form: a gather in front of each layer, and nothing shared; what nobody reads is gone there too."""
    traced = coupled(trace(model, _input(model)))
    rewrite(traced, plan)
    for graph in (traced.train_graph, traced.eval_graph):
        if graph is not None:
            drop_unread(graph)
    return RewiredModule.assemble(traced.root, traced.train_graph, traced.eval_graph)


@QUICK
@given(model=random_models())
def test_with_p_0_a_step_is_bit_equal_to_the_original(model: Random) -> None:
    out, grads, state = _original(model)
    rewired = swnet.transform(model, _input(model), p=0)
    same, same_grads, same_state = _step(rewired, _input(model))
    torch.testing.assert_close(same, out, rtol=0, atol=0)
    torch.testing.assert_close(same_state, state, rtol=0, atol=0)
    torch.testing.assert_close(same_grads, grads, rtol=0, atol=0)
    assert not swnet.ledger(rewired).changed


@settings(QUICK, max_examples=24)
@given(
    model=random_models(),
    p=st.sampled_from([0.3, 0.7]),
    density=st.sampled_from([1.0, 0.5]),
    wiring=st.sampled_from(["block", "block", "kernel", "tile"]),
    block=st.sampled_from(["auto", 3, "producer"]),
    resample=st.sampled_from(["max", "avg", "stride"]),
)
def test_a_rewired_model_computes_what_the_plain_gathers_compute(
    model: Random, p: float, density: float, wiring: str, block: str | int, resample: str
) -> None:
    _, original_grads, _ = _original(model)
    try:
        rewired = swnet.transform(
            model, _input(model), p=p, density=_fit(density, wiring), wiring=wiring, block=block, resample=resample
        )
    except NothingToDoError:
        return
    except swnet.SwnetError as error:
        if "block=3 is too large" not in str(error):
            raise
        return
    plain = _unoptimized(model, rewired.swcompile.plan)
    assert not any("narrow" in str(node.target) for graph in rewired.graphs for node in graph.nodes)

    out, grads, state = _step(rewired, _input(model))
    plain_out, plain_grads, plain_state = _step(plain, _input(model))
    torch.testing.assert_close(out, plain_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, plain_grads, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state, plain_state, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(out).all()
    lost = [name for name, grad in original_grads.items() if grad is not None and grads.get(name, grad) is None]
    assert _is_told(rewired, lost), f"{lost} lost their gradients"

    rewired.eval(), plain.eval()
    other = _input(model, batch=5)
    torch.testing.assert_close(rewired(other), plain(other), rtol=1e-12, atol=1e-12)
    _check_ledger(rewired)


@QUICK
@given(model=random_models(), p=st.sampled_from([0.3, 0.7]))
def test_where_dead_channels_are_forbidden_every_parameter_keeps_its_gradient(model: Random, p: float) -> None:
    _, before, _ = _original(model)
    try:
        rewired = swnet.transform(model, _input(model), p=p, dead="forbid")
    except NothingToDoError:
        return
    _, after, _ = _step(rewired, _input(model))
    assert [name for name, grad in before.items() if grad is not None and after[name] is None] == []
    assert swnet.ledger(rewired).after.dead_channels <= swnet.ledger(rewired).before.dead_channels


def _fit(density: float, wiring: str) -> float:
    """Return the density, or the nearest that a wiring takes."""
    return {"kernel": 1.0, "tile": min(density, 0.5)}.get(wiring, density)


def _check_ledger(rewired: RewiredModule) -> None:
    """The counts agree with the module, with each other and with the plan."""
    ledger, plan = swnet.ledger(rewired), rewired.swcompile.plan
    before, after = ledger.before, ledger.after
    assert after.stored_params == sum(parameter.numel() for parameter in rewired.parameters())
    assert after.params - before.params == plan.promise.params
    assert after.macs - before.macs == plan.promise.macs
    assert ledger.links_kept + ledger.links_moved == after.links
    assert after.p_achieved == plan.promise.p
    if plan.options.density == 1 and plan.options.wiring == "block":
        assert (after.params, after.macs, after.links) == (before.params, before.macs, before.links)
        assert ledger.links_pruned == 0
    if plan.options.wiring == "kernel":
        assert after.links == before.links


# Against the interpreter

EXAMPLES, SEED = (int(os.environ.get(f"SWCOMPILE_{name}", default)) for name, default in (("EXAMPLES", "30"), ("SEED", "0")))
REFUSALS = ("Nothing can be rewired as asked", "block=3 is too large")
"""How the messages begin, or what they hold, with which a random model may be refused."""
OPTIONS = {
    "p": st.sampled_from([0.3, 1.0, 0.0]),
    "density": st.sampled_from([1.0, 0.5, 0.3]),
    "wiring": st.sampled_from(["block", "block", "block", "kernel", "tile"]),
    "block": st.sampled_from(["auto", "auto", 3, "producer"]),
    "resample": st.sampled_from(["max", "avg", "stride"]),
    "dead": st.sampled_from(["auto", "allow"]),
    "head": st.booleans(),
}


def _programs(steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.sampled_from([6, 10, 16, 24, 40, 90]).flatmap(lambda count: st.lists(steps, min_size=count, max_size=count))


@settings(QUICK, max_examples=EXAMPLES, derandomize=False, database=None)
@seed(SEED)
@given(model=random_models(_programs(ANY_STEP)), options=st.fixed_dictionaries(OPTIONS))
def test_a_rewired_model_computes_what_the_interpreter_does(model: Random, options: dict[str, Any]) -> None:
    _check_against_interpreter(model, **options)


def _check_against_interpreter(model: Random, density: float, wiring: str, **options: Any) -> None:
    out, grads, _ = _original(model)
    assume(bool(out.isfinite().all()) and out.abs().max() < 1e6)
    traced, x = coupled(trace(model, _input(model))), _input(model)
    unchanged = Plan(traced.graph.fingerprint, Options(p=0), 0, (), Promise())
    torch.testing.assert_close(Interpreter(traced, unchanged, state_of(model), training=True).run(x), out, rtol=1e-12, atol=1e-12)
    try:
        rewired = swnet.transform(model, x, density=_fit(density, wiring), wiring=wiring, **options)
    except swnet.SwnetError as error:
        if not any(text in str(error) for text in REFUSALS):
            raise
        event("refused")
        return
    event(f"{wiring}, p={options['p']}, {model.depth // 10 * 10} layers or more")
    event(f"{len(rewired.swcompile.plan.outputs()) > 0} that layers lose outputs")
    _check_weights(model, rewired, traced)
    _compare(rewired, traced, x, training=True)
    lost = [
        name for name, tensor in rewired.named_parameters() if tensor.grad is None and grads[name] is not None and tensor.dim() > 1
    ]
    assert _is_told(rewired, lost), f"{lost} lost their gradients"
    _compare(rewired, traced, _input(model, batch=5), training=False)


def _is_told(rewired: RewiredModule, lost: list[str]) -> bool:
    """Whether the ledger says why parameters have no gradient: channels are unread, or nothing reads the layer (a second gate)."""
    notes = swnet.ledger(rewired).notes
    idle = {note.layer for note in notes if note.reason.startswith("nothing reads its output")}
    return any("unread" in note.reason for note in notes) or {name.rpartition(".")[0] for name in lost} <= idle


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters, as leaves of their own, and of its buffers."""
    learned = {name for name, _ in module.named_parameters()}
    return {name: value.detach().clone().requires_grad_(name in learned) for name, value in module.state_dict().items()}


def _compare(rewired: RewiredModule, traced: Traced, x: Tensor, *, training: bool) -> None:
    """Output, gradients of the input and of all parameters, and in train mode the buffers afterwards."""
    rewired.train(training).zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in rewired.named_buffers()}
    state, ours, theirs = state_of(rewired), x.clone().requires_grad_(), x.clone().requires_grad_()
    interpreter = Interpreter(traced, rewired.swcompile.plan, state, training=training)
    found, wanted = rewired(ours), interpreter.run(theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for out in (found, wanted):
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    pairs = [("the input", ours.grad, theirs.grad)]
    pairs += [(name, parameter.grad, state[name].grad) for name, parameter in rewired.named_parameters()]
    largest = max((float(grad.abs().max()) for _, _, grad in pairs if grad is not None), default=0.0)
    for name, grad, by_hand in pairs:
        if grad is None or by_hand is None:  # not computed, or multiplied by nothing
            assert all(other is None or not other.any() for other in (grad, by_hand)), f"only one side has a gradient of {name}"
            continue
        torch.testing.assert_close(
            grad, by_hand, rtol=1e-9, atol=1e-10 * max(largest, 1), msg=lambda text, name=name: f"{name}: {text}"
        )
    idle = {name.rpartition(".")[0] for name, count in rewired.named_buffers() if training and torch.equal(count, before[name])}
    for name, buffer in rewired.named_buffers():
        if name.rpartition(".")[0] not in idle:  # a norm that nobody reads any more
            _close(name, buffer, interpreter.buffers()[name])


def _close(name: str, found: Tensor, wanted: Tensor, *, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=atol, msg=lambda text: f"{name}: {text}")


def _check_weights(model: Random, rewired: RewiredModule, traced: Traced) -> None:
    """Weights are the original's: of layers that read less the plan's columns, of what a mask widens whatever was drawn."""
    plan, nodes = rewired.swcompile.plan, {node.name: str(node.target) for node in traced.train_graph.nodes}
    columns = {
        path: wiring
        for wiring in plan.layers
        for path in (wiring.layer, *(nodes[name] for name in traced.graph.layer_by_name[wiring.layer].chain))
    }
    interpreter = Interpreter(traced, plan, rewired.state_dict(), training=False)
    for name, tensor in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        wiring, now = columns.get(path), rewired.state_dict()[name]
        whole, layer = tensor, model.get_submodule(path)
        if wiring is not None and wiring.mask is not None and not (path == wiring.layer and kind == "bias"):
            continue
        if tensor.dim() > 1:
            whole, now = _dense(layer, tensor), _dense(rewired.get_submodule(path), now)
        if path in interpreter.stays and tensor.dim():
            whole = whole[torch.from_numpy(interpreter.stays[path])]
        depthwise = path in interpreter.layers and interpreter.layers[path].depthwise
        if wiring is not None and tensor.dim() and not depthwise and not (path == wiring.layer and kind == "bias"):
            kept = torch.cat([torch.arange(start, stop) for start, stop in wiring.columns])
            whole = whole.index_select(min(whole.dim(), 2) - 1, kept)
        elif depthwise and tensor.dim() > 1 and path in interpreter.stays:
            whole = whole[:, torch.from_numpy(interpreter.stays[path])]
        torch.testing.assert_close(now, whole, rtol=0, atol=0)


def _dense(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight as (out, in, ...), that of a grouped layer with zeros where it has no links."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.transpose(0, 1)
    groups = getattr(layer, "groups", 1)
    if weight.dim() < 2 or groups == 1:
        return weight
    parts = [[part.new_zeros(part.shape) for _ in range(groups)] for part in weight.chunk(groups)]
    for group, part in enumerate(weight.chunk(groups)):
        parts[group][group] = part
    return torch.cat([torch.cat(row, 1) for row in parts])
