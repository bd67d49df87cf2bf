"""A sample of the mutations that `python -m tests.fuzz` runs by the thousand: each a clean success or one message."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter

import pytest
from fuzz import cases, documents, judge, raw, sources, weights
from fuzz.__main__ import main, outcomes, report
from fuzz.judge import ACCEPTED, FAILED, REFUSED, Outcome, message_class

SAMPLE = 220
"""About 20 seconds on one core. The full 10,000 are run by hand, see tests/fuzz."""


@pytest.fixture(scope="module")
def found() -> list[Outcome]:
    return list(outcomes(1904, range(SAMPLE)))


def test_each_mutation_ends_as_a_success_or_as_one_message(found: list[Outcome]) -> None:
    assert [outcome.index for outcome in found] == list(range(SAMPLE))
    assert not any(outcome.verdict == FAILED for outcome in found), report(1904, found)


def test_mutations_reach_every_surface_and_are_both_taken_and_refused(found: list[Outcome]) -> None:
    assert {outcome.surface for outcome in found} == set(cases.SURFACES)
    verdicts = Counter(outcome.verdict for outcome in found)
    assert verdicts[ACCEPTED] > SAMPLE // 20
    assert verdicts[REFUSED] > SAMPLE // 2
    assert len({message_class(outcome.said) for outcome in found}) > 60


def test_a_mutation_can_be_run_again_by_its_number(found: list[Outcome]) -> None:
    first = next(outcome for outcome in found if outcome.surface == "plan and manifest")
    (again,) = outcomes(1904, range(first.index, first.index + 1))
    assert (again.told, again.verdict, again.said) == (first.told, first.verdict, first.said)


def test_the_report_counts_and_says_how_to_run_a_failure_again() -> None:
    made = [
        Outcome(0, "plan", "bytes: flip", ACCEPTED, "", 0.1),
        Outcome(1, "plan", "json: swap", REFUSED, "The plan has version 9, 'x'.", 0.2),
        Outcome(2, "manifest", "json: nest", FAILED, "RecursionError: x", 0.3),
    ]
    said = report(5, made)
    assert "3 mutations, seed 5: 1 accepted, 1 failed, 1 refused" in said
    assert "slowest: 0.30 s, mutation 2" in said
    assert "1  The plan has version #, '…'." in said
    assert "FAILED  python -m tests.fuzz --seed 5 --only 2\n  json: nest\n  RecursionError: x" in said


def test_a_worker_that_dies_is_one_failure_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "none")  # no Python starts with that
    first, second = outcomes(0, range(2))
    assert (first.verdict, second.index) == (FAILED, 1)
    assert "its process ended with" in first.said


def test_the_command_runs_one_and_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1904", "--only", "0"]) == 0
    assert capsys.readouterr().out.startswith(("0 accepted in", "0 refused in"))


# The judge sees what it is there for


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("open('../outside/decoy', 'w').close()", "outside/decoy was changed"),
        ("open('left', 'w').close()", "work/left was changed, made or removed"),
        ("import os; os.chdir('/')", "the working directory is not as it was"),
        ("import sys; sys.path.append('x')", "sys.path is not as it was"),
        ("import time; time.sleep(9)", "it took longer than 0.2 s"),
        ("while True: pass", "it took longer than 0.2 s"),
        ("from swcompile.errors import SwnetError; raise SwnetError('x' * 10_000)", "a message of 10,000 characters"),
    ],
)
def test_the_judge_notices(source: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.2)
    with judge.Sandbox() as sandbox:
        verdict, words = judge.judge(judge.Attempt("test", lambda: exec(source, {})), sandbox)
    assert verdict == FAILED
    assert said in words


def test_the_judge_lets_a_success_write_its_folder_and_nothing_else() -> None:
    with judge.Sandbox() as sandbox:
        attempt = judge.Attempt("test", lambda: (sandbox.work / "out").mkdir(), out="out")
        assert judge.judge(attempt, sandbox) == (ACCEPTED, "")


# The mutations


def mutations(seed: int) -> list[object]:
    good = weights.joined({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    return [
        raw.mutate(random.Random(seed), b'{"a": [1, 2]}'),
        documents.mutate(random.Random(seed), {"a": [1, 2.5, "x"], "b": {"c": None}}),
        weights.mutate(random.Random(seed), good),
        sources.mutate(random.Random(seed)),
    ]


def test_mutations_depend_on_the_seed_alone_and_not_on_those_before() -> None:
    first = {seed: mutations(seed) for seed in range(300)}
    assert all(mutations(seed) == first[seed] for seed in reversed(range(300)))


def test_most_mutated_documents_are_still_json_and_each_differs() -> None:
    made = [documents.mutate(random.Random(seed), {"a": [1, 2, 3], "b": {"c": "x"}})[0] for seed in range(200)]
    assert len(set(made)) > 120
    assert sum(_is_json(text) for text in made) > 100


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def test_a_header_is_taken_apart_and_put_together() -> None:
    good = weights.joined({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcd")
    header, data = weights.split(good)
    assert data == b"abcd"
    assert struct.unpack("<Q", good[:8]) == (len(good) - 12,)
    assert weights.joined(header, data) == good
