"""Mutations of model files: tokens and bytes of good ones, and statements that somebody could write, each where it hurts.

Whatever is made here is run, as a user's model file is. So nothing in it can write a file, start a process or wait for ever:
mutations only move what the good files hold and what is listed here.
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence
from random import Random

from . import raw
from .subjects import EXAMPLES, MODELS

GOOD = {path.stem: path.read_text(encoding="utf-8") for path in (*sorted(MODELS.glob("*.py")), EXAMPLES / "plain_mlp.py", EXAMPLES / "resnet20.py", EXAMPLES / "unet.py")}

NUMBERS = ("0", "1", "2", "3", "7", "16", "-1", "0.5", "1e400", "True", "None", "''", "()", "[]", "64", "0x10", "1j", "(1, 1)")
WORDS = ("self", "x", "nn", "torch", "super", "len", "int", "str", "type", "object", "Tensor", "None", "repr", "range", "tuple", "F")
SIGNS = tuple("+ - * / // % @ ** . , : ; = == != -> := ( ) [ ] { } ~ & | < > += @= ... * **".split())


def tokens(draw: Random, text: str) -> str:
    """Change one to four tokens: another of its kind, none, twice, or the neighbour's place."""
    for _ in range(draw.choice([1, 1, 2, 3, 4])):
        spans = _spans(text)
        if spans:
            text = _edit(draw, text, spans)
    return text


def _spans(text: str) -> list[tuple[int, int, int]]:
    """Return kind, start and stop of each token, as far as the text can be read."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start, stop = (starts[min(row - 1, len(starts) - 1)] + column for row, column in (token.start, token.end))
            if token.string.strip() and token.type != tokenize.COMMENT:
                found.append((token.type, start, stop))
    except (tokenize.TokenError, SyntaxError):
        pass
    return found


def _edit(draw: Random, text: str, spans: Sequence[tuple[int, int, int]]) -> str:
    place = draw.randrange(len(spans))
    kind, start, stop = spans[place]
    _, first, last = spans[min(place + 1, len(spans) - 1)]
    alike = [text[begin:end] for other, begin, end in spans if other == kind]
    pool = {tokenize.NUMBER: NUMBERS, tokenize.NAME: WORDS, tokenize.OP: SIGNS}.get(kind, NUMBERS)
    how = draw.choice(["alike", "alike", "alike", "pool", "pool", "delete", "twice", "swap", "keyword"])
    if how == "swap":
        return text[:start] + text[first:last] + text[stop:first] + text[start:stop] + text[last:] if first >= stop else text
    if how == "keyword":  # `while` is left out: it is the one way to write a loop that does not end
        new = draw.choice([word for word in keyword.kwlist if word != "while"])
    else:
        new = {"alike": draw.choice(alike), "pool": draw.choice(pool), "delete": "", "twice": f"{text[start:stop]} {text[start:stop]}"}[how]
    return text[:start] + new + text[stop:]


NET = """{top}
import os, sys
import torch
from torch import nn
{above}
class Net({bases}):
{body}
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)
        {init}

    def forward(self, x):
        x = torch.relu(self.first(x))
        {forward}
        y = torch.relu(self.second(x))
        x = x + torch.relu(self.norm(self.third(y)))
        return {result}

def build_model():
    {build}
    return {built}

