"""Plans: what is written, what is read back, and which rows count as the same clip."""

import hashlib
import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import TOKENIZER
from tests.formats.formats_helpers import flipped
from tests.storage.listed import sizes
from tokpipe.config import JobConfig, parse_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.identity import row_digests, span_bytes
from tokpipe.plan import PART_ROWS, PlanReader, StoredPlan, write_plan
from tokpipe.plan.stored import read_part
from tokpipe.plan.write import with_row_ids
from tokpipe.storage import Store
from tokpipe.types import WorkItem

OPTIONS = StoreOptions(deadline_s=10)
CSV = {"kind": "table", "uri_column": "url", "allowed_prefixes": ["/"]}
TABLE = {**CSV, "start_column": "from", "end_column": "to"}
FILES = {"kind": "files", "uri": "*.mp4"}


def job_of(root: Path, *sources: dict[str, Any], **settings: Any) -> JobConfig:
    job = {
        "dataset": "test",
        "sources": list(sources),
        "output": {"uri": "out"},
        "sampling": {"max_clip_frames": 17},
        "frames": {"size": [64, 64]},
        "tokenizer": TOKENIZER,
        **settings,
    }
    return parse_job(json.dumps(job), name="test.yaml", root=root)


def plan(root: Path, *sources: dict[str, Any], **settings: Any) -> tuple[StoredPlan, Store]:
    job = job_of(root, *sources, **settings)
    store = Store(job.output.uri, OPTIONS)
    return write_plan(job, store, "attempt-1"), store


def row_id(dataset: str, source_uri: str, *limits: float | None) -> str:
    span = b"".join(struct.pack("<?d", one is not None, one or 0.0) for one in limits)
    return row_digests(dataset, [source_uri.encode("utf-8", "surrogatepass")], [span])[0].hex()


def items_of(reader: PlanReader) -> list[WorkItem]:
    return reader.items(range(reader.num_rows))


def write_table(path: Path, num_rows: int, first: int = 0, **columns: Any) -> None:
    numbers = range(first, first + num_rows)
    table = pa.table(
        {
            "url": [f"/v/{i}.mp4" for i in numbers],
            "from": pa.array([None if i % 2 else i / 4 for i in numbers], pa.float64()),
            "to": pa.array([None if i % 3 else i / 4 + 1 for i in numbers], pa.float64()),
            "n": pa.array(numbers, pa.int64()),
            **columns,
        }
    )
    pq.write_table(table, path)


def table_plan(root: Path, num_rows: int, **columns: Any) -> tuple[StoredPlan, Store]:
    write_table(root / "t.parquet", num_rows, **columns)
    return plan(root, {**TABLE, "uri": "t.parquet"})


def mixed_plan(root: Path, num_rows: int, csv: str) -> tuple[StoredPlan, Store]:
    """Plan a table, a CSV file and a video."""
    write_table(root / "t.parquet", num_rows)
    (root / "t.csv").write_text(csv)
    (root / "clip.mp4").touch()
    return plan(root, {**TABLE, "uri": "t.parquet"}, {**CSV, "uri": "t.csv"}, FILES)


def test_every_row_of_every_source_is_planned_in_order(tmp_path: Path) -> None:
    stored, store = mixed_plan(tmp_path, 7, "url,name\n/w/1.mp4,one\n,two\n")
    items = items_of(PlanReader(store, stored))
    assert [item.row for item in items] == list(range(10))
    others = ["/w/1.mp4", f"{tmp_path}/t.csv#line=3", f"{tmp_path}/clip.mp4"]
    assert [item.source_uri for item in items] == [*(f"/v/{i}.mp4" for i in range(7)), *others]
    for item in items:
        assert item.row_id == row_id("test", item.source_uri, item.start_s, item.end_s)
        assert (item.member, item.segment, item.num_segments) == (None, 0, None)
    spans = [(item.start_s, item.end_s) for item in items[:4]]
    assert spans == [(0.0, 1.0), (None, None), (0.5, None), (None, 1.75)]
    assert [item.row for item in items if item.problem] == [8]
    assert (stored.num_rows, stored.num_problems, stored.num_duplicates) == (10, 1, 0)
    assert stored.columns == {"n": "int64", "name": "string"}
    assert [part.num_rows for part in stored.parts] == [7, 2, 1]


