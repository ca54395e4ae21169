"""Tables of every format, whole and broken."""

import csv
import datetime
import functools
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import S3Bucket
from tests.sources.reading import OPTIONS, Rows, opened, problems, uris, write
from tests.sources.reading import read as read_source
from tokpipe.errors import ConfigError
from tokpipe.sources.rows import ROW_SCHEMA
from tokpipe.sources.text_tables import RECORD_BYTES
from tokpipe.storage import Store

read = functools.partial(read_source, "table")


def parquet(folder: Path, name: str = "t.parquet", /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def test_csv_values_are_carried_as_written(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv",
        '\ufeffvideoid,url,page_dir,name\r\n007,/v/1.mp4,000001_000050,"a ""big"" dog, running"\r\n'
        '1e3,/v/2.mp4,,"two\nlines"\r\n\r\nNA,/v/3.mp4, x ,ünïcode\r\n',
    )
    rows = read(table)
    assert uris(rows) == ["/v/1.mp4", "/v/2.mp4", "/v/3.mp4"]
    assert problems(rows) == {}
    assert [row["videoid"] for row in rows] == ["007", "1e3", "NA"]
    assert [row["page_dir"] for row in rows] == ["000001_000050", "", " x "]
    assert [row["name"] for row in rows] == ['a "big" dog, running', "two\nlines", "ünïcode"]


def test_tsv_captions_may_contain_stray_quotes(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.tsv",
        'url\tname\n/1.mp4\t12" vinyl\n/2.mp4\t"Hello" he said\n/3.mp4\t"never closed\n'
        '/4.mp4\t"quoted\ttab"\n/5.mp4\t"a ""b"" c"\n/6.mp4\tplain\n',
    )
    rows = read(table)
    assert problems(rows) == {}
    assert [row["name"] for row in rows] == [
        '12" vinyl', '"Hello" he said', '"never closed', "quoted\ttab", 'a "b" c', "plain",
    ]  # fmt: skip


def test_a_broken_csv_row_does_not_affect_other_rows(tmp_path: Path) -> None:
    lines = [
        *(b"url,name", b"/2.mp4,ok", b'/3.mp4,"never closed', b"/4.mp4,ok", b"/5.mp4,too,many"),
        *(b"/6.mp4", b"/7.mp4,\xff\xfe", b'/8.mp4,"closed" and more', b",no uri", b"/10.mp4,ok"),
    ]
    table = write(tmp_path / "t.csv", b"\n".join(lines))
    rows = read(table)
    good = [row["source_uri"] for row in rows if row["problem"] is None]
    assert good == ["/2.mp4", "/4.mp4", "/10.mp4"]
    found = problems(rows)
    assert [uri.rpartition("=")[2] for uri in found] == ["3", "5", "6", "7", "8", "9"]
    assert found[f"{table}#line=5"] == f"line 5 of {table} has 3 fields, the header has 2"
    assert "not valid UTF-8" in found[f"{table}#line=7"]
    assert "names no video" in found[f"{table}#line=9"]
    assert rows[7]["name"] == "no uri"


def test_an_endless_line_does_not_affect_other_rows(tmp_path: Path) -> None:
    endless = b"x" * (RECORD_BYTES + 100)
    table = write(tmp_path / "t.csv", b"url\n/2.mp4\n" + endless + b"\n/4.mp4\n")
    assert uris(read(table)) == ["/2.mp4", f"{table}#line=3", "/4.mp4"]
    lines = b'{"url": "/1.mp4"}\n"' + endless + b'"\n{"url": "/3.mp4"}\n'
    table = write(tmp_path / "t.jsonl", lines)
    assert uris(read(table)) == ["/1.mp4", f"{table}#line=2", "/3.mp4"]


def test_json_values_other_than_text_are_carried_as_json(tmp_path: Path) -> None:
    lines = [
        '{"url": "/1.mp4", "name": "ünï", "n": 7, "tags": ["a", {"b": null}]}',
        '{"url": "/2.mp4", "late": true, "name": null}',
        *("", "[1, 2]", '{"url": "/5.mp4"', '{"url": "/6\\ud800.mp4"}', '{"url": ["/7.mp4"]}'),
        *('{"name": "no url"}', "[" * 100_000),
    ]
    table = write(tmp_path / "t.jsonl", "\n".join(lines))
    rows = read(table)
    assert uris(rows)[:2] == ["/1.mp4", "/2.mp4"]
    values = [rows[0][name] for name in ("name", "n", "tags", "late")]
    assert values == ["ünï", "7", '["a",{"b":null}]', None]
    assert [rows[1][name] for name in ("name", "late")] == [None, "true"]
    found = problems(rows)
    assert [uri.rpartition("=")[2] for uri in found] == ["4", "5", "6", "7", "8", "9"]
    assert 'has ["/7.mp4"] as its url, which is not text' in rows[5]["problem"]


def test_parquet_columns_keep_their_types(tmp_path: Path) -> None:
    columns = {
        "url": pa.array(["/1.mp4", None, ""]),
        "id": pa.array([1, 2, 3], pa.int32()),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "when": pa.array([datetime.datetime(2020, 1, 1)] * 3, pa.timestamp("us")),
        "nothing": pa.nulls(3),
        "big": pa.array(["a", "b", "c"], pa.large_string()),
    }
    path = parquet(tmp_path, **columns)
    found = {field.name: str(field.type) for field in opened("table", path).carried()}
    names = {"kind": "string", "nothing": "string", "big": "string"}
    lists_and_times = {"tags": "list<element: string>", "when": "timestamp[us]"}
    assert found == {"id": "int32", **names, **lists_and_times}
    rows = read(path)
    assert [row["tags"] for row in rows] == [["a"], [], None]
    assert list(problems(rows)) == [f"{path}#row={row}" for row in (2, 3)]


def test_parquet_text_that_is_not_utf8_is_a_problem_of_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    bad = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    path = parquet(tmp_path, url=["/1.mp4", "/2.mp4", "/3.mp4"], name=bad)
    rows = read(path)
    assert [row["name"] for row in rows] == ["good", None, None]
    assert list(problems(rows)) == [f"{path}#row=2"]


def test_wide_parquet_rows_make_small_batches(tmp_path: Path) -> None:
    urls, blobs = zip(*((f"/{i}.mp4", bytes([i]) * 2**20) for i in range(100)), strict=True)
    table = pa.table({"url": urls, "blob": blobs})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    source = opened("table", tmp_path / "t.parquet")
    sizes = [batch.num_rows for batch in source.batches()]
    assert sum(sizes) == 100
    assert max(sizes) <= 32


def test_gzipped_tables_are_decompressed(tmp_path: Path) -> None:
    for name, text in (
        *(("t.csv.gz", "url\n/1.mp4\n"), ("t.tsv.gz", "url\tx\n/1.mp4\t\n")),
        *(("t.jsonl.gz", '{"url": "/1.mp4"}\n'), ("gzip-by-content.csv", "url\n/1.mp4\n")),
    ):
        write(tmp_path / name, gzip.compress(text.encode()))
        assert uris(read(tmp_path / name)) == ["/1.mp4"]


def test_relative_uris_are_relative_to_their_table(tmp_path: Path) -> None:
    full = ["/c.mp4", "s3://b/d.mp4", "https://h/e.mp4"]
    table = write(tmp_path / "t.csv", "\n".join(["url", "a.mp4", "x/b.mp4", *full]))
    assert uris(read(table)) == [f"{tmp_path}/a.mp4", f"{tmp_path}/x/b.mp4", *full]


def test_a_template_can_use_any_column(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "page,id\n0001,007\n,8\n0002,9\n")
    rows = read(tmp_path / "t.csv", uri_template="s3://b/{page}/{id}.mp4")
    assert uris(rows) == ["s3://b/0001/007.mp4", f"{tmp_path}/t.csv#line=3", "s3://b/0002/9.mp4"]
    assert [row["id"] for row in rows] == ["007", "8", "9"]
    path = parquet(tmp_path, id=[7, None])
    assert uris(read(path, uri_template="clip {id}")) == [f"{tmp_path}/clip 7", f"{path}#row=2"]


def read_spans(folder: Path, spans: list[str]) -> Rows:
    lines = "\n".join(f"/v.mp4,{span}" for span in spans)
    table = write(folder / "t.csv", f"url,from,to\n{lines}\n")
    return read(table, start_column="from", end_column="to")


def test_times_are_seconds_or_clock_times(tmp_path: Path) -> None:
    wanted = {
        "1.5,3": (1.5, 3.0), ",": (None, None), ",3e1": (None, 30.0), " 7 ,": (7.0, None),
        "-0.0,1": (0.0, 1.0), "0:00:06.340,00:01:10.6": (6.34, 70.6),
        "01:02,100:00:00": (62.0, 360000.0),
    }  # fmt: skip
    rows = read_spans(tmp_path, list(wanted))
    assert [(row["start_s"], row["end_s"]) for row in rows] == list(wanted.values())
    assert "-0.0" not in {str(row["start_s"]) for row in rows}
    assert set(rows[0]) == set(ROW_SCHEMA.names)


def test_an_invalid_span_is_a_problem_of_its_row(tmp_path: Path) -> None:
    wanted = {
        "soon,3": "its from is 'soon', not a number of seconds (video /v.mp4)",
        "-1,3": "its from is '-1'",
        "nan,3": "its from is 'nan'",
        "1,1e999": "its to is '1e999'",
        "1:2:3:4,": "its from is '1:2:3:4'",
        "3,3": "ends before it starts: 3.0 to 3.0 seconds",
        "3,2": "ends before it starts",
        ",0": "ends before it starts: 0.0 to 0.0",
    }
    *bad, good = read_spans(tmp_path, [*wanted, "0,1"])
    for number, (row, problem) in enumerate(zip(bad, wanted.values(), strict=True), 2):
        assert problem in row["problem"]
        place = f"{tmp_path}/t.csv#line={number}"
        assert (row["source_uri"], row["start_s"], row["end_s"]) == (place, None, None)
    assert good["problem"] is None


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None, -1], pa.int64()),
        pa.array([1.0, None, float("nan")]),
        pa.array([1000, None, -1], pa.duration("ms")),
        pa.array(["1", None, "x"], pa.large_string()),
        pa.array([datetime.time(0, 0, 1), None, None], pa.time64("us")),
        pa.array([1, None, -1], pa.decimal128(5, 2)),
    ],
    ids=lambda values: str(values.type),
)
def test_parquet_times_may_have_any_type(tmp_path: Path, values: pa.Array) -> None:
    path = parquet(tmp_path, url=["/1.mp4", "/2.mp4", "/3.mp4"], start=values)
    rows = read(path, start_column="start")
    assert [row["start_s"] for row in rows] == [1.0, None, None]
    assert (rows[2]["problem"] is None) == (values[2].as_py() is None)


