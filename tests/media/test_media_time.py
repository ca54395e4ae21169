"""When frames are shown, by the clock of the container; joined streams, and streams with holes."""

from fractions import Fraction
from pathlib import Path
from typing import Any

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
    "a.ts": {}, "hevc.ts": HEVC, "a.flv": {}, "a.mkv": {}, "a.webm": VP9, "a.h264": {},
    "a.hevc": HEVC, "mpeg2.ts": MPEG2, "a.mpg": MPEG2, "a.vob": MPEG2, "a.avi": {"codec": "mpeg4"},
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_play_in_order(name: str, lab: Lab) -> None:
    num_parts = 2 if name in ("a.mkv", "a.webm") else 3  # FFmpeg reads two
    parts = [
        lab.write(name, 20, first_number=20 * k, **JOINED[name]).read_bytes()
        for k in range(num_parts)
    ]
    path = lab.folder / name
    path.write_bytes(b"".join(parts))
    video = lab.decoder().decode(path)
    assert numbers_of(video.frames) == list(range(20 * num_parts))
    np.testing.assert_allclose(video.pts_s, np.arange(20 * num_parts) / 25, atol=1e-3)


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


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.flv", "a.webm", "mpeg2.ts"])
def test_a_hole_in_a_stream_is_damage(name: str, lab: Lab) -> None:
    codec = {"a.webm": VP9, "mpeg2.ts": {"codec": "mpeg2video"}}.get(name, {})
    whole = lab.write("whole.mp4", 120, **codec)
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
