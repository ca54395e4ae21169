"""Whatever a file holds, decoding ends soon: with the right frames, or with a known reason."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.media.media_helpers import MakeDecoder, numbers_of, write_silence, write_video
from tokpipe.errors import SourceError
from tokpipe.media.decoder import Video, VideoDecoder

REASONS = {
    "access_denied", "corrupt", "crashed", "empty", "missing", "no_video", "not_a_file",
    "not_a_video", "source_changed", "timeout", "too_large", "too_short", "truncated",
    "unsupported",
}  # fmt: skip


def refusal(decoder: VideoDecoder, path: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decoder.decode(path)
    return caught.value


def outcome(decoder: VideoDecoder, path: Path) -> Video | SourceError:
    """What decoding ends with; fails the test if that is anything else."""
    try:
        return decoder.decode(path)
    except SourceError as error:
        refused = error
    assert refused.reason in REASONS
    assert len(str(refused)) > 20, "a person can read it"
    return refused


def rng(seed: int) -> random.Random:
    return random.Random(seed)


def _directory(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


NOT_VIDEOS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "nothing": ("missing", "does not exist", lambda path: None),
    "dangling link": ("missing", "link to nothing", lambda path: path.symlink_to("gone")),
    "directory": ("not_a_file", "a directory", _directory),
    "pipe": ("not_a_file", "a named pipe", os.mkfifo),
    "socket": ("not_a_file", "a socket", _socket),
    "link to a device": (
        "not_a_file", "a character device", lambda path: path.symlink_to("/dev/zero"),
    ),
    "empty file": ("empty", "0 bytes", Path.touch),
    "zeros": ("not_a_video", "no video container", lambda path: path.write_bytes(bytes(99_999))),
    "text": ("not_a_video", "no video container", lambda path: path.write_text("a\n" * 9999)),
    "random bytes": (
        "not_a_video", "no video container", lambda path: path.write_bytes(rng(0).randbytes(99_999))
    ),
    "ftyp alone": (
        "truncated",
        "cut short",
        lambda path: path.write_bytes(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2"),
    ),
    "playlist of other files": (
        "not_a_video",
        "no video container",
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"),
    ),
    "script of other files": (
        "not_a_video",
        "no video container",
        lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_what_is_no_video_is_refused_by_name(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    reason, words, make = NOT_VIDEOS[name]
    path = tmp_path / "clip.mp4"
    make(path)
    error = refusal(make_decoder(), path)
    assert error.reason == reason
    assert re.search(words, str(error))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    path = write_video(tmp_path / "clip.mp4", 3)
    path.chmod(0)
    assert refusal(make_decoder(), path).reason == "access_denied"


def test_sound_alone_is_no_video(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    error = refusal(make_decoder(), write_silence(tmp_path / "sound.mp4"))
    assert error.reason == "no_video"
    assert "no video stream (its streams: audio)" in str(error)


@pytest.mark.parametrize("name", ["none.mp4", "none.avi"])
def test_a_video_without_frames_is_refused(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / name, 0, codec="mpeg4")
    assert refusal(make_decoder(), path).reason == "no_video"


def test_names_are_taken_literally(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    source = write_video(tmp_path / "source.mp4", 3).read_bytes()
    for name in (
        "%03d.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "-i.mp4",
        "ä b'\"$.mp4",
        "x?y#z.mp4",
        "plain",
    ):
        path = tmp_path / name
        path.write_bytes(source)
        assert numbers_of(make_decoder(backend="pyav").decode(path).frames) == [0, 1, 2]


def test_a_span_that_is_too_short_is_refused(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    path = write_video(tmp_path / "clip.mp4", 10)
    decoder = make_decoder(min_clip_frames=5)
    assert len(decoder.decode(path, start_s=0.2).frames) == 5
    with pytest.raises(SourceError, match=r"has 4 frames of a video of 0\.400 s") as caught:
        decoder.decode(path, start_s=0.24)
    assert caught.value.reason == "too_short"
    with pytest.raises(SourceError, match="the span has 0 frames"):
        make_decoder().decode(path, start_s=7)


def test_a_film_that_has_changed_is_refused(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    path = write_video(tmp_path / "clip.mp4", 10)
    with pytest.raises(SourceError, match="now has 3 clips and had 2") as caught:
        make_decoder(max_clip_frames=4).decode(path, segment=1, num_segments=2)
    assert caught.value.reason == "source_changed"


FORMATS = {
    "index-first.mp4": {"container_options": {"movflags": "faststart"}},
    "index-last.mp4": {},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "clip.mkv": {},
    "clip.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "clip.ts": {},
    "clip.avi": {"codec": "mpeg4"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_gives_its_first_frames_or_a_reason(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    whole = write_video(tmp_path / name, 60, **FORMATS[name]).read_bytes()  # type: ignore[arg-type]
    path = tmp_path / f"cut-{name}"
    for percent in (1, 5, 10, 25, 40, 50, 60, 75, 90, 97):
        path.write_bytes(whole[: len(whole) * percent // 100])
        result = outcome(make_decoder(), path)
        if isinstance(result, Video):
            numbers = numbers_of(result.frames)
            assert numbers == np.rint(result.pts_s * 25).tolist(), percent
            # Other containers do not say how much there should be.
            assert numbers == list(range(60)) or not name.startswith("index"), percent


def test_a_file_that_ends_between_two_packets_is_truncated(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / "clip.mp4", 30, container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        offsets = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    os.truncate(path, offsets[20])
    error = refusal(make_decoder(), path)
    assert error.reason == "truncated"
    assert "10 of 30 packets" in str(error)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits_give_every_frame_or_a_reason(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    """Damage that the codec cannot notice may change pixels, but no frame is lost or doubled."""
    path = write_video(tmp_path / name, 20, **FORMATS[name])  # type: ignore[arg-type]
    whole = path.read_bytes()
    clean = make_decoder().decode(path)
    where = rng(5)
    decoded = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(where.choice([1, 1, 5])):
            damaged[where.randrange(len(whole))] ^= 1 << where.randrange(8)
        path.write_bytes(damaged)
        result = outcome(make_decoder(), path)
        again = outcome(make_decoder(), path)
        assert type(result) is type(again)
        if isinstance(result, Video) and isinstance(again, Video):
            decoded += 1
            assert np.array_equal(result.frames, again.frames)
            assert np.all(np.diff(result.pts_s) > 0)
            assert result.frames.shape[1:] == clean.frames.shape[1:]
    assert decoded > 0


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm"])
def test_a_frame_that_cannot_be_decoded_costs_the_clip(
    name: str, backend: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    """decord would repeat another frame in its place."""
    path = write_video(tmp_path / name, 30, **FORMATS[name])  # type: ignore[arg-type]
    with av.open(str(path)) as container:
        payload = bytes([packet for packet in container.demux(video=0) if packet.size][12])
    whole = path.read_bytes()
    assert payload in whole
    path.write_bytes(whole.replace(payload, b"\xff" * len(payload)))
    error = refusal(make_decoder(backend=backend), path)
    assert error.reason == "corrupt"


def test_huge_declared_dimensions_change_nothing_or_are_refused(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    whole = path.read_bytes()
    # Width and height in the sample description; the first "avc1" of the file is only a brand.
    at = whole.index(b"avc1", whole.index(b"stsd")) + 28
    path.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
    result = outcome(make_decoder(), path)
    assert isinstance(result, Video)  # the stream's own header wins
    assert numbers_of(result.frames) == list(range(5))


def test_a_video_too_large_for_the_child_is_refused_and_the_next_is_fine(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(memory_bytes=256 * 2**20)
    huge = write_video(
        tmp_path / "huge.mkv", 1, size=(8000, 8000), codec="mjpeg", pix_fmt="yuvj444p"
    )
    assert refusal(decoder, huge).reason in {"too_large", "no_video"}
    assert len(decoder.decode(write_video(tmp_path / "clip.mp4", 3)).frames) == 3


def test_a_timestamp_hours_away_is_damage(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    path = write_video(tmp_path / "clip.mkv", 3, pts=[0, 1, 25 * 5000])
    error = refusal(make_decoder(), path)
    assert error.reason == "corrupt"
    assert "one frame lasts 5000 s" in str(error)
