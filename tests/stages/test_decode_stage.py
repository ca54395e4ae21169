from __future__ import annotations

import importlib.util
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.videos import FASTSTART, cut_short, numbers_of, packets_of, spoil_end, write_video
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import ConfigError, StorageError
from tokpipe.identity.ids import clip_id
from tokpipe.stages import decode as decode_module
from tokpipe.stages.decode import KEPT_SOURCES, DecodeStage
from tokpipe.storage.fetch import fetch_to_file
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

MakeStage = Callable[..., DecodeStage]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


@pytest.fixture
def make_stage(scratch: Path) -> Iterator[MakeStage]:
    stages = []

    def make(
        *,
        fps: float | None = None,
        max_clip_frames: int = 100,
        backend: str = "auto",
        max_source_bytes: int = 2**30,
        min_clip_frames: int = 1,
        on_damage: str = "reject",
        pieces: Cut | None = None,
    ) -> DecodeStage:
        config = DecodeStage(
            SamplingConfig(
                fps=fps, max_clip_frames=max_clip_frames, min_clip_frames=min_clip_frames
            ),
            FramesConfig(size=(48, 64), fit="stretch"),
            DecodeConfig.model_validate(
                {
                    "backend": backend,
                    "max_source_bytes": max_source_bytes,
                    "on_damage": on_damage,
                }
            ),
            StoreOptions(deadline_s=1.0),
            pieces,
        )
        stage: DecodeStage = pickle.loads(pickle.dumps(config))  # as Ray carries it to the actor
        stage.setup(scratch)
        stages.append(stage)
        return stage

    yield make
    for stage in stages:
        stage.close()


def item(source: Path | str, row: int = 0, **settings: object) -> WorkItem:
    return WorkItem(row, f"row-{row}", str(source), **settings)  # type: ignore[arg-type]


def decoded(results: list[DecodedClip | Rejected | Failed]) -> list[DecodedClip]:
    clips = [result for result in results if isinstance(result, DecodedClip)]
    assert len(clips) == len(results), results
    return clips


def test_items_become_clips_in_order(tmp_path: Path, make_stage: MakeStage) -> None:
    first = write_video(tmp_path / "first.mp4", 5)
    second = write_video(tmp_path / "second.mp4", 8, first_number=50)
    results = decoded(
        make_stage().process(
            [item(first, 3), item(second, 4), item(second, 5, start_s=0.04, end_s=0.12)]
        )
    )
    numbers = [numbers_of(clip.frames) for clip in results]
    assert numbers == [[*range(5)], [*range(50, 58)], [51, 52]]
    assert results[0].ref == ClipRef("row-3", 3, 0, 1, str(first))
    assert results[0].frames.dtype == np.uint8
    assert results[0].frames.shape == (5, 48, 64, 3)
    assert results[2].pts_s.tolist() == [0.04, 0.08]
    assert (results[0].fps, results[0].backend) == (25.0, "decord")


def test_a_damaged_video_is_rejected_or_marked_by_the_jobs_rule(
    tmp_path: Path, make_stage: MakeStage
) -> None:
    path = write_video(tmp_path / "cut.mp4", 30, options={"bf": "0"}, **FASTSTART)
    cut_short(path, 20, inside=True)
    (rejected,) = make_stage().process([item(path)])
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.error) == ("truncated", None)
    (clip,) = decoded(make_stage(on_damage="mark").process([item(path)]))
    assert clip.marks == ("damaged",)
    assert clip.damage is not None
    assert "the file ends" in clip.damage
    assert numbers_of(clip.frames) == list(range(len(clip.frames)))


