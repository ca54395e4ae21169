"""Hostile tables and tars: sources of a job, and what planning must find in them."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.corpus import whole
from tests.sources.reading import tar

Make = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class TableCase:
    """One hostile source."""

    name: str
    family: str
    make: Make
    """Writes it into its own folder, and returns the source for a job file."""
    error: str | None = None
    """Pattern of the ``ConfigError``; None if there are rows."""
    num_rows: int | None = None
    num_problems: int | None = None
    """Number of unusable rows, where that is certain."""
    in_job: bool = False
    """Whether the whole job reads it too."""


def table_cases(num_damaged: int, seed: int) -> list[TableCase]:
    """Return all named cases and ``num_damaged`` generated ones; case k depends on seed and k."""
    kinds = list(WHOLE)
    return [*_NAMED, *(_damaged(seed, k, kinds[k % len(kinds)]) for k in range(num_damaged))]


def _table(name: str, data: str | bytes | Callable[[], str | bytes], **config: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        path, found = folder / name, data() if callable(data) else data
        path.write_bytes(found.encode() if isinstance(found, str) else found)
        if "uri_template" not in config:
            config.setdefault("uri_column", "url")
        # Most cases are about something else, so videos may be anywhere.
        config.setdefault("allowed_prefixes", ["/"])
        return {"kind": "table", "uri": str(path), **config}

    return make


def _parquet(columns: Mapping[str, Any], keep: float = 1.0, **config: Any) -> Make:
    def cut() -> bytes:
        data = parquet(columns)
        return data[: int(len(data) * keep)]

    return _table("t.parquet", cut, **config)


def parquet(columns: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


def _folder(folder: Path) -> dict[str, Any]:
    (folder / "t.csv").mkdir()
    return {"kind": "table", "uri": f"{folder}/t.csv", "uri_column": "url"}


def _tar(data: Callable[[], bytes]) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "t.tar").write_bytes(data())
        return {"kind": "webdataset", "uri": str(folder / "t.tar")}

    return make


def _special_members() -> bytes:
    """Links, devices and pipes named like videos, next to one video."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, kind in enumerate(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
             tarfile.FIFOTYPE, tarfile.DIRTYPE]
        ):  # fmt: skip
            member = tarfile.TarInfo(f"{number}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("video.mp4")
        member.size = len(whole("index-last.mp4"))
        archive.addfile(member, io.BytesIO(whole("index-last.mp4")))
    return sink.getvalue()


def _hostile_names() -> bytes:
    names = ["/etc/passwd.mp4", "../../up.mp4", "a/../../b.mp4", "./c.mp4", "d\n.mp4",
             "x" * 5000 + ".mp4", "e#f.mp4", "-rf.mp4", "ä.mp4"]  # fmt: skip
    return tar({name: whole("index-last.mp4") for name in names})


def _huge_member() -> bytes:
    """A header that announces 8 EiB."""
    member = tarfile.TarInfo("huge.mp4")
    member.size = 2**63 - 1
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)


