"""A removal, with and without a purge, that dies at any call to its store and is started again."""

import uuid
from pathlib import Path
from typing import cast, get_args

import pytest

from tests.chaos.crash_points import NUM_ROWS, CrashingStore, Side, drive, new_job
from tests.end_to_end.jobs import Table, codes_of
from tests.formats.formats_helpers import Crash
from tokpipe.audit import Audit
from tokpipe.audit.remove import remove
from tokpipe.config.job import JobConfig
from tokpipe.formats.manifest import iter_entries, iter_rejected
from tokpipe.reader import Output
from tokpipe.storage import Store

SIDES: tuple[Side, ...] = get_args(Side)
GONE = {"s3://videos/1.mp4", "s3://videos/5.mp4", "s3://videos/7.mp4"}
PATTERN = "videos/[157].mp4"
"""Of a shard with another clip, of one that was added later, and one that is rejected."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Table]:
    """The objects and codes of an output that was extended once."""
    folder, uri = tmp_path_factory.mktemp("before"), f"memory://{uuid.uuid4().hex}/out"
    for attempt, num_rows in (("first", 5), ("second", NUM_ROWS)):
        job = new_job(folder, uri, num_rows)
        drive(job, Store(uri, job.storage), attempt, extend=attempt == "second")
    store = Store(uri, job.storage)
    return {one.key: store.get(one.key) for one in store.list("")}, codes_of(job)


def copy_of(before: dict[str, bytes], folder: Path) -> tuple[JobConfig, Store]:
    job = new_job(folder, f"memory://{uuid.uuid4().hex}/out")
    store = Store(job.output.uri, job.storage)
    for key, data in before.items():
        store.put(key, data)
    return job, store


def check(job: JobConfig, store: Store, table: Table, *, is_done: bool) -> None:
    """Whatever has happened, each clip is there once or has been removed, and audits are clean."""
    audit = Audit(store)
    assert audit.findings.counts.keys() <= {"job_record"}, [*audit.lines()]  # it has no hash
    found = codes_of(job)  # checks that none is there twice
    assert found.items() <= table.items()
    output = Output(store)
    gone = {name for name, _ in table} - {name for name, _ in found}
    removed = [one.ref for one in iter_rejected(store) if one.stage == "remove"]
    assert output.num_clips + output.totals.num_rejected == output.num_rows == NUM_ROWS
    for name, _ in found:
        assert output.clip(name).source_uri not in (GONE if is_done else ())
    if is_done:
        assert len(removed) == len(GONE) == len(gone) + 1  # row 7 has never had codes
    settled = [(ref.row, ref.segment) for entry in iter_entries(store) for ref in entry.refs()]
    assert len({*settled}) == NUM_ROWS


READS = ("get", "get_range", "list", "size")


@pytest.mark.parametrize("purge", [False, True])
def test_a_crash_at_any_write_of_a_removal_loses_doubles_and_leaves_nothing(
    before: tuple[dict[str, bytes], Table], tmp_path: Path, purge: bool
) -> None:
    objects, table = before
    undisturbed = CrashingStore(copy_of(objects, tmp_path)[1])
    remove(cast(Store, undisturbed), source=PATTERN, purge=purge)
    calls = [call.partition(" ")[0] for call in undisturbed.calls]
    writes = [number for number, call in enumerate(calls) if call not in READS]
    assert {calls[number] for number in writes} == {"create", "put", *["delete"] * purge}
    for number in writes:
        # After a write the store is as before the next one; only the answer is lost.
        for side in SIDES if number in writes[::5] else SIDES[:1]:
            job, store = copy_of(objects, tmp_path)
            crashing = cast(Store, CrashingStore(store, number, side))
            with pytest.raises(Crash):
                remove(crashing, source=PATTERN, purge=purge)
            check(job, store, table, is_done=False)
            remove(store, source=PATTERN, purge=purge)
            check(job, store, table, is_done=True)
            left = {one.key: store.get(one.key) for one in store.list("")}
            if purge:
                assert not Audit(store).leftovers.num_objects
                assert not [key for key, data in left.items() if any_of(GONE, data)]
            untouched = [key for key, data in left.items() if objects.get(key) == data]
            # Rows 0 and 1 share a shard, and so do 5 and 6; those of 2, 4 and 8 are others.
            assert sum(key.startswith("shards/") for key in untouched) == (3 if purge else 5)
            if number in writes[::5]:
                drive(job, store, "later", extend=True)
                check(job, store, table, is_done=True)


def any_of(texts: set[str], data: bytes) -> bool:
    return any(text.encode() in data for text in texts)
