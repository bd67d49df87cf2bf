"""What a rewired model goes through in other people's programs: compilers, exporters, copies, files, AMP, several processes."""

from __future__ import annotations

import copy
import io
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint
from torch.utils.tensorboard import SummaryWriter

import swnet
from swcompile.modules import RewiredModule
from swcompile.record import record
from tests.test_equivalence import assert_same, loss_of, non_persistent, rewire, run, state_of, tensors
from tests.zoo import ZOO, build

everywhere = pytest.mark.parametrize("name", ZOO)
OPTIONS: tuple[dict[str, Any], ...] = ({"p": 0.3, "density": 0.5}, {"p": 0.3, "wiring": "kernel"})
CASES = [(name, {"p": 0.3}) for name in ZOO]
CASES += [(name, options) for name in ("resnet_basic", "googlenet", "loose_ends", "mlp") for options in OPTIONS]
however = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compiled(model: nn.Module, backend: str) -> Any:
    """Compile anew; what torch itself warns of while it compiles is none of ours."""
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


def python(code: str, *flags: str, timeout: float = 120) -> str:
    """Run a program in a fresh process at the root of the repository, and return what it printed."""
    done = subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Compilers and exporters.

COMPILED = [(name, True) for name in ("resnet_basic", "densenet", "unet_upsample", "shufflenet", "vit", "in_place")]
COMPILED += [("googlenet", True), ("googlenet", False), ("stochastic_depth", True), ("stochastic_depth", False)]


