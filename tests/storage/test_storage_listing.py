"""Globs, on disk and in stores."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import S3Bucket
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.storage import open_store
from tokpipe.storage.listing import Listing, Match

OPTIONS = StoreOptions(deadline_s=10)
NAMES = ["a.mp4", "b.mkv", "x/c.mp4", "x/y/d.mp4", "x/y/z/e.mp4", "xy/f.mp4", ".hidden.mp4"]
GLOBS = [
    ("*.mp4", [".hidden.mp4", "a.mp4"]),
    ("**/*.mp4", [name for name in NAMES if name.endswith("mp4")]),
    ("x/*.mp4", ["x/c.mp4"]),
    ("x/**/*.mp4", ["x/c.mp4", "x/y/d.mp4", "x/y/z/e.mp4"]),
    ("x/**", ["x/c.mp4", "x/y/d.mp4", "x/y/z/e.mp4"]),
    ("x*/*.mp4", ["x/c.mp4", "xy/f.mp4"]),
    ("*/*/*.mp4", ["x/y/d.mp4"]),
    ("[ab].m??", ["a.mp4", "b.mkv"]),
    ("*", [".hidden.mp4", "a.mp4", "b.mkv"]),
    ("x/y/d.mp4", ["x/y/d.mp4"]),
    *((nothing, []) for nothing in ("nothing*", "nothing.mp4", "nothing/**/*.mp4")),
]


def test_globs_mean_the_same_in_every_store(root: str) -> None:
    store = open_store(root, OPTIONS)
    for name in NAMES:
        store.put(name, b"1")
    for pattern, found in GLOBS:
        matches = sorted(Listing(f"{root}/{pattern}", OPTIONS), key=lambda match: match.uri)
        assert matches == [Match(f"{root}/{name}") for name in sorted(found)], pattern


def test_a_name_with_brackets_also_matches_literally(root: str) -> None:
    open_store(root, OPTIONS).put("[2019] trip.mp4", b"1")
    uri = f"{root}/[2019] trip.mp4"
    assert list(Listing(uri, OPTIONS)) == [Match(uri)]


def test_a_malformed_glob_is_a_config_error(root: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a valid glob.*'\*\*' must be a whole part"):
        list(Listing(f"{root}/a**b/*.mp4", OPTIONS))


@pytest.mark.s3
def test_a_glob_over_all_buckets_is_rejected(s3_bucket: S3Bucket) -> None:
    with pytest.raises(ConfigError, match="Name the bucket"):
        list(Listing("s3://*/a.mp4", OPTIONS))


@pytest.mark.s3
def test_a_listing_of_several_pages_is_complete(s3_bucket: S3Bucket) -> None:
    store = open_store(s3_bucket.uri, OPTIONS)
    names = [f"many/{number:04d}.mp4" for number in range(1050)]  # a page holds 1000
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    found = [match.uri for match in Listing(f"{s3_bucket.uri}/many/*.mp4", OPTIONS)]
    assert sorted(found) == [f"{s3_bucket.uri}/{name}" for name in names]


def test_pipes_and_links_are_found_and_loops_end(tmp_path: Path) -> None:
    for folder, name in (("folder.mp4", "inside.mp4"), ("plain", "x"), ("elsewhere", "linked.mp4")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    (tmp_path / "plain" / "loop").symlink_to("..")
    (tmp_path / "plain" / "link").symlink_to(tmp_path / "elsewhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.mp4"))
    found = {
        os.path.relpath(match.uri, tmp_path): match.is_folder
        for match in Listing(f"{tmp_path}/**/*.mp4", OPTIONS)
    }
    files = [
        *("folder.mp4/inside.mp4", "pipe.mp4", "dangling.mp4", "self.mp4", "socket.mp4"),
        *("elsewhere/linked.mp4", "plain/link/linked.mp4"),
    ]
    assert found == {"folder.mp4": True, **dict.fromkeys(files, False)}
    assert {m.uri for m in Listing(f"{tmp_path}/*", OPTIONS) if m.is_folder} == set()
