"""Facts are gathered of a rewired module as its ledger has it, and of an analysis as the ledger would; of nothing else."""

from __future__ import annotations

import pytest

import swnet
from swcompile.report import subjects
from tests import zoo


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (zoo.resnet_basic, {"p": 0.4}),
        (zoo.densenet, {"p": 0.3, "density": 0.6}),
        (zoo.mlp, {"wiring": "kernel"}),
        (zoo.resnet_basic, {"p": 0.3, "wiring": "kernel", "skips": "remove"}),
    ],
)
def test_an_analysis_foresees_the_ledger(build, options):
    """Figures before anything was rewired are those that are counted afterwards."""
    model = build()
    foreseen = subjects.facts(swnet.analyze(model, points=5, **options))
    module = swnet.transform(model, **(options | {"p": foreseen.sweep.p}))
    counted = subjects.facts(module)
    for side, other in (("before", "before"), ("after", "after")):
        told, found = getattr(foreseen.sides, side), getattr(counted.sides, other)
        for name in ("params", "macs", "links", "C", "L", "S", "E", "mean_path", "dead_channels"):
            assert told[name] == pytest.approx(found[name]), (side, name)
    assert foreseen.links == counted.links
    assert foreseen.foreseen
    assert not counted.foreseen


def test_the_curve_that_a_policy_chose_by_is_not_counted_again(monkeypatch):
    module = swnet.transform(zoo.mlp(), p="auto")
    monkeypatch.setattr(subjects, "sweep", None)
    found = subjects.facts(module).sweep
    assert found.curve is not None
    assert found.why.startswith("p='auto' chose")
    assert found.requested == "auto"


def test_a_trained_models_p_was_not_swept():
    found = subjects.facts(swnet.transform(zoo.mlp(), grow=0.2))
    assert found.sweep.curve is None
    assert "was not swept" in found.sweep.why
    assert found.changed


def test_what_is_no_model_of_ours_is_refused():
    with pytest.raises(swnet.SwnetError, match=r"A report of a int was asked for; give what swnet\.transform"):
        swnet.report(3)  # type: ignore[arg-type]
    with pytest.raises(swnet.SwnetError, match=r"was not made by swnet\.transform"):
        swnet.report(zoo.mlp())
