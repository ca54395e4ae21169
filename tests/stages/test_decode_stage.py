import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.copies import open_copies
from tests.media.conftest import section
from tests.videos import FASTSTART, VideoFolder, cut_short, numbers_of, packets_of
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import ConfigError, StorageError
from tokpipe.formats.manifest.entry import ManifestEntry
from tokpipe.identity import clip_id
from tokpipe.stages import decode as decode_module
from tokpipe.stages.decode import KEPT_SOURCES, DecodeStage
from tokpipe.storage.fetch import LocalVideo, fetch_to_file
from tokpipe.telemetry.redact import MASK
from tokpipe.types import (
    ArchiveMember,
    ClipRef,
    Cut,
    DecodedClip,
    Failed,
    Piece,
    Rejected,
    WorkItem,
)

SECRET = "pl4nted-s3cret"


@dataclass(frozen=True)
class Lab(VideoFolder):
    """A folder for the videos of one test, and stages that decode."""

    stages: list[DecodeStage]

    def new_stage(self, pieces: Cut | None = None, **changes: Any) -> DecodeStage:
        settings = {"fps": None, "max_clip_frames": 100, "min_clip_frames": 1, **changes}
        sampling, decode = section(SamplingConfig, settings), section(DecodeConfig, settings)
        frames = FramesConfig(size=(48, 64), fit="stretch")
        return DecodeStage(sampling, frames, decode, StoreOptions(deadline_s=1.0), pieces)

    def stage(self, pieces: Cut | None = None, **changes: Any) -> DecodeStage:
        sent = pickle.dumps(self.new_stage(pieces, **changes))  # as Ray carries it to the actor
        arrived: DecodeStage = pickle.loads(sent)
        arrived.setup()
        self.stages.append(arrived)
        return arrived


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    made = Lab(tmp_path, [])
    yield made
    for stage in made.stages:
        stage.close()


def item(source: Path | str, row: int = 0, **settings: object) -> WorkItem:
    return WorkItem(row, f"row-{row}", str(source), **settings)  # type: ignore[arg-type]


def decoded(stage: DecodeStage, items: list[WorkItem]) -> list[DecodedClip]:
    results = stage.process(items)
    clips = [result for result in results if isinstance(result, DecodedClip)]
    assert len(clips) == len(items), results
    return clips


def rejected(stage: DecodeStage, one: WorkItem) -> Rejected:
    (result,) = stage.process([one])
    assert isinstance(result, Rejected)
    return result


def test_items_become_clips_in_order_and_the_same_when_decoded_again(lab: Lab) -> None:
    first = lab.write("first.mp4", 5)
    second = lab.write("second.mp4", 8, first_number=50)
    items = [item(first, 3), item(second, 4), item(second, 5, start_s=0.04, end_s=0.12)]
    clips, again = (decoded(lab.stage(), items) for _ in range(2))
    numbers = [numbers_of(clip.frames) for clip in clips]
    assert numbers == [[*range(5)], [*range(50, 58)], [51, 52]]
    assert clips[0].ref == ClipRef("row-3", 3, 0, 1, str(first))
    assert clips[0].frames.dtype == np.uint8
    assert clips[0].frames.shape == (5, 48, 64, 3)
    assert clips[2].pts_s.tolist() == [0.04, 0.08]
    assert (clips[0].fps, clips[0].backend) == (25.0, "pyav")
    for one, other in zip(clips, again, strict=True):
        assert one.ref == other.ref
        assert np.array_equal(one.frames, other.frames)


def test_a_damaged_video_is_rejected_or_marked_as_the_job_says(lab: Lab) -> None:
    path = lab.write("cut.mp4", 30, options={"bf": "0"}, **FASTSTART)
    cut_short(path, 20, inside=True)
    result = rejected(lab.stage(), item(path))
    assert (result.reason, result.error) == ("truncated", None)
    (clip,) = decoded(lab.stage(on_damage="mark"), [item(path)])
    assert clip.marks == ("damaged",)
    assert "the file ends" in str(clip.damage)
    assert numbers_of(clip.frames) == list(range(len(clip.frames)))