@pytest.mark.parametrize(("name", "training"), COMPILED)
def test_compiles_to_one_graph_with_equal_results(name: str, training: bool) -> None:
    rewired, x = rewire(name, p=0.3).train(training), build(name)[1]
    twin = copy.deepcopy(rewired)
    ours, gradients = run(compiled(twin, "aot_eager"), x)
    theirs, wanted = run(rewired, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for key, gradient in wanted.items():
        torch.testing.assert_close(gradients[f"_orig_mod.{key}"], gradient, rtol=1e-4, atol=1e-5)


def test_compiles_with_masks() -> None:
    rewired, x = rewire("resnet_basic", p=0.3, wiring="kernel"), build("resnet_basic")[1]
    ours, _ = run(compiled(copy.deepcopy(rewired), "aot_eager"), x)
    torch.testing.assert_close(ours, run(rewired, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside inductor
def test_compiles_with_inductor() -> None:
    assert shutil.which("g++") or shutil.which("clang++"), "inductor needs a C++ compiler; install g++"
    rewired, x = rewire("mlp", p=0.3).eval(), build("mlp")[1]
    with torch.no_grad():
        torch.testing.assert_close(compiled(rewired, "inductor")(x), rewired(x), rtol=1e-4, atol=1e-4)


@everywhere
def test_exports_with_equal_outputs(name: str) -> None:
    rewired, x = rewire(name, p=0.3).eval(), build(name)[1]
    exported = torch.export.export(rewired, (x,))
    assert_same(tensors(exported.module()(x)), tensors(rewired(x)))


@pytest.mark.parametrize("name", ["resnet_basic", "googlenet", "stochastic_depth", "loose_ends"])
def test_exports_strictly_with_equal_outputs(name: str) -> None:
    rewired, x = rewire(name, p=0.3).eval(), build(name)[1]
    assert_same(torch.export.export(rewired, (x,), strict=True).module()(x), rewired(x))


@pytest.mark.parametrize("name", ["resnet_basic", "densenet", "unet_transposed", "mlp"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    rewired, x = rewire(name, p=0.3).eval(), build(name)[1]
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    exported = torch.export.export(rewired, (x,), dynamic_shapes=shapes).module()
    more = torch.cat([x, x[:1]])
    torch.testing.assert_close(exported(more), rewired(more))


@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.:DeprecationWarning")  # torch's own, of what add_graph goes by
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # resample asks for sizes, which torch.jit.trace fixes
def test_tensorboard_shows_the_graph(tmp_path: Path) -> None:
    """add_graph goes by torch.jit.trace; each layer is a node there, under its own name, and what it reads leads to it."""
    rewired, x = rewire("resnet_basic", p=0.3).eval(), build("resnet_basic")[1]
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(rewired, x)
    events = EventFileLoader(str(next(tmp_path.iterdir()))).Load()
    graph = GraphDef.FromString(next(event.graph_def for event in events if event.graph_def))
    layers = {name.replace(".", "/") for name, module in rewired.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    shown = {re.sub(r"\w+\[(\w+)\]", r"\1", node.name) for node in graph.node}
    assert all(any(f"/{layer}/weight/" in name for name in shown) for layer in layers)
    assert any(node.op == "aten::cat" for node in graph.node)


# Copies and files.


@however
def test_a_deepcopy_trains_on_its_own(name: str, options: dict[str, Any]) -> None:
    rewired, x = rewire(name, **options), build(name)[1]
    kept = copy.deepcopy(state_of(rewired))
    twin = copy.deepcopy(rewired)
    assert type(twin) is type(rewired) or isinstance(twin, RewiredModule)
    assert non_persistent(twin) == non_persistent(rewired)
    assert record(twin).plan == record(rewired).plan
    run(twin, x)
    assert_same(state_of(rewired), kept)
    ours, _ = run(rewired, x)
    assert_same(state_of(rewired), state_of(twin))
    assert all(bool(out.isfinite().all()) for out in tensors(ours))


@everywhere
def test_pickles_whole(name: str) -> None:
    rewired, x = rewire(name, p=0.3), build(name)[1]
    twin = pickle.loads(pickle.dumps(rewired))
    assert record(twin).plan == record(rewired).plan
    assert non_persistent(twin) == non_persistent(rewired)
    for training in (True, False):
        torch.manual_seed(5)
        wanted = rewired.train(training)(x)
        torch.manual_seed(5)
        assert_same(twin.train(training)(x), wanted)


def test_torch_save_of_the_whole_module() -> None:
    rewired, x = rewire("googlenet", p=0.3).eval(), build("googlenet")[1]
    file = io.BytesIO()
    torch.save(rewired, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False)(x), rewired(x))


@however
def test_state_dict_goes_through_torch_save(name: str, options: dict[str, Any]) -> None:
    rewired, x = rewire(name, **options), build(name)[1]
    fresh = copy.deepcopy(rewired)
    run(rewired, x)
    file = io.BytesIO()
    torch.save(rewired.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(fresh.eval()(x), rewired.eval()(x))


@however
def test_save_and_load_in_a_fresh_model(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    rewired, x = rewire(name, **options), build(name)[1]
    run(rewired, x)
    swnet.save(rewired, tmp_path / "out")
    model = build(name)[0]
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    loaded = swnet.load(tmp_path / "out", model)
    assert_same(dict(loaded.state_dict()), dict(rewired.state_dict()))
    assert_same(loaded.eval()(x), rewired.eval()(x))
    assert swnet.ledger(loaded).after.as_dict() == swnet.ledger(rewired).after.as_dict()


# Training loops.


@everywhere
def test_trains_under_autocast(name: str) -> None:
    rewired, x = rewire(name, p=0.3), build(name)[1]
    _, gradients = run(copy.deepcopy(rewired), x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = rewired(x)
    loss_of(_pytree.tree_map(lambda out: out.float(), output)).backward()
    for key, parameter in rewired.named_parameters():
        assert (parameter.grad is None) == (gradients[key] is None), key
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", ["resnet_basic", "densenet", "vit", "stochastic_depth", "unet_upsample"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    rewired, x = rewire(name, p=0.3), build(name)[1]
    for norm in rewired.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()  # running statistics would be updated twice, as in any model
    twin = copy.deepcopy(rewired)
    torch.manual_seed(0)
    loss_of(rewired(x)).backward()
    torch.manual_seed(0)
    loss_of(checkpoint(twin, x.requires_grad_(), use_reentrant=False)).backward()
    assert_same({key: p.grad for key, p in twin.named_parameters()}, {key: p.grad for key, p in rewired.named_parameters()})


@pytest.mark.parametrize("name", ["resnet_basic", "mlp"])
def test_functional_call_and_vmap_over_weights(name: str) -> None:
    rewired, x = rewire(name, p=0.3).eval(), build(name)[1]
    state = {key: torch.stack([tensor, tensor]) for key, tensor in rewired.state_dict().items()}
    outputs = torch.func.vmap(lambda weights: torch.func.functional_call(rewired, weights, (x,)))(state)
    torch.testing.assert_close(outputs[1], rewired(x), rtol=1e-4, atol=1e-5)


def test_goes_to_channels_last_and_other_dtypes() -> None:
    rewired, x = rewire("resnet_basic", p=0.3).eval(), build("resnet_basic")[1]
    wanted = rewired(x)
    last = copy.deepcopy(rewired).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(rewired).double()(x.double()).float(), wanted, rtol=1e-4, atol=1e-5)
    assert bool(copy.deepcopy(rewired).bfloat16()(x.bfloat16()).isfinite().all())


PARALLEL = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import swnet
from swcompile.record import record
from tests.zoo import build

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
for name, options in (("resnet_basic", {}), ("densenet", {}), ("vit", {}), ("resnet_basic", {"wiring": "kernel"})):
    model, x = build(name)
    torch.manual_seed(rank)  # whatever the ranks do differently, the plan is the same
    torch.rand(1 + rank)
    rewired = swnet.transform(model, x, p=0.3, **options)
    digests = [None, None]
    dist.all_gather_object(digests, record(rewired).plan.digest)
    assert digests[0] == digests[1], digests
    parallel = DistributedDataParallel(rewired)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(x + rank).square().mean().backward()
        optimizer.step()
    for kind in ("grad", "data"):
        mine = torch.cat([getattr(parameter, kind).flatten() for parameter in rewired.parameters()])
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        assert torch.equal(both[0], both[1]), (name, kind)
    if rank == 0:
        print("same", name, digests[0], flush=True)
    del parallel, optimizer
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # everything has been checked; on a busy machine gloo's own threads can abort the interpreter's exit
"""


def test_distributed_data_parallel_with_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 4
    model, x = build("resnet_basic")
    assert f"same resnet_basic {swnet.plan(model, x, p=0.3).digest}" in done.stdout


# Models without memory.


@everywhere
def test_a_model_on_meta_gives_the_same_plan(name: str) -> None:
    model, x = build(name)
    with torch.device("meta"):
        empty = ZOO[name][0]()
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert swnet.plan(empty, x, p=0.3) == swnet.plan(model, x, p=0.3)
    assert all(parameter.is_meta for parameter in empty.parameters())


def wide_mlp() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(7072, 7072), nn.ReLU()) for _ in range(12)), nn.Linear(7072, 10))


def wide_cnn() -> nn.Module:
    blocks = (nn.Sequential(nn.Conv2d(2048, 2048, 3, padding=1), nn.BatchNorm2d(2048), nn.ReLU()) for _ in range(16))
    return nn.Sequential(nn.Conv2d(3, 2048, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10))


@pytest.mark.parametrize(("builder", "shape"), [(wide_mlp, (2, 7072)), (wide_cnn, (2, 3, 16, 16))], ids=["mlp", "cnn"])
def test_600_million_parameters_are_analysed_in_seconds(builder: Any, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = builder()
    start = time.process_time()
    found = swnet.analyze(model, torch.empty(shape, device="meta"))
    plan = swnet.plan(model, torch.empty(shape, device="meta"), p=0.3)
    assert time.process_time() - start < 20
    assert found.params == sum(parameter.numel() for parameter in model.parameters()) > 6e8
    assert len(found.eligible) >= 11
    assert plan.promise.moved > 0
    assert all(parameter.is_meta for parameter in model.parameters())


def test_600_million_parameters_on_meta_take_no_memory() -> None:
    code = """
import resource, torch, swnet
from tests.test_works_with import wide_mlp
with torch.device("meta"):
    model = wide_mlp()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
swnet.plan(model, torch.empty(2, 7072), p=0.3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(python(code)) < 500_000  # KiB; the weights would be 2.4 million


def test_a_transformed_meta_model_stays_on_meta() -> None:
    with torch.device("meta"):
        model = ZOO["resnet_basic"][0]()
    rewired = swnet.transform(model, torch.empty(2, 3, 16, 16), p=0.3)
    assert all(tensor.is_meta for tensor in state_of(rewired).values())
    assert rewired(torch.empty(5, 3, 16, 16, device="meta")).shape == (5, 10)


# Imports.


def test_import_makes_no_cuda_context() -> None:
    code = "import swnet, torch; print(torch.cuda.is_initialized())"
    assert python(code).strip() == "False"


def test_transform_makes_no_cuda_context() -> None:
    code = """
import swnet, torch
from tests.zoo import build
swnet.transform(*build("mlp"), p=0.3)
print(torch.cuda.is_initialized())
"""
    assert python(code).strip() == "False"


def test_works_without_triton() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Blocker())
import swnet
from tests.zoo import build
model, x = build("resnet_basic")
print(swnet.transform(model, x, p=0.3)(x).shape[0], "triton" in sys.modules)
"""
    assert python(code).split() == ["4", "False"]


def test_import_needs_no_optional_package_and_warns_of_nothing() -> None:
    code = """
import sys
missing = ("triton", "sklearn", "igraph", "PIL", "matplotlib", "torchvision")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
import swnet
print(swnet.SwnetError.__name__)
"""
    assert python(code, "-W", "error::UserWarning").strip() == "SwnetError"


def test_no_warning_is_left_to_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewired = swnet.transform(*build("densenet"), p=0.3)
        assert isinstance(run(rewired, build("densenet")[1])[0], Tensor)