def _huge_name() -> bytes:
    """A header that announces a name of 2 GiB."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**31
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)


def _gzip_bomb(head: bytes, piece: bytes, times: int) -> bytes:
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(times):
            file.write(piece)
    return sink.getvalue()


_VIDEO = "clip.mp4"
_BOMB_LINE = b'{"url": ' + b"[" * 100_000 + b"\n"
_TIMES = ["1", "x", "-1", "nan", "inf", "1e999", "99:99:99", "\u0663", "1" * 400]

_NAMED = [
    # Missing parts.
    TableCase("empty.csv", "missing columns", _table("t.csv", ""), "empty"),
    TableCase("no_rows.csv", "missing columns", _table("t.csv", "url\n"), "has no rows"),
    TableCase("other_column.csv", "missing columns", _table("t.csv", "uri\nx\n"), "did you mean"),
    TableCase("no_column.jsonl", "missing columns", _table("t.jsonl", '{"a": 1}\n'), "names a"),
    TableCase("no_objects.jsonl", "missing columns", _table("t.jsonl", "1\n2\n"), "none of its 2"),
    TableCase("no_column.parquet", "missing columns", _parquet({"a": [1]}), "names a column"),
    TableCase(
        "no_template_column.csv", "missing columns",
        _table("t.csv", "a\n1\n", uri_template="/v/{b}.mp4"), "names a column 'b'",
    ),
    TableCase("empty.jsonl", "missing columns", _table("t.jsonl", "\n\n"), "none of its 0"),
    TableCase("nowhere.csv", "missing columns",
              lambda folder: {"kind": "table", "uri": f"{folder}/no.csv", "uri_column": "url"},
              "no table"),
    TableCase("folder.csv", "missing columns", _folder, "."),
    # Rows that cannot be clips.
    TableCase("nulls.csv", "nulls", _table("t.csv", "url,b\n,1\n  ,2\n/v.mp4,3\n"), None, 3, 2,
              in_job=True),
    TableCase("nulls.jsonl", "nulls", _table(
        "t.jsonl", '{"url": null}\n{"b": 1}\n{"url": ""}\n{"url": "/v.mp4"}\n'), None, 4, 3),
    TableCase("nulls.parquet", "nulls", _parquet({"url": [None, "", "/v.mp4"]}), None, 3, 2),
    TableCase("all_null.parquet", "nulls", _parquet({"url": pa.nulls(3)}), None, 3, 3),
    TableCase("null_template.csv", "nulls", _table(
        "t.csv", "a,b\n,1\n2,\n3,4\n", uri_template="/v/{a}/{b}.mp4"), None, 3, 2),
    TableCase("duplicates.csv", "duplicate ids", _table("t.csv", "url\n/a\n/a\n/a\n"), None, 1, 0),
    TableCase("duplicate_columns.csv", "duplicate ids", _table("t.csv", "url,url\n/a,/b\n"), None,
              1, 0),
    TableCase("own_names.csv", "duplicate ids", _table(
        "t.csv", "url,clip_id,codes,row_id,Problem\n/a,1,2,3,4\n"), None, 1, 0),
    # Where URIs point.
    TableCase("paths.csv", "paths in tables", _table(
        "t.csv", "url\n/etc/passwd\n../../../../etc/passwd\n"
        "/dev/zero\n/proc/self/environ\n.\n..\n/\n"
        "~/x.mp4\n//host/x\n\\\\host\\x\n", allowed_prefixes=None), None, 10, None, in_job=True),
    TableCase("schemes.csv", "paths in tables", _table(
        "t.csv", "url\nfile:///etc/passwd\nfile://host/etc\nmemory://x.mp4\nnosuch://x\n"
        "zip://a::file:///etc/passwd\nhttp://127.0.0.1:9/x.mp4\ndata:,x\nlocal://etc\n"
        "simplecache::file:///etc/passwd\n://\nhttp://\ns3:\n", allowed_prefixes=None),
        None, 12, None, in_job=True),
    TableCase("odd_names.jsonl", "paths in tables", _table("t.jsonl", "".join(
        json.dumps({"url": name}) + "\n"
        for name in ("\0", "a\0b", "x" * 100_000, "/" * 5000, "\n", "a\nb", "\u202e", "%00", "*",
                     "[a", "{a}", "?", "#", "a#b")
    )), None, 14, None, in_job=True),
    # Spans.
    TableCase("times.csv", "spans", _table("t.csv", "url,s\n" + "".join(
        f"/v{i}.mp4,{text}\n" for i, text in enumerate(_TIMES)), start_column="s"), None, 9, None),
    TableCase("backwards.csv", "spans", _table(
        "t.csv", "url,s,e\n/v.mp4,5,1\n/w.mp4,0,0\n/x.mp4,1,2\n", start_column="s",
        end_column="e"), None, 3, 2),
    TableCase("list_times.parquet", "spans", _parquet(
        {"url": ["/v"], "s": [[1.0]]}, start_column="s"), "not seconds"),
    TableCase("bytes_uri.parquet", "types", _parquet({"url": [b"/v"]}), "not text"),
    TableCase("number_uri.parquet", "types", _parquet({"url": [1]}), "not text"),
    TableCase("list_template.parquet", "types", _parquet(
        {"a": [[1]]}, uri_template="/v/{a}.mp4"), "cannot be part of a URI"),
    TableCase("bytes_template.parquet", "types", _parquet(
        {"a": [b"\xff"]}, uri_template="/v/{a}.mp4"), "cannot be part of a URI"),
    TableCase("struct_column.parquet", "types", _parquet(
        {"url": ["/v"], "a": [{"b": [1], "c": {"d": None}}]}), None, 1, 0),
    TableCase("not_utf8.parquet", "types", _parquet({"url": pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffv"))}), None, 2, 1),
    # Bytes that are not text, or too much text.
    TableCase("utf16.csv", "encodings", _table("t.csv", "url\n/v.mp4\n".encode("utf-16")), "UTF-8"),
    TableCase("latin1.csv", "encodings", _table("t.csv", b"url\n/v\xe9.mp4\n/w.mp4\n"), None, 2, 1),
    TableCase("bom.csv", "encodings", _table("t.csv", b"\xef\xbb\xbfurl\n/v.mp4\n"), None, 1, 0),
    TableCase("nuls.csv", "encodings", _table("t.csv", b"url\n" + bytes(99) + b"\n/w.mp4\n"),
              None, 2, None),
    TableCase("utf16.jsonl", "encodings", _table(
        "t.jsonl", '{"url": "/v.mp4"}\n'.encode("utf-16-le")), "."),
    TableCase("surrogates.jsonl", "encodings", _table(
        "t.jsonl", b'{"url": "/\xed\xa0\x80.mp4"}\n{"url": "/\\ud800"}\n{"url": "/v"}\n'),
        None, 3, 2),
    TableCase("surrogate_key.jsonl", "encodings", _table(
        "t.jsonl", b'{"url": "/v", "\xed\xa0\x80": 1}\n{"url": "/w"}\n'), None, 2, 1),
    TableCase("million_columns.csv", "huge", _table(
        "t.csv", lambda: "url" + ",c" * 1_000_000 + "\n"), "1000001 columns"),
    TableCase("million_fields.csv", "huge", _table(
        "t.csv", lambda: "url\n" + "," * 1_000_000 + "\n/v.mp4\n"), None, 2, 1),
    TableCase("many_keys.jsonl", "huge", _table(
        "t.jsonl", lambda: "{" + ",".join(f'"{i}": 1' for i in range(50_000)) + "}\n"),
        "columns, and the limit"),
    TableCase("many_columns.parquet", "huge", _parquet(
        {f"c{i}": [1] for i in range(1500)}), "1500 columns"),
    TableCase("endless_line.csv", "huge",
              _table("t.csv", lambda: b"url\n" + b"x" * 20_000_000), None, 1, 1),
    TableCase("endless_header.csv", "huge",
              _table("t.csv", lambda: b"x" * 20_000_000), "not a header"),
    TableCase("open_quote.csv", "quotes", _table(
        "t.csv", 'url,b\n"/v.mp4,1\n' + "/w.mp4,2\n" * 3), None, None, 1),
    TableCase("open_quotes.csv", "quotes", _table(
        "t.csv", "url,b\n" + "".join(f'"/v{i}.mp4,1\n' for i in range(301))), None, None, None),
    TableCase("open_header.csv", "quotes", _table("t.csv", '"url\n/v.mp4\n'), "not a header"),
    TableCase("deep.jsonl", "bombs",
              _table("t.jsonl", b'{"url": "/v"}\n' + _BOMB_LINE), None, 2, 1),
    TableCase("deep_closed.jsonl", "bombs", _table("t.jsonl", "".join(
        f'{{"url": "/{depth}", "a": {"[" * depth}1{"]" * depth}}}\n'
        for depth in range(10, 1010, 10))), None, 100, None),
    TableCase("long_number.jsonl", "bombs", _table(
        "t.jsonl", '{"url": "/v", "a": ' + "9" * 10_000 + "}\n" + '{"url": "/w"}\n'), None, 2, 1),
    TableCase("infinity.jsonl", "bombs", _table(
        "t.jsonl", '{"url": "/v", "a": 1e999, "b": NaN}\n'), None, 1, 0),
    TableCase("bomb_line.csv.gz", "bombs", _table(
        "t.csv.gz", lambda: _gzip_bomb(b"url\n", bytes(2**20), 256)), None, 1, 1),
    TableCase("bomb_rows.csv.gz", "bombs", _table(
        "t.csv.gz", lambda: _gzip_bomb(b"url,b\n", b",x\n" * 10_000, 3)), None, 30_000, 30_000),
    TableCase("cut.csv.gz", "cut tables",
              _table("t.csv.gz", gzip.compress(b"url\n" * 9999)[:60]), "gzip"),
    TableCase("not_gzip.csv.gz", "cut tables", _table("t.csv.gz", b"\x1f\x8bjunk"), "gzip"),
    TableCase("cut.parquet", "cut tables", _parquet({"url": ["/v"] * 99}, 0.7), "as Parquet"),
    TableCase("text.parquet", "cut tables", _table("t.parquet", "url\n/v\n"), "as Parquet"),
    TableCase("no_format.dat", "cut tables", _table("t.dat", "url\n"), "does not show its format"),
    # Tars.
    TableCase("names.tar", "tars", _tar(_hostile_names), None, 9, 0, in_job=True),
    TableCase("special.tar", "tars", _tar(_special_members), None, 1, 0, in_job=True),
    TableCase("cut.tar", "tars", _tar(
        lambda: tar({f"{i}.mp4": whole("index-last.mp4") for i in range(4)})[:11_000]),
        None, 4, 1, in_job=True),
    TableCase("huge_member.tar", "tars", _tar(_huge_member), None, 1, 1, in_job=True),
    TableCase("huge_name.tar", "tars", _tar(_huge_name), None, 1, 1),
    TableCase("gzipped.tar", "tars", _tar(lambda: gzip.compress(tar({"a.mp4": b"x"}))), None, 1, 1),
    TableCase("noise.tar", "tars", _tar(lambda: random.Random(0).randbytes(50_000)), None, 1, 1),
    TableCase("zeros.tar", "tars", _tar(lambda: bytes(20_480)), "has no rows"),
    TableCase("empty.tar", "tars", _tar(lambda: b""), None, 1, 1),
    TableCase("same_names.tar", "tars",
              _tar(lambda: tar({"a.mp4": b"x"})[:1024] + tar({"a.mp4": b"y"})),
              None, 1, 0),
    TableCase("many_members.tar", "tars",
              _tar(lambda: tar({f"{i}.mp4": b"" for i in range(11_000)})), None,
              11_000, 0),
]  # fmt: skip

_ROWS = [(f"/v{i}.mp4", f"text {i}") for i in range(50)]
WHOLE: dict[str, bytes] = {
    "t.csv": ("url,name\n" + "".join(f'{u},"{n}"\n' for u, n in _ROWS)).encode(),
    "t.tsv": ("url\tname\n" + "".join(f"{u}\t{n}\n" for u, n in _ROWS)).encode(),
    "t.jsonl": "".join(json.dumps({"url": u, "name": n}) + "\n" for u, n in _ROWS).encode(),
    "t.csv.gz": gzip.compress(("url,name\n" + "".join(f"{u},{n}\n" for u, n in _ROWS)).encode(),
                              mtime=0),
    "t.parquet": parquet({"url": [u for u, _ in _ROWS], "name": [n for _, n in _ROWS]}),
    "t.tar": tar({f"{i}.{kind}": b"x" * 600 for i in range(9) for kind in ("mp4", "txt", "json")}),
}  # fmt: skip


def damage(data: bytes, rng: random.Random) -> bytes:
    """Damage a table in one of several ways."""
    damaged = bytearray(data)
    start = rng.randrange(len(data))
    match rng.randrange(5):
        case 0:
            del damaged[start:]
        case 1:
            for _ in range(rng.choice([1, 3, 30])):
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            damaged[start : start + 100] = bytes(100)
        case 3:
            damaged[start : start + 50] = rng.randbytes(50)
        case _:
            del damaged[start : start + rng.choice([1, 10, 512])]
    return bytes(damaged)


def _damaged(seed: int, number: int, name: str) -> TableCase:
    def make(folder: Path) -> dict[str, Any]:
        data = damage(WHOLE[name], random.Random(f"table {seed} {number}"))
        return (_tar(lambda: data) if name.endswith("tar") else _table(name, data))(folder)

    return TableCase(f"d{number:03}_{name}", "damaged tables", make, error="")