{bottom}
"""

ERRORS = (
    "raise ValueError('no such checkpoint')", "raise SystemExit", "sys.exit(0)", "sys.exit('bye')", "raise GeneratorExit", "raise StopIteration",
    "raise BaseException('x')", "raise MemoryError", "raise RecursionError('deep')", "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "raise BaseExceptionGroup('g', [SystemExit(1)])", "raise type('E\\n\\x1b[2J', (Exception,), {})('x')", "raise ValueError('\\ud800')",
    "raise ValueError('a' * 1000000)", "raise ValueError('\\n\\n')", "raise ValueError('one\\nTraceback\\nthree')", "raise ValueError('\\x1b[2J')",
    "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "raise type('E', (Exception,), {'__str__': lambda self: 3})",
    "raise type('E', (BaseException,), {'__str__': lambda self: sys.exit(3)})", "raise 3", "raise None", "assert False", "1 / 0", "undefined",
    "raise SyntaxError('x')", "raise SyntaxError('x', ('f', 'a', 3, 4))", "raise ImportError", "import nothing_of_that_name", "[].pop()",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'y')", "raise OSError(2, 'gone', 'file')", "raise KeyError", "raise ValueError() from None",
    "raise torch.cuda.OutOfMemoryError('x')", "torch.zeros(2) @ torch.zeros(3)", "torch.zeros(1 << 50)", "torch.load('nothing.pt')",
    "exec('def f(n):\\n return f(n)\\nf(1)')", "(lambda f: f(f))(lambda f: f(f))", "open('nothing')", "print('\\ud800')", "import torch.nothing",
    "raise NotImplementedError", "raise asyncio.CancelledError", "class E(Exception):\n        __slots__ = ()", "raise StopAsyncIteration",
)  # fmt: skip

EFFECTS = (
    "os.chdir('/')", "os.chdir('..')", "sys.path.append('/nothing')", "sys.path.clear()", "sys.path = []", "sys.path = None", "sys.path.insert(0, 3)",
    "sys.stdout = None", "sys.stdout.close()", "sys.stdout = open(os.devnull)", "print('x' * 100000)", "print('\\x1b[2J')", "os.write(1, b'noise')",
    "sys.argv = None", "sys.argv.clear()", "sys.modules[__name__] = None", "sys.modules[__name__] = 3", "sys.modules['strange'] = None",
    "sys.modules['strange'] = type('M', (), {'__getattr__': lambda self, name: 1 / 0})()", "sys.modules['strange'] = 3", "del sys.modules[__name__]",
    "sys.modules['strange'] = type('M', (), {'__file__': 3})()", "sys.modules['strange'] = type('M', (), {'__file__': 'a\\0b.py'})()",
    "sys.modules['strange'] = type(sys)('strange')", "__file__ = 3", "__file__ = None", "__name__ = 5", "__name__ = ''", "__spec__ = None",
    "__all__ = 7", "__dict__ = 3", "del __file__", "torch.set_default_dtype(torch.float64)", "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)", "torch.manual_seed(3)", "import warnings; warnings.simplefilter('error'); warnings.warn('w')",
    "import warnings; warnings.warn('w')", "import logging; logging.warning('w')", "sys.setrecursionlimit(300)", "import gc; gc.collect()",
    "sys.stderr.write('noise\\n')", "sys.dont_write_bytecode = False", "import swcompile", "import net", "from net import *", "import swnet",
    "globals().clear()", "globals()['a' * 10000] = 1", "globals()[3] = 4", "x = [i for i in range(100000)]", "sys.meta_path.insert(0, None)",
    "sys.meta_path.pop(0)", "sys.path_hooks.clear()", "os.environ.clear()", "sys.excepthook = None", "sys.ps1 = 3", "sys.tracebacklimit = 0",
)  # fmt: skip
"""What a file may do to the process besides. None of it writes: `os.write` goes to a stream that is caught."""

METHODS = (
    "__repr__", "__str__", "__len__", "__bool__", "__eq__", "__hash__", "__iter__", "__call__", "__getattr__", "__getattribute__", "__setattr__",
    "__deepcopy__", "__copy__", "__reduce_ex__", "__getstate__", "__setstate__", "__dir__", "__contains__", "__class__", "__del__", "__format__",
    "__init_subclass__", "__new__", "__class_getitem__", "parameters", "named_parameters", "buffers", "named_modules", "modules", "children",
    "train", "eval", "state_dict", "load_state_dict", "get_submodule", "register_buffer", "forward", "training", "_parameters", "_modules",
    "_buffers", "extra_repr", "get_extra_state", "__torch_function__", "__module__", "__name__", "__doc__", "__annotations__", "__slots__",
    "_get_name", "named_children", "swcompile", "graph", "__dict__", "__wrapped__", "__signature__", "_apply", "zero_grad", "_forward_hooks",
)  # fmt: skip

ANSWERS = (
    "None", "3", "'x'", "[]", "()", "{}", "self", "NotImplemented", "iter(())", "object()", "1 / 0", "sys.exit(1)", "True", "lambda *a: None", "nn",
    "torch.zeros(2)", "'\\ud800\\x1b[2J'", "'a' * 100000", "type(self)", "[3]", "{'a': 1}", "iter([(1, 2)])", "super()", "b''", "1.5", "[None]",
)  # fmt: skip

RESULTS = (
    "self.last(x)", "x", "None", "3", "(x, y)", "[x, {'a': y}]", "{'a': self.last(x)}", "self", "'x'", "lambda: x", "self.last(x).item()",
    "self.last(x).tolist()", "(x,)", "()", "iter([x])", "x.shape", "self.last(x[0])", "self.last(x.detach())", "self.last.weight", "type(x)",
    "self.last(x).numpy()", "torch.zeros(3)", "x if x.sum() > 0 else y", "self.forward(x)", "self(x)", "str(x)", "x.nothing", "x.data",
    "self.last(x).to('meta')", "self.last(x.double())", "self.last(torch.as_tensor(x))", "self.last(x.unsqueeze(0).squeeze())", "x.grad",
    "self.last(x).to_sparse()", "torch.jit.script(self.last)(x)", "self.last(x).backward()", "self.last(x.half())", "x.storage()", "...",
)  # fmt: skip

FORWARDS = (
    "x = x[:, :3]", "x = x.view(-1)", "x += 1", "x[:, 0] = 3", "x = x.numpy()", "self.count = x.sum()", "self.first = self.second", "del x",
    "for part in x: y = part", "x = x if x.mean() > 0 else -x", "x = [x][0]", "x = nn.Linear(8, 8)(x)", "print(x)", "x = x.relu_()", "global Net",
    "self.register_buffer('late', x)", "x = torch.rand_like(x)", "x = x * torch.rand(1)", "x.requires_grad_()", "x.backward()", "import os",
    "assert x.shape[0] == 2", "self.train()", "self.eval()", "x = torch.cat([x] * 40, 1)[:, :8]", "x = x.to(torch.int64)", "x = x.T", "x = 3",
    "self.norm.running_mean.zero_()", "x = torch.stack([x, x]).mean(0)", "with torch.no_grad(): x = x * 2", "x = x.data", "x.data = x * 2",
    "x = torch.utils.checkpoint.checkpoint(self.second, x, use_reentrant=False)", "x = torch.vmap(lambda v: v * 2)(x)", "self.first.weight = None",
    "x = torch.compile(lambda v: v)(x) if False else x", "self.add_module('late', nn.Linear(8, 8)); x = self.late(x)", "self.first.weight.data.mul_(2)",
    "x = torch.nn.functional.linear(x, self.second.weight)", "x = x.expand(4, 2, 8)", "try:\n            x = 1 / 0\n        except Exception: pass",
    "x = getattr(self, 'sec' + 'ond')(x)", "x = (lambda v: self.second(v))(x)", "x = x.reshape(x.size(0), 2, 4).flatten(1)", "x = x.sort()[0]",
)  # fmt: skip

INITS = (
    "self.first = None", "self.first = nn.Linear(0, 8)", "self.first = nn.LazyLinear(8)", "self.first.weight = self.second.weight", "del self.last",
    "self.first.weight.requires_grad_(False)", "self.first.to('meta')", "self.to(torch.float64)", "self.half()", "self.to(torch.complex64)",
    "self.me = [self]", "self.add_module('a b', nn.Linear(8, 8))", "self.add_module('\\ud800', nn.Linear(8, 8))", "self.add_module('', nn.ReLU())",
    "self.add_module('x\\n', nn.Linear(8, 8))", "self.second = self", "self.inner = nn.ModuleList([self.first])", "self.training = 3", "self.eval()",
    "self.first.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int64), False)", "self.first = nn.Linear(8, 8, dtype=torch.complex64)",
    "self.first.weight.data = torch.zeros(3)", "self.first.in_features = 'x'", "self.first.in_features = -8", "self.first.out_features = 10 ** 30",
    "self.register_buffer('b', torch.zeros(3), persistent=False)", "self.register_buffer('b', None)", "self.result = self.first.weight * 2",
    "self.register_forward_hook(lambda *a: None)", "self.first.register_forward_hook(lambda *a: 1 / 0)", "self.stdout = sys.stdout",
    "self.first = torch.nn.utils.parametrizations.weight_norm(self.first)", "self.first = torch.nn.utils.spectral_norm(self.first)",
    "self.hook = self.register_forward_pre_hook(lambda m, a: 3)", "self.lock = __import__('threading').Lock()", "self.gen = (i for i in range(3))",
    "self._modules['odd'] = 3", "self._parameters['odd'] = 3", "self._modules = {}", "self._buffers = None", "self.first._parameters.clear()",
    "self.__class__ = nn.Linear", "self.first.__class__ = nn.Conv2d", "self.__dict__.clear()", "self._forward_hooks = 3", "self.forward = None",
    "self.forward = lambda: 3", "self.forward = lambda x: x", "self.forward = 3", "self.norm.num_features = None", "self.norm.running_mean = None",
    "self.first = nn.utils.prune.l1_unstructured(nn.Linear(8, 8), 'weight', 0.5)", "self.first.bias = nn.Parameter(torch.zeros(3))", "return 3",
    "self.swcompile = 3", "self.first = torch.compile(self.first)", "self.first = torch.jit.script(nn.Linear(8, 8))", "self.add_module('first@1', nn.Linear(8, 8))",
    "self.register_parameter('input', nn.Parameter(torch.zeros(2)))", "self.add_module('forward_', nn.Linear(8, 8))", "self.tensor = torch.zeros(2)",
)  # fmt: skip

BUILT = (
    "Net()", "Net()", "Net()", "None", "3", "Net", "(Net(), 1)", "[Net()]", "{'model': Net()}", "lambda: Net()", "iter([Net()])", "nn", "nn.Module()",
    "torch.zeros(3)", "torch.jit.script(nn.Linear(8, 8))", "torch.jit.trace(Net(), torch.zeros(2, 8))", "nn.DataParallel(Net())", "torch.compile(Net())",
    "torch.fx.symbolic_trace(Net())", "torch.export.export(Net().eval(), (torch.zeros(2, 8),))", "nn.Sequential()", "nn.ModuleList([Net()])",
    "nn.Sequential(Net(), Net())", "Net().to('meta')", "Net().double()", "build_model", "nn.Identity()", "nn.Parameter(torch.zeros(2))", "Net().state_dict()",
    "__import__('swnet').transform(Net(), torch.zeros(2, 8))", "torch.nn.utils.skip_init(nn.Linear, 8, 8)", "Net().train", "super", "...", "build_model()",
    "nn.Transformer(8, 2, 1, 1, 8)", "nn.LSTM(8, 8)", "nn.ModuleDict({'a': Net()})", "nn.Sequential(*[nn.Linear(8, 8)] * 5)", "nn.Bilinear(8, 8, 8)",
    "nn.Sequential(nn.Linear(8, 8), 3)", "nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8))", "nn.Sequential(nn.Embedding(3, 8), nn.Linear(8, 8))",
    "torch.ao.quantization.quantize_dynamic(Net())", "object.__new__(Net)", "nn.Module.__new__(Net)", "nn.Flatten()", "nn.LazyLinear(3)",
)  # fmt: skip

BASES = ("nn.Module",) * 6 + ("nn.Linear", "nn.Sequential", "object", "nn.Module, dict", "nn.ModuleList", "torch.nn.Identity", "nn.Module, metaclass=Meta",
         "torch.fx.GraphModule", "dict, nn.Module", "nn.Module, Exception", "torch.jit.ScriptModule", "Tuple", "nn.Module, str", "nn.Embedding")  # fmt: skip

METAS = (
    "class Meta(type):\n    def __call__(self, *a): return 3", "class Meta(type):\n    def __instancecheck__(self, x): return 1 / 0",
    "class Meta(type):\n    def __getattribute__(self, name): return 1 / 0", "class Meta(type):\n    def __subclasscheck__(self, x): return True",
    "class Meta(type):\n    def __eq__(self, other): return 1 / 0\n    __hash__ = type.__hash__", "class Meta(type):\n    __name__ = property(lambda self: 1 / 0)",
    "class Meta(type):\n    def __bool__(self): return sys.exit(4)", "class Meta(type):\n    __module__ = 3", "class Meta(type): pass",
    "class Meta(type):\n    def __repr__(self): return 3", "class Meta(type):\n    __signature__ = 3",
)  # fmt: skip

BOTTOMS = (
    "", "", "get_model = build_model", "get_model = 3", "get_model = Net", "model = Net()", "model = 3", "model = Net", "del Net", "del build_model",
    "build_model = None", "build_model = 3", "build_model = Net", "build_model = Net()", "build_model = nn.Linear(8, 8)", "build_model = staticmethod(Net)",
    "build_model = classmethod(Net)", "build_model.__signature__ = 3", "build_model.__wrapped__ = build_model", "build_model = print",
    "build_model = type('B', (), {'__call__': lambda self: Net()})()", "build_model = type('B', (), {'__call__': 3})()", "build_model = torch.no_grad",
    "build_model = type('B', (), {'__call__': lambda self: Net(), '__eq__': lambda self, other: 1 / 0})()\nget_model = build_model",
    "def build_model(a, b=1): return Net()", "def build_model(*, a): return Net()", "def build_model(*a, **k): return Net()", "async def build_model(): return Net()",
    "def build_model(): yield Net()", "def build_model(): return build_model()", "class build_model(Net): pass", "def __getattr__(name): return 1 / 0",
    "def __dir__(): return 3", "build_model = __import__('functools').partial(Net)", "build_model = __import__('functools').lru_cache(Net)",
    "build_model = int", "build_model = type", "build_model = Net.__init__", "build_model = dict.fromkeys", "Net.__init__ = None", "Net.forward = None",
    "Net.__module__ = 3", "Net.__name__ = 'A\\nB'", "Net.__qualname__ = ''", "Net.__call__ = lambda self, x: x", "Net.forward = torch.no_grad()(Net.forward)",
    "Net.forward = property(lambda self: 1 / 0)", "Net.forward.__signature__ = 3", "Net.forward = print", "Net.forward = staticmethod(lambda x: x)",
    "Net.forward = lambda self: self.first.weight", "Net.forward = lambda self, *x: self.first(x[0])", "Net.forward = lambda self, **k: 3",
    "Net.forward = lambda self, *, x: self.last(x)", "Net.forward = lambda self, x, /, y=3: self.last(x)", "Net.forward = lambda self, a, b: self.last(a + b)",
    "Net.forward = torch.jit.ignore(Net.forward)", "Net.forward = torch.compile(Net.forward)", "Net.forward = classmethod(lambda cls, x: x)",
)  # fmt: skip

EXAMPLE_INPUTS = (
    "None", "torch.zeros(2, 8)", "(torch.zeros(2, 8),)", "[]", "()", "3", "'x'", "torch.zeros(8)", "torch.zeros(())", "torch.zeros(0, 8)", "torch.zeros(2, 9)",
    "torch.zeros(2, 8, dtype=torch.int64)", "torch.zeros(2, 8, dtype=torch.complex64)", "torch.zeros(2, 8).to_sparse()", "torch.zeros(2, 8, device='meta')",
    "torch.zeros(1).expand(1 << 40, 8)", "torch.zeros(2, 8, requires_grad=True)", "nn.Parameter(torch.zeros(2, 8))", "(torch.zeros(2, 8), torch.zeros(2, 8))",
    "[torch.zeros(2, 8)] * 100", "(torch.zeros(2, 8), 3)", "{'x': torch.zeros(2, 8)}", "([torch.zeros(2, 8)],)", "torch.zeros(2, 8).numpy()", "nn.Linear",
    "lambda: torch.zeros(2, 8)", "lambda x: x", "lambda: 1 / 0", "lambda: None", "lambda: (x for x in [1])", "lambda: sys.exit(2)", "(i for i in [1])",
    "torch.quantize_per_tensor(torch.zeros(2, 8), 1.0, 0, torch.qint8)", "torch.zeros(2, 8).bool()", "torch.zeros(2, 8).half()", "torch.zeros(2, 8, 1, 1, 1, 1)",
    "type('T', (torch.Tensor,), {})(2, 8)", "torch.zeros(2, 8).to(torch.float8_e4m3fn)", "torch.nested.nested_tensor([torch.zeros(8), torch.zeros(8)])",
    "type('S', (tuple,), {'__iter__': lambda self: 1 / 0})((torch.zeros(2, 8),))", "type('S', (list,), {'__len__': lambda self: 1 / 0})()", "torch.zeros",
    "torch.full((2, 8), float('nan'))", "torch.zeros(1, 8)", "torch.zeros(2, 3, 8)", "torch.empty(2, 8).as_strided((2, 8), (0, 0))", "torch.zeros(8, 2).T",
)  # fmt: skip

TOPS = (
    "", "", "", "from __future__ import annotations", "from __future__ import nothing", "# -*- coding: latin-1 -*-", "# coding: nonsense", "# coding: utf-7",
    "# coding: rot13", "# coding: undefined", "# coding: utf-16", "\ufeff", "#!/usr/bin/env python", "'''", '"""a docstring"""', "\f", "\x0c\t", "\\", "(", "\x1a",
    "import os, sys; sys.path = [*sys.path]", "from . import sibling", "from .. import nothing", "if True:", "\tpass", "return 3", "yield 3", "await x", "é = 3",
    "x: int = 'a'", "@", "match 3:\n    case _: pass", "print 'x'", "exec('x = ' + '(' * 150 + ')' * 150)", "nonlocal x", "break", "x = 0777", "f'{'", "lambda", "𝒳 = 3",
)  # fmt: skip


def hostile(draw: Random) -> str:
    """Return a file that does what no model file should, at one place or two."""
    holes = {"top": "", "above": "", "bases": "nn.Module", "body": "", "init": "", "forward": "", "result": "self.last(x)", "build": "", "built": "Net()",
             "bottom": "example_inputs = torch.zeros(2, 8)"}  # fmt: skip
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3])):
        _dig(draw, holes, draw.choice(list(_WAYS)))
    return NET.format(**holes)


def _dig(draw: Random, holes: dict[str, str], way: str) -> None:
    hole, choices = _WAYS[way]
    if way == "method":
        holes["body"] += _method(draw)
    elif way == "inputs":
        holes["bottom"] += f"\nexample_inputs = {draw.choice(choices)}"
    elif hole == "bottom":
        holes["bottom"] += f"\n{draw.choice(choices)}"
    else:
        holes[hole] = draw.choice(choices)
    if "Meta" in holes["bases"] and not holes["above"]:
        holes["above"] = draw.choice(METAS)


_WAYS: dict[str, tuple[str, Sequence[str]]] = {
    "error above": ("above", ERRORS), "error below": ("bottom", ERRORS), "error in init": ("init", ERRORS), "error in forward": ("forward", ERRORS),
    "error in build": ("build", ERRORS), "effect above": ("above", EFFECTS), "effect below": ("bottom", EFFECTS), "effect in build": ("build", EFFECTS),
    "effect in forward": ("forward", EFFECTS), "method": ("body", METHODS), "method again": ("body", METHODS), "result": ("result", RESULTS),
    "forward": ("forward", FORWARDS), "forward again": ("forward", FORWARDS), "init": ("init", INITS), "init again": ("init", INITS), "built": ("built", BUILT),
    "built again": ("built", BUILT), "bases": ("bases", BASES), "bottom": ("bottom", BOTTOMS), "inputs": ("bottom", EXAMPLE_INPUTS), "top": ("top", TOPS),
}  # fmt: skip


def _method(draw: Random) -> str:
    """Return a method or attribute of nn.Module's name that answers nonsense."""
    name, answer = draw.choice(METHODS), draw.choice(ANSWERS)
    return draw.choice([
        f"    def {name}(self, *args, **kwargs): return {answer}\n",
        f"    def {name}(self, *args, **kwargs): return {answer}\n",
        f"    @property\n    def {name}(self): return {answer}\n",
        f"    {name} = {answer if 'self' not in answer and 'super' not in answer and '/' not in answer and 'exit' not in answer else None}\n",
    ])  # fmt: skip


