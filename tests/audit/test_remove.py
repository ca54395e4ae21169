"""Clips that are taken out of finished outputs, and purged from them."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.audit.outputs import CUT_ROW, NUM_ROWS, REJECTED_ROWS, Made, finished, leave, made
from tokpipe.audit import Audit
from tokpipe.audit.remove import remove
from tokpipe.cli import main
from tokpipe.errors import ConfigError, PlanMismatch
from tokpipe.export import export_output
from tokpipe.formats.job_record import rewrite_plan
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import count_entries, iter_entries, load_state, read_entries
from tokpipe.formats.manifest.checkpoint import read_checkpoint, write_checkpoint
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges, store_growth
from tokpipe.reader import ClipStream, CodeCache, Output
from tokpipe.runtime.assemble import RetryRejected
from tokpipe.runtime.commit import Committer
from tokpipe.storage import Store
from tokpipe.types import ClipRef


def contents(store: Store) -> dict[str, bytes]:
    return {one.key: store.get(one.key) for one in store.list("")}


def clips_of(store: Store) -> dict[str, Any]:
    """What is read of each clip."""
    table = Output(store).iter_side_tables()
    rows = {row["clip_id"]: row for part in table for row in part.to_pylist()}
    return {
        clip.clip_id: (
            rows[clip.clip_id],
            [(one.start_pts_s, one.end_pts_s, one.n_pad_frames, one.fps) for one in clip.chunks],
            clip.codes.tobytes(),
        )
        for clip in Output(store).clips()
    }


def assert_clean(store: Store, num_leftovers: int | None = None) -> None:
    audit = Audit(store, sample=0)
    assert audit.is_clean, [*audit.lines()]
    assert num_leftovers in (None, audit.leftovers.num_objects)


def names_of(output: Made, row: int) -> list[str]:
    return [ref.clip_id for ref in output.refs if ref.row == row]


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        ({"source": "videos/5.mp4"}, [5]),
        ({"where": "caption = caption 12"}, [12]),
        ({"where": "plan_row >= 28"}, [28, 29]),
        ({"source": "*/3.mp4"}, [CUT_ROW]),
        ({"source": "videos/2", "where": "plan_row=5"}, [2, 5, *range(20, 30)]),
    ],
)
def test_what_is_removed_is_gone_for_every_reader(
    tmp_path: Path, chosen: dict[str, Any], rows: list[int]
) -> None:
    output = finished(tmp_path, links=True)
    store, gone = output.store, {name for row in rows for name in names_of(output, row)}
    before, old = clips_of(store), Output(store)
    assert remove(store, **chosen, dry_run=True).num_clips == len(gone)
    assert clips_of(store) == before

    found = remove(store, **chosen)
    assert found.num_clips == len(gone)
    left = {name: clip for name, clip in before.items() if name not in gone}
    assert clips_of(store) == left
    now = Output(store)
    untouched = {info.key for info in old.shards} & {info.key for info in now.shards}
    assert len(untouched) == len(old.shards) - found.num_shards
    assert now.shards.clip_counts.sum() == len(left)
    assert now.totals.num_clips == len(left)
    for name in before:
        if name in left:
            assert now.clip(name).clip_id == name
        else:
            with pytest.raises(Exception, match="no tokenized clip"):
                now.clip(name)
    removed = [one for one in now.rejected() if one.stage == "remove"]
    assert {one.ref.clip_id for one in removed} == gone
    assert now.totals.rejected["removed"] == len(gone)
    assert now.totals.rejected_fraction == len(REJECTED_ROWS) / (len(left) + len(REJECTED_ROWS))
    assert_clean(store, 2 * found.num_shards)
    export_output(now, "memmap", tmp_path / "flat")


def text_of(key: str, data: bytes) -> str:
    """All values in an object, as text."""
    if not key.endswith(".parquet") or len(data) < 8:
        return data.decode(errors="replace")
    file = pq.ParquetFile(io.BytesIO(data))
    raw = data.decode(errors="replace")  # statistics too
    return f"{raw} {file.read().to_pylist()} {file.metadata.metadata}"


def traces(output: Made, refs: list[ClipRef], codes: dict[str, list[list[int]]]) -> list[str]:
    """The objects with anything of these clips, and what it is."""
    found = []
    for key, data in contents(output.store).items():
        text = text_of(key, data)
        for ref in refs:
            words = (
                ref.clip_id,
                ref.source_uri,
                f"caption {ref.row}'",
                *map(str, codes[ref.clip_id]),
            )
            found += [f"{key}: {word[:60]}" for word in words if word in text]
    return found


def test_a_purge_leaves_nothing_of_the_clips(tmp_path: Path) -> None:
    """Not of clips that had been rejected either, nor in shards of killed workers."""
    output = finished(tmp_path, links=True)
    leave(output)  # with clips of rows 0 and 1
    store, rows = output.store, [0, 5, 7, 12]
    refs = [ref for ref in output.refs if ref.row in rows]
    codes = {
        one.clip_id: [c.codes.ravel().tolist() for c in one.chunks] for one in Output(store).clips()
    }
    codes[refs[2].clip_id] = []  # was rejected
    before, objects = clips_of(store), contents(store)
    assert {key.partition(":")[0].partition("/")[0] for key in traces(output, refs, codes)} == {
        *("plan", "manifest", "shards", "clips")
    }
    found = [remove(store, source=f"s3://videos/{row}.mp4", purge=row == 12) for row in rows]
    assert [(one.num_clips, one.num_shards) for one in found] == [(1, 1), (1, 1), (1, 0), (1, 1)]
    assert not traces(output, refs, codes)
    left = before.keys() - {ref.clip_id for ref in refs}
    assert clips_of(store) == {name: clip for name, clip in before.items() if name in left}
    assert_clean(store, 0)
    same = {key for key, data in contents(store).items() if objects.get(key) == data}
    shards = {info.key for info in Output(store).shards}
    assert len(shards - same) == 3  # of rows 0, 5 and 12

    again = contents(store)
    assert remove(store, purge=True).num_deleted == 0
    assert {key for key, data in contents(store).items() if again.get(key) != data} == {
        f"manifest/{count_entries(store) - 1:08}.json"
    }
    assert len([one for one in Output(store).rejected() if not one.ref.clip_id]) == len(rows)
    retried = [*filter(RetryRejected("removed").selects, Output(store).rejected())]
    assert retried == []


def test_one_segment_can_be_purged(tmp_path: Path) -> None:
    output = finished(tmp_path, links=True)
    name, *others = names_of(output, CUT_ROW)
    remove(output.store, clip_ids=[name], purge=True)
    assert not [k for k, data in contents(output.store).items() if name in text_of(k, data)]
    assert others == [one for one in others if Output(output.store).clip(one).plan_row == CUT_ROW]
    assert_clean(output.store, 0)
    remove(output.store, clip_ids=others, purge=True)
    uri = f"videos/{CUT_ROW}.mp4"
    assert not [k for k, data in contents(output.store).items() if uri in text_of(k, data)]
    assert_clean(output.store, 0)


def test_purged_sources_are_not_new(tmp_path: Path) -> None:
    output = finished(tmp_path, links=True)
    store, job = output.store, output.job
    remove(store, source="videos/1", purge=True)  # and 10 to 19
    plan = StoredPlan.of(Output(store).record, Output(store).state.growth)
    changes = SourceChanges.of_output(job, store, plan)
    assert (changes.num_new, changes.num_gone, changes.num_changed) == (0, 0, 0)
    assert store_growth(job, store, plan, "driver2") is None
    lines = [f"s3://videos/{row}.mp4,caption {row}" for row in range(3, NUM_ROWS + 2)]
    (tmp_path / "clips.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    changes = SourceChanges.of_output(job, store, plan)
    assert (changes.num_new, changes.num_gone) == (2, 2)  # 0 and 2 are gone
    growth = store_growth(job, store, plan, "driver3")
    assert growth is not None
    assert growth.num_rows == 2


def test_an_extension_that_was_planned_before_a_purge_has_to_plan_again(tmp_path: Path) -> None:
    """The purge deletes what nothing lists, and so what the extension has planned."""
    output = finished(tmp_path, links=True)
    store, plan = output.store, StoredPlan.of(output.record, [])
    (tmp_path / "clips.csv").write_text("url,caption\ns3://videos/new.mp4,new\n")
    late = Committer(store, load_state(store, NUM_ROWS), "late")
    growth = store_growth(output.job, store, plan, "late")
    assert growth is not None
    remove(store, source="videos/5.mp4", purge=True)
    assert not [*store.list("plan/late/")]
    late.claim()
    with pytest.raises(PlanMismatch, match="Run the same command again"):
        late.grow(growth)
    assert_clean(store, 0)


def test_the_examples_of_duplicates_are_purged(tmp_path: Path) -> None:
    output = finished(tmp_path, links=True)
    record = json.loads(output.store.get("job.json"))
    record["plan"]["duplicate_examples"] = ["row 31 repeats row 2: s3://videos/2.mp4"]
    rewrite_plan(output.store, record["plan"])
    remove(output.store, source="videos/2.mp4", purge=True)
    after = json.loads(output.store.get("job.json"))
    assert "videos/2.mp4" not in str(after["plan"])
    assert {**after, "plan": 0, "checksum": 0} == {**record, "plan": 0, "checksum": 0}


def test_a_training_state_from_before_says_what_to_do(tmp_path: Path) -> None:
    output = finished(tmp_path, links=True)

    def stream() -> ClipStream:
        cache = CodeCache(Output(output.store), tmp_path / "cache")
        return ClipStream(cache, seed=3, rank=0, world_size=1)

    reader = iter(stream())
    next(reader)
    state = reader.state_dict()
    assert "removals" not in state
    remove(output.store, source="videos/5.mp4")
    for load in (stream().resume, lambda states: iter(stream()).load_state_dict(states[0])):
        with pytest.raises(ConfigError, match=r"clips were removed since\. Open a new stream"):
            load([state])
    state = iter(stream()).state_dict()
    assert state["removals"] == [1]
    stream().resume([state])
    anew = stream()
    anew.set_epoch(1)
    assert len([*anew]) == Output(output.store).num_clips


def test_an_output_that_is_open_has_to_be_opened_again(tmp_path: Path) -> None:
    done = finished(tmp_path, links=True)
    late = Output(done.store)
    late.state.committed.num_done -= 1  # as if it had been opened before the end
    remove(done.store, source="videos/5.mp4")
    with pytest.raises(ConfigError, match="clips were removed since it was opened"):
        late.refresh()


def test_checkpoints_know_of_removals(tmp_path: Path) -> None:
    store = finished(tmp_path, links=True).store
    remove(store, source="videos/5.mp4")
    remove(store, source="videos/6.mp4", purge=True)
    state = load_state(store, NUM_ROWS)
    assert state.num_removals == 2
    assert write_checkpoint(store, state)
    assert_clean(store, 0)
    saved = read_checkpoint(store, state.next_seq, NUM_ROWS)
    assert (saved.num_removals, saved.totals) == (2, state.totals)
    assert saved.shards.equals(state.shards)


def test_an_unfinished_output_and_wrong_conditions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"30 of 30 plan rows .* Finish it with tokpipe run"):
        remove(made(tmp_path / "a").store, source="x")
    store = finished(tmp_path / "b").store
    before = contents(store)
    for where, found in (
        ("nothing", "write NAME=VALUE"),
        ("score > 1", "one of the columns clip_id"),
        ("n_frames > many", "n_frames holds int32"),
        ("marks = damaged", "marks holds list"),
    ):
        with pytest.raises(ConfigError, match=found):
            remove(store, where=where, dry_run=True)
    assert main(["remove", store.uri]) == ConfigError.exit_code
    assert "nothing to remove" in capsys.readouterr().err
    assert contents(store) == before
    assert main(["remove", store.uri, "--clip", "unknown", "--dry-run"]) == 0
    assert "would remove 0 clips of 0 shards" in capsys.readouterr().out
    assert main(["remove", store.uri, "--source", "/5.mp4", "--purge", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_clips"] == 1
    assert main(["rejected", store.uri, "--stage", "remove"]) == 0
    assert "removed: (purged)" in capsys.readouterr().out


def edited(store: Store, seq: int, **changes: Any) -> None:
    (entry,) = read_entries(store, [seq])
    store.put(entry_key(seq), replace(entry, **changes).to_json())


def test_an_audit_finds_removals_that_are_wrong(tmp_path: Path) -> None:
    output = finished(tmp_path, links=True)
    store = output.store
    remove(store, source="videos/5.mp4", purge=True)
    entries = [*iter_entries(store)]
    removal = entries[-1]
    (receipt,), (one,) = removal.shards, removal.replaced
    last = removal.seq
    first = next(entry for entry in entries if entry.redacted).seq

    def kinds() -> set[str]:
        found = set(Audit(store).findings.counts)
        store.put(entry_key(last), removal.to_json())
        store.put(entry_key(first), entries[first].to_json())
        assert_clean(store)
        return found

    edited(store, last, replaced=())  # then it settles clips again, and the old shard is missing
    assert {"clip_twice", "object_missing"} <= kinds()
    edited(store, last, replaced=(replace(one, num_codes=1),))
    assert kinds() == {"entry_damaged"}
    edited(store, last, shards=(replace(receipt, clips=receipt.clips[1:]),))
    assert "entry_damaged" in kinds()
    other = next(ref for ref in output.refs if ref.row == 20)
    edited(store, last, shards=(replace(receipt, clips=(other, *receipt.clips[1:])),))
    assert "entry_damaged" in kinds()
    # Another clip's id is blanked, as if it had been purged.
    edited(store, first, shards=entries[first].without({(4, 0)}).shards)
    assert kinds() == {"not_rejected"}
