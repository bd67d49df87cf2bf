"""Verify a plan against a graph before anything is touched: plans are read from files, and files may be anybody's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from swcompile.errors import SwnetError
from swcompile.graph import Feature, Layer, LayerGraph, Tap, ungrowable, unreadable
from swcompile.plan import AGAIN, MASKED_WIRINGS, P_POLICIES, LayerWiring, Options, Plan, channel_ids, own_taps, promised_change
from swcompile.rows import Rows


def verify(plan: Plan, graph: LayerGraph) -> None:
    """Raise SwnetError unless the plan fits the graph: nothing may be touched before this has passed.

    Checked: the fingerprint; every layer known, eligible and wired once; every tap in range, compatible and earlier; no channel
    read twice in one layer; columns ascending, disjoint and as wide as the taps; masks of the layer's shape; the promised counts
    of parameters and multiply-accumulates; that no output channel goes which something needs.
    """
    if plan.fingerprint != graph.fingerprint:
        raise SwnetError(
            f"The plan was made for another model or input size: its fingerprint is {plan.fingerprint[:12]}, "
            f"this model's {graph.fingerprint[:12]}. {AGAIN}"
        )
    names = [wiring.layer for wiring in plan.layers]
    if len(set(names)) < len(names):
        raise SwnetError(
            f"The plan wires a layer twice, {Counter(names).most_common(1)[0][0]}; one wiring a layer is allowed. {AGAIN}"
        )
    for wiring in plan.layers:
        _verify_layer(wiring, graph, plan.options)
    _verify_outputs(plan, graph)
    _verify_masks(plan)
    _verify_bypassed(plan, graph)
    _verify_counts(plan, graph)
    params, macs = promised_change(plan.layers, graph)
    if (plan.promise.params, plan.promise.macs) != (params, macs):
        raise SwnetError(
            f"The plan promises a change of {plan.promise.params:,} parameters and {plan.promise.macs:,} multiply-accumulates; "
            f"its wirings make it {params:,} and {macs:,}. The plan was altered. {AGAIN}"
        )


def _verify_outputs(plan: Plan, graph: LayerGraph) -> None:
    """Check that the output channels that go are such as nobody reads, together with all that goes with them."""
    outputs = plan.outputs()
    for name, spans in outputs.items():
        _verify_spans(spans, graph.layer_by_name[name].out_channels, f"the outputs of {name}")
    columns = {wiring.layer: wiring.columns for wiring in plan.layers}
    if outputs and not Rows(graph).agree(outputs, columns, plan.taps()):
        raise SwnetError(f"The plan removes output channels that something still needs, or not all that go together. {AGAIN}")


def _verify_spans(spans: Sequence[tuple[int, int]], width: int, what: str) -> None:
    ordered = all(start < stop for start, stop in spans) and list(spans) == sorted(spans) and not _overlap(spans)
    if not ordered or not spans or spans[0][0] < 0 or spans[-1][1] > width:
        raise SwnetError(f"In the plan, {what} are not ascending parts of its {width} channels. {AGAIN}")


def _verify_masks(plan: Plan) -> None:
    needed = plan.options.wiring in MASKED_WIRINGS
    for wiring in plan.layers:
        if (wiring.mask is not None) is not needed:
            found = "has no mask" if needed else "has a mask"
            raise SwnetError(
                f"In the plan, {wiring.layer} {found}; wiring={plan.options.wiring!r} gives one to "
                f"{'every layer' if needed else 'no layer'}. {AGAIN}"
            )


def _verify_bypassed(plan: Plan, graph: LayerGraph) -> None:
    sums = {producer.name: producer for producer in graph.producers if producer.kind == "sum"}
    if plan.bypassed and (plan.options.wiring, plan.options.skips) != ("kernel", "remove"):
        raise SwnetError(f"The plan bypasses sums, which only wiring='kernel' with skips='remove' does. {AGAIN}")
    for name, kept in plan.bypassed:
        if name not in sums or not 0 <= kept < len(sums[name].parts):
            raise SwnetError(f"The plan bypasses {name!r} for its input {kept}; the model has no such sum. {AGAIN}")
        if sum(run.width for run in sums[name].parts[kept]) != sums[name].channels:
            raise SwnetError(f"The plan bypasses {name!r} for its input {kept}, which is narrower than the sum. {AGAIN}")
    twice = [name for name, count in Counter(name for name, _ in plan.bypassed).items() if count > 1]
    if twice:
        raise SwnetError(f"The plan bypasses {twice[0]!r} twice, where a sum has one input that stays. {AGAIN}")


def _verify_counts(plan: Plan, graph: LayerGraph) -> None:
    """Check what the plan says of itself as far as it can be known without drawing it anew."""
    asked, done = plan.requested_p, plan.promise
    if asked not in P_POLICIES if isinstance(asked, str) else not 0 <= asked <= 1:
        raise SwnetError(f"The plan says that p={asked!r} was asked for, which is neither a policy nor in [0, 1]. {AGAIN}")
    moves = any(tap.feature != graph.layer_by_name[wiring.layer].feature for wiring in plan.layers for tap in wiring.taps)
    grows = any(wiring.grown for wiring in plan.layers)
    if grows and done.grown > sum(tap.width for wiring in plan.layers for tap in wiring.grown):
        raise SwnetError(f"The plan promises {done.grown} blocks on top, more than it has channels for. {AGAIN}")
    sound = 0 <= done.moved <= done.units - done.pruned and done.pruned >= 0 and (done.grown > 0) is grows
    if not sound or (moves and not done.moved):
        raise SwnetError(
            f"The plan promises {done.moved} moved, {done.pruned} pruned and {done.grown} added to {done.units}, which its wirings "
            f"are not. {AGAIN}"
        )


def _verify_layer(wiring: LayerWiring, graph: LayerGraph, options: Options) -> None:
    layer = graph.layer_by_name.get(wiring.layer)
    if layer is None:
        raise SwnetError(f"The plan wires a layer {wiring.layer!r}, which the model does not have. {AGAIN}")
    if layer.refused is not None and not _reads_its_own(wiring, layer, graph):
        raise SwnetError(f"The plan wires {layer.name}, which cannot be rewired: {layer.refused}. {AGAIN}")
    if not wiring.taps:
        raise SwnetError(f"The plan leaves {layer.name} without any input. {AGAIN}")
    if options.grow and (wiring.outputs or wiring.taps != own_taps(layer, ((0, layer.in_channels),), options.resample)):
        raise SwnetError(
            f"The plan says grow, which leaves what layers read as it is, and changes what {layer.name} reads. {AGAIN}"
        )
    if wiring.grown and (ungrowable(graph, layer) is not None or not options.grow):
        raise SwnetError(
            f"The plan adds links to {layer.name}: {ungrowable(graph, layer) or 'its options do not say grow'}. {AGAIN}"
        )
    for tap in wiring.reads:
        feature = graph.feature_by_name.get(tap.feature)
        if feature is None:
            raise SwnetError(f"In the plan, {layer.name} taps a feature {tap.feature!r}, which the model does not have. {AGAIN}")
        if tap.stop > feature.channels:
            raise SwnetError(f"In the plan, {layer.name} taps {tap}; {tap.feature} has {feature.channels} channels. {AGAIN}")
        reason = None if tap.feature == layer.feature else unreadable(graph, feature, layer, conv_to_linear=options.conv_to_linear)
        if reason is not None:
            raise SwnetError(f"In the plan, {layer.name} cannot tap {tap}: {reason}. {AGAIN}")
    _verify_sources(wiring, graph)
    if wiring.mask is not None:
        if layer.groups > 1 or wiring.mask.shape != (layer.out_channels, wiring.width):
            raise SwnetError(f"In the plan, the mask of {layer.name} has shape {wiring.mask.shape}; "
                             f"{(layer.out_channels, wiring.width)} is needed, and one group. {AGAIN}")  # fmt: skip
        return
    _verify_spans(wiring.columns, layer.in_channels, f"the columns of {layer.name}")
    if sum(stop - start for start, stop in wiring.columns) != wiring.width:
        raise SwnetError(f"In the plan, {layer.name} taps {wiring.width} channels for weights of another width. {AGAIN}")


def _reads_its_own(wiring: LayerWiring, layer: Layer, graph: LayerGraph) -> bool:
    """Whether a layer is in the plan only for what it loses with others: outputs, or with them what it reads."""
    follows = layer.depthwise or layer.name in graph.coupling.squeezes
    whole = wiring.columns == ((0, layer.in_channels),)
    return (
        (bool(wiring.outputs) or follows)
        and (whole or follows)
        and wiring.mask is None
        and not wiring.grown
        and wiring.taps == own_taps(layer, wiring.columns)
    )


def _verify_sources(wiring: LayerWiring, graph: LayerGraph) -> None:
    """Refuse a channel that is read in two slots, through one feature or through two (a concatenation and a piece of it)."""
    seen: dict[tuple[int, int], Tap] = {}
    sources = {name: _sources(graph.feature_by_name[name]) for name in {tap.feature for tap in wiring.reads}}
    for tap in wiring.reads:
        for source in sources[tap.feature][tap.start : tap.stop]:
            other = seen.setdefault(source, tap)
            if other is not tap:
                channel = f"channel {source[0] & 0xFFFFFFFF} of {graph.producers[source[0] >> 32].name}"
                raise SwnetError(
                    f"In the plan, {wiring.layer} reads {channel} twice, in {other} and in {tap}; a layer reads no channel twice. "
                    f"{AGAIN}"
                )


def _sources(feature: Feature) -> list[tuple[int, int]]:
    """Return what each channel of a feature is: a channel of a producer, and how often the feature held that one before.

    The slots of a flattened map, or of x in cat(x, x), are one channel but different slots; the first of them is x itself.
    """
    channels = channel_ids(feature.runs)
    order = np.argsort(channels, kind="stable")
    ordered = channels[order]
    before = np.empty_like(channels)
    before[order] = np.arange(len(channels)) - np.searchsorted(ordered, ordered)
    return list(zip(channels.tolist(), before.tolist(), strict=True))


def _overlap(spans: Sequence[tuple[int, int]]) -> bool:
    return any(right[0] < left[1] for left, right in pairwise(spans))
