"""Samples have the columns of their clips, and filters keep what pyarrow keeps."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import DictStore, flipped
from tests.reader.reader_helpers import ids, store_carrying
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.side_table import OWN_COLUMNS
from tokpipe.reader import ClipStream, CodeCache, Output, ShardInfo

FIRST = pa.table(
    {
        "caption": ["a cat", None, "ein Hündchen"],
        "score": pa.array([0.5, None, 1.5], pa.float32()),
        "count": pa.array([1, 2, None], pa.uint8()),
        "tags": pa.array([["a", "b"], [], None], pa.list_(pa.string())),
        "vector": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
        "day": pa.array([date(2024, 2, 29), None, date(1969, 1, 1)]),
        "at": pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.25"), None, Decimal("-3.00")]),
        "raw": pa.array([b"\xff", b"", None]),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "box": [{"x": 1, "names": ["p"]}, None, {"x": 3, "names": None}],
    }
)
SECOND = FIRST.take(pa.array([2, 0]))
CARRIED = FIRST.column_names


@pytest.fixture
def store() -> DictStore:
    return store_carrying(FIRST, SECOND)


def test_samples_have_the_columns_as_the_clips_do(store: DictStore, tmp_path: Path) -> None:
    output = Output(store)
    wanted = {clip.clip_id: (clip.metadata, clip.fps) for clip in output.clips()}
    for _ in range(2):  # made, then from the cache
        for sample in ClipStream(CodeCache(output, tmp_path), columns=["fps", *CARRIED]):
            metadata, fps = wanted[sample.pop("clip_id")]
            del sample["codes"]
            assert sample == {**metadata, "fps": fps}
    made = [key for key in store.requests if key.startswith("get clips/")]
    assert len(made) == 2 + 2 + 1, "twice by clips() and the cache, once for the schema"


def test_only_one_of_several_readers_makes_the_columns(store: DictStore, tmp_path: Path) -> None:
    def read(_: int) -> list[str]:
        return [one["caption"] for one in ClipStream(cache(), columns=["caption"], shuffle=False)]

    def cache() -> CodeCache:
        return CodeCache(output, tmp_path)

    output = Output(store)
    assert output.side_schema.names[-1] == "box"
    store.requests.clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4)))
    assert found == 4 * [FIRST["caption"].to_pylist() + SECOND["caption"].to_pylist()]
    assert store.requests.count("get clips/p-0-a.parquet") == 1
    assert store.requests.count("get shards/p-0-a.parquet") == 1


def test_a_damaged_side_table_gives_no_columns(store: DictStore, tmp_path: Path) -> None:
    output = Output(store)
    key = "clips/p-1-a.parquet"
    stream = ClipStream(CodeCache(output, tmp_path), columns=["caption"], shuffle=False)
    store.objects[key] = flipped(store.objects[key], 999)
    reader = iter(stream)
    assert [next(reader)["caption"] for _ in range(3)] == FIRST["caption"].to_pylist()
    with pytest.raises(CorruptOutput, match=r"p-1-a\.parquet is damaged: its SHA-256"):
        next(reader)


@pytest.mark.parametrize("length", [0, 9, 300, -1])
def test_truncated_columns_are_made_again(store: DictStore, tmp_path: Path, length: int) -> None:
    def captions() -> list[str]:
        cache = CodeCache(Output(store), tmp_path)
        return [one["caption"] for one in ClipStream(cache, columns=["caption"])]

    whole = captions()
    for path in tmp_path.glob("*.columns"):
        path.write_bytes(path.read_bytes()[:length])
    assert captions() == whole


def test_the_cache_evicts_columns_too(tmp_path: Path) -> None:
    texts = pa.table({"caption": ["x" * 100_000]})
    store = store_carrying(*[texts] * 6)
    cache = CodeCache(Output(store), tmp_path, max_bytes=250_000)
    for sample in ClipStream(cache, columns=["caption"], window_shards=1):
        assert len(sample["caption"]) == 100_000
        assert sum(path.stat().st_size for path in tmp_path.glob("*.c*")) <= 250_000
    with pytest.raises(ConfigError, match=r"small: what it keeps of mem://out/clips/p-0-a"):
        CodeCache(Output(store), tmp_path / "small", max_bytes=50_000).columns(0, ("caption",))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"columns": ["captoin"]}, r"mem://out has no column 'captoin'. Its side tables have clip"),
        ({"columns": ["codes"]}, "samples have clip_id and codes anyway"),
        ({"filter": pc.field("captoin") == "x"}, r"cannot select clips of mem://out: No match for"),
        ({"filter": pc.field("count") + 1}, r"it is of type u?int\w*: write a condition"),
        ({"filter": pc.field("count") > "x"}, "cannot select clips"),
        ({"filter": pc.field(0) == "x"}, "refers to columns by position"),
        ({"filter": pc.field("score") > 9}, r"keeps none of the 5 clips of mem://out"),
    ],
    ids=str,
)
def test_columns_and_filters_that_do_not_fit_are_rejected(
    settings: dict[str, Any], problem: str, store: DictStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        ClipStream(CodeCache(Output(store), tmp_path), **settings)


def test_an_output_without_clips_takes_any_filter(tmp_path: Path) -> None:
    cache = CodeCache(Output(store_carrying()), tmp_path)
    assert ids(ClipStream(cache, columns=["x"], filter=pc.field("x") > 1)) == []


CONDITIONS = st.recursive(
    st.one_of(
        st.integers(-1, 4).map(lambda value: pc.field("number") > value),
        st.sampled_from("abc").map(lambda value: pc.field("text") == value),
        st.just(pc.bit_wise_and(pc.field("plan_row"), 1) == 0),
        st.just(pc.field("text").is_null()),
        st.just(pc.field("box", "x") < 2),
        st.just(pc.field("number").isin([0, 2])),
    ),
    lambda inner: st.one_of(
        inner.map(lambda one: ~one),
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=4,
)
ROWS = st.fixed_dictionaries(
    {
        "number": st.none() | st.integers(0, 3),
        "text": st.none() | st.sampled_from("abc"),
        "box": st.none() | st.fixed_dictionaries({"x": st.none() | st.integers(0, 3)}),
    }
)
SCHEMA = pa.schema({"number": pa.int64(), "text": pa.string(), "box": pa.struct({"x": pa.int64()})})


@settings(max_examples=60)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=20), min_size=1, max_size=4), CONDITIONS)
def test_a_filter_keeps_what_pyarrow_keeps(shards: list[list[Any]], keep: Any) -> None:
    store = store_carrying(*(pa.Table.from_pylist(rows, SCHEMA) for rows in shards))
    output = Output(store)
    tables = list(output.iter_side_tables())
    wanted = [row["clip_id"] for table in tables for row in table.filter(keep).to_pylist()]
    with TemporaryDirectory() as folder:
        cache = CodeCache(output, folder)
        if not wanted:
            with pytest.raises(ConfigError, match="keeps none"):
                ClipStream(cache, filter=keep)
            return
        stream = ClipStream(cache, filter=keep, columns=["number"], shuffle=False)
        assert len(stream) == len(wanted)
        assert ids(stream) == wanted
        shuffled = ClipStream(cache, filter=keep, window_shards=2)
        assert sorted(ids(shuffled)) == sorted(wanted)


def test_a_filter_is_evaluated_once_and_decodes_only_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_carrying(*[pa.table({"caption": ["a cat"] * 20, "n": range(20)})] * 5)
    output, decoded = Output(store), Counter[str]()
    whole = Output.side_table

    def counting(self: Output, info: ShardInfo, columns: list[str], **settings: Any) -> pa.Table:
        table = whole(self, info, columns, **settings)
        decoded.update(table.column_names)
        return table

    assert output.side_schema.names == [*OWN_COLUMNS, "caption", "n"]
    monkeypatch.setattr(Output, "side_table", counting)
    cache = CodeCache(output, tmp_path)
    assert len(ClipStream(cache, filter=pc.field("n") < 5)) == 25
    assert decoded == {"n": 5}
    store.requests.clear()
    assert len(ClipStream(CodeCache(output, tmp_path), filter=pc.field("n") < 5)) == 25
    assert store.requests == []


def test_a_state_belongs_to_a_filter(store: DictStore, tmp_path: Path) -> None:
    cache = CodeCache(Output(store), tmp_path)
    state = iter(ClipStream(cache, filter=pc.field("count") == 1)).state_dict()
    ClipStream(cache, filter=pc.field("count") == 1).resume([state])
    with pytest.raises(ConfigError, match=r"has filter=\[\['\(count == 1\)'"):
        ClipStream(cache, filter=pc.field("caption") == "a cat").resume([state])
