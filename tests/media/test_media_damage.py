"""Under ``on_damage: mark`` a damaged video gives its intact frames, the same ones always."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.media_helpers import MakeDecoder, numbers_of, write_video
from tokpipe.errors import SourceError
from tokpipe.media.decoder import Undecodable

MP4: dict[str, Any] = {"container_options": {"movflags": "faststart"}}
VP9: dict[str, Any] = {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}
FORMATS: dict[str, dict[str, Any]] = {
    "clip.mp4": MP4,
    "plain.mp4": {**MP4, "options": {"bf": "0"}},
    "hevc.mp4": {**MP4, "codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}},
    "clip.mkv": {},
    "clip.webm": VP9,
    "clip.ts": {},
    "clip.avi": {"codec": "mpeg4"},
}


def cut_short(path: Path, num_packets: int) -> None:
    """End the file in the middle of video packet ``num_packets``."""
    with av.open(str(path)) as container:
        packets = sorted(
            (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size
        )
    position, size = packets[num_packets]
    os.truncate(path, position + size // 2)


def spoil(path: Path, packet_number: int) -> None:
    """Overwrite one video packet."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        position, payload = packets[packet_number].pos, bytes(packets[packet_number])
    whole = path.read_bytes()
    at = whole.index(payload, position)
    path.write_bytes(whole[:at] + b"\xff" * len(payload) + whole[at + len(payload) :])


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_gives_its_first_frames_and_a_mark(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / name, 60, **FORMATS[name])
    whole = make_decoder(backend="pyav").decode(path)
    cut_short(path, 40)
    video = make_decoder(on_damage="mark").decode(path)
    num = len(video.frames)
    assert 30 <= num <= 41
    assert np.array_equal(video.frames, whole.frames[:num])
    assert np.array_equal(video.pts_s, whole.pts_s[:num])
    # Elsewhere a cut may leave nothing that tells.
    assert video.damage is not None or not name.endswith(".mp4")


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm"])
def test_what_lies_before_a_frame_that_cannot_be_decoded_is_kept(
    name: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / name, 30, **FORMATS[name])
    whole = make_decoder(backend="pyav").decode(path)
    spoil(path, 12)
    video = make_decoder(on_damage="mark").decode(path)
    num = len(video.frames)
    assert 8 <= num <= 12
    assert np.array_equal(video.frames, whole.frames[:num])
    assert video.damage is not None
    assert f"the clip ends after {num} of 30 frames: " in video.damage
    assert video.backend == "pyav"


def test_the_same_file_gives_the_same_frames_whatever_was_decoded_before(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / "clip.mkv", 30)
    other = write_video(tmp_path / "other.mp4", 20)
    spoil(path, 12)
    used = make_decoder(on_damage="mark")
    videos = [used.decode(path), used.decode(path)]
    used.decode(other)
    videos.append(used.decode(path))
    used.close()
    videos.append(used.decode(path))
    videos.append(make_decoder(on_damage="mark", backend="pyav").decode(path))
    for video in videos[1:]:
        assert np.array_equal(video.frames, videos[0].frames)
        assert np.array_equal(video.pts_s, videos[0].pts_s)
        assert video.damage == videos[0].damage


def test_segments_of_a_damaged_film_agree_on_their_number(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / "clip.mp4", 60, **MP4)
    cut_short(path, 40)
    decoder = make_decoder(on_damage="mark", max_clip_frames=17)
    first = decoder.decode(path)
    rest = [
        decoder.decode(path, segment=j, num_segments=first.num_segments)
        for j in range(1, first.num_segments)
    ]
    numbers = [number for video in (first, *rest) for number in numbers_of(video.frames)]
    assert numbers == list(range(len(numbers)))
    assert all(video.damage for video in (first, *rest))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_damage": "reject"}, "decod"),
        ({"on_damage": "mark", "min_clip_frames": 20}, "decod"),
        ({"on_damage": "mark", "backend": "decord"}, "decord"),
    ],
)
def test_a_damaged_clip_is_rejected_where_its_frames_do_not_do(
    settings: dict[str, Any], words: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / "clip.mkv", 30)
    spoil(path, 12)
    with pytest.raises(SourceError, match=words) as caught:
        make_decoder(**settings).decode(path)
    assert caught.value.reason == "corrupt"


def test_a_refusal_names_the_class_of_the_error_behind_it(
    tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    text = tmp_path / "clip.mp4"
    text.write_text("a\n" * 9999)
    with pytest.raises(Undecodable) as caught:
        make_decoder().decode(text)
    assert caught.value.error == "InvalidDataError"
    good = write_video(tmp_path / "good.mp4", 5)
    with pytest.raises(Undecodable) as caught:
        make_decoder(min_clip_frames=9).decode(good)
    assert (caught.value.reason, caught.value.error) == ("too_short", None)


@pytest.mark.parametrize("deed", ["counts-fewer", "wrong-time", "ends-early", "drops", "doubles"])
def test_a_decoder_that_gives_more_fewer_or_later_frames_than_the_file_lists_is_noticed(
    deed: str, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = write_video(tmp_path / f"{deed}.mp4", 20)
    video = make_decoder(backends=("tests.media.planted_decord", "pyav")).decode(path)
    assert (numbers_of(video.frames), video.backend) == (list(range(20)), "pyav")
