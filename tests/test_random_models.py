"""Networks drawn at random from a grammar of everyday operations: what must hold for any of them.

A model is a program, a list of steps (operation, three choices). A step reads values made earlier and adds new ones; choices are
taken modulo what is there, so that every program is valid and hypothesis can shrink it. Values nobody read go to the head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.errors import NothingToDoError
from swcompile.modules import RewiredModule
from swcompile.optimize import drop_unread
from swcompile.plan import Plan
from swcompile.rewrite import rewrite
from swcompile.trace import trace


class Step(NamedTuple):
    kind: str
    first: int
    second: int
    third: int


LAYERS = ("conv", "conv_bn_relu", "strided", "grouped")
OPERATIONS = tuple("bn relu overwrite cat split slice add mul gate pool upsample shuffle".split())
WIDTHS = (8, 4, 6, 12)
WIDEST, LARGEST = 40, 14


class Random(nn.Module):
    """Run a program. It is run once while the model is built, so that each layer gets the width that it will meet."""

    def __init__(self, program: Sequence[Step], size: tuple[int, int], head: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[Step, tuple[int, ...], str]] = []
        self.head, self.size = head, size
        values, unread = [torch.randn(2, 3, *size)], {0}
        for number, step in enumerate(program):
            reads, name = _reads(step, values), f"{step.kind}{number}"
            layer = _layer(step, values[reads[0]].shape[1])
            if not reads or not _sensible(step, [values[at] for at in reads]):
                continue
            if layer is not None:
                self.layers[name] = layer
            with torch.no_grad():
                made = self._run(step, [values[at] for at in reads], name)
            unread = (unread - set(reads)) | set(range(len(values), len(values) + len(made)))
            values += made
            self.steps.append((step, reads, name))
        self.ends = sorted(unread)
        self.fc = nn.Linear(sum(self._end(values[end]).shape[1] for end in self.ends), 5)

    def extra_repr(self) -> str:
        return f"{[(tuple(step), reads) for step, reads, _ in self.steps]}, size={self.size}"

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
        return [_function(step, x, values[-1])]


def _reads(step: Step, values: list[Tensor]) -> tuple[int, ...]:
    """Return what a step reads: most often one of the latest values."""
    source = len(values) - 1 - step.first % min(len(values), 6)
    if step.kind not in ("cat", "add", "mul"):
        return (source,)
    start = 1 if step.kind == "cat" else 0
    sized = [at for at, value in enumerate(values) if value.shape[2:] == values[source].shape[2:]]
    fitting = [at for at in sized if start or values[at].shape == values[source].shape]
    return source, fitting[step.second % len(fitting)]


def _sensible(step: Step, values: list[Tensor]) -> bool:
    """Whether the result is neither too large nor empty, and does not overwrite the caller's input."""
    channels, height = values[0].shape[1:3]
    limits = {
        "cat": sum(value.shape[1] for value in values) <= WIDEST,
        "upsample": height <= LARGEST // 2,
        "pool": height > 3,
        "strided": height > 3,
        "split": channels > 3,
        "slice": channels > 3,
        "shuffle": channels % 2 == 0,
        "overwrite": channels != 3,
    }
    return limits.get(step.kind, True)


def _layer(step: Step, channels: int) -> nn.Module | None:
    if step.kind in LAYERS:
        width, kernel = WIDTHS[step.second % len(WIDTHS)], (3, 1)[step.third % 2]
        groups = 2 if step.kind == "grouped" and channels % 2 == 0 else 1
        conv = nn.Conv2d(channels, width, kernel, 2 if step.kind == "strided" else 1, kernel // 2, groups=groups)
        return conv if step.kind != "conv_bn_relu" else nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
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
    if step.kind == "mul":
        return x * y
    if step.kind == "slice":
        return x[:, channels // 3 :]
    if step.kind == "pool":
        return F.max_pool2d(x, 2) if step.third % 2 else F.adaptive_avg_pool2d(x, (height // 2 + 1, width // 2))
    if step.kind == "upsample":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    assert step.kind == "shuffle"
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


NUMBER = st.integers(0, 11)
STEP = st.builds(Step, st.sampled_from([*LAYERS * 3, *OPERATIONS]), NUMBER, NUMBER, NUMBER)
STEM = Step("conv_bn_relu", 0, 0, 0)
SIZES = st.tuples(st.integers(5, 9), st.integers(5, 9))


@st.composite
def random_models(draw: st.DrawFn) -> Random:
    """Draw a model in float64 that runs forward and backward by itself."""
    program = draw(st.lists(STEP, min_size=4, max_size=14))
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
    traced = trace(model, _input(model))
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
    wiring=st.sampled_from(["block", "block", "kernel"]),
    block=st.sampled_from(["auto", 3, "producer"]),
    resample=st.sampled_from(["max", "avg", "stride"]),
)
def test_a_rewired_model_computes_what_the_plain_gathers_compute(
    model: Random, p: float, density: float, wiring: str, block: str | int, resample: str
) -> None:
    _, original_grads, _ = _original(model)
    try:
        rewired = swnet.transform(
            model, _input(model), p=p, density=1 if wiring == "kernel" else density, wiring=wiring, block=block, resample=resample
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
    assert not lost or any("unread" in note.reason for note in rewired.swcompile.plan.notes), f"{lost} lost their gradients"

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
