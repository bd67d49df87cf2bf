"""What a report says, as plain data: from a layer graph, a plan and the figures of both sides. Needs no torch and no weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from swcompile.graph import Feature, Layer, LayerGraph
from swcompile.metrics import Figures, measure
from swcompile.plan import Note, Plan
from swcompile.report.links import Link, Shortcut, links, shortcuts
from swcompile.report.local import local, local_file
from swcompile.report.profiles import Profile, planned, profile
from swcompile.report.sizes import Size, idle, size_of, sizes
from swcompile.wiring import Curve

Figured = Mapping[str, object]
"""The figures of one side by name, as a ledger has them."""

NO_SIZE = "vectors"
"""The stage of layers that read no map."""


@dataclass(frozen=True)
class Stop:
    """An input or a layer (swcompile.report.links), and what a reader wants to know of it.

    `stage` is the number of its stage, `size` the height and width (or tokens) that it reads; `before` and `after` say how large
    it is itself.
    """

    name: str
    kind: str
    stage: int
    size: str
    before: Size
    after: Size
    kernel: str = ""
    where: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Sides:
    """The network before, and after where a plan changes it: its figures, and what its channels are like."""

    before: Figured
    before_profile: Profile
    after: Figured | None = None
    after_profile: Profile | None = None


@dataclass(frozen=True)
class Sweep:
    """The curve over p with the p that was taken, by a rule or as asked; None where there is none, and `why` says why."""

    p: float
    requested: float | str
    curve: Curve | None = None
    why: str = ""


@dataclass(frozen=True)
class Provenance:
    """What repeats the result: the command or call, example inputs, versions by name, and the plan's digest."""

    command: str
    inputs: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    seed: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Facts:
    """All that a report shows. `stages` are the sizes of what layers read, in the order in which they come up.

    `foreseen` says that nothing was rewired yet. `notes` pairs layers with reasons ("*": the whole network); `remarks` are
    sentences about the whole.
    """

    model: str
    stops: tuple[Stop, ...]
    stages: tuple[str, ...]
    links: tuple[Link, ...]
    shortcuts: tuple[Shortcut, ...]
    sides: Sides
    sweep: Sweep
    provenance: Provenance
    notes: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    foreseen: bool = False

    @property
    def changed(self) -> bool:
        """Whether any link comes or goes."""
        return any(link.came or link.gone for link in self.links)


def by_stage(facts: Facts) -> Iterator[tuple[str, int, float, float, float, float, float]]:
    """Yield for each stage its layers, the channels they keep, read anew and read no longer, and how far they are from the input.

    The distance, a mean over layers, comes twice, before and after; layers that no path leads to are left out of it.
    """
    profiles = facts.sides.before_profile, facts.sides.after_profile or facts.sides.before_profile
    for number, stage in enumerate(facts.stages):
        places = {place for place, stop in enumerate(facts.stops) if stop.stage == number and stop.kind != "input"}
        if not places:
            continue
        read = [link for link in facts.links if link.reader in places]
        channels = (sum(getattr(link, side) for link in read) for side in ("kept", "came", "gone"))
        away = (_mean([one.distance[place] for place in sorted(places)]) for one in profiles)
        yield (stage, len(places), *channels, *away)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def gather(
    model: str,
    graph: LayerGraph,
    plan: Plan | None,
    sides: tuple[Figured, Figured | None],
    sweep: Sweep,
    provenance: Provenance,
    *,
    notes: Iterable[tuple[str, str]] = (),
    remarks: Iterable[str] = (),
    foreseen: bool = False,
) -> Facts:
    """Return the facts of a network under a plan (none: as it stands); `sides` are its figures before and after."""
    reasons = tuple(dict.fromkeys((name, local(reason)) for name, reason in notes))
    rows, stages = _stops(graph, sizes(graph, plan), _joined(reasons))
    after = None if plan is None else profile(planned(graph, plan))
    return Facts(
        model=model,
        stops=rows,
        stages=stages,
        links=links(graph, plan),
        shortcuts=shortcuts(graph, plan),
        sides=Sides(sides[0], profile(planned(graph, None)), sides[1], after),
        sweep=sweep,
        provenance=provenance,
        notes=reasons,
        remarks=tuple(map(local, remarks)),
        foreseen=foreseen,
    )


def _joined(reasons: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return all reasons of each layer as one text."""
    found: dict[str, str] = {}
    for name, reason in reasons:
        found[name] = f"{found[name]}; {reason}" if name in found else reason
    return found


def foresee(graph: LayerGraph, plan: Plan, before: Figures) -> tuple[Figured, Figured]:
    """Return the figures of a network before and after a plan that nobody has carried out: counts as the plan promises them."""
    promised = plan.promise
    after = measure(planned(graph, plan))
    first = {"params": graph.params, "macs": graph.macs, "links": sum(layer.links for layer in graph.layers)}
    resting, found = idle(graph, plan), sizes(graph, plan)
    second = {
        "params": graph.params + promised.params,
        "macs": graph.macs + promised.macs - sum(size_of(layer).macs for layer in graph.layers if layer.name in resting),
        "links": sum(found[each.name].weights // each.kernel_area for each in graph.layers if each.name not in resting),
        "p_requested": plan.requested_p,
        "p_achieved": promised.p,
    }
    return first | before.as_dict(), second | after.as_dict()


def _stops(graph: LayerGraph, after: Mapping[str, Size], reasons: Mapping[str, str]) -> tuple[tuple[Stop, ...], tuple[str, ...]]:
    """Return the stops in order, and the names of their stages."""
    layers = {layer.producer: layer for layer in graph.layers}
    stages: dict[str, int] = {}
    made: list[Stop] = []
    for index, producer in enumerate(graph.producers):
        layer = layers.get(index)
        if layer is not None:
            size = _size(graph.feature_by_name[layer.feature])
            stage = stages.setdefault(size, len(stages))
            made.append(_stop(layer, after[layer.name], size, stage, reasons.get(layer.name, "")))
        elif producer.kind == "input":
            size, own = _input_size(graph, index), Size(0, producer.channels)
            made.append(Stop(producer.name, "input", stages.setdefault(size, len(stages)), size, own, own))
    return tuple(made), tuple(stages)


def _stop(layer: Layer, after: Size, size: str, stage: int, refused: str) -> Stop:
    return Stop(
        name=layer.name,
        kind=layer.kind,
        stage=stage,
        size=size,
        before=size_of(layer),
        after=after,
        kernel="x".join(map(str, layer.kernel_size)),
        where=local_file(layer.where),
        refused=refused,
    )


def _input_size(graph: LayerGraph, index: int) -> str:
    """Return the size of an input: that of the first feature that holds it."""
    held = (feature for feature in graph.features if any(run.producer == index for run in feature.runs))
    return next(map(_size, held), NO_SIZE)


def _size(feature: Feature) -> str:
    sizes = "x".join(map(str, feature.spatial))
    return sizes if feature.is_map else f"{sizes} tokens" if sizes else NO_SIZE


def note_pairs(notes: Iterable[Note]) -> list[tuple[str, str]]:
    """Return notes as pairs of a layer and a reason."""
    return [(note.layer, note.reason) for note in notes]
