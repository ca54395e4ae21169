"""Files by glob."""

import os
from pathlib import Path

import pytest

from tests.sources.reading import problems, read, uris
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
