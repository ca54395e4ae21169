"""WebDataset tars: intact, unusual and damaged."""

import functools
import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import S3Bucket
from tests.sources.reading import OPTIONS, Rows, opened, problems, tar, uris, write
from tests.sources.reading import read as read_source
from tests.storage.fault_proxy import FaultProxy
from tokpipe.sources.webdataset import TEXT_BYTES
from tokpipe.storage import Store, fetch_to_file
from tokpipe.storage.left_out import OVERWRITTEN
from tokpipe.types import ArchiveMember

CASES = Path(__file__).parents[1] / "cases" / "tables"
read = functools.partial(read_source, "webdataset")


def read_tar(folder: Path, content: bytes | bytearray) -> Rows:
    return read(write(folder / "x.tar", content))


def names(rows: Rows) -> list[str]:
    return [row["source_uri"].partition("#")[2] for row in rows if row["problem"] is None]


def test_videos_are_indexed_in_place_with_the_texts_of_their_key(tmp_path: Path) -> None:
    members = [
        *(("a.json", b'{"n": 1}'), ("a.mp4", b"video a"), ("a.txt", "ä caption".encode())),
        *(("sub/b.MP4", b"video b"), ("c.webm", b"video c"), ("c.jpg", b"no clip")),
    ]
    path = write(tmp_path / "x.tar", tar(members))
    rows = read(path)
    texts = [("a", "ä caption", '{"n": 1}'), ("sub/b", None, None), ("c", None, None)]
    assert [(row["key"], row["txt"], row["json"]) for row in rows] == texts
    assert uris(rows) == [f"{path}#{name}" for name in ("a.mp4", "sub/b.MP4", "c.webm")]
    data = path.read_bytes()
    for row, video in zip(rows, (b"video a", b"video b", b"video c"), strict=True):
        start = row["member_offset"]
        assert (row["archive_uri"], data[start : start + row["member_size"]]) == (str(path), video)


def test_texts_far_from_their_video_are_found(tmp_path: Path) -> None:
    members = [(f"{i}.mp4", b"v") for i in range(50)] + [(f"{i}.txt", b"%d" % i) for i in range(50)]
    assert [row["txt"] for row in read_tar(tmp_path, tar(members))] == [str(i) for i in range(50)]


def test_names_with_several_dots_have_separate_texts(tmp_path: Path) -> None:
    members = [("a.1.mp4", b"v"), ("a.1.txt", b"one"), ("a.2.mp4", b"v"), ("a.2.txt", b"two")]
    rows = read_tar(tmp_path, tar([*members, ("a.json", b"both")]))
    found = [(row["key"], row["txt"], row["json"]) for row in rows]
    assert found == [("a", "one", "both"), ("a", "two", "both")]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_are_kept_and_never_used_as_paths(tmp_path: Path, kind: int) -> None:
    hostile = ["../../etc/a.mp4", "/abs/b.mp4", "ü" * 20 + "/c.mp4", "d" * 90 + ".mp4", "e#f.mp4"]
    if kind != tarfile.USTAR_FORMAT:
        hostile.append("g" * 300 + "/" + "h" * 300 + ".mp4")
    not_utf8 = os.fsdecode(b"bad\xff.mp4") if kind == tarfile.GNU_FORMAT else "bad.mp4"
    *found, last = names(read_tar(tmp_path, tar(dict.fromkeys([*hostile, not_utf8], b"v"), kind)))
    assert found == hostile
    assert last == ("bad\\xff.mp4" if kind == tarfile.GNU_FORMAT else "bad.mp4")


REG, LNK, SYM, DIR = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


Member = tuple[str, bytes, bytes | str]


