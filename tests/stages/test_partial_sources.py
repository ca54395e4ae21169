"""Of a large remote video only the index and the spans that are used are fetched."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import S3Bucket
from tests.media.conftest import FORMATS, section
from tests.videos import (
    FASTSTART,
    HEVC,
    QUIET_X265,
    VP9,
    copy_from,
    cut_short,
    encode,
    spoil_end,
    spoil_packet,
)
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import NodeTrouble, StorageError
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store, fetch
from tokpipe.storage.client import Client
from tokpipe.storage.ranged import RangedFile
from tokpipe.types import Cut, DecodedClip, Rejected, WorkItem

NUM_FRAMES = 300  # 12 s
AV1 = {"codec": "libsvtav1", "options": {"preset": "12"}}
OPEN_HEVC = {**HEVC, "options": {"x265-params": f"{QUIET_X265}:keyint=25:open-gop=1:bframes=3"}}
INDEXED: dict[str, dict[str, Any]] = {
    "index-first.mp4": {**FASTSTART, "audio": True},
    "index-last.mp4": {"options": {"bf": "3"}, "audio": True},
    "no-b-frames.mov": {"options": {"bf": "0"}},
    "one-b-frame.mp4": {"options": {"bf": "1"}},
    "turned.mp4": {"rotation": 90},
    "uneven.mp4": {"pts": [k + k // 7 for k in range(NUM_FRAMES)]},
    "open.hevc.mp4": OPEN_HEVC,
    "vp9.mp4": VP9,
    "av1.mp4": AV1,
    "edited.mp4": {},
    "two-tracks.mp4": {},
}
"""Settings of ``encode`` for files of which only spans are fetched."""
OTHERS: dict[str, dict[str, Any]] = {
    "open.mp4": {"options": {"x264-params": "open-gop=1:keyint=25:bframes=3"}},
    "refreshed.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=25"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "cut.mp4": FASTSTART,
    "cut-index.mp4": {},
    "spoiled.mp4": {},
    "spoiled-end.mp4": {},
    **{name: FORMATS[name] for name in ("fragmented.mp4", "clip.mkv", "clip.ts", "clip.avi")},
}
SPANS = st.tuples(st.integers(0, 1250), st.integers(1, 400)).map(
    lambda cs: (cs[0] / 100, (cs[0] + cs[1]) / 100)
)


@dataclass
class Both:
    """Stages that decode the same files, one from local disk and one from a store."""

    folder: Path
    local: DecodeStage
    remote: DecodeStage

    def close(self) -> None:
        self.local.close()
        self.remote.close()


def new_stage(**changes: Any) -> DecodeStage:
    chosen = {"fps": None, "max_clip_frames": 1000, "min_clip_frames": 1, **changes}
    sampling, decode = section(SamplingConfig, chosen), section(DecodeConfig, chosen)
    frames = FramesConfig(size=(48, 64), fit="stretch")
    stage = DecodeStage(
        sampling, frames, decode, StoreOptions(deadline_s=5.0), chosen.get("pieces")
    )
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Videos of noise, so that they are long in bytes, also in the memory store."""
    folder = tmp_path_factory.mktemp("partial")
    random, memory = np.random.default_rng(21), fsspec.filesystem("memory")
    pictures = random.integers(0, 256, (NUM_FRAMES, 96, 128, 3), np.uint8)
    for name, how in {**INDEXED, **OTHERS}.items():
        encode(folder / name, pictures, (96, 128), **{"gop": 25, **how})
    copy_from(folder / "index-last.mp4", folder / "edited.mp4", 1.5)
    _join_tracks(folder / "index-last.mp4", folder / "two-tracks.mp4")
    cut_short(folder / "cut.mp4", 200, inside=True)
    whole = (folder / "cut-index.mp4").read_bytes()
    (folder / "cut-index.mp4").write_bytes(whole[: whole.index(b"moov") + 500])
    spoil_packet(folder / "spoiled.mp4", 160)
    spoil_end(folder / "spoiled-end.mp4")
    for path in folder.iterdir():
        memory.pipe_file(f"/partial/{path.name}", path.read_bytes())
    yield folder
    memory.rm("/partial", recursive=True)