def test_only_columns_with_names_that_tokpipe_uses_are_renamed(tmp_path: Path) -> None:
    header = "url,FPS,clip_id,src_clip_id,,name,name,end_s"
    (row,) = read(write(tmp_path / "t.csv", f"{header}\n/1.mp4,1,2,3,4,5,6,7\n"))
    assert {key: value for key, value in row.items() if key not in ROW_SCHEMA.names} == {
        "src_FPS": "1", "src_src_clip_id": "2", "src_clip_id": "3", "column_5": "4",
        "name": "5", "name_2": "6", "src_end_s": "7",
    }  # fmt: skip


def test_tables_of_a_glob_are_read_in_order_as_one(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", "name,url\nb,/2.mp4\n")
    write(tmp_path / "a.csv", "url,name\n/1.mp4,a\n")
    rows = read(tmp_path / "*.csv")
    assert [(row["source_uri"], row["name"]) for row in rows] == [("/1.mp4", "a"), ("/2.mp4", "b")]
    write(tmp_path / "c.csv", "url,title\n/3.mp4,c\n")
    with pytest.raises(ConfigError, match=r"c\.csv have different columns.*\(name, title\)"):
        read(tmp_path / "*.csv")


def test_braces_name_tables_and_are_columns_in_a_template(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.csv", f"id\n{name}\n")
    rows = read(tmp_path / "{a,c}.csv", uri_template="/v/{id}.mp4")
    assert [row["source_uri"] for row in rows] == ["/v/a.mp4", "/v/c.mp4"]


def test_parquet_parts_may_differ_in_the_width_of_numbers(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", url=["/1.mp4"], n=[1])
    parquet(tmp_path, "b.parquet", n=pa.array([2], pa.int8()), url=["/2.mp4"])
    assert [row["n"] for row in read(tmp_path / "*.parquet")] == [1, 2]
    parquet(tmp_path, "c.parquet", url=["/3.mp4"], n=["x"])
    with pytest.raises(ConfigError, match="a column has different types"):
        read(tmp_path / "*.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"PAR1\xff\xfe\x00", r"is not UTF-8 text \(it starts with b'PAR1"),
        ("t.csv", '"never closed\na,b\n', "its first line is not a header"),
        ("t.csv", "link,name\n", r"uri_column names a column 'url'.*link, name"),
        ("t.csv", "urls,name\n", "its columns are urls, name; write one of those"),
        ("t.csv", ",".join(map(str, range(1001))), "more than 1000 columns"),
        ("t.csv.gz", gzip.compress(b"url\n" + b"/1.mp4\n" * 9999)[:-20], "is cut or damaged"),
        ("t.jsonl", "1\n[]\n", "none of its 2 lines is a JSON object"),
        ("t.jsonl", "\n".join(f'{{"{i}": 1}}' for i in range(1001)), "more than 1000 columns"),
        ("t.parquet", "not parquet", "cannot be read as Parquet"),
        ("t.txt", "url\n", "does not show its format"),
    ],
)
def test_a_broken_table_is_a_config_error(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    table = write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(table)
    assert str(table) in str(caught.value)


def test_a_cut_or_damaged_parquet_file_is_a_config_error(tmp_path: Path) -> None:
    path = parquet(tmp_path, url=[f"/{i}.mp4" for i in range(10_000)])
    data = bytearray(path.read_bytes())
    for damaged in (data[:-100], data[:100] + bytes(5000) + data[5100:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read as Parquet"):
            read(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"uri_column": "id"}, r"uri_column 'id' of .* holds int64, not text"),
        ({"start_column": "spans"}, r"start_column 'spans'.*list<.*>, not seconds"),
        ({"uri_template": "{ur}.mp4"}, r"uri_template names a column 'ur'.*write one of those"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path, url=["/1.mp4"], id=[1], spans=[[1.0]])
    with pytest.raises(ConfigError, match=message):
        read(path, **config)


@pytest.mark.s3
def test_files_are_found_and_tables_read_on_s3(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    store = Store(s3_bucket.uri, OPTIONS)
    path = parquet(tmp_path, url=[f"{i:06d}.mp4" for i in range(70_000)])
    store.put("tables/t.parquet", path.read_bytes())
    store.put("tables/t.csv.gz", gzip.compress(b"url\na.mp4\n"))
    rows = read(f"{s3_bucket.uri}/tables/*.parquet")
    ends = [f"{s3_bucket.uri}/tables/{name}.mp4" for name in ("000000", "069999")]
    assert uris(rows)[::69_999] == ends
    assert uris(read(f"{s3_bucket.uri}/tables/t.csv.gz")) == [f"{s3_bucket.uri}/tables/a.mp4"]
    for name in ("raw/b.mp4", "raw/x/a.mp4", "raw/note.txt"):
        store.put(name, b"1")
    found = uris(read_source("files", f"{s3_bucket.uri}/raw/**/*.mp4"))
    assert found == [f"{s3_bucket.uri}/raw/b.mp4", f"{s3_bucket.uri}/raw/x/a.mp4"]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0.:%"), max_size=8)

NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=".:%$"), max_size=8)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(NAMES, CELLS), max_size=8), tab=st.booleans())
def test_the_output_of_a_csv_writer_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], tab: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / ("t.tsv" if tab else "t.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if tab else ",", quoting=csv.QUOTE_ALL)
        writer.writerows([("url", "name"), *((f"/v{url}", name) for url, name in rows)])
    found = read(path)
    assert problems(found) == {}
    wanted = [(f"/v{url}", name) for url, name in rows]
    assert [(row["source_uri"], row["name"]) for row in found] == wanted


@settings(max_examples=100)
@given(
    junk=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=6),
    kind=st.sampled_from(["csv", "tsv", "jsonl"]),
)
def test_rows_after_a_bad_row_are_read_whatever_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes], kind: str
) -> None:
    path = tmp_path_factory.mktemp("junk") / f"t.{kind}"
    good = b'{"url": "/good.mp4"}' if kind == "jsonl" else b"/good.mp4,x"
    good = good.replace(b",", b"\t") if kind == "tsv" else good
    header = [] if kind == "jsonl" else [b"url\tn" if kind == "tsv" else b"url,n"]
    # A junk line may open a quote that the next junk line closes.
    lines = [*header, good, *(line for bad in junk for line in (bad, good))]
    rows = read(write(path, b"\n".join(lines)))
    if not any(b'"' in line for line in junk) and not any(b"\r" in line for line in junk):
        assert uris(rows).count("/good.mp4") >= len(junk) + 1
    assert uris(rows)[0] == "/good.mp4"
    assert uris(rows)[-1] == "/good.mp4" or any(b'"' in line for line in junk)