def test_a_rejection_names_the_class_of_the_error_behind_it(
    tmp_path: Path, make_stage: MakeStage
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video " * 100)
    results = make_stage().process([item(text), item(tmp_path / "gone.mp4")])
    assert [result.error for result in results if isinstance(result, Rejected)] == [
        "InvalidDataError",
        "FileNotFoundError",
    ]


def test_a_film_is_found_at_its_first_segment(tmp_path: Path, make_stage: MakeStage) -> None:
    film = write_video(tmp_path / "film.mp4", 25)
    stage = make_stage(fps=10.0, max_clip_frames=4)
    (first,) = decoded(stage.process([item(film)]))
    assert first.ref == ClipRef(clip_id("row-0", 0, 3, 4, 10.0), 0, 0, 3, str(film))
    others = decoded(
        stage.process(
            [item(film, segment=1, num_segments=3), item(film, segment=2, num_segments=3)]
        )
    )
    clips = [first, *others]
    assert [numbers_of(clip.frames) for clip in clips] == [[0, 2, 5, 7], [10, 12, 15, 17], [20, 22]]
    assert len({clip.ref.clip_id for clip in clips}) == 3
    assert all(clip.fps == 10.0 for clip in clips)


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2", "x264-params": "open-gop=1"}])
@pytest.mark.parametrize("fps", [None, 10.0, 40.0])
def test_pieces_of_a_clip_are_the_clip(
    fps: float | None, options: dict[str, str], tmp_path: Path, make_stage: MakeStage
) -> None:
    film = write_video(tmp_path / "film.mp4", 60, gop=12, options=options)
    span: dict[str, Any] = {"start_s": 0.2, "end_s": 2.2}
    (whole,) = decoded(make_stage(fps=fps, pieces=Cut(1000, 1000)).process([item(film, **span)]))
    assert whole.piece == Piece(0, 1, 0)
    assert whole.backend == "pyav"
    cut = Cut(9, 8)
    stage = make_stage(fps=fps, pieces=cut, min_clip_frames=10)
    (first,) = decoded(stage.process([item(film, **span)]))
    total = first.piece.num_pieces
    assert total == cut.num_parts(len(whole.frames))
    later = decoded(
        stage.process(
            [item(film, piece=piece, num_pieces=total, **span) for piece in range(1, total)]
        )
    )
    pieces = [first, *later]
    assert {one.ref for one in pieces} == {whole.ref}
    assert {one.fps for one in pieces} == {whole.fps}
    assert [one.piece.first_frame for one in pieces] == [cut.bounds(k)[0] for k in range(total)]
    assert np.array_equal(np.concatenate([one.frames for one in pieces]), whole.frames)
    assert np.array_equal(np.concatenate([one.pts_s for one in pieces]), whole.pts_s)


def test_a_streamed_clip_is_measured_whole(tmp_path: Path, make_stage: MakeStage) -> None:
    film = write_video(tmp_path / "film.mp4", 20)
    stage = make_stage(pieces=Cut(5, 4), min_clip_frames=21)
    (result,) = stage.process([item(film)])
    assert isinstance(result, Rejected)
    assert (result.reason, result.ref.num_segments) == ("too_short", 1)
    assert "the span has 20 frames" in result.message
    (result,) = make_stage(pieces=Cut(5, 4)).process([item(film, piece=2, num_pieces=9)])
    assert isinstance(result, Rejected)
    assert result.reason == "source_changed"
    assert "now has 5 pieces and had 9" in result.message


def test_films_that_take_turns_are_fetched_once(
    tmp_path: Path, scratch: Path, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, uris = fsspec.filesystem("memory"), []
    for index in range(KEPT_SOURCES + 2):
        video = write_video(tmp_path / f"{index}.mp4", 12)
        memory.pipe_file(f"/films/{index}.mp4", video.read_bytes())
        uris.append(f"memory://films/{index}.mp4")
    fetched: list[str] = []

    def counted(uri: str, *args: Any, **kwargs: Any) -> Path:
        fetched.append(uri)
        return fetch_to_file(uri, *args, **kwargs)

    monkeypatch.setattr(decode_module, "fetch_to_file", counted)
    stage = make_stage(pieces=Cut(5, 4))
    try:
        for piece in range(3):
            decoded(stage.process([item(uri, piece=piece, num_pieces=3) for uri in uris[:4]]))
        assert fetched == uris[:4]
        assert len(list(scratch.iterdir())) == 1, "films that are done are not kept"
        stage.process([item(uri, piece=0) for uri in uris])
        assert len(list(scratch.iterdir())) == KEPT_SOURCES
    finally:
        memory.rm("/films", recursive=True)


def test_refused_items_stand_in_their_own_places(tmp_path: Path, make_stage: MakeStage) -> None:
    good = write_video(tmp_path / "good.mp4", 5)
    text = tmp_path / "text.mp4"
    text.write_text("not a video, " * 100)
    items = [
        item(text, 0),
        item(good, 1),
        item(tmp_path / "gone.mp4", 2),
        item(good, 3, problem="row 3 has no end"),
        item(good, 4),
        item(tmp_path, 5),
        item(good, 6, segment=1, num_segments=2),
        item(good, 7, start_s=99.0),
    ]
    results = make_stage().process(items)
    rejected = {r.ref.row: (r.stage, r.reason) for r in results if isinstance(r, Rejected)}
    assert rejected == {
        0: ("decode", "not_a_video"),
        2: ("decode", "missing"),
        3: ("plan", "bad_row"),
        5: ("decode", "not_a_file"),
        6: ("decode", "source_changed"),
        7: ("decode", "too_short"),
    }
    assert [result.ref.row for result in results] == list(range(8))
    assert results[3].ref == ClipRef("row-3", 3, 0, 1, str(good))
    assert results[6].ref.num_segments == 2


def test_a_rejection_names_the_backend_that_gave_it(tmp_path: Path, make_stage: MakeStage) -> None:
    path = spoil_end(write_video(tmp_path / "clip.mp4", 30, options={"bf": "0"}))
    (result,) = make_stage().process([item(path)])
    assert isinstance(result, Rejected)
    assert (result.reason, result.backend) == ("corrupt", "pyav")


def test_damage_in_the_first_segment_costs_the_film_no_other(
    tmp_path: Path, make_stage: MakeStage
) -> None:
    path = write_video(tmp_path / "film.mp4", 40, gop=10, options={"bf": "0"})
    whole = bytearray(path.read_bytes())
    third = packets_of(path)[2].position
    whole[third : third + 8] = b"\xff" * 8
    path.write_bytes(whole)
    stage = make_stage(max_clip_frames=10)
    (first,) = stage.process([item(path)])
    assert isinstance(first, Rejected)
    assert (first.reason, first.ref.num_segments) == ("corrupt", 4)
    (second,) = decoded(stage.process([item(path, segment=1, num_segments=4)]))
    assert numbers_of(second.frames) == list(range(10, 20))


def test_members_of_archives_are_decoded_and_their_copies_removed(
    tmp_path: Path, scratch: Path, make_stage: MakeStage
) -> None:
    videos = [write_video(tmp_path / f"{k}.mp4", 6, first_number=10 * k) for k in range(2)]
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        for video in videos:
            tar.add(video, video.name)
    with tarfile.open(archive) as tar:
        members = [
            ArchiveMember(str(archive), entry.offset_data, entry.size) for entry in tar.getmembers()
        ]
    items = [
        item(f"{archive}#0.mp4", 0, member=members[0], segment=0),
        item(f"{archive}#0.mp4", 0, member=members[0], segment=1, num_segments=2),
        item(f"{archive}#1.mp4", 1, member=members[1]),
    ]
    stage = make_stage(max_clip_frames=4)
    results = decoded(stage.process(items))
    assert [numbers_of(clip.frames) for clip in results] == [
        [0, 1, 2, 3], [4, 5], [10, 11, 12, 13],
    ]  # fmt: skip
    assert len(list(scratch.iterdir())) == 1  # the last source, for its next segment
    stage.close()
    assert list(scratch.iterdir()) == []
    assert all(path.exists() for path in (archive, *videos))


def test_remote_sources_are_fetched(tmp_path: Path, scratch: Path, make_stage: MakeStage) -> None:
    video = write_video(tmp_path / "clip.mp4", 4)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/decode-stage/clip.mp4", video.read_bytes())
    try:
        clip, gone = make_stage().process(
            [item("memory://decode-stage/clip.mp4"), item("memory://decode-stage/gone.mp4", 1)]
        )
    finally:
        memory.rm("/decode-stage", recursive=True)
    assert isinstance(clip, DecodedClip)
    assert numbers_of(clip.frames) == [0, 1, 2, 3]
    assert isinstance(gone, Rejected)
    assert gone.reason == "missing"


def test_a_source_beyond_the_limit_is_refused(tmp_path: Path, make_stage: MakeStage) -> None:
    path = write_video(tmp_path / "clip.mp4", 4)
    (result,) = make_stage(max_source_bytes=1000).process([item(path)])
    assert isinstance(result, Rejected)
    assert result.reason == "too_large"


def test_a_store_that_fails_is_nobodys_rejection(make_stage: MakeStage) -> None:
    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "brokenstore"

        def _fail(self, *_: object, **__: object) -> None:
            raise TimeoutError("no route")

        info = open = cat_file = _fail

    fsspec.register_implementation("brokenstore", Broken, clobber=True)
    with pytest.raises(StorageError):
        make_stage().process([item("brokenstore://bucket/clip.mp4")])


def test_any_item_can_be_run_again(tmp_path: Path, make_stage: MakeStage) -> None:
    path = write_video(tmp_path / "clip.mp4", 25)
    items = [item(path), item(tmp_path / "gone.mp4", 1), item(path, 2, start_s=0.4)]
    once, again = (make_stage(fps=10.0).process(items) for _ in range(2))
    for left, right in zip(once, again, strict=True):
        assert left.ref == right.ref
        if isinstance(left, DecodedClip) and isinstance(right, DecodedClip):
            assert np.array_equal(left.frames, right.frames)
        else:
            assert left == right


def test_a_decoder_that_is_not_installed_is_named(make_stage: MakeStage) -> None:
    if importlib.util.find_spec("torchcodec"):
        pytest.skip("torchcodec is installed here")
    with pytest.raises(ConfigError, match="torchcodec is not installed here"):
        make_stage(backend="torchcodec")


def test_a_web_server_that_does_not_answer_is_no_verdict_on_its_video(tmp_path: Path) -> None:
    stage = DecodeStage(
        SamplingConfig(),
        FramesConfig(size=(32, 32)),
        DecodeConfig(),
        StoreOptions(deadline_s=1),
    )
    stage.setup(tmp_path)
    try:
        (result,) = stage.process([WorkItem(0, "id", "http://127.0.0.1:9/a.mp4")])
    finally:
        stage.close()
    assert isinstance(result, Failed)
    assert result.reason == "unreachable"
    assert result.error == "ConnectionRefusedError"
