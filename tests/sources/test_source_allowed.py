"""A table can name only the videos that it may name, never other files of a node."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sources.reading import Rows, problems, read
from tokpipe.errors import ConfigError
from tokpipe.sources.uris import AllowedUris, example_prefix

LOCAL, REMOTE = "/data/tables/t.csv", "s3://b/tables/t.csv"
TABLES = [LOCAL, f"file://{LOCAL}", REMOTE]
MIXED = [
    *("s3://b/a.mp4", "s3://b/../a.mp4", "s3://b/x::file:///a", "https://h/a", "sftp://h/a"),
    *("/data/tables/a.mp4", "/data/tables/../a", "file:///data//tables/a", "/etc/passwd", None),
]


def is_outside(uri: str, table: str, *prefixes: str) -> bool:
    (answer,) = AllowedUris(table, prefixes or None).outside(pa.array([uri])).to_pylist()
    return bool(answer)


@pytest.mark.parametrize("table", TABLES)
def test_by_default_a_table_may_name_remote_stores_but_no_other_files(table: str) -> None:
    remote = [
        *("s3://b/a.mp4", "S3://b/a.mp4", "s3a://b/a", "gs://b/a", "gcs://b/a", "az://c/a"),
        *("abfs://c@a.dfs.core.windows.net/a", "https://h/a.mp4?x=1", "http://h:80/a", "hf://d/a"),
        *("s3://b/what/is/../a/name", "s3://b/a::b.mp4"),
    ]
    others = [
        *("/etc/passwd", "//etc/passwd", "/data/tablesx/a.mp4", "/data/tables/../a.mp4"),
        *("/data/tables/x/../../../../etc/passwd", "/data/tables/..", "/data/a.mp4"),
        *("/data/tables", "file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd"),
        *("file:///data/tables/../x", "file://data/tables/a.mp4", "/data//tables/../x"),
        *("file://etc/passwd", "/data/tables/simplecache::file:///etc/passwd"),
        *("simplecache::file:///etc/passwd", "s3://b/filecache::file:///etc/passwd"),
        "zip://a.mp4::file:///data/tables/a.zip",
        *("generic://a", "reference://a", "dir:///etc", "sftp://host/a", "hdfs://nn/a"),
        *("ssh://h/a", "github://o:r@/a", "jupyter://h/a", "arrow_hdfs://h/a", "data://x"),
    ]
    assert [uri for uri in (*remote, *others) if not is_outside(uri, table)] == remote


def test_only_a_local_table_may_name_files_below_its_folder() -> None:
    for uri in (
        *("/data/tables/a.mp4", "/data//tables/./x/a.mp4", "file:///data/tables/a.mp4"),
        *("/data/tables/a..b.mp4", "/data/tables/...mp4", "/data/tables/a::b.mp4"),
    ):
        assert [is_outside(uri, table) for table in TABLES] == [False, False, True], uri


@pytest.mark.parametrize("prefixes", [None, ["s3://b"]])
@pytest.mark.parametrize("table", [LOCAL, REMOTE])
@given(uris=st.lists(st.sampled_from(MIXED), max_size=4))
def test_whether_a_uri_is_allowed_does_not_depend_on_other_uris(
    table: str, prefixes: list[str] | None, uris: list[str | None]
) -> None:
    allowed = AllowedUris(table, prefixes)
    together = allowed.outside(pa.array(uris, pa.string())).to_pylist()
    alone = [allowed.outside(pa.array([uri], pa.string()))[0].as_py() for uri in uris]
    assert together == alone


def test_prefixes_are_compared_by_whole_path_parts() -> None:
    prefixes = ["s3://b/vid", "https://h/v/", "file:///videos", "hdfs://nn/v"]
    allowed = [
        *("s3://b/vid/a.mp4", "s3://b/vid", "https://h/v/a.mp4", "hdfs://nn/v/a.mp4"),
        *("https://h/v/a%2fb..%2f%C3%A9.mp4", "https://h/v/100%25.mp4?x=%2F"),
        *("/videos/a.mp4", "//videos//a.mp4", "file:///videos/a.mp4"),
    ]
    others = [
        *("s3://b/videos2/a.mp4", "s3://b/vid/../x.mp4", "s3://b2/vid/a.mp4"),
        *("https://h/v/%2E%2e/x", "https://h/v/..\\x", "https://h.evil/v/a.mp4"),
        *("https://h/v/\t../x", "https://h/v/..%2fx", "https://h/v/%252e%252e%255cx"),
        *("https://h/v/..;/x", "https://h/v%2f..%2fx", "s3://b/vid/a/../x", "gs://b/../x"),
        *("https://h@evil/v/a.mp4", "http://h/v/a.mp4", "simplecache::s3://b/vid/a.mp4"),
        *("/videos/../etc/passwd", "/videos2/a.mp4", "/data/tables/a.mp4"),
    ]
    uris = [*allowed, *others]
    assert [uri for uri in uris if not is_outside(uri, LOCAL, *prefixes)] == allowed


@pytest.mark.parametrize("uri", ["/v/a.mp4", "s3://b/v/a.mp4", "s3://b", "https://h/v/a?x=/1"])
def test_the_prefix_that_a_message_suggests_works(uri: str) -> None:
    assert not is_outside(uri, REMOTE, example_prefix(uri))


def rows_of(table: Path, **config: Any) -> Rows:
    return read("table", table, **{"allowed_prefixes": None, **config})


def test_a_row_outside_is_rejected_and_its_message_names_the_setting(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("url\na.mp4\n/etc/passwd\n../a.mp4\ns3://b/a.mp4\n")
    rows = rows_of(table)
    good = [row["source_uri"] for row in rows if row["problem"] is None]
    assert good == [f"{tmp_path}/a.mp4", "s3://b/a.mp4"]
    assert list(problems(rows)) == [f"{table}#line=3", f"{table}#line=4"]
    assert rows[1]["problem"].startswith(f"line 3 of {table} names a video outside")
    assert "add its folder to sources[0].allowed_prefixes" in rows[1]["problem"]
    assert rows[1]["problem"].endswith("(video /etc/passwd)")


def test_values_in_a_template_cannot_lead_outside(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id\na\n../../etc/passwd\n")
    good, bad = rows_of(table, uri_template=f"{tmp_path}/videos/{{id}}.mp4")
    assert good["problem"] is None
    assert "outside the allowed prefixes" in bad["problem"]
    good, bad = rows_of(table, uri_template="/v/{id}", allowed_prefixes=("/v",))
    assert (good["source_uri"], good["problem"]) == ("/v/a", None)
    assert "outside the allowed prefixes" in bad["problem"]


def test_a_table_entirely_outside_is_a_config_error_with_a_working_example(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("url\n/v/1.mp4\n/v/2.mp4\n\n")
    with pytest.raises(ConfigError, match=r"all 2 videos .*such as /v/1\.mp4\. .*") as raised:
        rows_of(table)
    setting, _, value = str(raised.value).rstrip(".").rpartition(": ")
    assert setting.endswith("sources[0].allowed_prefixes")
    rows = rows_of(table, allowed_prefixes=tuple(json.loads(value)))
    assert [row["problem"] for row in rows] == [None, None]
