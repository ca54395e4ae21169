"""A driver that was frozen for long, or late, commits nothing."""

import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from tests.runtime.simulated_world import item_of, receipt_of, ref_of
from tokpipe.config.job import LISTED_WITHIN_S
from tokpipe.errors import RuntimeFault
from tokpipe.runtime.dispatch.protocol import Commit
from tokpipe.runtime.shell import Shell, check_in_time
from tokpipe.storage.retry import Moment
from tokpipe.telemetry.account import Account


def ago(wall_s: float, boot_s: float) -> Moment:
    now = Moment.now()
    return Moment(now.wall_s - wall_s, now.boot_s - boot_s)


# The wall clock alone misses a suspended machine whose clock was set back, the other a paused one.
@pytest.mark.parametrize("since", [(7200, 7200), (7200, 0), (-3600, 7200)])
def test_a_frozen_driver_ends_before_its_shards_could_be_cleaned_away(
    since: tuple[float, float],
) -> None:
    with pytest.raises(RuntimeFault, match=r"took 2\.0 hours to list shards"):
        check_in_time([ago(1, 1), ago(*since)], 1.0)


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
        check_in_time(begun, needs_s)
    else:
        with pytest.raises(RuntimeFault, match=re.escape(says)):
            check_in_time(begun, needs_s)


@pytest.mark.parametrize("age_s", [LISTED_WITHIN_S - 130, LISTED_WITHIN_S - 110])
def test_the_age_of_a_shard_counts_from_its_lease_however_often_its_driver_ran(
    age_s: float,
) -> None:
    receipt = receipt_of((ref_of(item_of(0)),))
    shell: Any = Shell.__new__(Shell)
    shell.committer, shell._begun = Mock(), {receipt.shard: ago(age_s, age_s)}
    shell.job = SimpleNamespace(write=SimpleNamespace(storage=SimpleNamespace(deadline_s=120.0)))
    commit = Commit((receipt,), (), Account())
    if age_s + 120 <= LISTED_WITHIN_S:
        shell._commit(commit)
    else:
        with pytest.raises(RuntimeFault, match="lists none of them"):
            shell._commit(commit)
    assert shell.committer.commit.called == (age_s + 120 <= LISTED_WITHIN_S)
