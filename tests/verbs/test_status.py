"""``tokpipe status`` of outputs at any moment."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.formats.formats_helpers import DictStore, encoded_clip, record
from tokpipe.errors import NotFound
from tokpipe.formats.job_record import write_once
from tokpipe.formats.manifest import (
    CHECKPOINT_INTERVAL,
    Claim,
    ManifestEntry,
    append,
    load_state,
    write_checkpoint,
)
from tokpipe.formats.shard import receipt_of
from tokpipe.reader import Output
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import json_line
from tokpipe.types import Rejected
from tokpipe.verbs.status import Status

BEGAN = datetime(2026, 5, 1, 12, tzinfo=UTC)
ROWS = 20


@pytest.fixture
def store() -> DictStore:
    store = DictStore()
    write_once(store, record(num_rows=ROWS))
    return store


class Log:
    """Appends entries, each ``at_s`` seconds after ``BEGAN``."""

    def __init__(self, store: DictStore) -> None:
        self.store = store
        self.seq = 0

    def add(self, at_s: float, **fields: Any) -> None:
        time = (BEGAN + timedelta(seconds=at_s)).isoformat(timespec="milliseconds")
        assert append(self.store, ManifestEntry(self.seq, "driver", time, **fields))
        self.seq += 1

    def claim(self, at_s: float) -> None:
        self.add(at_s, claim=Claim("head-node", 4242, "1.2.3"))

    def shard(self, at_s: float, *rows: int) -> None:
        clips = [encoded_clip(row, [5, 5]) for row in rows]
        receipt = receipt_of(f"shard-{self.seq}", clips, b"", b"")
        self.add(at_s, shards=(receipt,), account=Account(paid_s=10, useful_s=8, lost_s=1))


def seen(store: DictStore, at_s: float) -> Status:
    return Status(Output(store), now=BEGAN + timedelta(seconds=at_s))


def text(found: Status) -> str:
    return "\n".join(found.lines())


def test_a_missing_output_is_an_error_that_names_the_uri() -> None:
    with pytest.raises(NotFound, match=r"mem://out has no job\.json"):
        Status(Output(DictStore()))


def test_no_rate_is_guessed_before_the_first_commit(store: DictStore) -> None:
    found = seen(store, 5)
    assert (found.num_rows_done, found.clips_per_s, found.left_s) == (0, None, None)
    assert (found.driver, found.last_commit_age_s) == (None, None)
    assert text(found).startswith("mem://out: demo, 0.0% done\n  0 of 20 plan rows")
    Log(store).claim(2)
    found = seen(store, 5)
    assert (found.clips_per_s, found.left_s, found.last_commit_age_s) == (None, None, 3)
    assert found.driver == "process 4242 on head-node (tokpipe 1.2.3)"


def test_rate_and_time_left_are_those_of_the_newest_driver(store: DictStore) -> None:
    log = Log(store)
    log.claim(0)
    log.shard(1000, 0)
    log.claim(5000)  # after a pause that does not count in the rate
    log.shard(5010, 1, 2, 3)
    rejected = Rejected(encoded_clip(4, [5]).ref, "decode", "truncated", "cut short")
    log.add(5020, rejected=(rejected,))
    found = seen(store, 5060)
    assert found.num_rows_done == 5
    assert found.clips_per_s == pytest.approx(4 / 20)
    assert found.left_s == pytest.approx(15 / (4 / 20))
    assert found.last_commit_age_s == 40
    assert text(found) == (
        "mem://out: demo, 25.0% done\n"
        "  5 of 20 plan rows settled\n"
        "  4 clips, 40 frames, 96 codes, 0 B in 2 shards\n"
        "  1 rejected: truncated 1\n"
        "  goodput 80% of 0:20 encoder time\n"
        "  4.8 codes/s per encoder\n"
        "  last commit 0:40 ago, by process 4242 on head-node (tokpipe 1.2.3)\n"
        "  recently 0.20 clips/s, left 1:15"
    )
    shown = json.loads(json_line(found.to_dict()))
    assert (shown["num_rows_done"], shown["totals"]["rejected"]) == (5, {"truncated": 1})
    assert (shown["is_done"], shown["totals"]["goodput"]) == (False, 0.8)


def test_why_encoders_were_slow_is_added_up_over_runs(store: DictStore) -> None:
    log = Log(store)
    for at_s in (1, 2):
        log.claim(at_s)
        log.add(at_s, account=Account(slow_s={"no compiler": 45.0}))
    assert "\n  slower than possible: no compiler (1:30 of encoding)\n" in text(seen(store, 5))


def test_a_finished_job_has_no_time_left(store: DictStore) -> None:
    log = Log(store)
    log.claim(0)
    log.shard(10, *range(ROWS))
    found = seen(store, 90_000)
    assert (found.is_done, found.left_s) == (True, 0)
    assert "demo, done\n" in text(found)
    assert "left" not in text(found)


def test_only_the_end_of_a_long_manifest_is_read() -> None:
    store = DictStore()
    write_once(store, record(num_rows=5000))
    log = Log(store)
    for number in range(2 * CHECKPOINT_INTERVAL):
        log.shard(number, number)
    write_checkpoint(store, load_state(store, 5000))
    log.shard(2 * CHECKPOINT_INTERVAL, 4999)
    store.requests.clear()
    assert seen(store, 300).clips_per_s == pytest.approx(1)
    assert sum(request.startswith("get manifest/") for request in store.requests) < 50
