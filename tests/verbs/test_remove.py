"""Clips that are taken out of finished outputs, and purged from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.audit.outputs import CUT_ROW, NUM_ROWS, REJECTED_ROWS, Made, finished, leave, made
from tokpipe.audit import Audit
from tokpipe.cli import main
from tokpipe.errors import ConfigError
from tokpipe.export import export_output
from tokpipe.formats.manifest import count_entries, iter_entries, load_state, read_entries
from tokpipe.formats.manifest.checkpoint import read_checkpoint, write_checkpoint
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges, store_growth
from tokpipe.reader import ClipStream, CodeCache, Output
from tokpipe.runtime.assemble import RetryRejected
from tokpipe.storage import Store
from tokpipe.verbs.remove import Removal


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
    tmp_path: Path, chosen: dict[str, str], rows: list[int]
) -> None:
    output = finished(tmp_path, links=True)
    store, gone = output.store, {name for row in rows for name in names_of(output, row)}
    before, old = clips_of(store), Output(store)
    assert Removal.of(store, **chosen, dry_run=True).num_clips == len(gone)
    assert clips_of(store) == before

    found = Removal.of(store, **chosen)
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
