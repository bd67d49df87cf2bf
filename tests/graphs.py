"""Small layer graphs, made without a model."""

from __future__ import annotations

from collections.abc import Sequence

from swcompile.graph import GraphBuilder, LayerGraph

VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def chain(widths: Sequence[int], *, size: int = 8) -> LayerGraph:
    """Return a plain chain of 3x3 convolutions; `widths[0]` is the network's input."""
    build = GraphBuilder("chain")
    value, name = build.input("x", widths[0]), "x"
    for number, width in enumerate(widths[1:], 1):
        feature = build.feature(name, value, (1, widths[number - 1], size, size))
        name = f"conv{number}"
        value = build.layer(name, feature, width, kernel_size=(3, 3), positions=size * size)
    build.sink(value)
    return build.finish()


def residual(blocks: int, width: int = 8, *, size: int = 8, inputs: int = 3) -> LayerGraph:
    """Return a stem and `blocks` residual blocks of two convolutions each, with identity shortcuts."""
    build = GraphBuilder("residual")
    shape = (1, width, size, size)
    options = {"kernel_size": (3, 3), "positions": size * size}
    value = build.layer("stem", build.feature("x", build.input("x", inputs), (1, inputs, size, size)), width, **options)
    name = "stem"
    for number in range(1, blocks + 1):
        inner = build.layer(f"a{number}", build.feature(name, value, shape), width, **options)
        outer = build.layer(f"b{number}", build.feature(f"a{number}", inner, shape), width, **options)
        name = f"add{number}"
        value = build.add(name, value, outer)
    last = build.layer("head", build.feature(name, value, shape), 10, kind="Linear")
    build.sink(last)
    return build.finish()


def dense(layers: int, growth: int = 4, *, start: int = 6, size: int = 8) -> LayerGraph:
    """Return a dense block: every layer reads the concatenation of all earlier maps."""
    build = GraphBuilder("dense")
    value, name = build.input("x", start), "x"
    for number in range(1, layers + 1):
        feature = build.feature(name, value, (1, value[-1].stop, size, size))
        made = build.layer(f"conv{number}", feature, growth, kernel_size=(3, 3), positions=size * size)
        value, name = build.cat(value, made), f"cat{number}"
    build.sink(value)
    return build.finish()
