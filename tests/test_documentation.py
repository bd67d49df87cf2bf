"""Every code block of README.md and docs/ is run, page by page, in an empty folder; what it is said to print is what it prints.

    ```python     run; the blocks of a page share their names. With `# NAME.py` as its first line it is a file, written and run
    ```pycon      a session of Python: what is printed and raised has to be what stands there (doctest, "..." for anything)
    ```sh         command lines of swcompile, each of which has to succeed
    ```console    the same behind `$ `, with what they print on 80 columns; those that print an error have to fail
    ```text       is not run: no code

A block behind `<!-- not run: REASON -->` is not run; the reasons are few (NOT_RUN).
"""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt

from benchmarks.vision import torchvision_models
from swcompile.cli import run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = {"installs", "make", "needs a GPU", "changes the shell", "serves", "a sketch of your own code"}
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block of a page: its language, text, line, and why it is not run."""

    kind: str
    text: str
    line: int
    not_run: str


def blocks(page: Path) -> Iterator[Block]:
    reason = ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and not token.info.startswith("{"):  # directives are Sphinx's
            assert token.map is not None
            yield Block(token.info, token.content, token.map[0] + 2, reason)
        marked = re.fullmatch(r"<!-- not run: (.*) -->\s*", token.content)
        reason = marked[1] if marked else ""


class Reader:
    """Somebody who types in what a page says, in an empty folder."""

    def __init__(self, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.page, self.capsys, self.names = page, capsys, {"__name__": "page"}

    def python(self, block: Block) -> None:
        named = re.match(r"# (\w+\.py)\n", block.text)
        if named:
            Path(named[1]).write_text(block.text, encoding="utf-8")
            self.names |= runpy.run_path(named[1], self.names)
        else:
            exec(compile("\n" * (block.line - 1) + block.text, self.page, "exec"), self.names)

    def pycon(self, block: Block) -> None:
        self.capsys.readouterr()
        test = doctest.DocTestParser().get_doctest(block.text, self.names, self.page.name, str(self.page), block.line - 1)
        said: list[str] = []
        result = doctest.DocTestRunner(optionflags=LIKE).run(test, out=said.append, clear_globs=False)
        self.names |= test.globs
        assert (result.failed, result.attempted) == (0, len(test.examples)), "".join(said)

    def sh(self, block: Block) -> None:
        for command in block.text.replace("\\\n", " ").splitlines():
            assert not command or self.said(command)[0] == 0, command

    def console(self, block: Block) -> None:
        for command, wanted in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
            code, said = self.said(command)
            assert doctest.OutputChecker().check_output(wanted, said, LIKE), f"{command} printed\n{said}"
            assert (code != 0) == ("error: " in said.lower()), (command, code)

    def said(self, command: str) -> tuple[int, str]:
        """Run a command line; return its exit code and what it printed, errors last."""
        program, *arguments = shlex.split(command, comments=True)
        assert program == "swcompile", f"{command}: only swcompile is run; say why this is not"
        self.capsys.readouterr()
        code = run(arguments)
        return code, "".join(self.capsys.readouterr())


KINDS = {"python": Reader.python, "pycon": Reader.pycon, "sh": Reader.sh, "console": Reader.console}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_says_is_so(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchvision_models()  # some pages import it, or what imports it
    for name, value in (("COLUMNS", "80"), ("XDG_CACHE_HOME", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "work")
    known, reader = set(sys.modules), Reader(page, capsys)
    try:
        for block in blocks(page):
            if not block.not_run and block.kind != "text":
                KINDS[block.kind](reader, block)
    finally:
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in {*KINDS, "text"}, f"{page.name}:{block.line} is of no known language"
        assert not block.not_run or block.not_run in NOT_RUN, f"{page.name}:{block.line}: {block.not_run}"


def test_the_reader_would_see_a_page_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(Path("page.md"), capsys)
    wrong: list[tuple[Any, str, type[BaseException]]] = [
        (Reader.python, "1 / 0\n", ZeroDivisionError),
        (Reader.pycon, ">>> 1 + 1\n3\n", AssertionError),
        (Reader.sh, "swcompile check missing.py\n", AssertionError),
        (Reader.sh, "ls\n", AssertionError),
        (Reader.console, "$ swcompile --version\nsomething else\n", AssertionError),
    ]
    for kind, text, error in wrong:
        with pytest.raises(error):
            kind(reader, Block("", text, 1, ""))
