"""A driver that was frozen for long commits nothing."""

import time

import pytest

from tokpipe.audit.leftovers import YOUNGEST_S
from tokpipe.errors import RuntimeFault
from tokpipe.runtime.shell import MAX_STANDSTILL_S, _check_moving


def test_a_frozen_driver_ends_before_its_shards_could_be_cleaned_away() -> None:
    _check_moving(time.time() - MAX_STANDSTILL_S / 2)
    with pytest.raises(RuntimeFault, match=r"did not run for 2\.0 hours"):
        _check_moving(time.time() - 7200)
    assert 2 * MAX_STANDSTILL_S <= YOUNGEST_S
