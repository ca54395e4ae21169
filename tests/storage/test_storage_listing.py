"""Globs, braces and folders, on disk and in stores."""

import ctypes
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Bucket
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.storage import Store
from tokpipe.storage.client import Client, client_of
from tokpipe.storage.left_out import LOOP, NO_MATCH, UNREADABLE, LeftOut
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
    ("{a.mp4,b.mkv,nothing.mp4}", ["a.mp4", "b.mkv"]),
    ("x{,y}/*.{mp4,mov}", ["x/c.mp4", "xy/f.mp4"]),
    ("x/{y,y/z}/*.mp4", ["x/y/d.mp4", "x/y/z/e.mp4"]),
    ("{a..c}.m{p4,kv}", ["a.mp4", "b.mkv"]),
    *((nothing, []) for nothing in ("nothing*", "nothing.mp4", "nothing/**/*.mp4")),
]


def test_globs_mean_the_same_in_every_store(root: str) -> None:
    store = Store(root, OPTIONS)
    for name in NAMES:
        store.put(name, b"1")
    for pattern, found in GLOBS:
        matches = sorted(set(Listing(f"{root}/{pattern}", OPTIONS)), key=lambda match: match.uri)
        assert matches == [Match(f"{root}/{name}") for name in sorted(found)], pattern


def test_a_bracket_is_written_in_brackets_in_every_store(root: str) -> None:
    fill(root, ["[2019] trip/a.mp4", "2 trip/b.mp4"])
    for pattern in ("[[]2019] trip/a.mp4", "[[]2019] trip/*.mp4"):
        assert list(Listing(f"{root}/{pattern}", OPTIONS)) == [Match(f"{root}/[2019] trip/a.mp4")]