def test_the_first_segment_says_how_many_there_are(lab: Lab) -> None:
    path = lab.write("long.mp4", 25)
    stage = lab.stage(fps=10.0, max_clip_frames=4)
    clips = decoded(stage, [item(path)])
    assert clips[0].ref == ClipRef(clip_id("row-0", 0, 3, 4, 10.0), 0, 0, 3, str(path))
    clips += decoded(stage, [item(path, segment=j, num_segments=3) for j in (1, 2)])
    assert [numbers_of(clip.frames) for clip in clips] == [[0, 2, 5, 7], [10, 12, 15, 17], [20, 22]]
    assert len({clip.ref.clip_id for clip in clips}) == 3
    assert all(clip.fps == 10.0 for clip in clips)


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2", "x264-params": "open-gop=1"}])
@pytest.mark.parametrize("fps", [None, 10.0, 40.0])
def test_pieces_of_a_streamed_clip_add_up_to_the_clip(
    fps: float | None, options: dict[str, str], lab: Lab
) -> None:
    path = lab.write("long.mp4", 60, gop=12, options=options)
    span: dict[str, Any] = {"start_s": 0.2, "end_s": 2.2}
    (whole,) = decoded(lab.stage(Cut(1000, 1000), fps=fps), [item(path, **span)])
    assert whole.piece == Piece(0, 1, 0)
    assert whole.backend == "pyav"
    cut = Cut(9, 8)
    stage = lab.stage(cut, fps=fps, min_clip_frames=10)
    pieces = decoded(stage, [item(path, **span)])
    total = pieces[0].piece.num_pieces
    assert total == cut.num_parts(len(whole.frames))
    later = [item(path, piece=piece, num_pieces=total, **span) for piece in range(1, total)]
    pieces += decoded(stage, later)
    assert {one.ref for one in pieces} == {whole.ref}
    assert {one.fps for one in pieces} == {whole.fps}
    assert [one.piece.first_frame for one in pieces] == [cut.bounds(k)[0] for k in range(total)]
    assert np.array_equal(np.concatenate([one.frames for one in pieces]), whole.frames)
    assert np.array_equal(np.concatenate([one.pts_s for one in pieces]), whole.pts_s)


def test_limits_apply_to_the_whole_streamed_clip(lab: Lab) -> None:
    path = lab.write("long.mp4", 20)
    result = rejected(lab.stage(Cut(5, 4), min_clip_frames=21), item(path))
    assert (result.reason, result.ref.num_segments) == ("too_short", 1)
    assert "the span has 20 frames" in result.message
    result = rejected(lab.stage(Cut(5, 4)), item(path, piece=2, num_pieces=9))
    assert result.reason == "changed"
    assert "now has 5 pieces and had 9" in result.message


def test_sources_of_interleaved_streamed_clips_are_fetched_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, uris = fsspec.filesystem("memory"), []
    for index in range(KEPT_SOURCES + 2):
        video = lab.write(f"{index}.mp4", 12)
        memory.pipe_file(f"/streamed/{index}.mp4", video.read_bytes())
        uris.append(f"memory://streamed/{index}.mp4")
    fetched: list[str] = []

    def counted(uri: str, *args: Any, **kwargs: Any) -> LocalVideo:
        fetched.append(uri)
        return fetch_to_file(uri, *args, **kwargs)

    monkeypatch.setattr(decode_module, "fetch_to_file", counted)
    stage = lab.stage(Cut(5, 4))
    try:
        for piece in range(3):
            decoded(stage, [item(uri, piece=piece, num_pieces=3) for uri in uris[:4]])
        assert fetched == uris[:4]
        assert not open_copies(), "sources of finished clips are kept"
        stage.process([item(uri, piece=0) for uri in uris])
        assert len(open_copies()) == KEPT_SOURCES
    finally:
        memory.rm("/streamed", recursive=True)


def test_rejections_keep_their_places_repeat_and_name_the_error_behind_them(lab: Lab) -> None:
    good = lab.write("good.mp4", 5)
    text = lab.folder / "text.mp4"
    text.write_text("not a video, " * 100)
    items = [
        *(item(text, 0), item(good, 1), item(lab.folder / "gone.mp4", 2)),
        *(item(good, 3, problem="row 3 has no end"), item(good, 4), item(lab.folder, 5)),
        *(item(good, 6, segment=1, num_segments=2), item(good, 7, start_s=99.0)),
    ]
    results, again = (lab.stage().process(items) for _ in range(2))
    found = {r.ref.row: (r.stage, r.reason, r.error) for r in results if isinstance(r, Rejected)}
    assert found == {
        0: ("decode", "not_a_video", "InvalidDataError"),
        2: ("decode", "missing", "FileNotFoundError"),
        3: ("plan", "bad_row", None),
        5: ("decode", "not_a_file", None),
        6: ("decode", "changed", None),
        7: ("decode", "too_short", None),
    }
    assert [result.ref.row for result in results] == list(range(8))
    assert all(a == b for a, b in zip(results, again, strict=True) if isinstance(a, Rejected))
    assert results[3].ref == ClipRef("row-3", 3, 0, 1, str(good))
    assert results[6].ref.num_segments == 2
    assert rejected(lab.stage(max_source_bytes=1000), items[1]).reason == "too_large"


def test_damage_in_the_first_segment_leaves_the_others_intact(lab: Lab) -> None:
    path = lab.write("long.mp4", 40, gop=10, options={"bf": "0"})
    whole = bytearray(path.read_bytes())
    third = packets_of(path)[2].position
    whole[third : third + 8] = b"\xff" * 8
    path.write_bytes(whole)
    stage = lab.stage(max_clip_frames=10)
    first = rejected(stage, item(path))
    assert (first.reason, first.backend, first.ref.num_segments) == ("corrupt", "pyav", 4)
    (second,) = decoded(stage, [item(path, segment=1, num_segments=4)])
    assert numbers_of(second.frames) == list(range(10, 20))