def _join_tracks(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        video = before.streams.video[0]
        copies = [after.add_stream_from_template(video) for _ in range(2)]
        for packet in [one for one in before.demux(video) if one.size]:
            for copy in copies:
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.duration = packet.pts, packet.dts, packet.duration
                again.time_base, again.is_keyframe = packet.time_base, packet.is_keyframe
                again.stream = copy
                after.mux(again)


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MIN_PARTIAL_BYTES", 0)


@pytest.fixture(scope="module", params=[None, "mark"])
def both(request: pytest.FixtureRequest, folder: Path) -> Iterator[Both]:
    changes = {"on_damage": request.param} if request.param else {}
    made = Both(folder, new_stage(**changes), new_stage(**changes))
    yield made
    made.close()


def item(
    uri: object, start_s: float | None = 0.0, end_s: float | None = None, **w: Any
) -> WorkItem:
    return WorkItem(0, "0" * 32, str(uri), start_s=start_s, end_s=end_s, **w)


def outcome(stage: DecodeStage, *items: WorkItem) -> list[Any]:
    """All that a clip's codes and rows come from."""
    return [
        (one.frames.tobytes(), one.pts_s.tolist(), one.fps, one.marks, one.damage, one.ref.clip_id)
        if isinstance(one, DecodedClip)
        else (one.reason, one.message.partition(": ")[2], one.backend)  # type: ignore[union-attr]
        for one in stage.process([*items])
    ]


@pytest.mark.parametrize("name", [*INDEXED, *OTHERS])
@given(spans=st.lists(SPANS, min_size=1, max_size=4))
@example(spans=[(6.69, 6.73)])
@example(spans=[(6.0, 6.5), (0.0, 1.0), (11.5, 20.0), (15.0, 16.0), (0.0, 12.0)])
@settings(max_examples=3, deadline=None, suppress_health_check=[*HealthCheck])
def test_spans_are_the_same_from_parts_as_from_the_whole_file(
    both: Both, name: str, spans: list[tuple[float, float]]
) -> None:
    both.remote.close()
    both.remote.setup()  # which fetches anew
    local = [item(both.folder / name, *span) for span in spans]
    remote = [replace(one, source_uri=f"memory://partial/{name}") for one in local]
    assert [*map(repr, outcome(both.remote, *remote))] == [*map(repr, outcome(both.local, *local))]


@pytest.mark.parametrize("name", INDEXED)
def test_only_the_index_and_the_span_are_fetched(folder: Path, name: str) -> None:
    stage = new_stage()
    (clip,) = stage.process([item(f"memory://partial/{name}", 8.0, 8.5)])
    size = (folder / name).stat().st_size
    assert isinstance(clip, DecodedClip)
    assert not clip.source_sha256
    assert 0 < stage.fetched_bytes < 0.6 * size
    assert stage.fetched_s > 0
    first = stage.fetched_bytes
    stage.process([item(f"memory://partial/{name}", 8.0, 8.5)])
    assert stage.fetched_bytes == 0, "its source was kept"
    stage.process([item(f"memory://partial/{name}", a / 4, a / 4 + 1) for a in range(48)])
    assert first + stage.fetched_bytes <= size
    stage.close()


def test_pieces_and_probes_fetch_what_they_need(folder: Path) -> None:
    uri, size = "memory://partial/index-last.mp4", (folder / "index-last.mp4").stat().st_size
    stage = new_stage(pieces=Cut(5, 4))
    (piece,) = stage.process([item(uri, 8.0, 9.0, piece=1, num_pieces=6)])
    assert isinstance(piece, DecodedClip)
    assert 0 < stage.fetched_bytes < size / 2
    stage.close()
    stage = new_stage()
    assert not isinstance(stage.probe(item(uri, 8.0, 9.0)), Rejected)
    assert 0 < stage.fetched_bytes < size / 3
    stage.close()


@pytest.mark.parametrize(
    "changes", [{"start_s": None}, {"size": 2**40}, {"reuses": [1]}, {"backend": "decord"}]
)
def test_everything_else_is_fetched_whole(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MIN_PARTIAL_BYTES", changes.get("size", 0))
    stage = new_stage(backend=changes.get("backend", "pyav"))
    stage.reuses = changes.get("reuses", [])
    monkeypatch.setattr(DecodeStage, "_first", lambda *_: None)
    stage._tried(
        item("memory://partial/index-first.mp4", changes.get("start_s", 8.0)), lambda *_, **__: None
    )
    assert stage.fetched_bytes == (folder / "index-first.mp4").stat().st_size
    stage.close()


def test_an_object_that_is_replaced_meanwhile_is_rejected_and_then_read_anew(
    folder: Path, s3_bucket: S3Bucket
) -> None:
    store = Store(s3_bucket.uri, StoreOptions())
    store.put("v.mp4", (folder / "index-first.mp4").read_bytes())
    stage, uri = new_stage(), f"{s3_bucket.uri}/v.mp4"
    local, other = folder / "index-first.mp4", folder / "one-b-frame.mp4"
    assert outcome(stage, item(uri, 2.0, 3.0)) == outcome(stage, item(local, 2.0, 3.0))
    first = item(uri, 2.0, 3.0)
    assert isinstance(stage.process([first])[0], DecodedClip)
    assert stage.fetched_bytes < local.stat().st_size / 2
    store.put("v.mp4", other.read_bytes())
    (late,) = stage.process([item(uri, 9.0, 10.0)])
    assert isinstance(late, Rejected)
    assert late.reason == "changed"
    assert outcome(stage, item(uri, 9.0, 10.0)) == outcome(stage, item(other, 9.0, 10.0))
    stage.close()


def test_trouble_of_the_store_or_the_disk_rejects_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, uri = new_stage(), "memory://partial/index-last.mp4"
    whole = outcome(stage, item(folder / "index-last.mp4", 9.0, 10.0))
    outcome(stage, item(uri, 1.0, 2.0))
    for error, raised in ((StorageError("gone"), StorageError), (OSError(28, "full"), NodeTrouble)):
        with monkeypatch.context() as patch:

            def broken(*_: object, error: Exception = error) -> bytes:
                raise error

            patch.setattr(Client, "read_version", broken)
            with pytest.raises(raised):
                stage.process([item(uri, 9.0, 10.0)])
    assert outcome(stage, item(uri, 9.0, 10.0)) == whole
    stage.close()


def test_frames_beyond_4_gib_are_found(folder: Path, tmp_path: Path) -> None:
    """The hole costs nothing, neither here nor in the copy."""
    path, gap = tmp_path / "far.mp4", 5 * 2**30
    _move_frames(folder / "no-b-frames.mov", path, gap)
    counts: list[int] = []
    size = path.stat().st_size
    with fetch.new_copy(".mp4") as (video, file):
        file.truncate(size)
    stage = new_stage()
    with path.open("rb") as stored:
        ranged = RangedFile(size, lambda a, b: os.pread(stored.fileno(), b - a, a))
        video.parts = fetch.Parts("far", ranged, lambda count, _: counts.append(count))
        found, known = (
            stage._decoder.decode(one, start_s=8.0, end_s=8.5)
            for one in (video, folder / "no-b-frames.mov")
        )
    assert np.array_equal(found.frames, known.frames)
    assert np.array_equal(found.pts_s, known.pts_s)
    assert sum(counts) < 2**20 < size
    stage.close()
    video.close()


def _move_frames(source: Path, target: Path, gap: int) -> None:
    """Insert a box of ``gap`` bytes before the frames, whose places then take 64 bits."""
    data = bytearray(source.read_bytes())
    at = data.index(b"moov")
    head = data.index(b"mdat") - 4
    place = data.index(b"stco", at)
    count = int.from_bytes(data[place + 8 : place + 12], "big")
    places = struct.unpack_from(f">{count}I", data, place + 12)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco"):
        at = data.index(name, at)
        length = int.from_bytes(data[at - 4 : at], "big")
        data[at - 4 : at] = (length + 4 * count).to_bytes(4, "big")
    moved = struct.pack(f">{count}Q", *(one + gap for one in places))
    data[place : place + 12 + 4 * count] = b"co64" + data[place + 4 : place + 12] + moved
    with target.open("wb") as file:
        file.write(data[:head] + struct.pack(">I4sQ", 1, b"free", gap))
        file.seek(head + gap)
        file.write(data[head:])
