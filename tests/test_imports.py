"""Imports go one way, left to right through the stages: proved from the syntax trees, nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER = (
    "errors",
    "collector",
    "graph",
    "rows",
    "shrink",
    "metrics",
    "outlook",
    "plan",
    "verify",
    "wiring",
    "trace",
    "frontend",
    "survey",
    "batches",
    "scores",
    "choices",
    "modules",
    "rewrite",
    "optimize",
    "certificate",
    "calibrate",
    "check",
    "record",
    "pipeline",
    "lower",
    "bench",
    "modelfile",
    "store",
    "tables",
    "report",
    "api",
    "rewirer",
    "export",
    "graphfile",
    "cli",
)
"""The stages, in the order in which data passes through them: each may import those in front of it, and its own parts."""
WITHOUT_TORCH = ORDER[: ORDER.index("wiring") + 1]
INSIDE_FUNCTIONS: dict[str, set[str]] = {
    # so that --help and mistyped options answer without the second that torch takes to load
    f"swcompile/cli/{command}.py": {f"swcompile.{name}" for name in names.split()}
    for command, names in (
        ("transform", "api cli.folder cli.models graphfile plan record report report.subjects store tables"),
        ("analyze", "api cli.models graphfile report report.subjects store tables"),
        ("check", "cli.models survey tables"),
        ("export", "export modelfile store"),
        ("bench", "bench tables"),
    )
}
"""Imports inside functions, by file, each with its reason."""

FILES = sorted((ROOT / "swcompile").rglob("*.py"))
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def stage(file: Path) -> str:
    return file.relative_to(ROOT / "swcompile").parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield each imported module with its line, and whether the import stands inside a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module, node.lineno, node in inside


def test_every_file_belongs_to_a_stage() -> None:
    assert {stage(file) for file in FILES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_stage_imports_only_itself_and_earlier_ones(file: Path) -> None:
    if stage(file) == "__init__":
        assert not list(imported(file))
        return
    allowed = ORDER[: ORDER.index(stage(file)) + 1]
    for name, line, _ in imported(file):
        parts = name.split(".")
        if parts[0] == "swcompile":
            assert len(parts) > 1, f"{file.name}:{line} imports the whole package"
            assert parts[1] in allowed, f"{file.name}:{line} imports {name}, which comes after {stage(file)}"
        assert parts[0] not in ("swnet", "tests", "benchmarks"), f"{file.name}:{line} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {name: {whole for whole, _, _ in imported(file) if whole in MODULES} for name, file in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # or CycleError, which names the files


@pytest.mark.parametrize(
    "file", [file for file in FILES if stage(file) in WITHOUT_TORCH], ids=lambda file: str(file.relative_to(ROOT))
)
def test_the_first_stages_need_no_torch(file: Path) -> None:
    assert not [name for name, _, _ in imported(file) if name.split(".")[0] in ("torch", "triton", "safetensors")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_stand_at_the_top(file: Path) -> None:
    late = {name for name, _, inside in imported(file) if inside}
    assert late == INSIDE_FUNCTIONS.get(str(file.relative_to(ROOT)), set())


def test_the_public_package_only_hands_on_names() -> None:
    tree = ast.parse((ROOT / "swnet" / "__init__.py").read_text(encoding="utf-8"))
    kinds = [type(node) for node in tree.body]
    assert set(kinds[1:-1]) == {ast.ImportFrom}  # between the docstring and __all__
    names = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert isinstance(tree.body[-1], ast.Assign)
    assert sorted(names) == ast.literal_eval(tree.body[-1].value)
    assert len(names) <= 13  # those of the design, Rewirer among them, and the two classes that type hints need


def test_the_kernels_are_a_leaf() -> None:
    files = sorted((ROOT / "kernels/swkernels").glob("*.py"))
    assert len(files) > 5
    for file in files:
        names = {name.partition(".")[0] for name, _, _ in imported(file)}
        assert names <= {*sys.stdlib_module_names, "torch", "swkernels"}, file  # triton by importlib, where there is one