def enormous(draw: Random) -> str:
    """Return a file that is too large, too deep or too long for somebody on its way."""
    good = GOOD["plain"]
    return draw.choice([
        good + "\nx = " + "(" * 150 + ")" * 150,
        good + "\nx = " + "-" * 5_000 + "1",
        good + "\nx = " + "+".join(["1"] * 20_000),
        good + "\nx = " + "[" * 3_000,
        good + "\n" + "\n".join(f"name{number} = {number}" for number in range(20_000)),
        good + "\n" + "\n".join(f"def f{number}(): return model" for number in range(5_000)),
        good + "\nx = '" + "a" * 5_000_000 + "'",
        good + "\n" + "#" * 5_000_000,
        good + "\n" * 1_000_000,
        good + "\n" + "".join(" " * depth + "if True:\n" for depth in range(120)) + " " * 120 + "pass",
        good + "\nx" + ".a" * 3_000,
        good + "\nx = " + "9" * 10_000,
        "\n".join(f"class Net{number}(__import__('torch').nn.Module):\n    def forward(self, x): return x" for number in range(300)),
    ])  # fmt: skip


def encoded(draw: Random, text: str) -> bytes:
    """Return a good file as bytes that are not quite it: other encodings and line ends, null bytes."""
    return draw.choice([
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-8-sig"),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.replace("\n", "\r").encode(),
        lambda: text.encode() + b"\0",
        lambda: text.encode() + b"\n# \xff\xfe",
        lambda: b"# -*- coding: latin-1 -*-\n" + text.encode() + "\nx = 'é'".encode("latin-1"),
        lambda: b"# coding: utf-16\n" + text.encode(),
        lambda: b"",
        lambda: b"\n",
        lambda: b"\xff" * 100,
        lambda: text.replace("    ", "\t", 3).encode(),
        lambda: raw.mutate(draw, text.encode())[0],
        lambda: raw.mutate(draw, text.encode())[0],
        lambda: raw.mutate(draw, text.encode())[0],
    ])()  # fmt: skip


def mutate(draw: Random) -> tuple[bytes, str]:
    """Return a model file that is not as it should be, and say how it was made."""
    name = draw.choice(sorted(GOOD))
    match draw.choice(["tokens"] * 8 + ["hostile"] * 12 + ["encoded"] * 2 + ["enormous"]):
        case "tokens":
            return tokens(draw, GOOD[name]).encode("utf-8", "surrogatepass"), f"model file: tokens of {name}"
        case "hostile":
            return hostile(draw).encode("utf-8", "surrogatepass"), "model file: hostile"
        case "encoded":
            return encoded(draw, GOOD[name]), f"model file: encoding of {name}"
        case _:
            return enormous(draw).encode(), "model file: enormous"
