"""collector: paused meanwhile, and left as it was found."""

from __future__ import annotations

import gc

import pytest

from swcompile.collector import collector_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was_found(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:

        @collector_paused()
        def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        assert gc.isenabled() == enabled

        @collector_paused()
        def asked() -> bool:
            return gc.isenabled()

        assert not asked()
        assert not asked(), "a decorator serves every call"
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
