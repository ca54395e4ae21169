"""Spans of one video are planned next to each other, whatever their order in a table."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.test_plan import OPTIONS, items_of, job_of
from tokpipe.plan import PlanReader, parts, write_plan
from tokpipe.plan.stored import StoredPlan
from tokpipe.storage import Store
from tokpipe.types import WorkItem

Row = tuple[str, float | None, float | None, str]


def planned(root: Path, *tables: list[Row], **changes: Any) -> tuple[StoredPlan, Store]:
    sources = []
    for number, rows in enumerate(tables):
        names = ("url", "from", "to", "caption")
        kinds = (pa.string(), pa.float64(), pa.float64(), pa.string())
        columns = zip(*rows, strict=True)
        values = [pa.array(list(one), kind) for one, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(dict(zip(names, values, strict=True))), root / f"{number}.parquet")
        source: dict[str, Any] = {
            "kind": "table",
            "uri": str(root / f"{number}.parquet"),
            "uri_column": "url",
        }
        source |= {"start_column": "from", "end_column": "to", "allowed_prefixes": ["/"]}
        sources.append(source)
    store = Store(str(root / "out"), OPTIONS)
    return write_plan(job_of(root, *sources, **changes), store, "attempt"), store


def rows_of(stored: StoredPlan, store: Store) -> list[Row]:
    reader = PlanReader(store, stored)
    items: list[WorkItem] = items_of(reader)
    captions = reader.extras(range(reader.num_rows)).column("caption").to_pylist()
    return [
        (one.source_uri, one.start_s, one.end_s, text)
        for one, text in zip(items, captions, strict=True)
    ]


def are_together(rows: list[Row]) -> bool:
    runs = [uri for uri, _ in groupby(rows, lambda row: row[0])]
    return len(runs) == len(set(runs))


def test_spans_come_in_order_of_their_videos_and_times(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("/b.mp4", 4.0, 6.0, "0"),
        ("/a.mp4", 2.0, None, "1"),
        ("/b.mp4", None, 2.0, "2"),
        ("/c.mp4", None, None, "3"),
        ("/a.mp4", 0.5, 1.0, "4"),
        ("/b.mp4", 4.0, 5.0, "5"),
    ]
    stored, store = planned(tmp_path, rows)
    assert [row[3] for row in rows_of(stored, store)] == ["2", "0", "5", "4", "1", "3"]
    assert stored.num_rows == 6
    assert [one.key for one in store.list("plan")] == [one.key for one in stored.parts]


@pytest.mark.parametrize("span", [(None, None), (0.0, 1.0)], ids=["whole", "in order"])
def test_tables_in_order_are_written_once(span: Any, tmp_path: Path) -> None:
    rows: list[Row] = [(f"/{i // 3}.mp4", *span, "") for i in range(9)]
    if span[0] is not None:
        rows = [(uri, float(i), i + 1.0, "") for i, (uri, *_) in enumerate(rows)]
    else:
        rows = rows[::3]
    stored, store = planned(tmp_path, rows)
    assert rows_of(stored, store) == rows
    assert [part.key for part in stored.parts] == ["plan/attempt/00000.parquet"]


def test_rows_without_a_video_do_not_count_as_one(tmp_path: Path) -> None:
    rows: list[Row] = [("", 0.0, 1.0, "0"), ("/a.mp4", 0.0, 1.0, "1"), ("", 1.0, 2.0, "2")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_ROWS", 1)
        stored, store = planned(tmp_path, rows)
    assert [row[3] for row in rows_of(stored, store)] == ["0", "1", "2"]
    assert stored.num_problems == 2


SPANS = st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(
    tables=st.lists(st.lists(SPANS, min_size=1, max_size=60), min_size=1, max_size=2),
    part_rows=st.sampled_from([1, 2, 7, 20, 60]),
    at_once=st.integers(1, 3),
)
def test_no_row_is_lost_doubled_or_changed(
    tables: list[list[tuple[int, int, int]]],
    part_rows: int,
    at_once: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wanted: list[list[Row]] = [
        [
            (f"/{number}-{uri}.mp4", float(start), float(start + length), f"{number} {row}")
            for row, (uri, start, length) in enumerate(rows)
        ]
        for number, rows in enumerate(tables)
    ]
    unique = [row for rows in wanted for row in {row[:3]: row for row in reversed(rows)}.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_ROWS", part_rows)
        patch.setattr(parts, "_PARTS_AT_ONCE", at_once)
        root = tmp_path_factory.mktemp("plan")
        stored, store = planned(root, *wanted, on_duplicate="keep_first")
    found = rows_of(stored, store)
    assert Counter(found) == Counter(unique)
    assert are_together(found)
    assert [row[3][0] for row in found] == sorted(row[3][0] for row in found)
    if part_rows == 60:  # else a video may begin in one part and end in another
        for _, spans in groupby(found, lambda row: row[0]):
            starts = [span[1] or 0.0 for span in spans]
            assert starts == sorted(starts)
    assert {one.key for one in store.list("plan")} == {one.key for one in stored.parts}
    assert max(part.num_rows for part in stored.parts) <= part_rows


def test_millions_of_shuffled_spans_take_bounded_memory(tmp_path: Path) -> None:
    """As many parts as are never in memory together."""
    rng = np.random.default_rng(0)
    rows: list[Row] = [
        (f"/{uri}.mp4", float(start), start + 1.0, "x" * 20)
        for uri, start in zip(rng.integers(0, 999, 5000), rng.permutation(5000), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_ROWS", 100)
        stored, store = planned(tmp_path, rows)
    found = rows_of(stored, store)
    assert len(stored.parts) >= 50
    assert Counter(found) == Counter(rows)
    assert are_together(found)
