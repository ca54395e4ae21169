"""A driver that was frozen for long, or late, commits nothing."""

import re

import pytest

from tokpipe.audit.leftovers import YOUNGEST_S
from tokpipe.config.bounds import LISTED_WITHIN_S, MAX_STANDSTILL_S, Moment
from tokpipe.errors import RuntimeFault
from tokpipe.runtime.shell import _check_moving, check_in_time


def ago(wall_s: float, boot_s: float) -> Moment:
    now = Moment.now()
    return Moment(now.wall_s - wall_s, now.boot_s - boot_s)


# The wall clock alone misses a suspended machine whose clock was set back, the other a paused one.
@pytest.mark.parametrize("since", [ago(7200, 7200), ago(7200, 0), ago(-3600, 7200)])
def test_a_frozen_driver_ends_before_its_shards_could_be_cleaned_away(since: Moment) -> None:
    _check_moving(ago(MAX_STANDSTILL_S / 2, MAX_STANDSTILL_S / 2))
    with pytest.raises(RuntimeFault, match=r"did not run for 2\.0 hours"):
        _check_moving(since)
    assert 2 * MAX_STANDSTILL_S <= YOUNGEST_S


@pytest.mark.parametrize(
    ("age_s", "are_listed", "says"),
    [
        (LISTED_WITHIN_S - 130, False, None),
        (LISTED_WITHIN_S - 110, False, "lists none of them. Run the job again"),
        (LISTED_WITHIN_S - 110, True, None),
        (LISTED_WITHIN_S + 10, True, "check the output with `tokpipe audit`"),
    ],
)
def test_shards_that_waited_too_long_are_not_listed(
    age_s: float, are_listed: bool, says: str | None
) -> None:
    begun = [ago(1, 1), ago(age_s, age_s)]
    needs_s = 0.0 if are_listed else 120.0
    if says is None:
        check_in_time(begun, needs_s, are_listed=are_listed)
    else:
        with pytest.raises(RuntimeFault, match=re.escape(says)):
            check_in_time(begun, needs_s, are_listed=are_listed)