def test_a_parquet_table_that_claims_other_numbers_of_rows_than_it_holds_is_an_error(
    tmp_path: Path,
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"url": [b"v"] * 12_344 + [None]}), sink)
    data, claimed = sink.getvalue().to_pybytes(), b"\x16\xf2\xc0\x01"  # 12,345, as Thrift has it
    head, foot = data[: -8 - (size := int.from_bytes(data[-8:-4], "little"))], data[-8 - size : -8]
    assert claimed in foot
    a_billion, ten_trillion = b"\x16\x80\xa8\xd6\xb9\x07", b"\x16\x80\x80\x95\xe7\x89\xc6\x04"
    for number in (a_billion, ten_trillion):
        other = foot.replace(claimed, number)
        path = tmp_path / "x.parquet"
        path.write_bytes(head + other + len(other).to_bytes(4, "little") + b"PAR1")
        with pytest.raises(ConfigError, match="cannot be read as Parquet"):
            read(path, uri_column="url")


def test_one_long_text_cannot_fill_all_rows(tmp_path: Path) -> None:
    """300 KB of text in 65,536 rows would take 20 GB; the file has 0.2 MB."""
    note = pa.DictionaryArray.from_arrays(pa.array([0] * 65_536, pa.int32()), ["a" * 300_000])
    path = parquet(tmp_path, url=["/1.mp4"] * 65_536, note=note)
    with pytest.raises(ConfigError, match="texts would take 19,661,193,216 bytes"):
        list(opened("table", path).batches())
    few = parquet(tmp_path, url=["/1.mp4"] * 3, note=["a" * 300_000] * 3)
    assert [len(row["note"]) for row in read(few)] == [300_000] * 3


def test_a_few_bytes_cannot_hold_billions_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, pa.schema([("url", pa.string())])) as writer:
        for _ in range(8):
            writer.write_table(pa.table({"url": pa.nulls(2**22, pa.string())}), 2**22)
    with pytest.raises(ConfigError, match="claims 33,554,432 rows in"):
        list(opened("table", path).batches())
