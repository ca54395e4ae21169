"""Files by glob, by name and in folders."""

import os
from pathlib import Path

import pytest

from tests.sources.reading import opened, problems, read, uris
from tokpipe.errors import ConfigError


def test_files_are_sorted_by_the_bytes_of_their_names(tmp_path: Path) -> None:
    names = ["b.mp4", "B.mp4", "a/z.mp4", "é.mp4", "a.mp4", "a b.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = read("files", f"{tmp_path}/**/*.mp4")
    ordered = sorted(names, key=lambda name: name.encode())
    assert uris(rows) == [f"{tmp_path}/{name}" for name in ordered]
    assert problems(rows) == {}


def test_a_file_that_cannot_be_a_clip_is_still_a_row(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4")).touch()
    rows = read("files", f"{tmp_path}/*.mp4")
    found = {row["source_uri"].removeprefix(f"{tmp_path}/"): row["problem"] for row in rows}
    assert list(found) == ["bad\\xff.mp4", "folder.mp4", "link.mp4", "pipe.mp4"]
    assert "is not valid UTF-8; rename" in found["bad\\xff.mp4"]
    assert "is a folder" in found["folder.mp4"]
    # Decoding opens these and rejects them with its own reason.
    assert (found["pipe.mp4"], found["link.mp4"]) == (None, None)


def test_a_glob_that_matches_nothing_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").touch()
    files = (("files", name) for name in ("*.mp4", "none.mp4", "**/x/*.mp4"))
    for kind, pattern in (*files, ("table", "*.csv"), ("webdataset", "*.tar")):
        with pytest.raises(ConfigError, match="nothing matches"):
            read(kind, tmp_path / pattern)


@pytest.mark.parametrize(
    ("kind", "uri", "message"),
    [
        (
            "files",
            "photos",
            r"instead: 4 files: 2 \.jpg \(a\.jpg, b\.JPG\), 1 \.txt \(c\.txt\), 1 hidden",
        ),
        ("files", "photos/*.mp4", r"/photos exists, but has no \*\.mp4\."),
        ("files", "videos/*.webm", r"instead: 1 file: 1 \.mov \(a\.MOV\)"),
        ("files", "empty/", r"/empty exists, but has no such files\."),
        ("files", "vidoes/2024/", r"/here exists, but has no vidoes\."),
        ("files", "videos/2024/**/*.mp4", r"/videos exists, but has no 2024\."),
        ("files", "videos/b.mov", r"/videos exists, but has no b\.mov\."),
        ("files", "{photos,empty}", r"4 files: .*; 2 unmatched patterns"),
        ("files", "videos/{x,y}.mp4", r"/videos exists, but has no \{x,y\}\.mp4\."),
        ("table", "tables", r"/tables is a folder, .* such as .*/tables/\*\*/\*\.csv"),
        ("webdataset", "tars/", r"/tars is a folder, .* such as .*/tars/\*\*/\*\.tar"),
        ("webdataset", "videos", r"instead: 1 file: 1 \.mov"),
        ("table", "list", r"instead: 1 file: 1 without an extension \(README\)"),
    ],
)
def test_an_error_says_what_is_there_instead(
    tmp_path: Path, kind: str, uri: str, message: str
) -> None:
    here = tmp_path / "here"
    for name in (
        *("photos/a.jpg", "photos/b.JPG", "photos/c.txt", "photos/.x.mov", "videos/a.MOV"),
        *("tables/1.csv", "tars/0.tar", "list/README"),
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    (here / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        read(kind, here / uri)


def test_a_file_that_two_alternatives_match_is_one_row(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    for uri in ("{a,b,a}.mp4", "{*,a}.mp4", "{.,*}{a,b,}.mp4", "{a*,*b,?}.mp4"):
        rows = read("files", f"{tmp_path}/{uri}")
        assert uris(rows) == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"], uri


def test_a_folder_that_cannot_be_opened_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def without_rights(path: str) -> object:  # root, as in most containers, may open any folder
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_rights)
    for uri in (tmp_path, tmp_path / "**/*.mp4"):
        source = opened("files", uri)
        assert sum(batch.num_rows for batch in source.batches()) == 1
        assert source.listing.left_out.text == f"1 unreadable folder ({tmp_path}/lost+found)"


def test_links_are_followed_and_a_single_file_needs_no_extension(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.MP4").touch()
    (tmp_path / "raw").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/link").symlink_to("../elsewhere")
    (tmp_path / "videos/b.mov").symlink_to("../raw")
    (tmp_path / "videos/loop").symlink_to(".")
    (tmp_path / "here").symlink_to("videos")
    for folder in ("videos", "here"):
        rows = read("files", tmp_path / folder)
        assert uris(rows) == [f"{tmp_path}/{folder}/{name}" for name in ("b.mov", "link/a.MP4")]
    assert uris(read("files", tmp_path / "raw")) == [f"{tmp_path}/raw"]
