"""Runs handed to Ray Tune, on a cluster of this machine alone, come to the curves that the command makes by itself."""

from pathlib import Path

import pytest

from tests.test_resuming import curves, data, ended, start  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def test_a_grid_on_a_local_cluster(tmp_path: Path, data: Path) -> None:  # noqa: F811
    for place, more in (("alone", []), ("cluster", ["--ray", "--threads", "1"])):
        assert ended(start(["shared", "--results", str(tmp_path / place), *more], data, {}, None, tmp_path / "out")) == 0
    assert curves(tmp_path / "alone", "shared") == curves(tmp_path / "cluster", "shared") != {}
