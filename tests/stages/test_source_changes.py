"""Sources that change between plan and decoding: files, objects, members of tars."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import TOKENIZER
from tests.videos import numbers_of, write_video
from tokpipe.config import JobConfig, parse_job
from tokpipe.config.job import StoreOptions
from tokpipe.identity import row_digests
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.plan.stored import read_part, store_part
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store, StoredObject
from tokpipe.storage.client import Client
from tokpipe.types import DecodedClip, EncodedClip, Rejected, WorkItem

NAMES = ("a.mp4", "b.mp4", "c.mp4")
Outcome = int | str
"""First number of the video that was decoded, or the reason of its rejection."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three videos that begin with the numbers 10, 20 and 30, and another with 40."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_video(folder / name, 4 + k, first_number=10 * (k + 1)).read_bytes()
        for k, name in enumerate((*NAMES, "other.mp4"))
    }


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecodeStage]:
    root = tmp_path_factory.mktemp("stage")
    job = job_of(root, {"kind": "files", "uri": "*.mp4"})
    made = DecodeStage(job.sampling, job.frames, job.decode, job.storage)
    made.setup()
    yield made
    made.close()


def job_of(root: Path, source: dict[str, Any]) -> JobConfig:
    job = {
        "dataset": "test",
        "sources": [source],
        "output": {"uri": "out"},
        "sampling": {"fps": None, "max_clip_frames": 4, "min_clip_frames": 1},
        "frames": {"size": [48, 64], "fit": "stretch"},
        "tokenizer": TOKENIZER,
    }
    return parse_job(json.dumps(job), name="test.yaml", root=root)


class Planned:
    """A job that is planned once, and whose sources are then decoded, as they are by then."""

    def __init__(self, root: Path, stage: DecodeStage, source: dict[str, Any]) -> None:
        self.root, self.stage, self.source = root, stage, source
        job = job_of(root, source)
        self.store = Store(job.output.uri, StoreOptions())
        self.plan = write_plan(job, self.store, "attempt")

    def items(self, on_change: str = "reject") -> list[WorkItem]:
        plan = StoredPlan.from_json(json.loads(json.dumps(asdict(self.plan))))
        sources = job_of(self.root, {**self.source, "on_change": on_change}).sources
        return PlanReader(self.store, plan, sources).items(range(plan.num_rows))

    def outcomes(self, on_change: str = "reject") -> dict[str, Outcome]:
        return {
            result.ref.source_uri.replace("#", "/").rpartition("/")[2]: numbers_of(result.frames)[0]
            if isinstance(result, DecodedClip)
            else result.reason
            for result in self.stage.process(self.items(on_change))
            if not isinstance(result, EncodedClip)
        }


def replaced(path: Path, data: bytes) -> None:
    path.with_name("new").write_bytes(data)
    path.with_name("new").rename(path)


def copied(path: Path, _: bytes) -> None:
    shutil.copy2(path, path.with_name("new"))
    path.with_name("new").rename(path)


