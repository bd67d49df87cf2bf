"""The README's tables of measurements are what the programs say of the results that lie in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import cpu_table, readme
from benchmarks.record import RESULTS

TEXT = readme.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted(readme.README.parent.glob("*.md")), ids=lambda file: file.name)
def test_every_link_to_a_file_leads_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", file.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (file.parent / target).exists()]


def test_the_readme_has_the_tables_of_now() -> None:
    assert readme.filled(TEXT) == TEXT, "run python -m benchmarks.readme"


@pytest.mark.parametrize("name", readme.TABLES)
def test_a_readme_without_a_place_for_a_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no place for the table of {name}"):
        readme.filled(TEXT.replace(readme.begin(name), ""))


def test_every_question_has_an_answer_with_its_commit_and_machine() -> None:
    rows = cpu_table.table().splitlines()[2:]
    assert len(rows) >= len(cpu_table.QUESTIONS)
    for question in cpu_table.QUESTIONS:
        files = sorted(RESULTS.glob(question.file))
        assert files, question.what
        for file in files:
            found = json.loads(file.read_text(encoding="utf-8"))
            row = next(row for row in rows if question.what in row and f"`{found['commit'][:8]}`" in row)
            assert found["hardware"] in row


def test_an_answer_follows_what_was_measured(tmp_path: Path) -> None:
    file = next(RESULTS.glob("*/bench_step.json"))
    found = json.loads(file.read_text(encoding="utf-8"))
    for row in found["rows"]:
        row["ratio"] = 0.5
    (tmp_path / "some-cpu").mkdir()
    (tmp_path / "some-cpu" / file.name).write_text(json.dumps(found | {"hardware": "Some CPU", "commit": "0123456789"}))
    (row,) = cpu_table.table(tmp_path).splitlines()[2:]
    assert "**.50** times the original's; with channels last .50" in row
    assert "Some CPU, torch" in row
    assert "`01234567`" in row