def test_a_malformed_glob_is_a_config_error(root: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a valid glob.*'\*\*' must be a whole part"):
        list(Listing(f"{root}/a**b/*.mp4", OPTIONS))


@pytest.mark.s3
def test_a_glob_over_all_buckets_is_rejected(s3_bucket: S3Bucket) -> None:
    with pytest.raises(ConfigError, match="Name the bucket"):
        list(Listing("s3://*/a.mp4", OPTIONS))


@pytest.mark.s3
def test_a_listing_of_several_pages_is_complete(s3_bucket: S3Bucket) -> None:
    store = Store(s3_bucket.uri, OPTIONS)
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


@pytest.fixture
def hostile_tree() -> Iterator[Path]:
    """A folder with three good videos, for a user who may not read all of it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        for folder in ("closed", "closed.mp4", "unlistable", "no-entry/below", "long" * 63, "ok"):
            (root / folder).mkdir(parents=True)
        for video in ("unlistable/a.mp4", "no-entry/b.mp4", "ok/c.mp4", "ok/" + "v" * 251 + ".mp4"):
            (root / video).touch()
        Path(os.fsdecode(os.fsencode(root) + b"/ok/\xff.mp4")).touch()
        (root / "ok/again").symlink_to("..")
        (root / "ok/loop").symlink_to("loop")
        (root / "link").symlink_to("closed")
        code = "import os\nfor _ in range(18): os.mkdir('d' * 240), os.chdir('d' * 240)"
        subprocess.run([sys.executable, "-c", code], cwd=name, check=True)  # too long a path
        modes = {"closed": 0, "closed.mp4": 0, "unlistable": 0o311, "no-entry": 0o744}
        for folder, mode in modes.items():
            Path(name, folder).chmod(mode)
        yield Path(name)
        for folder in modes:
            Path(name, folder).chmod(0o755)


def as_nobody(uri: str) -> tuple[list[Match], Listing]:
    """List as another user, which on Linux is a property of a thread."""
    listing = Listing(uri, OPTIONS, ("mp4",))
    with ThreadPoolExecutor(1, initializer=lambda: ctypes.CDLL(None).setfsuid(65534)) as thread:
        return thread.submit(list, listing).result(), listing


@pytest.mark.parametrize("pattern", ["**/*.mp4", "*/*.mp4", ""])
def test_what_cannot_be_read_below_a_folder_is_counted_and_named(
    hostile_tree: Path, pattern: str
) -> None:
    matches, listing = as_nobody(f"{hostile_tree}/{pattern}".rstrip("/"))
    found = {os.path.relpath(match.uri, hostile_tree) for match in matches if not match.is_folder}
    videos = {"ok/c.mp4", f"ok/{'v' * 251}.mp4", os.fsdecode(b"ok/\xff.mp4"), "no-entry/b.mp4"}
    assert found == videos
    counts, names = listing.left_out.counts, listing.left_out.names
    # For "*/*.mp4" the folders below no-entry and the deep ones are beyond what it looks at.
    assert counts[UNREADABLE] == (4 if pattern == "*/*.mp4" else 6)
    assert names[UNREADABLE][0] == f"{hostile_tree}/closed"
    # A link to itself is no file without an extension; globs count only what looks like a video.
    assert counts.get(LOOP) == {"**/*.mp4": 1, "": 2}.get(pattern)
    assert ("ok/loop" in names.get(LOOP, ())) == (pattern == "")


@pytest.mark.parametrize(
    "pattern",
    [
        *("closed/*.mp4", "closed", "closed/a.mp4", "link/**/*.mp4", "closed/x/y/*.mp4"),
        *("unlistable/b.mp4", "unlistable/*.mp4", "ok/loop/*.mp4", "ok/loop/x.mp4"),
        *("y" * 300 + end for end in ("", ".mp4", "/*.mp4", "/a.mp4")),
    ],
)
def test_a_source_that_cannot_be_read_at_all_says_what_is_there(
    hostile_tree: Path, pattern: str
) -> None:
    matches, listing = as_nobody(f"{hostile_tree}/{pattern}")
    assert matches == []
    assert re.search("1 unreadable folder|exists, but has no b.mp4", listing.explain_nothing())


# --- folders -------------------------------------------------------------------------------------

EXTENSIONS = ("mp4", "mov")
NFC = "Vidéos für Öma"
NFD = unicodedata.normalize("NFD", NFC)
VIDEOS = [
    *("a.mp4", "B.MOV", "c.MoV", "-rf.mp4", "x y [1] {a,b}.mp4", "*.mp4", "2024/07/deep.MP4"),
    *(f"{NFC}/é.mp4", f"{NFD}/e\u0301.mp4", "日本/動画.mp4", "folder.mp4/inside.mov", "a.b.mp4"),
]
OTHERS = {
    ".jpg": ["IMG.JPG", "2024/a.jpg"],
    ".thm": ["GOPR.THM"],
    "hidden": ["._B.MOV", ".DS_Store", ".Trashes/501/old.mp4", "$RECYCLE.BIN/$R1.mp4"],
    "without an extension": ["README", "2024/mp4"],
    "others": ["B.MOV~"],
}


def folder_of(uri: str, **settings: Any) -> Listing:
    return Listing(uri, OPTIONS, known=EXTENSIONS, **settings)


def fill(root: str, names: list[str]) -> None:
    store = Store(root, OPTIONS)
    for name in names:
        store.put(name, b"1")


def names_in(listing: Listing, root: str) -> list[str]:
    return sorted(match.uri.removeprefix(f"{root}/") for match in listing)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_means_its_videos_of_any_extension_and_depth(root: str, slash: str) -> None:
    fill(f"{root}/phone", [*VIDEOS, *(name for names in OTHERS.values() for name in names)])
    fill(root, ["phone.mp4", "phone2/z.mp4"])
    listing = folder_of(f"{root}/phone{slash}")
    assert names_in(listing, f"{root}/phone") == sorted(VIDEOS)
    assert listing.left_out.counts == {kind: len(names) for kind, names in OTHERS.items()}
    assert listing.left_out.names["hidden"] == sorted(OTHERS["hidden"])[:3]
    assert listing.left_out.names[".jpg"] == sorted(OTHERS[".jpg"])


@pytest.mark.s3
def test_a_bucket_is_a_folder_and_markers_of_folders_are_no_files(s3_bucket: S3Bucket) -> None:
    fill(s3_bucket.uri, ["a.mp4", "x/b.MOV"])
    client = client_of(s3_bucket.uri, OPTIONS)
    for key in ("x/", "empty/"):
        client.call(
            "marking", s3_bucket.uri, "call_s3", "put_object", Bucket=s3_bucket.name, Key=key
        )
    for uri in (s3_bucket.uri, f"{s3_bucket.uri}/"):
        listing = folder_of(uri)
        assert names_in(listing, s3_bucket.uri) == ["a.mp4", "x/b.MOV"]
        assert not listing.left_out.counts
    assert names_in(folder_of(f"{s3_bucket.uri}/x"), s3_bucket.uri) == ["x/b.MOV"]
    assert names_in(folder_of(f"{s3_bucket.uri}/empty/"), s3_bucket.uri) == []
    with pytest.raises(ConfigError, match="Name the bucket"):
        list(folder_of("s3://"))


@pytest.mark.s3
def test_a_name_is_an_object_before_it_is_a_folder(s3_bucket: S3Bucket) -> None:
    fill(s3_bucket.uri, ["x/a.mp4", "y"])
    client_of(s3_bucket.uri, OPTIONS).call(
        "writing", s3_bucket.uri, "call_s3", "put_object", Bucket=s3_bucket.name, Key="x"
    )
    root = s3_bucket.uri
    assert names_in(folder_of(f"{root}/x"), root) == ["x"]
    assert names_in(folder_of(f"{root}/y"), root) == ["y"]
    assert names_in(folder_of(f"{root}/x/"), root) == ["x/a.mp4"]


def test_alternatives_of_braces_may_be_folders(root: str) -> None:
    fill(root, ["2023/a.mp4", "2024/b.mov", "2024/c.txt", "2025/d.mp4"])
    listing = folder_of(f"{root}/{{2022..2024}}")
    assert names_in(listing, root) == ["2023/a.mp4", "2024/b.mov"]
    assert listing.left_out.counts == {".txt": 1, NO_MATCH: 1}
    assert listing.left_out.text == (f"1 file: 1 .txt (c.txt); 1 unmatched pattern ({root}/2022)")


@pytest.mark.s3
def test_names_that_are_missing_cost_a_store_no_listing(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3_bucket.uri, [f"{number:03}.tar" for number in range(30)])

    def no_listing(*_: Any) -> Any:
        raise AssertionError("listed")

    monkeypatch.setattr(Client, "iter_objects", no_listing)
    listing = Listing(f"{s3_bucket.uri}/{{000..049}}.tar", OPTIONS, known=("tar",))
    assert len(names_in(listing, s3_bucket.uri)) == 30
    assert listing.left_out.counts == {NO_MATCH: 20}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_names_that_exist_on_disk_as_written_mean_themselves(scheme: str, tmp_path: Path) -> None:
    names = ["[2024] films/a.mp4", "[2024] films/b.mp4", "{a,b}/c.mp4", "what?/d.mp4", "[x] {y,z}"]
    others = ["2 films/a.mp4", "a/c.mp4", "whats/d.mp4", "x y", "x z"]
    fill(str(tmp_path), [*names, *others])
    for uri, found in [
        ("[2024] films", names[:2]),
        ("[2024] films/*.mp4", names[:2]),
        ("[2024] films/{a,z}.mp4", names[:1]),
        ("{a,b}/*.mp4", [names[2]]),
        ("{a,b}/c.mp4", [names[2]]),
        ("what?/*.mp4", [names[3]]),
        ("[x] {y,z}", [names[4]]),
        ("[2] films/*.mp4", others[:1]),
        ("[x] {y,[z]}", others[3:]),
    ]:
        uris = [match.uri for match in folder_of(f"{scheme}{tmp_path}/{uri}")]
        paths = [uri.removeprefix("file://") for uri in uris]
        assert sorted(paths) == [f"{tmp_path}/{name}" for name in found], uri


def test_a_file_called_like_a_glob_does_not_hide_the_others(tmp_path: Path) -> None:
    fill(str(tmp_path), ["*.mp4", "a.mp4"])
    assert names_in(folder_of(f"{tmp_path}/*.mp4"), str(tmp_path)) == ["*.mp4", "a.mp4"]


def test_videos_beside_a_glob_are_counted(root: str) -> None:
    videos = [name for name in VIDEOS if not name.startswith("folder.mp4")]
    fill(root, [*videos, *(name for names in OTHERS.values() for name in names)])
    listing = folder_of(f"{root}/*.mp4")
    assert names_in(listing, root) == ["*.mp4", "-rf.mp4", "a.b.mp4", "a.mp4", "x y [1] {a,b}.mp4"]
    assert listing.left_out == LeftOut({".mov": 2}, {".mov": ["B.MOV", "c.MoV"]})
    listing = folder_of(f"{root}/**/*.mp4")
    assert len(list(listing)) == len(videos) - 3 + 2  # with hidden ones, as the pattern says
    assert listing.left_out.counts == {".mov": 2, ".mp4": 1}
    listing = folder_of(f"{root}/-*.mp4")
    assert names_in(listing, root) == ["-rf.mp4"]
    assert not listing.left_out.counts, "names that begin otherwise are another choice"


def test_a_glob_takes_files_of_attributes_only_if_it_names_them(root: str) -> None:
    fill(root, ["x/._a.mp4", "x/a.mp4", "x/.b.mp4", "._x/c.mp4"])
    listing = folder_of(f"{root}/**/*.mp4")
    assert names_in(listing, root) == ["._x/c.mp4", "x/.b.mp4", "x/a.mp4"]
    assert listing.left_out == LeftOut({"hidden": 1}, {"hidden": ["x/._a.mp4"]})
    assert names_in(folder_of(f"{root}/x/._*.mp4"), root) == ["x/._a.mp4"]


def test_what_another_source_takes_or_has_counted_is_not_left_out(root: str) -> None:
    fill(root, ["a.mp4", "b.mov", "c.MOV", "d.MP4", "list.csv", "e.txt"])
    uris = [f"{root}/*.mp4", f"{root}/*.mov", f"{root}/", f"{root}/list.csv", f"{root}/{{d,e}}.MP4"]
    uris.append(f"{root}/{{b.mov,*.mp4}}")
    for chosen, left_out in [
        ((0, 1), {".mov": 1, ".mp4": 1}),
        ((0, 1, 4), {".mov": 1, NO_MATCH: 1}),
        ((0, 2, 3), {".txt": 1}),
        ((3, 0, 2), {".txt": 1}),
        ((5,), {".mov": 1, ".mp4": 1}),
    ]:
        listings = [folder_of(uris[index]) for index in chosen]
        found, total = [], LeftOut()
        for at, listing in enumerate(listings):
            listing.share(listings[:at], listings[at + 1 :])
            found += names_in(listing, root)
            total.update(listing.left_out)
        assert total.counts == left_out, chosen
    fill(root, ["cats/a.mp4", "cats/b.MP4", "dogs/c.mp4"])
    cats, dogs = (folder_of(f"{root}/{name}/*.mp4") for name in ("cats", "dogs"))
    cats.share([], [dogs])
    assert names_in(cats, root) == ["cats/a.mp4"]
    assert cats.left_out.counts == {".mp4": 1}, "another folder is another choice"


def test_an_output_in_a_folder_is_not_part_of_it(root: str) -> None:
    fill(root, ["a.mp4", "out/job.json", "out/decoded/b.mp4", "out2/c.mp4"])
    listing = folder_of(root, output_uri=f"{root}/out")
    assert names_in(listing, root) == ["a.mp4", "out2/c.mp4"]
    assert not listing.left_out.counts
    assert "out/decoded/b.mp4" in names_in(
        folder_of(f"{root}/**/*.mp4", output_uri=f"{root}/out"), root
    ), "a glob means what it says"
    assert "a.mp4" in names_in(folder_of(root, output_uri=root), root)


def test_wildcards_in_the_path_of_the_project_are_no_pattern(tmp_path: Path) -> None:
    for project in ("[2024] films", "2 films", "*", "{a,b}", "a", "what?"):
        for name in ("v/a.mp4", "v/b.MOV", "v/[x].mp4"):
            path = tmp_path / project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for project in ("[2024] films", "*", "{a,b}", "what?"):
        own = f"{tmp_path}/{project}"
        for uri, found in [
            ("v", ["a.mp4", "b.MOV", "[x].mp4"]),
            ("v/*.mp4", ["a.mp4", "[x].mp4"]),
            ("v/{a.mp4,b.MOV}", ["a.mp4", "b.MOV"]),
            ("v/[x].mp4", ["[x].mp4"]),
        ]:
            listing = folder_of(f"{own}/{uri}")
            assert names_in(listing, f"{own}/v") == sorted(found), (project, uri)


class _Page(http.server.BaseHTTPRequestHandler):
    """A page of links, as web servers show folders, and two files."""

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] in ("/videos/", "/videos/a.mp4", "/videos/b.mp4")
        self.send_response(200 if found else 404)
        data = b'<a href="a.mp4">a</a>'
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def test_a_web_server_has_names_but_no_folders_and_no_globs() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}/videos"
        for uri in (f"{root}/", f"{root}/*.mp4", f"{root}/**/*.mp4", f"{root}/{{a,b}}*.mp4"):
            with pytest.raises(ConfigError, match=r"http:// cannot list .*kind: table.*braces"):
                list(folder_of(uri))
        listing = folder_of(f"{root}/{{a..d}}.mp4")
        assert names_in(listing, root) == ["a.mp4", "b.mp4"]
        assert listing.left_out.counts == {NO_MATCH: 2}
        assert names_in(folder_of(f"{root}/a.mp4?version=[1]"), root) == ["a.mp4?version=[1]"]
        listing = folder_of(f"{root}/[ab].mp4")
        assert names_in(listing, root) == []
        assert listing.explain_nothing() == "The server has no such file."
        server.shutdown()


def test_kinds_and_names_that_are_left_out_take_bounded_memory() -> None:
    left_out = LeftOut()
    for number in range(1000):
        left_out.add(f".{number}", f"{number:04}.{number}")
        left_out.add(".jpg", f"{999 - number:04}.jpg")
    assert len(left_out.counts) <= 102
    assert sum(left_out.files.values()) == 2000
    assert left_out.names[".jpg"] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert len(left_out.text) < 500
    assert LeftOut(left_out.counts, left_out.names) == left_out


def test_names_that_are_left_out_are_printable() -> None:
    left_out = LeftOut()
    for name in ("a\nb.jpg", "\x1b[2J.jpg", os.fsdecode(b"\xff.jpg"), f"{NFD}.jpg"):
        left_out.add(".jpg", name)
    assert left_out.text.isprintable()
    left_out.text.encode()