def test_the_plan_id_depends_on_the_rows_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 7)
    job = job_of(tmp_path, {**TABLE, "uri": "t.parquet"})
    store = Store(job.output.uri, OPTIONS)
    first, second = (write_plan(job, store, attempt) for attempt in ("attempt-1", "attempt-2"))
    assert first.plan_id == second.plan_id
    assert first.parts[0].key != second.parts[0].key
    write_table(tmp_path / "t.parquet", 7, first=1)
    assert write_plan(job, store, "attempt-3").plan_id != first.plan_id


def test_a_stored_plan_survives_json(tmp_path: Path) -> None:
    stored, store = table_plan(tmp_path, 7, when=pa.array([0] * 7, pa.timestamp("us", "UTC")))
    again = StoredPlan.from_json(json.loads(json.dumps(asdict(stored))))
    assert again == stored
    assert items_of(PlanReader(store, again)) == items_of(PlanReader(store, stored))
    kinds = [str(kind) for kind in PlanReader(store, again).extras([1]).schema.types]
    assert kinds == list(stored.columns.values()) == ["int64", "timestamp[us, tz=UTC]"]


def test_a_plan_records_what_its_sources_left_out(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "c.txt", "more/d.webm", "more/e.jpg", "out/f.mp4", "t.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("url\n/x.mp4\n")
    sources: list[dict[str, Any]] = [FILES, {"kind": "files", "uri": "."}, {**CSV, "uri": "t.csv"}]
    stored, _ = plan(tmp_path, FILES)
    assert stored.left_out.text == "1 file: 1 .mov (b.MOV)"
    stored, store = plan(tmp_path, *sources, on_duplicate="keep_first")
    found = [item.source_uri for item in items_of(PlanReader(store, stored))]
    videos = [f"{tmp_path}/{name}" for name in ("a.mp4", "b.MOV", "more/d.webm")]
    assert found == [*videos, "/x.mp4"], "the output's own folder is no source"
    assert stored.left_out.text == "2 files: 1 .jpg (more/e.jpg), 1 .txt (c.txt)"
    again = StoredPlan.from_json(json.loads(json.dumps(asdict(stored))))
    assert again == stored
    earlier = {key: value for key, value in asdict(stored).items() if key != "left_out"}
    assert StoredPlan.from_json(earlier).left_out.text == ""
    forgeries: list[Any] = [None, [], {"counts": {".jpg": "many"}}, {"counts": {".jpg": 1}}]
    for forged in forgeries:
        with pytest.raises(CorruptOutput, match="does not describe a stored plan"):
            StoredPlan.from_json({**earlier, "left_out": forged})


def test_the_path_of_the_project_is_no_pattern_and_its_clips_keep_their_ids(tmp_path: Path) -> None:
    root = tmp_path / "[2024] films {a,b} *"
    (root / "v").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "[c].mp4"):
        (root / "v" / name).touch()
    (root / "t.csv").write_text("url\nv/a.mp4\n")
    ids = {}
    for uri in ("v/*.mp4", "v", "v/{a,b,[[]c]}.mp4", f"{root}/v/*.mp4"):
        stored, store = plan(root, {"kind": "files", "uri": uri})
        items = items_of(PlanReader(store, stored))
        ids[uri] = [item.row_id for item in items]
        assert [item.source_uri for item in items] == [
            f"{root}/v/{name}" for name in ("[c].mp4", "a.mp4", "b.mp4")
        ]
    assert len({tuple(found) for found in ids.values()}) == 1
    stored, _ = plan(root, {**CSV, "uri": "*.csv"})
    assert stored.num_rows == 1
    config = job_of(root, FILES)
    assert config.model_dump(mode="json")["sources"] == [
        {
            "kind": "files",
            "uri": f"{root}/*.mp4",
            "media": "video",
            "animation_as_picture": False,
            "on_change": "reject",
        }
    ]