def test_archive_members_are_decoded_and_their_copies_removed(lab: Lab) -> None:
    videos = [lab.write(f"{k}.mp4", 6, first_number=10 * k) for k in range(2)]
    archive = lab.folder / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        for video in videos:
            tar.add(video, video.name)
    with tarfile.open(archive) as tar:
        items = [
            item(f"{archive}#{k}.mp4", k, member=ArchiveMember(str(archive), m.offset_data, m.size))
            for k, m in enumerate(tar.getmembers())
        ]
    items.insert(1, replace(items[0], segment=1, num_segments=2))
    stage = lab.stage(max_clip_frames=4)
    numbers = [numbers_of(clip.frames) for clip in decoded(stage, items)]
    assert numbers == [[0, 1, 2, 3], [4, 5], [10, 11, 12, 13]]
    assert len(open_copies()) == 1  # the last source, for its next segment
    stage.close()
    assert open_copies() == []
    assert all(path.exists() for path in (archive, *videos))


def in_a_tar(lab: Lab, number: int) -> list[WorkItem]:
    """Members of one size, each of which shows other numbers."""
    archive = lab.folder / "equal.tar"
    with tarfile.open(archive, "w") as tar:
        for k in range(number):
            video = lab.write(f"{k}.mp4", 3, first_number=10 * k)
            video.write_bytes(video.read_bytes().ljust(8_000, b"\0"))
            tar.add(video, video.name)
    with tarfile.open(archive) as tar:
        members = [ArchiveMember(str(archive), one.offset_data, one.size) for one in tar]
    return [item(f"{archive}#{k}.mp4", k, member=one) for k, one in enumerate(members)]


IN_A_CONTAINER = """
import os, pickle, sys
from tests.videos import numbers_of
stage, items = pickle.load(sys.stdin.buffer)
assert os.getpid() < 10
stage.setup()
for _ in range(5):
    assert [numbers_of(clip.frames)[0] for clip in stage.process(items)] == [0, 10, 20, 30, 40, 50]
print("ready", flush=True)
stage.process(items[:1])
os.kill(os.getpid(), 9)
"""


def test_a_shared_tmpdir_that_is_cleaned_all_the_time_costs_no_clip(
    lab: Lab,
) -> None:
    shared, seen = lab.folder / "tmp", set[str]()
    shared.mkdir()
    content = pickle.dumps((lab.new_stage(), in_a_tar(lab, 6)))
    container = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", IN_A_CONTAINER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(container, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for one in both:
        one.stdin.write(content)
        one.stdin.close()
        one.stdin = None
    while any(one.poll() is None for one in both):
        for path in shared.iterdir():
            seen.add(path.name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    printed = [one.communicate() for one in both]
    assert [out for out, _ in printed] == [b"ready\n"] * 2, printed
    assert list(shared.glob("*")) == [], "nothing is left after SIGKILL"
    assert seen == set(), "copies have no names"


def test_a_fetched_source_is_recognized_like_a_local_one(lab: Lab) -> None:
    memory, text, stage = fsspec.filesystem("memory"), b"not a video, " * 100, lab.stage()
    for ending, reason in {"m4v": "no_video", "mp4": "not_a_video", "": "not_a_video"}.items():
        path = lab.folder / f"text.{ending}"
        path.write_bytes(text)
        memory.pipe_file(f"/text.{ending}", text)
        for uri in (str(path), f"memory://text.{ending}"):
            assert rejected(stage, item(uri)).reason == reason


def test_a_failing_store_is_not_blamed_on_the_clip(lab: Lab) -> None:
    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "brokenstore"

        def _fail(self, *_: object, **__: object) -> None:
            raise TimeoutError("no route")

        info = open = cat_file = _fail

    fsspec.register_implementation("brokenstore", Broken, clobber=True)
    with pytest.raises(StorageError):
        lab.stage().process([item("brokenstore://bucket/clip.mp4")])


def test_a_decoder_that_is_not_installed_is_named(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('not for this machine')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"decord does not load \(not for this machine\)"):
        lab.stage(backend="decord")


@pytest.mark.parametrize("place", ["http://me:{}@127.0.0.1:9/a.mp4", "http://127.0.0.1:9/a?sig={}"])
def test_an_unreachable_source_only_fails_and_its_secret_is_hidden(place: str, lab: Lab) -> None:
    uri = place.format(SECRET)
    problem = f"line 2 of t.csv names a video outside (video {uri})"
    named = item(uri, allowed=("http://127.0.0.1:9",))
    failed, bad_row = lab.stage().process([named, item("t.csv#line=2", 1, problem=problem)])
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.error) == ("unreachable", "ConnectionRefusedError")
    assert failed.ref.source_uri.endswith("127.0.0.1:9/a.mp4" if "@" in place else f"sig={MASK}")
    assert SECRET not in failed.message
    assert MASK in failed.message
    assert isinstance(bad_row, Rejected)
    given_up = Rejected(failed.ref, "decode", failed.reason, failed.message)
    entry = ManifestEntry(seq=0, writer="w", written_at="now", rejected=(given_up, bad_row))
    assert SECRET not in entry.to_json().decode()
    assert MASK in entry.to_json().decode()
