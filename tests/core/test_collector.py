import gc

import pytest

from pbcompress.core.collector import collection_paused


def _fail_in_two() -> None:
    with collection_paused():
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("stop")


def test_the_collector_is_back_after_a_failure() -> None:
    with pytest.raises(ValueError, match="stop"):
        _fail_in_two()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