def test_a_long_source_is_cut_into_full_parts(tmp_path: Path) -> None:
    num_rows = 2 * PART_ROWS + 5
    stored, store = table_plan(tmp_path, num_rows)
    assert [part.num_rows for part in stored.parts] == [PART_ROWS, PART_ROWS, 5]
    keys = [f"plan/attempt-1/0000{n}.parquet" for n in range(3)]
    assert [part.key for part in stored.parts] == keys
    for part in stored.parts:
        data = store.get(part.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part.size_bytes, part.sha256)
    reader = PlanReader(store, stored)
    edges = (0, PART_ROWS - 1, PART_ROWS, num_rows - 1)
    parts = [(index, len(places)) for index, _, places in reader.by_part(np.array(edges))]
    assert parts == [(0, 2), (1, 1), (2, 1)]
    items = reader.items(edges)
    assert [item.row for item in items] == list(edges)
    assert [item.source_uri for item in items] == [f"/v/{row}.mp4" for row in edges]
    for row in (-1, num_rows):
        with pytest.raises(IndexError):
            list(reader.by_part(np.array([row])))
        with pytest.raises(IndexError):
            reader.items([row])
    rows = np.array([num_rows - 1, 3, PART_ROWS, 3, 0])
    assert reader.extras(rows).column("n").to_pylist() == rows.tolist()


def test_long_captions_make_small_parts(tmp_path: Path) -> None:
    texts = pa.array([chr(97 + i % 26) * 2**20 for i in range(100)])
    stored, store = table_plan(tmp_path, 100, caption=texts)
    assert max(part.num_rows for part in stored.parts) <= 33
    reader = PlanReader(store, stored)
    rows = list(range(99, -1, -9))
    assert reader.extras(rows).column("caption").to_pylist() == [texts[i].as_py() for i in rows]


def test_extras_have_the_same_schema_for_any_rows(tmp_path: Path) -> None:
    stored, store = mixed_plan(tmp_path, 3, "url,name\n/w/1.mp4,one\n")
    reader = PlanReader(store, stored)
    schema = pa.schema([("n", pa.int64()), ("name", pa.string())])
    for rows in ([0, 1], [3], [4], [4, 0, 3], []):
        assert reader.extras(rows).schema == schema
    extras = reader.extras([4, 0, 3]).to_pydict()
    assert extras == {"n": [None, 0, None], "name": [None, None, "one"]}
    for rows in ([5], [-1], [0, 99]):
        with pytest.raises(IndexError):
            reader.extras(rows)


