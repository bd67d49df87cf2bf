"""What a plan leaves alive, judged from the outputs backwards, channel by channel: slow and plain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swcompile.graph import LayerGraph, Run, Tap
from swcompile.plan import Plan

Channel = tuple[int, int]


@dataclass(frozen=True)
class Alive:
    """The channels from which a path of reads leads to an output, and the features that lie on one.

    A gate is named by the feature behind it ("_gated" and its producer, see block_nets): its channels are read there only.
    """

    channels: frozenset[Channel]
    features: frozenset[str]

    @property
    def producers(self) -> frozenset[int]:
        return frozenset(producer for producer, _ in self.channels)


def alive(graph: LayerGraph, taps: Mapping[str, Sequence[Tap]]) -> Alive:
    layers = {layer.producer: layer for layer in graph.layers}
    gates = {int(feature.name.partition("_gated")[2]) for feature in graph.features if "_gated" in feature.name}
    pending = [channel for channel in _channels(graph.sinks) if channel[0] not in gates]
    channels: set[Channel] = set()
    features: set[str] = set()
    run_through: set[int] = set()
    while pending:
        channel = pending.pop()
        if channel in channels:
            continue
        channels.add(channel)
        producer = channel[0]
        for part in graph.producers[producer].parts:
            for run in part:
                if graph.producers[producer].kind != "sum":
                    pending += _channels([run])
                elif run.start <= channel[1] < run.stop:
                    pending.append((run.producer, run.first + (channel[1] - run.start) * run.step))
        if producer in layers and producer not in run_through:
            run_through.add(producer)
            for tap in taps.get(layers[producer].name, graph.reads(layers[producer])):
                features.add(tap.feature)
                pending += _channels(graph.runs_of([tap]))
                gate = tap.feature.partition("_gated")[2]
                pending += [(int(gate), column) for column in range(tap.start, tap.stop)] if gate else []
    return Alive(frozenset(channels), frozenset(features))


def _channels(runs: Iterable[Run]) -> list[Channel]:
    return [(run.producer, run.first + k) for run in runs for k in range(run.width if run.step else 1)]


def check(graph: LayerGraph, plan: Plan, at_zero: Plan) -> None:
    """Assert that no layer, sum, opaque operation, gate or norm of the original is dead, and where forbidden no channel either."""
    before, lattice, after = alive(graph, {}), alive(graph, at_zero.taps()), alive(graph, plan.taps())
    for now in (lattice, after):
        dead = [graph.producers[producer].name for producer in before.producers - now.producers]
        assert dead == [], f"no channel of {dead} is read any more"
        assert before.features <= now.features, f"nothing reads {before.features - now.features} any more"
    if plan.options.dead == "forbid":
        assert lattice.channels <= after.channels
