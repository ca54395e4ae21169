"""Hostile tables and tars: sources of a job, and what planning must find in them."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.corpus import whole
from tests.sources.reading import tar

Data = str | bytes | Mapping[str, Any] | Callable[..., Any] | None
"""Text, bytes, or the columns of a Parquet file; what returns one of them; or None for no file."""
Expected = str | tuple[int | None, int | None]
"""Pattern of the ``ConfigError``; or the number of rows, and of unusable ones, where certain."""


@dataclass(frozen=True)
class TableCase:
    """One hostile source, named like its file."""

    name: str
    family: str
    data: Data
    expected: Expected
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_job(self) -> bool:
        """Whether the whole job reads it too."""
        return self.name in _IN_JOB

    def make(self, folder: Path) -> dict[str, Any]:
        """Write it into its own folder, and return the source for a job file."""
        path = folder / f"t.{self.name.partition('.')[2]}"
        if self.data is Path.mkdir:
            path.mkdir()
        elif self.data is not None:
            data = self.data() if callable(self.data) else self.data
            data = parquet(data) if isinstance(data, Mapping) else data
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        if self.name.endswith(".tar"):
            return {"kind": "webdataset", "uri": str(path)}
        column = {} if "uri_template" in self.config else {"uri_column": "url"}
        # Most cases are about something else, so videos may be anywhere.
        prefixes = {"allowed_prefixes": ["/"]}
        return {"kind": "table", "uri": str(path), **column, **prefixes, **self.config}


def table_cases(num_damaged: int, seed: int) -> list[TableCase]:
    """Return all named cases and ``num_damaged`` generated ones; case k depends on seed and k."""
    named = (
        TableCase(name, family, *case)
        for family, cases in _NAMED.items()
        for name, case in cases.items()
    )
    kinds = list(WHOLE)
    return [*named, *(_damaged(seed, k, kinds[k % len(kinds)]) for k in range(num_damaged))]


def parquet(columns: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


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


_TIMES = ["1", "x", "-1", "nan", "inf", "1e999", "99:99:99", "\u0663", "1" * 400]
_ODD_NAMES = ["\0", "a\0b", "\n", "a\nb", "\u202e", "%00", "*", "[a", "{a}", "?", "#", "a#b"]
_ODD_NAMES += ["x" * 100_000, "/" * 5000]
_IN_JOB = {
    *("nulls.csv", "paths.csv", "schemes.csv", "odd_names.jsonl"),
    *("names.tar", "special.tar", "cut.tar", "huge_member.tar"),
}

_Case = tuple[Data, Expected] | tuple[Data, Expected, Mapping[str, Any]]
_NAMED: dict[str, dict[str, _Case]] = {
    "missing columns": {
        "empty.csv": ("", "empty"),
        "no_rows.csv": ("url\n", "has no rows"),
        "other_column.csv": ("uri\nx\n", "its columns are uri"),
        "no_column.jsonl": ('{"a": 1}\n', "names a"),
        "no_objects.jsonl": ("1\n2\n", "none of its 2"),
        "no_column.parquet": ({"a": [1]}, "names a column"),
        "no_template_column.csv": (
            "a\n1\n", "names a column 'b'", {"uri_template": "/v/{b}.mp4"}),
        "empty.jsonl": ("\n\n", "none of its 0"),
        "nowhere.csv": (None, "nothing matches"),
        "folder.csv": (Path.mkdir, "."),
    },
    "nulls": {
        "nulls.csv": ("url,b\n,1\n  ,2\n/v.mp4,3\n", (3, 2)),
        "nulls.jsonl": ('{"url": null}\n{"b": 1}\n{"url": ""}\n{"url": "/v.mp4"}\n', (4, 3)),
        "nulls.parquet": ({"url": [None, "", "/v.mp4"]}, (3, 2)),
        "all_null.parquet": ({"url": pa.nulls(3)}, (3, 3)),
        "null_template.csv": (
            "a,b\n,1\n2,\n3,4\n", (3, 2), {"uri_template": "/v/{a}/{b}.mp4"}),
    },
    "duplicate ids": {
        "duplicates.csv": ("url\n/a\n/a\n/a\n", (1, 0)),
        "duplicate_columns.csv": ("url,url\n/a,/b\n", (1, 0)),
        "own_names.csv": ("url,clip_id,codes,row_id,Problem\n/a,1,2,3,4\n", (1, 0)),
    },
    "paths in tables": {
        "paths.csv": (
            "url\n/etc/passwd\n../../../../etc/passwd\n/dev/zero\n/proc/self/environ\n.\n..\n/\n"
            "~/x.mp4\n//host/x\n\\\\host\\x\n", (10, None), {"allowed_prefixes": None}),
        "schemes.csv": (
            "url\nfile:///etc/passwd\nfile://host/etc\nmemory://x.mp4\nnosuch://x\n"
            "zip://a::file:///etc/passwd\nhttp://127.0.0.1:9/x.mp4\ndata:,x\nlocal://etc\n"
            "simplecache::file:///etc/passwd\n://\nhttp://\ns3:\n",
            (12, None), {"allowed_prefixes": None}),
        "odd_names.jsonl": (
            "".join(json.dumps({"url": name}) + "\n" for name in _ODD_NAMES), (14, None)),
    },
    "spans": {
        "times.csv": (
            "url,s\n" + "".join(f"/v{i}.mp4,{text}\n" for i, text in enumerate(_TIMES)),
            (9, None), {"start_column": "s"}),
        "backwards.csv": ("url,s,e\n/v.mp4,5,1\n/w.mp4,0,0\n/x.mp4,1,2\n", (3, 2),
                          {"start_column": "s", "end_column": "e"}),
        "list_times.parquet": ({"url": ["/v"], "s": [[1.0]]}, "not seconds", {"start_column": "s"}),
    },
    "types": {
        "bytes_uri.parquet": ({"url": [b"/v"]}, (1, 0)),
        "number_uri.parquet": ({"url": [1]}, "not text"),
        "list_template.parquet": (
            {"a": [[1]]}, "cannot be part of a URI", {"uri_template": "/v/{a}.mp4"}),
        "bytes_template.parquet": (
            {"a": [b"\xff"]}, "cannot be part of a URI", {"uri_template": "/v/{a}.mp4"}),
        "struct_column.parquet": ({"url": ["/v"], "a": [{"b": [1], "c": {"d": None}}]}, (1, 0)),
        "not_utf8.parquet": ({"url": pa.StringArray.from_buffers(
            2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffv"))}, (2, 1)),
    },
    "encodings": {
        "utf16.csv": ("url\n/v.mp4\n".encode("utf-16"), "UTF-8"),
        "latin1.csv": (b"url\n/v\xe9.mp4\n/w.mp4\n", (2, 1)),
        "bom.csv": (b"\xef\xbb\xbfurl\n/v.mp4\n", (1, 0)),
        "nuls.csv": (b"url\n" + bytes(99) + b"\n/w.mp4\n", (2, None)),
        "utf16.jsonl": ('{"url": "/v.mp4"}\n'.encode("utf-16-le"), "."),
        "surrogates.jsonl": (
            b'{"url": "/\xed\xa0\x80.mp4"}\n{"url": "/\\ud800"}\n{"url": "/v"}\n', (3, 2)),
        "surrogate_key.jsonl": (b'{"url": "/v", "\xed\xa0\x80": 1}\n{"url": "/w"}\n', (2, 1)),
    },
    "huge": {
        "million_columns.csv": (lambda: "url" + ",c" * 1_000_000 + "\n", "more than 1000 columns"),
        "million_fields.csv": (lambda: "url\n" + "," * 1_000_000 + "\n/v.mp4\n", (2, 1)),
        "many_keys.jsonl": (
            lambda: "{" + ",".join(f'"{i}": 1' for i in range(50_000)) + "}\n",
            "more than 1000 columns"),
        "many_columns.parquet": ({f"c{i}": [1] for i in range(1500)}, "more than 1000 columns"),
        "endless_line.csv": (lambda: b"url\n" + b"x" * 20_000_000, (1, 1)),
        "endless_header.csv": (lambda: b"x" * 20_000_000, "not a header"),
    },
    "quotes": {
        "open_quote.csv": ('url,b\n"/v.mp4,1\n' + "/w.mp4,2\n" * 3, (None, 1)),
        "open_quotes.csv": (
            "url,b\n" + "".join(f'"/v{i}.mp4,1\n' for i in range(301)), (None, None)),
        "open_header.csv": ('"url\n/v.mp4\n', "not a header"),
    },
    "bombs": {
        "deep.jsonl": (b'{"url": "/v"}\n{"url": ' + b"[" * 100_000 + b"\n", (2, 1)),
        "deep_closed.jsonl": ("".join(
            f'{{"url": "/{depth}", "a": {"[" * depth}1{"]" * depth}}}\n'
            for depth in range(10, 1010, 10)), (100, None)),
        "long_number.jsonl": (
            '{"url": "/v", "a": ' + "9" * 10_000 + "}\n" + '{"url": "/w"}\n', (2, 0)),
        "infinity.jsonl": ('{"url": "/v", "a": 1e999, "b": NaN}\n', (1, 0)),
        "bomb_line.csv.gz": (lambda: _gzip_bomb(b"url\n", bytes(2**20), 256), (1, 1)),
        "bomb_rows.csv.gz": (
            lambda: _gzip_bomb(b"url,b\n", b",x\n" * 10_000, 3), (30_000, 30_000)),
    },
    "cut tables": {
        "cut.csv.gz": (gzip.compress(b"url\n" * 9999)[:60], "gzip"),
        "not_gzip.csv.gz": (b"\x1f\x8bjunk", "gzip"),
        "cut.parquet": (lambda: parquet({"url": ["/v"] * 99})[:-300], "as Parquet"),
        "text.parquet": ("url\n/v\n", "as Parquet"),
        "no_format.dat": ("url\n", "does not show its format"),
    },
    "tars": {
        "names.tar": (_hostile_names, (9, 0)),
        "special.tar": (_special_members, (6, 5)),
        "cut.tar": (
            lambda: tar({f"{i}.mp4": whole("index-last.mp4") for i in range(4)})[:11_000], (4, 1)),
        "huge_member.tar": (_huge_member, (1, 1)),
        "huge_name.tar": (_huge_name, (1, 1)),
        "gzipped.tar": (lambda: gzip.compress(tar({"a.mp4": b"x"})), (1, 1)),
        "noise.tar": (random.Random(0).randbytes(50_000), (1, 1)),
        "zeros.tar": (bytes(20_480), "has no rows"),
        "empty.tar": (b"", (1, 1)),
        "same_names.tar": (tar({"a.mp4": b"x"})[:1024] + tar({"a.mp4": b"y"}), (1, 0)),
        "many_members.tar": (lambda: tar({f"{i}.mp4": b"" for i in range(11_000)}), (11_000, 0)),
    },
}  # fmt: skip

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
    data = damage(WHOLE[name], random.Random(f"table {seed} {number}"))
    return TableCase(f"d{number:03}_{name}", "damaged tables", data, "")