def test_extras_count_rows_when_no_columns_are_carried(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    stored, store = plan(tmp_path, FILES)
    extras = PlanReader(store, stored).extras([0])
    assert (extras.num_rows, extras.num_columns) == (1, 0)


def test_a_column_with_two_types_is_an_error_that_names_both_sources(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 3)
    (tmp_path / "t.csv").write_text("url,n\n/w/1.mp4,1\n")
    wanted = r"sources\[1\].*'n' holds string.*sources\[0\] .* holds int64"
    with pytest.raises(ConfigError, match=wanted):
        plan(tmp_path, {**TABLE, "uri": "t.parquet"}, {**CSV, "uri": "t.csv"})


def test_duplicate_clips_name_both_rows_and_leave_no_files(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 20)
    write_table(tmp_path / "b.parquet", 20, first=17)
    sources = [{**TABLE, "uri": "a.parquet"}, {**TABLE, "uri": "b.parquet"}]
    problem = (
        r"source 1 row 0 repeats source 0 row 17: /v/17\.mp4; in all, 3 rows repeat "
        r".*on_duplicate: keep_first"
    )
    with pytest.raises(ConfigError, match=problem):
        plan(tmp_path, *sources)
    assert sizes(Store(str(tmp_path / "out"), OPTIONS), "") == {}


@pytest.mark.parametrize(
    ("rows", "num_problems"),
    [("/1.mp4,,\n/1.mp4,0,\n/1.mp4,0,1\n/1.mp4,,1\n", 0), (",,\n,,\n/1.mp4,x,\n/1.mp4,x,\n", 4)],
)
def test_spans_of_a_video_and_rows_with_problems_are_not_duplicates(
    rows: str, num_problems: int, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"url,from,to\n{rows}")
    stored, _ = plan(tmp_path, {**TABLE, "uri": "t.csv"})
    assert (stored.num_rows, stored.num_problems) == (4, num_problems)


def test_two_spellings_of_a_span_are_one_clip(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,from,to\n/1.mp4,0,60\n/1.mp4,-0.0,0:01:00\n")
    with pytest.raises(ConfigError, match=r"source 0 row 1 repeats source 0 row 0: /1\.mp4"):
        plan(tmp_path, {**TABLE, "uri": "t.csv"})


def test_keep_first_drops_later_duplicates(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", PART_ROWS + 20)
    write_table(tmp_path / "b.parquet", 40, first=PART_ROWS)
    write_table(tmp_path / "c.parquet", 20)
    sources = [{**TABLE, "uri": f"{name}.parquet"} for name in "abc"]
    stored, store = plan(tmp_path, *sources, on_duplicate="keep_first")
    assert (stored.num_rows, stored.num_duplicates) == (PART_ROWS + 40, 40)
    assert stored.duplicate_examples[0] == (
        f"source 1 row 0 repeats source 0 row {PART_ROWS}: /v/{PART_ROWS}.mp4"
    )
    assert [part.num_rows for part in stored.parts] == [PART_ROWS, 20, 20]
    reader = PlanReader(store, stored)
    rows = np.arange(PART_ROWS + 40)
    assert [item.source_uri for item in items_of(reader)] == [f"/v/{row}.mp4" for row in rows]
    assert reader.extras(rows).column("n").to_pylist() == rows.tolist()
    assert len(sizes(store, "plan/")) == 3


def test_a_source_without_rows_is_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 3)
    (tmp_path / "t.csv").write_text("url\n")
    with pytest.raises(ConfigError, match=r"sources\[1\] .*t\.csv\) has no rows"):
        plan(tmp_path, {**TABLE, "uri": "a.parquet"}, {**CSV, "uri": "t.csv"})
    assert sizes(Store(str(tmp_path / "out"), OPTIONS), "") == {}


def test_a_changed_part_is_rejected(tmp_path: Path) -> None:
    stored, store = table_plan(tmp_path, 7)
    data = store.get(stored.parts[0].key)
    store.put(stored.parts[0].key, flipped(data, 4 * len(data)))
    reader = PlanReader(store, stored)
    for read in (reader.items, reader.extras, lambda _: read_part(store, stored.parts[0])):
        with pytest.raises(CorruptOutput, match=r"SHA-256 differs.*Restore the object"):
            read([0])


def test_finished_parts_are_not_read(tmp_path: Path) -> None:
    stored, store = table_plan(tmp_path, 2 * PART_ROWS + 5)
    store.delete(stored.parts[1].key)  # reading it would fail
    mask = np.zeros(stored.num_rows, bool)
    mask[10:20] = True
    mask[PART_ROWS : 2 * PART_ROWS] = True
    batches = list(PlanReader(store, stored).iter_undone(lambda start, stop: mask[start:stop]))
    assert [item.row for batch in batches for item in batch] == np.flatnonzero(~mask).tolist()
    assert max(len(batch) for batch in batches) <= 4096


@pytest.mark.s3
def test_a_plan_can_be_stored_on_s3(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 100)
    source, output = {**TABLE, "uri": "t.parquet"}, {"uri": f"{s3_bucket.uri}/out"}
    stored, store = plan(tmp_path, source, output=output)
    assert len(items_of(PlanReader(store, stored))) == 100


def test_row_ids_never_change() -> None:
    # Outputs store ids, so a change makes every resume start over.
    assert row_id("webvid", "s3://b/ü.mp4", None, None) == "2000c34270ff75caef4e0e2d175d1c90"
    assert row_id("webvid", "s3://b/ü.mp4", 0.0, 12.5) == "4974afbe397ede57ade444b475c47f07"


seconds = st.none() | st.floats(0, 9)
row_fields = st.tuples(st.text(max_size=3), st.text(max_size=5), seconds, seconds)


@given(st.lists(row_fields, unique=True, max_size=20))
def test_different_rows_have_different_ids(rows: list[Any]) -> None:
    assert len({row_id(*row) for row in rows}) == len(rows)


def test_one_span_is_hashed_as_those_of_a_table() -> None:
    spans = [(None, None), (0.0, None), (-0.0, 2.5), (None, 1.0)]
    starts, ends = zip(*spans, strict=True)
    columns = {"start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64())}
    table, _ = with_row_ids("d", pa.table({"source_uri": ["u"] * len(spans), **columns}))
    alone = row_digests("d", [b"u"] * len(spans), [span_bytes(*span) for span in spans])
    assert table.column("row_id").to_pylist() == [one.hex() for one in alone]