def packed(*members: Member) -> bytes:
    """A tar of (name, type, data or target)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, member_type, content in members:
            member = tarfile.TarInfo(name)
            member.type = member_type
            data = content if isinstance(content, bytes) else b""
            member.size, member.linkname = len(data), "" if data else str(content)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def contents(path: Path) -> dict[str, Any]:
    """The data of each sample of a tar by its name, or the problem of its row."""
    data = path.read_bytes()
    found: dict[str, Any] = {}
    for row in read(path):
        name, start = row["source_uri"].partition("#")[2], row["member_offset"]
        assert name not in found
        found[name] = row["problem"] or data[start : start + row["member_size"]]
    return found


OF_OTHER_KINDS: dict[str, tuple[Member, str]] = {
    "hard link": (("l.mp4", LNK, "real.mp4"), "a link to real.mp4; pack the files with tar -h"),
    "symbolic link": (("d/l.mp4", SYM, "../real.mp4"), "a link to ../real.mp4; pack"),
    "link to nothing": (("l.mp4", SYM, "none.mp4"), "a link to none.mp4; pack"),
    "link outside": (("l.mp4", SYM, "/real.mp4"), "a link to /real.mp4; pack"),
    "link to itself": (("l.mp4", LNK, "l.mp4"), "a link to l.mp4; pack"),
    "pipe": (("l.mp4", tarfile.FIFOTYPE, ""), "sparse, a device or a pipe"),
    "device": (("l.mp4", tarfile.CHRTYPE, ""), "sparse, a device or a pipe"),
    "of an unknown type": (("l.mp4", b"Z", b"data"), "sparse, a device or a pipe"),
}


@pytest.mark.parametrize("kind", OF_OTHER_KINDS)
def test_a_member_without_data_in_one_place_is_a_problem(kind: str, tmp_path: Path) -> None:
    member, problem = OF_OTHER_KINDS[kind]
    before: Member = ("real.mp4", REG, b"real")
    after: Member = ("later.mp4", REG, b"later")
    found = contents(write(tmp_path / "x.tar", packed(before, member, after)))
    assert (found["real.mp4"], found["later.mp4"], len(found)) == (b"real", b"later", 3)
    assert f"x.tar: its member {member[0]} is {problem}" in found[member[0]]


def test_links_of_tars_are_problems_that_name_their_targets() -> None:
    hard, symbolic = (contents(CASES / f"{kind}link.tar") for kind in ("hard", "sym"))
    assert hard["a.mp4"][4:8] == symbolic["a.mp4"][4:8] == b"ftyp"
    for tar_of_links in (hard, symbolic):
        assert "its member b.mp4 is a link to a.mp4; pack the files" in tar_of_links["b.mp4"]
    assert "c.mp4 is a link to missing/zz.mp4; pack the files" in symbolic["c.mp4"]
    assert [row["txt"] is None for row in read(CASES / "hardlink.tar")] == [True, False]


def test_what_is_neither_a_video_nor_its_text_is_counted(tmp_path: Path) -> None:
    members: list[Member] = [
        *(("folder.mp4", DIR, ""), ("folder", DIR, ""), ("._apple.mp4", REG, b"v")),
        *(("mp4", REG, b"v"), ("a.txt", REG, b"caption"), ("b.txt", LNK, "a.txt")),
        *(("c.txt", SYM, "none"), ("link", SYM, "a.mp4")),
        *((f"{name}.mp4", REG, b"v") for name in "abc"),
        *(("orphan.json", REG, b"{}"), ("a.2.txt", REG, b"of no video")),
    ]
    source = opened("webdataset", write(tmp_path / "x.tar", packed(*members)))
    (batch,) = source.batches()
    assert batch.column("key").to_pylist() == ["a", "b", "c"]
    assert batch.column("txt").to_pylist() == ["caption", None, None]
    assert source.listing.left_out.names == {
        "hidden": ["._apple.mp4"],
        "without an extension": ["link", "mp4"],
        ".txt": ["a.2.txt", "b.txt", "c.txt"],
        ".json": ["orphan.json"],
    }


def test_the_last_of_a_name_wins_with_its_texts_and_the_others_are_counted(tmp_path: Path) -> None:
    members: list[Member] = [
        member
        for n in range(3)
        for member in (
            *(("a.mp4", REG, b"1%d" % n), ("a.txt", REG, b"2%d" % n)),
            (f"b{n}.mp4", REG, b"b"),
        )
    ]
    path = write(tmp_path / "x.tar", packed(*members, ("./b1.mp4", REG, b"new")))
    source = opened("webdataset", path)
    (batch,) = source.batches()
    rows = {row["source_uri"].partition("#")[2]: row["txt"] for row in batch.to_pylist()}
    assert rows == {"a.mp4": "22", "b0.mp4": None, "b2.mp4": None, "./b1.mp4": None}
    found = contents(path)
    assert (found["a.mp4"], found["./b1.mp4"]) == (b"12", b"new")
    assert source.listing.left_out.counts == {OVERWRITTEN: 5}


def test_what_follows_an_end_mark_is_read_or_a_problem(tmp_path: Path) -> None:
    one, two = (tar([(f"{name}.mp4", name.encode() * 700)]) for name in "ab")
    empty, path = tar([]), tmp_path / "x.tar"
    both = {"a.mp4": b"a" * 700, "b.mp4": b"b" * 700}
    for joined in (one + two, empty + one + two, one + bytes(5 * 2**20) + two + empty):
        assert contents(write(path, joined)) == both
    assert contents(write(path, one[:2048] + two)) == both, "one block of zeros"
    (problem,) = problems(read_tar(tmp_path, one + b"rubbish" * 100 + two)).values()
    assert "has no header at byte 10240" in problem


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax"]
)
def test_a_sparse_video_is_a_problem_and_the_members_after_it_are_read(
    form: str, tmp_path: Path
) -> None:
    (tmp_path / "after.mp4").write_bytes(b"after")
    for name in ("holes.mp4", "holes.txt"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"start")
            file.truncate(50 * 2**20)
    command = f"tar --format={form} --sparse -cf x.tar holes.txt holes.mp4 after.mp4"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 2**20
    found = contents(tmp_path / "x.tar")
    assert found.pop("after.mp4") == b"after"
    assert "its member holes.mp4 is sparse, a device" in found.pop("holes.mp4")
    assert found == {}


def test_every_video_extension_is_a_clip_and_other_members_are_counted(tmp_path: Path) -> None:
    videos = ["a.mp4", "b.MOV", "c.ts", "d.M4V", "e.3gp"]
    others = ["a.jpg", "b.JPG", "c.wav", "._d.mp4", "README", "a.txt", "a.json"]
    for number in range(3):
        write(tmp_path / f"{number}.tar", tar(dict.fromkeys([*videos, *others], b"{}")))
    write(tmp_path / "3.TAR", b"")
    source = opened("webdataset", tmp_path / "*.tar")
    for _ in range(2):
        assert sum(batch.num_rows for batch in source.batches()) == 3 * len(videos)
        assert source.listing.left_out.counts == {
            ".jpg": 6,
            ".wav": 3,
            "hidden": 3,
            "without an extension": 3,
            ".tar": 1,
        }
    assert len(read(tmp_path / "{0..2}.tar", video_extensions=(".MOV", "Ts"))) == 6


def test_a_text_above_the_size_limit_is_not_carried(tmp_path: Path) -> None:
    members = [("a.mp4", b"v"), ("a.txt", b"x" * (TEXT_BYTES + 1)), ("a.json", b"x" * TEXT_BYTES)]
    (row,) = read_tar(tmp_path, tar(members))
    assert row["txt"] is None
    assert len(row["json"]) == TEXT_BYTES


def test_a_cut_tar_yields_its_whole_members_and_a_problem(tmp_path: Path) -> None:
    whole = tar((f"{i}.mp4", bytes([i]) * 1000) for i in range(5))
    path = tmp_path / "x.tar"
    for end in range(0, 5 * 1536, 100):
        rows = read_tar(tmp_path, whole[:end])
        num_whole = sum(end >= i * 1536 + 512 + 1000 for i in range(5))
        assert names(rows) == [f"{i}.mp4" for i in range(num_whole)]
        # A cut between two members leaves a tar that only lacks its end mark.
        if end and end % 1536 == 0:
            assert [row["problem"] for row in rows if row["problem"]] == []
        else:
            (problem,) = (row for row in rows if row["problem"] is not None)
            assert problem["source_uri"] == str(path)
            assert str(path) in problem["problem"]


def test_a_damaged_header_is_not_mistaken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(tar((f"{i}.mp4", b"v") for i in range(5)))
    data[2 * 1024 + 150] ^= 1  # within the checksum of the third header
    rows = read_tar(tmp_path, data)
    assert names(rows) == ["0.mp4", "1.mp4"]
    assert "no header at byte 2048" in rows[-1]["problem"]


def test_files_that_are_not_tars_are_problems_and_others_are_read(tmp_path: Path) -> None:
    one = tar([("a.mp4", b"v")])
    contents = {"empty": b"", "packed": gzip.compress(one), "tar": one, "text": b"not a tar" * 1000}
    for name, content in contents.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "link.tar").symlink_to("nowhere")
    rows = read(tmp_path / "*.tar")
    assert names(rows) == ["a.mp4"]
    found = {Path(uri).stem: problem for uri, problem in problems(rows).items()}
    assert list(found) == ["empty", "folder", "link", "packed", "text"]
    assert "is not a tar" in found["empty"]
    assert "is not a tar" in found["text"]
    assert "is compressed" in found["packed"]


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type = tarfile.XHDTYPE
    header.size = 7 * 2**30
    content = tar([("a.mp4", b"v")])[:1024] + header.tobuf(tarfile.USTAR_FORMAT)
    path = write(tmp_path / "x.tar", content)
    os.truncate(path, 8 * 2**30)  # sparse: takes no disk space
    rows = read(path)
    assert names(rows) == ["a.mp4"]
    assert "has a header of" in rows[-1]["problem"]


def test_a_map_of_a_sparse_member_is_not_read_without_limit(tmp_path: Path) -> None:
    """A map of 64 KiB is read; one as long as a tar would take 18 times its size in memory."""
    for num, is_read in ((15_000, True), (2_200_000, False)):
        body = b"%d\n" % num + b"1\n" * 2 * num
        header = tarfile.TarInfo("a.mp4")
        header.size = len(body)
        sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
        header.pax_headers = sparse
        content = header.tobuf(tarfile.PAX_FORMAT) + body + bytes(-len(body) % 512)
        rows = read(write(tmp_path / "x.tar", content + tar([("b.mp4", b"b")])))
        assert ("b.mp4" in names(rows)) == is_read
        assert ("has a header of" in str(rows[-1]["problem"])) != is_read


@pytest.mark.s3
def test_tars_on_s3_are_indexed_without_reading_the_videos(
    s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    videos = [os.urandom(2**20) for _ in range(4)]
    members = [
        (f"{i}.{end}", data)
        for i, v in enumerate(videos)
        for end, data in (("json", b"{}"), ("mp4", v), ("txt", b"caption"))
    ]
    store = Store(s3_bucket.uri, OPTIONS)
    for number in range(3):
        store.put(f"wds/{number}.tar", tar(members))
    with FaultProxy(s3_bucket.server.endpoint) as proxy:
        rows = read(f"{s3_bucket.uri}/wds/*.tar", proxy.options())
        # Per tar: its size, one window at the start and one after each video.
        gets = [request for request in proxy.requests if "/wds/" in request.path]
    assert len(rows) == 12
    assert len(gets) <= 3 * (1 + 1 + 2 * 4)
    row = rows[5]
    assert (row["source_uri"], row["txt"]) == (f"{s3_bucket.uri}/wds/1.tar#1.mp4", "caption")
    member = ArchiveMember(row["archive_uri"], row["member_offset"], row["member_size"])
    video = fetch_to_file(row["source_uri"], member, options=OPTIONS, max_bytes=2**30)
    assert video.path.read_bytes() == videos[1]


@settings(max_examples=150)
@given(
    flips=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 8192),
)
def test_a_damaged_tar_never_yields_members_outside_of_it(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    members = [("a.mp4", b"v" * 700), ("a.txt", b"t"), ("n" * 200 + ".mp4", b"w" * 100)]
    data = bytearray(tar(members, tarfile.PAX_FORMAT))
    for at, value in flips:
        if at < len(data):
            data[at] = value
            header = at // 512 * 512  # repair the checksum, so that reading continues
            if data[header + 257 : header + 262] == b"ustar":
                data[header + 148 : header + 156] = b" " * 8
                data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    path = write(tmp_path_factory.mktemp("tar") / "x.tar", data[: cut or len(data)])
    for row in read(path):
        if row["problem"] is None:
            assert row["member_offset"] >= 0
            assert row["member_offset"] + row["member_size"] <= path.stat().st_size
