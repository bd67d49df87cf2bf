"""The README's two commands for a model of one's own, by what pip would install: a wheel with all its files, and nothing beside it.

The packages that it needs are those of this environment; what it must not need is the checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


RUN = """
import sys
from swcompile.cli import run
root = sys.argv.pop(1)
code = run(sys.argv[1:])
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print([name for name, file in files.items() if file.startswith(root + "/") and not file.startswith(sys.prefix)])
sys.exit(code)
"""
"""Run the command line, and say what was imported from the checkout, which an editable installation leaves in the path."""


def readme_block(first: str) -> str:
    """Return the README's code block that has a line `first`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if first in block.splitlines())
    return str(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    asked = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *asked, ROOT], check=True, cwd=folder)
    (wheel,) = folder.glob("swcompile-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_its_packages(installed: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sources = {"swnet": "swnet/", "swcompile": "swcompile/", "swkernels": "kernels/swkernels/"}
    for package, folder in sources.items():
        files = (installed / package).rglob("*")
        found = {file.relative_to(installed / package).as_posix() for file in files if file.is_file()}
        assert found == {file.removeprefix(folder) for file in listed.stdout.split("\0") if file.startswith(folder)}
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == set(sources)


def test_a_stranger_gets_from_the_readme_to_a_report_of_their_model(installed: Path, tmp_path: Path) -> None:
    transform = "swcompile transform model.py --out out/"
    assert readme_block(transform).splitlines() == ["pip install '.[report]'", transform]
    (tmp_path / "model.py").write_text(readme_block("# model.py"))

    def python(code: str, *arguments: str) -> str:
        alone = {**os.environ, "PYTHONPATH": str(installed)}
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    said = python(RUN, str(ROOT), *transform.split()[1:])
    assert "See out/report.html in a browser." in said
    assert said.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    built = (
        "import sys; sys.path.insert(0, 'out'); import model, torch; print(model.build_model()(torch.zeros(2, 3, 32, 32)).shape)"
    )
    assert python(built).strip() == "torch.Size([2, 10])"
