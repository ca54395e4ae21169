"""Files by glob."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Bucket
from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import FilesSource
from tokpipe.errors import ConfigError
from tokpipe.sources.files import FilesRows
from tokpipe.storage import open_store

OPTIONS = StoreOptions(deadline_s=10)


def read(uri: object) -> list[dict[str, Any]]:
    rows = FilesRows(f"sources[0] (files {uri})", FilesSource(kind="files", uri=str(uri)), OPTIONS)
    return [row for batch in rows.batches() for row in batch.to_pylist()]


def test_files_come_sorted_by_their_bytes(tmp_path: Path) -> None:
    names = ["b.mp4", "B.mp4", "a/z.mp4", "é.mp4", "a.mp4", "a b.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = read(f"{tmp_path}/**/*.mp4")
    ordered = sorted(names, key=lambda name: name.encode())
    assert [row["source_uri"] for row in rows] == [f"{tmp_path}/{name}" for name in ordered]
    assert {row["problem"] for row in rows} == {None}


def test_what_no_clip_can_come_of_is_a_row_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4")).touch()
    problems = {
        row["source_uri"].removeprefix(f"{tmp_path}/"): row["problem"]
        for row in read(f"{tmp_path}/*.mp4")
    }
    assert list(problems) == ["bad\\xff.mp4", "folder.mp4", "link.mp4", "pipe.mp4"]
    assert "is not valid UTF-8; rename" in problems["bad\\xff.mp4"]
    assert "is a folder" in problems["folder.mp4"]
    # Only opening tells what these are: decoding will refuse them with its own reason.
    assert (problems["pipe.mp4"], problems["link.mp4"]) == (None, None)


@pytest.mark.parametrize("pattern", ["*.mp4", "none.mp4", "**/x/*.mp4"])
def test_nothing_found_is_the_job_files_fault(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.mkv").touch()
    with pytest.raises(ConfigError, match="nothing matches"):
        read(tmp_path / pattern)


@pytest.mark.s3
def test_files_are_found_on_s3(s3_bucket: S3Bucket) -> None:
    store = open_store(s3_bucket.uri, OPTIONS)
    for name in ("raw/b.mp4", "raw/x/a.mp4", "raw/note.txt"):
        store.put(name, b"1")
    found = [row["source_uri"] for row in read(f"{s3_bucket.uri}/raw/**/*.mp4")]
    assert found == [f"{s3_bucket.uri}/raw/b.mp4", f"{s3_bucket.uri}/raw/x/a.mp4"]
