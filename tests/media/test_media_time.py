"""When frames are shown, by the clock of the container; joined streams, and streams with holes."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.conftest import Lab
from tests.videos import FRAGMENTED, HEVC, VP9, numbers_of, remux
from tokpipe.errors import SourceError

CASES = Path("tests/cases/media").absolute()
MPEG2 = {"codec": "mpeg2video", "options": {"bf": "2"}}


def test_a_span_counts_from_where_the_sound_begins(lab: Lab) -> None:
    decoder = lab.decoder(fps=8)
    whole = decoder.decode(CASES / "late.mp4")
    assert (len(whole.frames), whole.pts_s[0]) == (96, 1.0)
    part = decoder.decode(CASES / "late.mp4", start_s=5, end_s=6)
    assert np.array_equal(part.frames, whole.frames[32:40])
    assert part.pts_s.tolist() == [5 + k / 8 for k in range(8)]
    early = decoder.decode(CASES / "late.mp4", start_s=0, end_s=2)
    assert np.array_equal(early.frames, whole.frames[:8])
    with pytest.raises(SourceError, match="the span has 0 frames") as caught:
        decoder.decode(CASES / "late.mp4", start_s=0, end_s=1)
    assert caught.value.reason == "too_short"


@pytest.mark.parametrize("shift_s", [(5.5, 5), (1, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv", "a.mov"])
def test_time_zero_is_where_the_first_stream_begins(
    name: str, shift_s: tuple[float, float], lab: Lab
) -> None:
    whole = lab.write("whole.mkv", 20, audio=True, options={"bf": "0"})
    path = remux(whole, lab.folder / name, shift_s)
    late_s = max(0, shift_s[0] - shift_s[1])
    video = lab.decoder(fps=25).decode(path)
    assert numbers_of(video.frames) == list(range(20))
    # Sound begins up to one AAC frame of 64 ms earlier than it is heard.
    np.testing.assert_allclose(video.pts_s, late_s + np.arange(20) / 25, atol=0.065)
    part = lab.decoder(fps=25).decode(path, start_s=video.pts_s[5], end_s=video.pts_s[9])
    assert numbers_of(part.frames) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("name", "rate"),
    [("a.mkv", "60"), ("a.mkv", "120"), ("a.flv", "60"), ("a.ts", "60000/1001"), ("a.mp4", "60")],
)
def test_a_file_at_its_own_rate_shows_each_frame_once(name: str, rate: str, lab: Lab) -> None:
    path = lab.write(name, 100, fps=Fraction(rate), size=(16, 16), gop=50)
    video = lab.decoder(fps=round(float(Fraction(rate)), 2)).decode(path)
    assert numbers_of(video.frames) == list(range(100))


JOINED: dict[str, dict[str, Any]] = {
    "a.ts": {}, "hevc.ts": HEVC, "a.flv": {}, "a.h264": {}, "a.hevc": HEVC,
    "mpeg2.ts": MPEG2, "a.mpg": MPEG2, "a.vob": MPEG2, "a.avi": {"codec": "mpeg4"},
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_play_in_order(name: str, lab: Lab) -> None:
    video = lab.decoder().decode(_joined(lab, name, [JOINED[name]] * 3))
    assert numbers_of(video.frames) == list(range(60))
    np.testing.assert_allclose(video.pts_s, np.arange(60) / 25, atol=1e-3)


def _joined(lab: Lab, name: str, settings: Sequence[dict[str, Any]]) -> Path:
    """Write files of 20 numbered frames each, one after the other."""
    parts = [
        lab.write(name, 20, first_number=20 * k, **each).read_bytes()
        for k, each in enumerate(settings)
    ]
    path = lab.folder / name
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("sounds", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("name", ["a.ts", "a.flv"])
def test_joined_files_need_not_all_have_sound(
    name: str, sounds: tuple[bool, bool], lab: Lab
) -> None:
    path = _joined(lab, name, [{"audio": sound} for sound in sounds])
    assert numbers_of(lab.decoder().decode(path).frames) == list(range(40))


OTHER_PID = {"container_options": {"mpegts_start_pid": "0x300"}}
OTHER_PROGRAM = {"container_options": {"mpegts_start_pid": "768", "mpegts_pmt_start_pid": "4608"}}
GIF = {"codec": "gif", "pix_fmt": "rgb8"}
NOT_JOINED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "other PID": ("a.ts", [{}, OTHER_PID]),
    "other PID, then the first": ("a.ts", [{}, OTHER_PID, {}]),
    "other program": ("a.ts", [{}, OTHER_PROGRAM]),
    "two mkv": ("a.mkv", [{}, {}]),
    "three mkv": ("a.mkv", [{}, {}, {}]),
    "other codec": ("a.mkv", [{}, HEVC]),
    "three webm": ("a.webm", [VP9, VP9, VP9]),
    "nut": ("a.nut", [{}, {}]),
    "gif": ("a.gif", [GIF, {**GIF, "size": (96, 128)}]),
    "apng": ("a.apng", [{"codec": "apng", "pix_fmt": "rgb24"}] * 2),
}


@pytest.mark.parametrize("case", NOT_JOINED)
def test_joined_files_of_which_ffmpeg_loses_frames_are_corrupt(case: str, lab: Lab) -> None:
    path = _joined(lab, *NOT_JOINED[case])
    with pytest.raises(SourceError, match=r"joined.*: split the file") as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "corrupt"


def test_two_video_streams_side_by_side_are_not_joined_files(lab: Lab) -> None:
    one, two = lab.write("one.mp4", 20), lab.write("two.mp4", 20, first_number=20)
    path = lab.folder / "both.ts"
    with av.open(str(path), "w") as target, av.open(str(one)) as a, av.open(str(two)) as b:
        copies = [target.add_stream_from_template(each.streams.video[0]) for each in (a, b)]
        for packets in zip(a.demux(video=0), b.demux(video=0), strict=True):
            for packet, copy in zip(packets, copies, strict=True):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    assert numbers_of(lab.decoder().decode(path).frames) == list(range(20))


def test_sound_that_begins_midway_in_flv_loses_no_frame(lab: Lab) -> None:
    def tags(path: Path) -> list[bytes]:
        data, at, found = path.read_bytes(), 13, []
        while at + 11 < len(data):
            end = at + 15 + int.from_bytes(data[at + 1 : at + 4], "big")
            found.append(data[at:end])
            at = end
        return found

    silent = lab.write("silent.flv", 400)
    video = [one for one in tags(silent) if one[0] == 9]
    when = video[300][4:8]  # its time
    sound = [one for one in tags(lab.write("sound.flv", 9, audio=True)) if one[0] == 8]
    late = [one[:4] + when + one[8:] for one in sound]
    path = lab.folder / "late.flv"
    path.write_bytes(b"FLV\1\0\0\0\0\x09" + bytes(4) + b"".join(video[:300] + late + video[300:]))
    assert numbers_of(lab.decoder().decode(path).frames) == list(range(400))


@pytest.mark.parametrize("part", [(0, 0.3), (0.6, 1), (0.5, 0.52), (0.02, 1)], ids=str)
def test_a_transport_stream_that_is_scrambled_in_part_is_encrypted(
    part: tuple[float, float], lab: Lab
) -> None:
    path = lab.write("a.ts", 200, size=(480, 640))
    data = bytearray(path.read_bytes())
    video = [at for at in range(0, len(data), 188) if data[at + 1] & 31 == 1 and not data[at + 2]]
    for at in video[int(part[0] * len(video)) : int(part[1] * len(video))]:
        data[at + 3] |= 0x80
        data[at + 12 : at + 188] = bytes(byte ^ 0x5A for byte in data[at + 12 : at + 188])
    path.write_bytes(data)
    with pytest.raises(SourceError, match="encrypted") as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "encrypted"


@pytest.mark.parametrize("entry", [b"encv", b"drmi"])
def test_an_encrypted_mp4_that_does_not_say_how_is_encrypted(entry: bytes, lab: Lab) -> None:
    path = lab.write("a.mp4", 20)
    path.write_bytes(path.read_bytes().replace(b"avc1" + bytes(4), entry + bytes(4)))
    with pytest.raises(SourceError, match="encrypted") as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "encrypted"


@pytest.mark.parametrize("brand", [b"mif3", b"MiHE", b"avic", b"isom", bytes(4), b"avif"])
def test_a_still_picture_is_one_under_every_brand(brand: bytes, lab: Lab) -> None:
    data = (CASES / "grid.avif").read_bytes()
    path = lab.folder / "a.avif"
    path.write_bytes(data[:8] + brand + data[12:])
    with pytest.raises(SourceError) as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "still_picture"


def test_the_case_of_joined_files_has_all_frames_in_order(lab: Lab) -> None:
    video = lab.decoder(fps=25).decode(CASES / "cat.ts")
    assert len(video.frames) == 100
    np.testing.assert_allclose(np.diff(video.pts_s), 1 / 25, atol=1e-6)


JUMPS_S = [3600, 86_400, 2**33 / 90_000 - 5, -3600, -50_000]


@pytest.mark.parametrize("jump_s", JUMPS_S, ids=str)
@pytest.mark.parametrize("name", ["a.ts", "a.flv", "mpeg2.ts"])
def test_a_clock_that_jumps_changes_neither_frames_nor_their_distance(
    name: str, jump_s: float, lab: Lab
) -> None:
    codec: dict[str, Any] = {"codec": "mpeg2video"} if name == "mpeg2.ts" else {}
    whole = lab.write("whole.mp4", 40, options={"bf": "0"}, **codec)
    start_s = 1 if jump_s > 0 else 60_000
    for at in (16, 21):  # a key frame and another frame
        # Muxers do not let time run backwards, so each side of the jump is a file by itself.
        halves = [
            remux(whole, lab.folder / f"half{name}", [start_s + k * jump_s], kept).read_bytes()
            for k, kept in enumerate([range(at), range(at, 40)])
        ]
        path = lab.folder / f"{at}{name}"
        path.write_bytes(b"".join(halves))
        if at == 16 or name == "a.flv":
            video = lab.decoder().decode(path)
            assert numbers_of(video.frames) == list(range(40))
            np.testing.assert_allclose(video.pts_s, np.arange(40) / 25, atol=1e-3)
        else:  # what is shown until the next key frame may need frames of another file
            with pytest.raises(SourceError, match="begin again at video packet 21") as caught:
                lab.decoder().decode(path)
            assert caught.value.reason == "corrupt"


def test_a_clock_may_be_set_between_key_frames(lab: Lab) -> None:
    around_wrap = range(2**33 * 25 // 90_000 - 20, 2**33 * 25 // 90_000 + 20)
    for pts in ([*range(13), *range(100_000, 100_027)], around_wrap):
        path = lab.write("a.ts", 40, pts=pts, gop=20)
        video = lab.decoder().decode(path)
        assert numbers_of(video.frames) == list(range(40))
        np.testing.assert_allclose(video.pts_s, np.arange(40) / 25, atol=1e-3)


@pytest.mark.parametrize("lost", [1, 12])
def test_lost_packets_of_a_transport_stream_are_damage(lost: int, lab: Lab) -> None:
    whole = lab.write("whole.ts", 60, size=(480, 640), gop=20).read_bytes()
    packets = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    video = [at for at, one in enumerate(packets) if one[1] & 31 == 1 and one[2] == 0]
    path = lab.folder / "lost.ts"
    begins = [bool(packets[at][1] & 0x40) for at in video]
    inside = [k for k in range(20, len(video) - 20) if not any(begins[k : k + 2])]
    for first in (20, *inside[:1], *inside[-1:]):  # the rest of a frame remains
        gone = set(video[first : first + lost])
        path.write_bytes(b"".join(one for at, one in enumerate(packets) if at not in gone))
        with pytest.raises(SourceError, match=r"missing|damaged") as caught:
            lab.decoder().decode(path)
        assert caught.value.reason in ("corrupt", "gap")
        marked = lab.decoder(on_damage="mark").decode(path)
        assert marked.damage is not None
        assert numbers_of(marked.frames) == list(range(len(marked.frames)))


WITH_HOLE: dict[str, dict[str, Any]] = {
    "a.ts": {}, "a.mkv": {}, "a.flv": {}, "a.webm": VP9, "mpeg2.ts": {"codec": "mpeg2video"},
    "intra.ts": {"gop": 1}, "mjpeg.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores.mkv": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_HOLE)
def test_a_hole_in_a_stream_is_damage(name: str, lab: Lab) -> None:
    codec = WITH_HOLE[name]
    whole = lab.write("whole.mov" if name == "prores.mkv" else "whole.mp4", 120, **codec)
    path = remux(whole, lab.folder / name, kept=[*range(40), *range(80, 120)])
    with pytest.raises(SourceError, match=r"1\.6 s of frames are missing") as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "gap"
    marked = lab.decoder(on_damage="mark", fps=25).decode(path)
    assert numbers_of(marked.frames) == list(range(40))
    assert "1.6 s of frames are missing" in str(marked.damage)


def test_missing_segments_are_damage(lab: Lab) -> None:
    path = CASES / "dash_hole.mp4"
    with pytest.raises(SourceError, match=r"4 s of frames are missing") as caught:
        lab.decoder().decode(path)
    assert caught.value.reason == "gap"
    marked = lab.decoder(on_damage="mark", fps=8).decode(path)
    assert len(marked.frames) == 44
    assert "4 s of frames are missing" in str(marked.damage)


SLIDES = [0, 1, 2, 3, 4, 5, 150, 151, 152, 153, 400, 401, 402, 403, 404, 900]
EVEN = range(0, 2000, 100)


@pytest.mark.parametrize("pts", [SLIDES, EVEN], ids=["screen recording", "slides"])
@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4", "a.mkv", "a.webm", "a.ts", "a.gif"])
def test_a_picture_that_is_shown_for_long_is_not_a_hole(name: str, pts: Any, lab: Lab) -> None:
    codec = {"a.webm": VP9, "a.gif": {"codec": "gif", "pix_fmt": "rgb8"}}.get(name, {})
    settings = {**codec, **(FRAGMENTED if name == "fragmented.mp4" else {})}
    path = lab.write(name, len(pts), pts=pts, gop=4, **settings)
    video = lab.decoder().decode(path)
    assert numbers_of(video.frames) == list(range(len(pts)))
    if name != "a.ts":
        np.testing.assert_allclose(video.pts_s, [one / 25 for one in pts], atol=1e-3)