def padded(path: Path, _: bytes) -> None:
    status = path.stat()
    with path.open("ab") as file:
        file.write(bytes(8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


FILES: dict[str, tuple[Callable[[Path, bytes], object], Outcome, Outcome]] = {
    "nothing": (lambda path, _: None, 20, 20),
    "copied with its times": (copied, 20, 20),
    "replaced": (replaced, "changed", 40),
    "written again": (lambda path, data: path.write_bytes(data), "changed", 40),
    "touched": (lambda path, _: os.utime(path, (1, 1)), "changed", 20),
    "of another size": (padded, "changed", 20),
    "gone": (lambda path, _: path.unlink(), "missing", "missing"),
}


@pytest.mark.parametrize("change", FILES)
def test_a_file_that_is_not_what_was_planned_is_rejected_or_followed(
    change: str, tmp_path: Path, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(videos[name])
    planned = Planned(tmp_path, stage, {"kind": "files", "uri": "*.mp4"})
    act, rejected, accepted = FILES[change]
    act(tmp_path / "b.mp4", videos["other.mp4"])
    assert planned.outcomes() == {"a.mp4": 10, "b.mp4": rejected, "c.mp4": 30}
    assert planned.outcomes("accept") == {"a.mp4": 10, "b.mp4": accepted, "c.mp4": 30}


def packed(*members: tuple[str, bytes], mtime: int = 0) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


TARS: dict[str, tuple[Callable[[dict[str, bytes]], bytes], Sequence[Outcome], Sequence[Outcome]]]
TARS = {
    "nothing": (
        lambda v: packed(*((name, v[name]) for name in NAMES)),
        (10, 20, 30),
        (10, 20, 30),
    ),
    "another appended": (
        lambda v: packed(*((name, v[name]) for name in (*NAMES, "other.mp4"))),
        (10, 20, 30),
        (10, 20, 30),
    ),
    "two in another order": (
        lambda v: packed(*((name, v[name]) for name in ("b.mp4", "a.mp4", "c.mp4"))),
        ("changed", "changed", 30),
        (10, 20, 30),
    ),
    "names exchanged": (
        lambda v: packed(("b.mp4", v["a.mp4"]), ("a.mp4", v["b.mp4"]), ("c.mp4", v["c.mp4"])),
        ("changed", "changed", 30),
        (20, 10, 30),
    ),
    "one removed": (
        lambda v: packed(*((name, v[name]) for name in ("a.mp4", "c.mp4"))),
        (10, "changed", "changed"),
        (10, "missing", 30),
    ),
    "the last one removed": (
        lambda v: packed(*((name, v[name]) for name in ("a.mp4", "b.mp4"))).rstrip(b"\0"),
        (10, 20, "changed"),
        (10, 20, "missing"),
    ),
    "another under the same header": (
        lambda v: packed(
            *((name, v[name]) for name in NAMES[:2]),
            ("c.mp4", v["a.mp4"].ljust(len(v["c.mp4"]), b"\0")),
        ),
        (10, 20, "changed"),
        (10, 20, 10),
    ),
    "of another time": (
        lambda v: packed(*((name, v[name]) for name in NAMES), mtime=1),
        ("changed",) * 3,
        (10, 20, 30),
    ),
    "not a tar any more": (
        lambda v: b"x" * 10**5,
        ("changed",) * 3,
        ("missing",) * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", TARS)
def test_members_that_moved_in_a_tar_are_rejected_or_found_by_name(
    change: str, tmp_path: Path, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(packed(*((name, videos[name]) for name in NAMES)))
    planned = Planned(tmp_path, stage, {"kind": "webdataset", "uri": "x.tar"})
    pack, rejected, accepted = TARS[change]
    tar.write_bytes(pack(videos))
    assert planned.outcomes() == dict(zip(NAMES, rejected, strict=True))
    assert planned.outcomes("accept") == dict(zip(NAMES, accepted, strict=True))


def test_videos_in_a_table_that_was_written_again_are_rejected_or_read_by_row(
    tmp_path: Path, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    path = tmp_path / "t.parquet"
    rows = [{"bytes": videos[name], "path": None} for name in NAMES]
    pq.write_table(pa.table({"video": rows}), path)
    planned = Planned(tmp_path, stage, {"kind": "table", "uri": "t.parquet", "uri_column": "video"})
    names = [f"video={row}" for row in (1, 2, 3)]
    assert planned.outcomes() == dict(zip(names, (10, 20, 30), strict=True))
    pq.write_table(pa.table({"video": rows[::-1]}), path)
    assert planned.outcomes() == dict.fromkeys(names, "changed")
    assert planned.outcomes("accept") == dict(zip(names, (30, 20, 10), strict=True))


@pytest.mark.s3
def test_an_object_is_known_by_what_its_listing_says(
    tmp_path: Path, s3_bucket: S3Bucket, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    objects = Store(s3_bucket.uri, StoreOptions())
    for name in NAMES:
        objects.put(f"v/{name}", videos[name])
    objects.put("x.tar", packed(*((name, videos[name]) for name in NAMES)))
    source = {"kind": "files", "uri": f"{s3_bucket.uri}/v/"}
    files = Planned(tmp_path / "files", stage, source)
    named = Planned(tmp_path / "named", stage, {**source, "uri": f"{s3_bucket.uri}/v/b.mp4"})
    tar = Planned(tmp_path / "tar", stage, {"kind": "webdataset", "uri": f"{s3_bucket.uri}/*.tar"})
    assert len({item.version for item in files.items()} - {None}) == len(NAMES)
    assert named.items()[0].version == files.items()[1].version
    objects.put("v/a.mp4", videos["a.mp4"])  # the same content again
    objects.put("v/b.mp4", videos["other.mp4"])
    objects.put("x.tar", packed(*((name, videos[name]) for name in ("b.mp4", "a.mp4", "c.mp4"))))
    assert files.outcomes() == {"a.mp4": 10, "b.mp4": "changed", "c.mp4": 30}
    assert files.outcomes("accept") == {"a.mp4": 10, "b.mp4": 40, "c.mp4": 30}
    assert named.outcomes() == {"b.mp4": "changed"}
    assert tar.outcomes() == {"a.mp4": "changed", "b.mp4": "changed", "c.mp4": 30}
    assert tar.outcomes("accept") == {"a.mp4": 10, "b.mp4": 20, "c.mp4": 30}


@pytest.mark.s3
def test_a_store_whose_listings_say_something_else_is_not_taken_at_its_word(
    tmp_path: Path,
    s3_bucket: S3Bucket,
    videos: dict[str, bytes],
    stage: DecodeStage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Store(s3_bucket.uri, StoreOptions()).put("a.mp4", videos["a.mp4"])
    of_listing = Client.iter_objects

    def other(self: Client, *args: Any) -> Iterator[StoredObject]:
        return (replace(found, version=1) for found in of_listing(self, *args))

    monkeypatch.setattr(Client, "iter_objects", other)
    planned = Planned(tmp_path, stage, {"kind": "files", "uri": f"{s3_bucket.uri}/*.mp4"})
    assert [item.version for item in planned.items()] == [None]
    assert planned.outcomes() == {"a.mp4": 10}


def test_the_clips_of_a_source_that_the_plan_does_not_know_come_from_one_version(
    tmp_path: Path, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    (tmp_path / "c.mp4").write_bytes(videos["c.mp4"])
    (tmp_path / "t.csv").write_text("url\nc.mp4\n")
    planned = Planned(tmp_path, stage, {"kind": "table", "uri": "t.csv", "uri_column": "url"})
    (item,) = planned.items()
    assert item.version is None
    (first,) = stage.process([item])
    assert isinstance(first, DecodedClip)
    second = replace(item, segment=1, num_segments=first.ref.num_segments, version=first.version)
    (result,) = stage.process([second])
    assert isinstance(result, DecodedClip)
    replaced(tmp_path / "c.mp4", videos["other.mp4"])
    (result,) = stage.process([second])
    assert isinstance(result, Rejected)
    assert result.reason == "changed"


def test_a_plan_without_versions_is_read_and_ids_do_not_depend_on_them(
    tmp_path: Path, videos: dict[str, bytes], stage: DecodeStage
) -> None:
    (tmp_path / "a.mp4").write_bytes(videos["a.mp4"])
    planned = Planned(tmp_path, stage, {"kind": "files", "uri": "*.mp4"})
    (item,) = planned.items()
    uri = str(tmp_path / "a.mp4").encode()
    assert item.row_id == row_digests("test", [uri], [bytes(18)])[0].hex()
    (part,) = planned.plan.parts
    table = read_part(planned.store, part).drop_columns("source_version")
    older = store_part(planned.store, part.key, table, 0)
    planned.plan = replace(planned.plan, parts=(older,))
    assert planned.items() == [replace(item, version=None)]
    os.utime(tmp_path / "a.mp4", (1, 1))
    assert planned.outcomes() == {"a.mp4": 10}
