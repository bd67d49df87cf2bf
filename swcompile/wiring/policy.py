"""Choose p from the curve of C, L and S over p.

    "max_S"     the p with the largest S: SWNet's rule (arXiv 1904.04862, section 4)
    "boundary"  the smallest p at which the network is a small world, S >= 1: the "boundary of a small-world network"
    "auto"      the larger of .2 and the knee of L: the smallest p at which L has made 90% of its whole fall

In the grid `policy` (benchmarks.lab.grids; a slim plain net and an MLP) p = .15 was no better than .3. p = 1 and sources drawn far
away ended at a lower error, but not with five other seeds (`policy-again`), so nothing was changed for them. No other choice of the
wiring's (resample, block size, p by depth, a factor for each tap) was shown to be better than the default, and average pooling was
worse: see the convergence report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph, Tap
from swcompile.metrics import Figures, channel_graph, measure
from swcompile.metrics.closed_form import ClosedForm, closed_forms
from swcompile.plan import P_POLICIES, Options
from swcompile.shrink import shrink
from swcompile.wiring.block import BlockWiring
from swcompile.wiring.kernel_skips import without_dense_links, without_skips
from swcompile.wiring.score import NO_SCORES, Scores
from swcompile.wiring.tile import TileWiring

LEAST = 0.2
"""The least p that "auto" chooses."""
KNEE = 0.9
"""The share of the whole fall of L at which its knee is."""


@dataclass(frozen=True)
class Curve:
    """Clustering C, path length L and small-world figure S of the channel graph at each p, in ascending order of p.

    `exact` tells figures counted on the plans themselves (wiring `block` and `tile`) from expected ones (wiring `kernel`).
    """

    p: tuple[float, ...]
    C: tuple[float, ...]
    L: tuple[float, ...]
    S: tuple[float, ...]
    exact: bool = True

    def __post_init__(self) -> None:
        assert len(self.p) == len(self.C) == len(self.L) == len(self.S) > 0
        assert list(self.p) == sorted(self.p)


def sweep(graph: LayerGraph, options: Options, points: int = 20, scores: Scores = NO_SCORES) -> Curve:
    """Return the figures at `points` values of p from 0 to 1, evenly spaced; `options.p` plays no part.

    For wiring `block` and `tile` each point is the real plan's channel graph, for `kernel` the closed form. Raises SwnetError for
    less than two points.
    """
    if points < 2:
        raise SwnetError(f"points={points} make no curve; take at least 2, from p = 0 to p = 1.")
    ps = tuple(place / (points - 1) for place in range(points))
    if options.wiring == "kernel":
        return _sweep_kernel(graph, options, ps)
    return _sweep_block(graph, options, ps, scores) if options.wiring == "block" else _sweep_tile(graph, options, ps)


def _sweep_block(graph: LayerGraph, options: Options, ps: Sequence[float], scores: Scores) -> Curve:
    wiring = BlockWiring(graph, options, scores)
    plans = (wiring.plan(p, fill=False) for p in ps)
    left = (shrink(graph, plan.outputs(), plan.taps()) for plan in plans)
    return _curve(ps, [measure(channel_graph(*one), seed=options.seed) for one in left], exact=True)


def _sweep_tile(graph: LayerGraph, options: Options, ps: Sequence[float]) -> Curve:
    wiring = TileWiring(graph, options)
    plans = (wiring.plan(p) for p in ps)
    return _curve(ps, [measure(channel_graph(graph, one.taps(), one.masks()), seed=options.seed) for one in plans], exact=True)


def _sweep_kernel(graph: LayerGraph, options: Options, ps: Sequence[float]) -> Curve:
    if options.skips == "keep":
        return _curve(ps, closed_forms(graph, ps), exact=False)
    plain = without_skips(graph)[0]
    read = without_dense_links(plain)
    taps = {layer.name: _taps(layer, read[layer.name]) for layer in plain.layers if not read[layer.name].all()}
    return _curve(ps, closed_forms(plain, ps, reads=taps), exact=False)


def _taps(layer: Layer, read: NDArray[np.bool_]) -> list[Tap]:
    """Return the runs of columns that a layer reads as taps of its own feature."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], read, [False]]))).tolist()
    return [Tap(layer.feature, start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _curve(ps: Sequence[float], made: Sequence[Figures] | Sequence[ClosedForm], *, exact: bool) -> Curve:
    C, L, S = ([getattr(one, name) for one in made] for name in "CLS")
    return Curve(tuple(ps), tuple(C), tuple(L), tuple(S), exact)


def choose_p(curve: Curve, policy: str) -> float:
    """Return the p that a policy picks from a curve.

    >>> curve = Curve((0.0, 0.25, 0.5, 0.75, 1.0), (0, 0.1, 0.1, 0.2, 0.2), (4.0, 2.4, 2.1, 2.0, 2.0), (0.0, 0.5, 1.0, 1.2, 1.1))
    >>> [choose_p(curve, policy) for policy in ("max_S", "boundary", "auto")]
    [0.75, 0.5, 0.5]
    """
    if policy not in P_POLICIES:
        raise SwnetError(f"p={policy!r} is not a policy; take a number from 0 to 1 or one of {', '.join(P_POLICIES)}.")
    if policy == "auto":
        return max(LEAST, knee(curve))
    reached = [p for p, S in zip(curve.p, curve.S, strict=True) if S >= 1]
    if policy == "boundary" and reached:
        return reached[0]
    return curve.p[max(range(len(curve.p)), key=lambda place: (curve.S[place], -place))]


def knee(curve: Curve) -> float:
    """Return the smallest p of the curve at which L has made 90% of its whole fall."""
    goal = curve.L[0] - KNEE * (curve.L[0] - min(curve.L))
    return next((p for p, L in zip(curve.p, curve.L, strict=True) if goal >= L), curve.p[0])


def explain(curve: Curve, policy: str) -> str:
    """Say in one sentence what a policy chose, and why."""
    p = choose_p(curve, policy)
    best = max(curve.S)
    if policy == "auto":
        bend = knee(curve)
        why = f"the knee of L, at p = {bend:.3g}" if bend > LEAST else f"the least it takes; the knee of L is at p = {bend:.3g}"
    elif policy == "boundary" and best < 1:
        why = f"S stays below 1, so the p of its largest value, {best:.3g}"
    elif policy == "boundary":
        why = "the smallest p with S of at least 1"
    else:
        why = f"the p of the largest S, {best:.3g}"
    return f"p={policy!r} chose {p:.3g}: {why}"


def resolve(graph: LayerGraph, options: Options, scores: Scores = NO_SCORES) -> tuple[Options, Curve | None]:
    """Replace a policy by the p that it chooses. Returns the curve as well, None where it took none to choose."""
    if not isinstance(options.p, str):
        return options, None
    if options.p == "auto" and options.keeps_weights:
        return replace(options, p=0.0), None
    curve = sweep(graph, options, scores=scores)
    return replace(options, p=choose_p(curve, options.p)), curve
