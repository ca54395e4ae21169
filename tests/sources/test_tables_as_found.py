"""Tables as people have them: columns of any type, odd URIs, embedded videos, LeRobot."""

import bz2
import functools
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.copies import open_copies
from tests.pages import REPOSITORY
from tests.sources.reading import OPTIONS, opened, problems, read, uris, write
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.config.sources import TableSource
from tokpipe.errors import ConfigError
from tokpipe.formats.tables import from_parquet, to_parquet
from tokpipe.plan import RowSample
from tokpipe.sources.columns import check_carried, within
from tokpipe.sources.rows import ROW_SCHEMA
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import DecodedClip

CASES = REPOSITORY / "tests/cases"
SAMPLE = REPOSITORY / "examples/data/bigbuckbunny.mp4"
TEXT = pa.string()
VIEWS = pa.list_(pa.string_view())
JSONS = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None]))


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def cast(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind)


LONG = "a text of more than twelve bytes"
COLUMNS = {
    "string_view": (cast([LONG, None], pa.string_view()), TEXT),
    "views in lists": (cast([[LONG, None], []], VIEWS), pa.list_(pa.field("element", TEXT))),
    "binary_view": (cast([b"\xff", None], pa.binary_view()), pa.binary()),
    "large_list": (cast([[1], None], pa.large_list(pa.int8())), None),
    "list_view": (cast([[[LONG], None], []], pa.list_view(pa.list_view(pa.string_view()))), None),
    "large_list_view": (cast([[1, None], None], pa.large_list_view(pa.int8())), None),
    "fixed_size_list": (cast([["a", "b"], None], pa.list_(pa.string_view(), 2)), None),
    "map": (cast([[("k", [LONG])], None], pa.map_(TEXT, VIEWS)), None),
    "struct": (cast([{"a": [LONG], "b": 1}, None], pa.struct({"a": VIEWS, "b": pa.int8()})), None),
    "dictionary": (cast([["x"], []], pa.list_(pa.dictionary(pa.int8(), TEXT))), None),
    "json": (pa.ListArray.from_arrays([0, 1, 2], JSONS), None),
    "uuid": (pa.ExtensionArray.from_storage(pa.uuid(), cast([b"u" * 16, None], pa.binary(16))),
             pa.binary(16)),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), cast([1, None], pa.int8())), pa.bool_()),
    "required": (cast([{"a": 1}] * 2, pa.struct([pa.field("a", pa.int8(), nullable=False)])), None),
    "nulls": (cast([[None], None], pa.list_(pa.null())), None),
    **{
        str(kind): (cast([None, None], kind), kind)
        for kind in (
            *(pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal256(50, 2), pa.float16()),
            *(pa.duration("ns"), pa.time64("ns"), pa.timestamp("us", "Europe/Paris")),
            *(pa.timestamp("ns", "+02:00"), pa.large_binary(), pa.uint64(), pa.binary(3)),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_type_is_carried_through_plan_and_side_table(
    tmp_path: Path, name: str
) -> None:
    values, kind = COLUMNS[name]
    path = parquet(tmp_path / "t.parquet", url=["/1.mp4", "/2.mp4"], c=values)
    source = opened("table", path)
    plan = pa.Table.from_batches(list(source.batches()))
    for table in (plan, pa.concat_tables([plan, plan]).take(pa.array([0, 1]))):
        back = from_parquet("t", to_parquet(table), "t")
        assert back.schema == table.schema
        stored = values.storage if name in ("uuid",) else values
        assert back.column("c").to_pylist() == stored.to_pylist()
    if kind is not None and not pa.types.is_large_binary(kind):
        assert source.carried().field("c").type == kind
    assert "view" not in str(source.carried().field("c").type)


def test_a_column_that_cannot_be_carried_is_named_while_planning(tmp_path: Path) -> None:
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array(["x"])], ["a", "a"])
    with pytest.raises(ConfigError, match="column 'c' has a struct with two fields 'a'"):
        opened("table", parquet(tmp_path / "t.parquet", url=["/1.mp4"], c=twice)).carried()
    union = pa.dense_union([pa.field("a", pa.int8())])
    for kind in (pa.struct([]), pa.list_(pa.month_day_nano_interval()), union, pa.timestamp("s")):
        with pytest.raises(ConfigError, match=r"table: column 'c' holds .*cannot be carried"):
            check_carried("table", pa.schema([("url", TEXT), ("c", kind)]))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((f"{blank}v.mp4{blank}", "{}/v.mp4") for blank in (" ", "\t", "\u00a0", "\ufeff", "\n")),
        (" https://h/x.mp4", "https://h/x.mp4"),
        ("S3://b/X.mp4", "s3://b/X.mp4"),
        ("https://h:80/x%20y.mp4?a=$b", "https://h:80/x%20y.mp4?a=$b"),
        ("s3://b/my%20v.mp4", "s3://b/my%20v.mp4"),
        ("my%20v.mp4", "{}/my%20v.mp4"),
        ("file:///data/my%20v.mp4", "file:///data/my v.mp4"),
        ("file:/data/v%25.mp4", "file:///data/v%.mp4"),
        ("FILE:///data/v.mp4", "file:///data/v.mp4"),
        ("/a\\b.mp4", "/a\\b.mp4"),
        ("12:30 a cat.mp4", "{}/12:30 a cat.mp4"),
        ("~cat.mp4", "{}/~cat.mp4"),
        ("file://localhost/v.mp4", None),
        ("file://host/v.mp4", None),
        ("file:v.mp4", None),
        ("file:///v%ff.mp4", None),
        ("file:///v%00.mp4", None),
        ("s3:/b/x.mp4", None),
        ("s3:b/x.mp4", None),
        ("s3:///b/x.mp4", None),
        ("https:/h/x.mp4", None),
        ("hdfs:/x.mp4", None),
        ("C:\\v.mp4", None),
        ("c:/v.mp4", None),
        ("a\\v.mp4", None),
        ("\\\\host\\v.mp4", None),
        ("~/v.mp4", None),
        ("$HOME/v.mp4", None),
        ("${DATA}/v.mp4", None),
        ("a\nb.mp4", None),
        ("a\0.mp4", None),
    ],
)
def test_a_uri_is_used_exactly_or_its_row_is_a_problem(
    tmp_path: Path, written: str, meant: str | None
) -> None:
    rows = {"url": [written, "v2.mp4"]}
    for path in (
        parquet(tmp_path / "t.parquet", **rows),
        write(
            tmp_path / "t.jsonl", "".join(json.dumps({"url": url}) + "\n" for url in rows["url"])
        ),
    ):
        first, second = read("table", path)
        assert second["source_uri"] == f"{tmp_path}/v2.mp4"
        if meant is not None:
            assert (first["source_uri"], first["problem"]) == (meant.format(tmp_path), None)
        else:
            place = f"{'line' if path.suffix == '.jsonl' else 'row'} 1 of {path} has a URI that "
            assert first["problem"].startswith(place)
            assert repr(written) in first["problem"]


def test_what_a_file_uri_decodes_to_must_be_allowed(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", f"url\nfile://{tmp_path}/%2e%2e/v.mp4\nv.mp4\n")
    first, second = read("table", table, allowed_prefixes=None)
    assert "outside the allowed prefixes" in first["problem"]
    assert second["problem"] is None


def test_json_is_carried_with_its_digits_and_repeated_keys_are_problems(tmp_path: Path) -> None:
    rows = read("table", CASES / "tables/dup.jsonl", uri_column="file")
    assert "has the key 'file' twice" in rows[0]["problem"]
    values = [rows[1][name] for name in ("big", "f", "e")]
    assert values == ["12345678901234567890123", "1.10", "1e400"]
    text = '{"url":"/v.mp4","x":{"a":[1.10,-0,NaN,{"b":1E5,"b":2}],"é":"\\u00e9"},"URL":true}'
    (row,) = read("table", write(tmp_path / "t.jsonl", text))
    assert row["x"] == '{"a":[1.10,-0,NaN,{"b":1E5,"b":2}],"é":"é"}'
    assert row["URL"] == "true"


@pytest.mark.parametrize("inner", ["1", r'"\u00e9"'])
def test_json_that_is_nested_too_deeply_is_a_problem_of_its_row(tmp_path: Path, inner: str) -> None:
    rows = [f'{{"url":"/{n}.mp4","x":{"[" * n}{inner}{"]" * n}}}' for n in range(10, 1010, 10)]
    for text in ("\n".join(rows), f"[{','.join(rows[:60])}]"):
        found = read("table", write(tmp_path / "t.json", text))
        bad = [row["problem"] for row in found if row["problem"]]
        assert len(found) == text.count("url")
        assert bad == [one for one in bad if "is not usable JSON" in one]
        assert 10 < len(found) - len(bad) < len(found)


@pytest.mark.parametrize("half", [r"\ud800", r"\uDFFF", r"\ud800\ud83d\ude00", r"\\\udc00x"])
def test_half_a_surrogate_pair_is_a_problem_of_its_row(tmp_path: Path, half: str) -> None:
    whole = r"\ud83d\ude00\\ud800"
    lines = "".join(f'{{"url": "/v.mp4", "x": "{text}"}}\n' for text in (half, whole))
    bad, good = read("table", write(tmp_path / "t.jsonl", lines))
    assert "half a surrogate pair" in bad["problem"]
    assert good["x"] == "\U0001f600\\ud800"


@pytest.mark.parametrize("value", ["7", "1.5", "true", "[1]", '{"path": "x"}'])
def test_what_is_not_text_is_no_uri(tmp_path: Path, value: str) -> None:
    lines = f'{{"url": {value}, "id": "1"}}\n{{"url": "/v.mp4", "id": [1]}}\n'
    table = write(tmp_path / "t.jsonl", lines)
    assert list(problems(read("table", table))) == [f"{table}#line=1"]
    assert list(problems(read("table", table, uri_template="/{id}.mp4"))) == [f"{table}#line=2"]


def test_the_tables_of_the_cases_have_their_right_values() -> None:
    tables = CASES / "tables"
    rows = read("table", tables / "space.csv", uri_column="file")
    names = [f"{tables}/{name}.mp4" for name in ("v1", "v2", "v3")]
    assert uris(rows) == [*names[:2], "https://h/x.mp4", names[2]]
    (row,) = read("table", tables / "asuri.jsonl", uri_column="u")
    assert row["source_uri"] == "file:///data/my v.mp4"
    rows = read("table", tables / "c_list_view.parquet", uri_column="file")
    assert [row["col"] for row in rows] == [["a"], [], None] or rows[0]["col"] == ["a"]
    rows = read("table", tables / "uri_struct.parquet", uri_column="file")
    assert uris(rows)[:2] == names[:2]
    assert rows[0]["n"] == 1


ROWS = [{"m": {"v": {"path": f"{i}.mp4"}, "t": i}, "x": {"y": 1}} for i in (1, 2)]


@pytest.mark.parametrize("literal", [False, True])
def test_dots_name_fields_within_columns_unless_a_column_has_that_name(
    tmp_path: Path, literal: bool
) -> None:
    rows = [row | ({"m.v.path": "x.mp4", "m.t": 0} if literal else {}) for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("t.parquet", "t.jsonl"):
        found = read("table", tmp_path / name, uri_column="m.v.path", start_column="m.t")
        assert uris(found) == [f"{tmp_path}/{'x' if literal else i}.mp4" for i in (1, 2)]
        assert [row["start_s"] for row in found] == [0 if literal else i for i in (1, 2)]
        assert found[0]["x"] == (
            json.dumps({"y": 1}).replace(" ", "") if "json" in name else {"y": 1}
        )
        found = read("table", tmp_path / name, uri_template="/{m.t:02d}/{x.y}.mp4")
        assert uris(found)[0] == f"/0{0 if literal else 1}/1.mp4"
        with pytest.raises(ConfigError, match=r"uri_column names a column 'm\.no"):
            read("table", parquet(tmp_path / "n.parquet", m=[{"a": "x"}]), uri_column="m.no")


ZSTD = functools.partial(pa.compress, codec="zstd", asbytes=True)


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2"])
def test_text_tables_may_be_compressed_but_not_damaged(tmp_path: Path, ending: str) -> None:
    packs: dict[str, Any] = {"gz": gzip.compress, "zst": ZSTD, "bz2": bz2.compress}
    pack = packs[ending]
    head, tail = (
        pack(b"".join(b"/%d.mp4\n" % i for i in some)) for some in (range(9), range(9, 5000))
    )
    whole = pack(b"url\n") + head + tail  # several streams, as parallel compressors write them
    table = write(tmp_path / f"t.csv.{ending}", whole)
    assert uris(read("table", table))[::4999] == ["/0.mp4", "/4999.mp4"]
    damaged = whole[: -len(tail) // 2] + bytes(300) + whole[-len(tail) // 2 + 300 :]
    for data in (whole[:-3], whole[: -len(tail) + 2], damaged, whole + b"garbage at the end"):
        with pytest.raises(ConfigError, match="stream is cut or damaged"):
            read("table", write(table, data))


def test_a_json_array_is_a_table(tmp_path: Path) -> None:
    rows = [{"url": f"/{i}.mp4", "text": "é]},{" * 50} for i in range(5000)]
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        found = read("table", write(tmp_path / "t.json", text))
        assert (len(found), problems(found)) == (5000, {})
        assert [found[i]["source_uri"] for i in (0, 4999)] == ["/0.mp4", "/4999.mp4"]
        assert found[4999]["text"] == rows[0]["text"]
        for damaged in (
            text[:-1],
            text[: len(text) // 2],
            text + "[",
            text.replace('"url"', "url", 1),
        ):
            with pytest.raises(ConfigError, match="JSON array is cut or damaged"):
                read("table", write(tmp_path / "t.json", damaged))
    table = write(tmp_path / "t.json", '[{"url": "/1.mp4"}, 7, {"url": "/3.mp4"}]')
    assert uris(read("table", table)) == ["/1.mp4", f"{table}#row=2", "/3.mp4"]
    lines = "\n".join(map(json.dumps, rows[:2]))
    assert len(read("table", write(tmp_path / "lines.json", lines))) == 2


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_delimiter_is_a_setting_that_the_message_names(tmp_path: Path, mark: str) -> None:
    table = write(tmp_path / "t.csv", f"url{mark}name\n/1.mp4{mark}a, b\n")
    with pytest.raises(ConfigError) as caught:
        read("table", table)
    assert f'set delimiter: "{mark}"' in str(caught.value)
    (row,) = read("table", table, delimiter=mark)
    assert (row["source_uri"], row["name"]) == ("/1.mp4", "a, b")
    with pytest.raises(ConfigError, match="not CSV or TSV"):
        read("table", write(tmp_path / "t.jsonl", "{}"), delimiter=mark)


@pytest.mark.parametrize(
    ("template", "uri"),
    [
        ("/{n:03d}/{name:>5}.mp4", "/007/    x.mp4"),
        ("/{n:02x}-{f:.2f}-{f:05.1f}.mp4", "/07-1.50-001.5.mp4"),
        ("/{{{n}}}.mp4", "/{7}.mp4"),
        ("/{text:03d}_{text:04}.mp4", "/042_0042.mp4"),
        *(
            (f"/{{{name}}}.mp4", None)
            for name in ("name:03d", "joined:03d", "joined:04", "inf:.1f")
        ),
        *((f"/{{{name}}}.mp4", None) for name in ("arabic:03d", "arabic:.1f", "joined:.1f")),
        ("/{signed:03d}_{blank:03d}_{large:.0f}.mp4", "/-07_007_1000.mp4"),
        ("/{padded}.mp4", "/p.mp4"),
    ],
)
def test_templates_format_values_as_python_does(
    tmp_path: Path, template: str, uri: str | None
) -> None:
    row = {"n": 7, "name": "x", "f": 1.5, "text": "42", "padded": " p "}
    row |= {"joined": "7_0", "arabic": "\u0663", "inf": "inf"}
    row |= {"signed": "-7", "blank": " 7", "large": "1e3"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    write(tmp_path / "t.jsonl", json.dumps(row))
    for name in ("t.parquet", "t.jsonl"):
        (found,) = read("table", tmp_path / name, uri_template=template)
        if uri is not None:
            assert (found["source_uri"], found["problem"]) == (uri, None)
        else:
            name, spec = template[2:-5].split(":")
            assert f"has {row[name]!r} as its {name}, which {spec!r} cannot format" in str(
                found["problem"]
            )


@pytest.mark.parametrize("template", ["{n", "n}", "{n!r}"])
def test_a_template_that_cannot_be_used_is_an_error_of_the_job_file(template: str) -> None:
    with pytest.raises(ValueError, match=r"'!'|[Ss]ingle '}'|expected '}'"):
        TableSource(kind="table", uri="t.csv", uri_template=template)


def test_a_template_may_lead_where_its_values_may_not(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    table = write(folder / "t.csv", "n\n1\n../1\n")
    good, bad = read("table", table, uri_template="../../v/{n}.mp4", allowed_prefixes=None)
    assert (good["source_uri"], good["problem"]) == (f"{tmp_path}/v/1.mp4", None)
    assert "outside the allowed prefixes" in bad["problem"]
    with pytest.raises(ConfigError, match="outside the allowed prefixes"):
        read("table", table, uri_template="../../v/{n}.mp4", allowed_prefixes=("/w",))


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        (pa.int64(), pa.float64(), None),
        (pa.int8(), pa.float16(), None),
        (pa.int64(), pa.decimal128(5, 2), None),
        (pa.float64(), pa.decimal128(5, 2), None),
        (pa.uint64(), pa.int64(), None),
        (TEXT, pa.binary(), None),
        (pa.binary_view(), pa.large_string(), None),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), None),
        (pa.map_(TEXT, TEXT), pa.map_(TEXT, pa.binary()), None),
        (pa.struct({"a": pa.int64()}), pa.struct({"b": TEXT, "a": pa.float64()}), None),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint64(), pa.uint8(), pa.uint64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (TEXT, pa.large_string(), TEXT),
        (pa.binary(), pa.binary(3), pa.binary()),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.null(), pa.float64(), pa.float64()),
        (pa.list_(pa.null()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (
            pa.struct({"a": pa.int64()}),
            pa.struct({"b": TEXT}),
            pa.struct({"a": pa.int64(), "b": TEXT}),
        ),
    ],
)
def test_tables_of_one_glob_have_one_type_per_column_that_changes_no_value(
    tmp_path: Path, ours: pa.DataType, theirs: pa.DataType, both: pa.DataType | None
) -> None:
    for kinds in ((ours, theirs), (theirs, ours)):
        for name, kind in zip("ab", kinds, strict=True):
            parquet(tmp_path / f"{name}.parquet", url=["/1.mp4"], c=cast([None], kind))
        if both is None:
            with pytest.raises(
                ConfigError, match=r"different types .*\(c\S* holds .* in another\)"
            ):
                opened("table", tmp_path / "*.parquet").carried()
        else:
            found = opened("table", tmp_path / "*.parquet").carried().field("c").type
            # In structs, the order of fields is that of the tables.
            assert found == both or within(found) == within(both) != {}


VIDEO = pa.struct({"bytes": pa.binary(), "path": TEXT})
PATHS = pa.struct({"bytes": pa.null(), "path": TEXT})


def test_a_video_column_without_any_bytes_names_its_paths(tmp_path: Path) -> None:
    values = [{"path": "1.mp4"}, {"path": None}]
    table = parquet(tmp_path / "a.parquet", url=cast(values, PATHS))
    names = [f"{tmp_path}/1.mp4", f"{table}#row=2"]
    assert uris(read("table", table)) == names
    inside = parquet(tmp_path / "b.parquet", url=cast([{"bytes": b"v"}, *values], VIDEO))
    found = uris(read("table", tmp_path / "*.parquet"))
    assert found == [*names, f"{inside}#url=1", names[0], f"{inside}#row=3"]
    nested = parquet(tmp_path / "n.parquet", r=cast([{"v": values[0]}], pa.struct({"v": PATHS})))
    assert uris(read("table", nested, uri_column="r.v")) == names[:1]


def test_videos_within_columns_are_neither_carried_nor_read(tmp_path: Path) -> None:
    video = {"bytes": bytes(range(256)) * 4000, "path": "v.mp4"}
    row = {"row": {"video": video, "other": video}, "many": [video], "map": [("k", video)], "n": 1}
    kinds = {"row": pa.struct({"video": VIDEO, "other": VIDEO}), "many": pa.list_(VIDEO)}
    schema = pa.schema({**kinds, "map": pa.map_(TEXT, VIDEO), "n": pa.int8()})
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema), path)
    (found,) = read("table", path, uri_column="row.video")
    assert set(found) == {*ROW_SCHEMA.names, "n"}
    assert found["source_uri"] == f"{path}#row.video=1"
    pq.write_table(pa.Table.from_pylist([row], schema).drop(["map"]), path)
    data = path.read_bytes()
    for at in [one.start() for one in re.finditer(re.escape(bytes(range(200))), data)]:
        data = data[:at] + bytes(1000) + data[at + 1000 :]  # so that reading them would fail
    path.write_bytes(data)
    assert len(read("table", path, uri_column="row.video")) == 1


def decoded(path: Path, column: str = "video", change: bool = False) -> list[Any]:
    source = opened("table", path, uri_column=column)
    items = RowSample(source, "d", num_items=9, max_rows=99).items
    if change:
        os.utime(path, (1, 1))
    sampling = SamplingConfig(fps=8, max_clip_frames=17)
    stage = DecodeStage(sampling, FramesConfig(size=(32, 32)), DecodeConfig(), OPTIONS)
    with mock.patch.dict(os.environ, TMPDIR=str(path.parent)):
        stage.setup()
        try:
            return stage.process(items)
        finally:
            stage.close()
            assert not open_copies()


def test_embedded_videos_are_decoded_from_their_table(tmp_path: Path) -> None:
    data = SAMPLE.read_bytes()
    (tmp_path / "own.mp4").write_bytes(data)
    values: list[dict[str, Any] | None] = [
        {"bytes": data, "path": "x.mp4"},
        {"bytes": None, "path": "own.mp4"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": data, "path": None},
    ]
    other = pa.array([one and one["bytes"] for one in values], pa.binary())
    table = pa.table({"video": values, "other": values, "raw": other, "n": range(5)})
    path = tmp_path / "t.parquet"
    for group in (1, 2, 5):
        pq.write_table(table, path, row_group_size=group)
        rows = read("table", path, uri_column="video")
        names = [f"{path}#video=1", f"{tmp_path}/own.mp4", f"{path}#row=3", f"{path}#video=4"]
        assert uris(rows) == [*names, f"{path}#video=5"]
        assert [row["n"] for row in rows] == list(range(5))
        assert "other" not in rows[0]  # videos are not carried
        kinds = [type(one) if isinstance(one, DecodedClip) else one.reason for one in decoded(path)]
        assert kinds == [DecodedClip, DecodedClip, "empty", DecodedClip]
        assert len(decoded(path, "raw")) == len(decoded(path, "video.bytes")) == 3
    changed = decoded(path, change=True)
    assert [getattr(one, "reason", None) for one in changed] == ["changed", None, *["changed"] * 2]
    assert list(problems(read("table", path, uri_column="video.path"))) == [
        f"{path}#row={row}" for row in (3, 4, 5)
    ]


def test_planning_does_not_read_embedded_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = {"bytes": bytes(range(256)) * 40_000, "path": "v.mp4"}
    path = parquet(tmp_path / "t.parquet", video=[video] * 20, n=range(20))
    data = bytearray(path.read_bytes())
    at = data.index(bytes(range(200)))
    data[at : at + 1000] = bytes(1000)  # so that reading them would fail
    path.write_bytes(data)
    assert len(read("table", path, uri_column="video")) == 20
