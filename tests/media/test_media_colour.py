"""Colours against arithmetic on pictures whose samples are computed by the tests."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media import charts
from tests.media.boxes import describe_mp4
from tests.media.charts import chart, frame_of, painted, samples, write_planes
from tests.media.conftest import Lab
from tests.videos import encode, numbers_of
from tokpipe.config.job import FramesConfig
from tokpipe.errors import SourceError
from tokpipe.media.colour import Tags, conversion

CASES = Path(__file__).parents[1] / "cases" / "media"
BT709 = {"colorspace": 1, "color_range": 1, "color_trc": 1, "color_primaries": 1}


def check_chart(folder: Path, cases: list[tuple[Any, ...]]) -> None:
    errors = {case: max(charts.measure(folder, case).values()) for case in cases}
    assert len(errors) > 40
    assert {case: error for case, error in errors.items() if error > 3.1} == {}


def test_a_chart_of_every_format_is_shown_as_computed(tmp_path: Path) -> None:
    check_chart(tmp_path, charts.cases(short=True))


@pytest.mark.slow
def test_the_whole_table_of_charts_is_shown_as_computed(tmp_path: Path) -> None:
    check_chart(tmp_path, charts.cases(short=False))


@pytest.mark.parametrize("fps", [8, 30])
@pytest.mark.parametrize("size", [(192, 256), (96, 64), (240, 300)])
def test_limited_grey_goes_from_black_to_white(fps: int, size: tuple[int, int], lab: Lab) -> None:
    frames = (
        lab.decoder(backend="pyav", size=size).decode(CASES / f"gray12_hevc_{fps}fps.mp4").frames
    )
    assert frames[:, :, 0].max() <= 2
    assert frames[:, :, -1].min() >= 253


@pytest.mark.parametrize("name", ["hevc_709_tv10.mp4", "h264_709_untagged_hd.mp4"])
def test_patches_of_bt709_are_those_that_were_drawn(name: str, lab: Lab) -> None:
    """The third of four rows of patches."""
    drawn = [[200, 60, 30], [30, 160, 90], [60, 80, 200], [220, 180, 140]]
    drawn += [[128, 128, 128], [90, 30, 120], [250, 120, 10], [16, 16, 16]]
    for size in ((128, 128), (256, 256), (96, 320)):
        frame = lab.decoder(backend="pyav", size=size).decode(CASES / name).frames[0].astype(int)
        middles = frame[size[0] * 5 // 8, size[1] // 16 :: size[1] // 8]
        assert np.abs(middles - np.array(drawn)).max() <= 4, size


@pytest.mark.parametrize(
    ("rows", "matrix", "choice"),
    [(718, 5, "auto"), (720, 1, "auto"), (720, 5, "bt601"), (64, 1, "bt709"), (64, 9, "bt2020")],
)
def test_untagged_video_follows_the_rule(
    rows: int, matrix: int, choice: str, tmp_path: Path
) -> None:
    planes = samples(np.full((rows, 64, 3), (0.8, 0.2, 0.1)), "yuv444p", matrix, False)
    path = write_planes(tmp_path / "untagged.mkv", planes, "yuv444p")
    found = painted(path, (64, 64), matrix=choice)
    assert np.abs(found - np.array([204, 51, 25.5])).max() <= 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gray", "gbrp10le", "yuva420p"])
def test_wrong_tags_never_crash(pix_fmt: str, tmp_path: Path) -> None:
    for number in range(18):
        tags = Tags(pix_fmt, False, number, number % 4, number, number)
        if number in (8, *range(11, 18)) and pix_fmt.startswith("yuv"):
            with pytest.raises(SourceError, match=r"matrix .+ cannot be converted.+frames\.matrix"):
                conversion(tags, 64)
            assert "bt709" in conversion(tags, 64, "bt709")
            continue
        conversion(tags, 64)
        planes = samples(chart(), pix_fmt, 1, False)
        planes += [planes[0]] * (pix_fmt == "yuva420p")
        frame, out = frame_of(planes, pix_fmt), np.zeros((64, 64, 3), np.uint8)
        frame.colorspace, frame.color_range, frame.color_trc = number, number % 4, number
        frame.color_primaries = number
        charts.painter((64, 64)).paint(frame, out)
        assert out.max() > 200
    untagged = write_planes(tmp_path / "u.mkv", samples(chart(), "yuv444p", 5, False), "yuv444p")
    for wrong in (0, 3, 2):  # RGB, reserved, unspecified
        planes = samples(chart(), "yuv444p", 5, False)
        tags_ = {"colorspace": wrong, "color_range": 1}
        path = write_planes(tmp_path / f"{wrong}.mkv", planes, "yuv444p", tags=tags_)
        assert np.array_equal(painted(path, (64, 64)), painted(untagged, (64, 64)))


def test_hdr_is_tone_mapped_marked_or_rejected(lab: Lab) -> None:
    path = CASES / "pq_ramp.mp4"
    video = lab.decoder(backend="pyav", size=(128, 256)).decode(path)
    assert video.marks == ["tonemapped"]
    assert video.frames[:, :, 0].max() <= 1
    assert video.frames[:, :, -2:].min() >= 253
    marked = lab.decoder(backend="pyav", size=(128, 256), hdr="mark").decode(path)
    assert marked.marks == ["hdr"]
    assert 140 <= marked.frames[:, :, -2:].mean() <= 150
    with pytest.raises(SourceError, match=r"frames\.hdr") as caught:
        lab.decoder(backend="pyav", hdr="reject").decode(path)
    assert caught.value.reason == "hdr"


@pytest.mark.parametrize(
    ("transfer", "white"), [(charts.PQ, 0.5806888810416109), (charts.HLG, 0.75)]
)
@pytest.mark.parametrize("primaries", [1, 9])
def test_reference_white_is_white(
    transfer: int, white: float, primaries: int, tmp_path: Path
) -> None:
    matrix = primaries
    tags = {"colorspace": matrix, "color_range": 1, "color_trc": transfer}
    tags["color_primaries"] = primaries
    for pix_fmt in ("yuv420p10le", "yuv444p12le"):
        for share, least, most in ((1.0, 253, 255), (1.2, 255, 255), (0.0, 0, 0)):
            planes = samples(np.full((64, 64, 3), white * share), pix_fmt, matrix, False)
            path = write_planes(tmp_path / "white.mkv", planes, pix_fmt, tags=tags)
            found = painted(path, (48, 48))
            assert least <= found.min() <= found.max() <= most


ALPHA = {
    "mkv": ("ffv1", ["yuva420p", "yuva444p", "bgra", "gbrap10le", "yuva422p10le", "ya8"]),
    "png.mov": ("png", ["rgba", "ya8", "rgba64be"]),
    "vp9.webm": ("libvpx-vp9", ["yuva420p"]),
    "vp8.webm": ("libvpx", ["yuva420p"]),
    "prores.mov": ("prores_ks", ["yuva444p10le"]),
    "qtrle.mov": ("qtrle", ["argb"]),
}


@pytest.mark.parametrize("ending", ALPHA)
def test_alpha_is_composed_on_the_background(ending: str, lab: Lab) -> None:
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[:, :32], picture[:, 32:64] = (230, 230, 230, 0), (200, 200, 200, 128)
    picture[:, 64:] = (90, 90, 90, 255)
    codec, formats = ALPHA[ending]
    for pix_fmt in formats:
        path = lab.folder / f"{pix_fmt}.{ending}"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25, options={"auto-alt-ref": "0"})
            stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
            stream.codec_context.bit_rate = 4_000_000
            for index in range(3):
                frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format=pix_fmt)
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for backend, background, level in (
            ("pyav", "black", 0),
            ("pyav", "white", 255),
            ("decord", "#404040", 64),
        ):
            decoder = lab.decoder(backend=backend, size=(64, 96), background=background)
            frames = decoder.decode(path).frames.astype(int)
            for column, wanted in ((16, level), (48, (200 + level) / 2), (80, 90)):
                assert np.abs(frames[:, 32, column] - wanted).max() <= 4, (pix_fmt, background)


def test_interlaced_video_is_marked_and_deinterlaced_if_asked(lab: Lab) -> None:
    """Each frame of the file weaves two numbered pictures."""
    path = CASES / "inter.mp4"
    kept = lab.decoder(backend="pyav", size=(128, 128)).decode(path)
    fields = [kept.frames[:, parity::2].astype(int) for parity in (0, 1)]
    assert np.abs(fields[0] - fields[1]).max() > 180
    decoder = lab.decoder(backend="pyav", size=(128, 128), deinterlace=True)
    whole = decoder.decode(path)
    assert kept.marks == whole.marks == ["interlaced"]
    assert np.array_equal(whole.pts_s, kept.pts_s)
    assert np.abs(whole.frames[:, ::2] - fields[0]).mean() < 6  # half a row higher
    assert numbers_of(whole.frames) == numbers_of(kept.frames[:, ::2])
    for at in range(len(whole.frames)):  # however a frame is reached
        one = decoder.decode(path, start_s=whole.pts_s[at], end_s=whole.pts_s[at] + 0.01).frames
        assert np.array_equal(one, whole.frames[at : at + 1]), at
    progressive = CASES / "mkvcrop.mkv"
    same = [lab.decoder(backend="pyav", deinterlace=on).decode(progressive) for on in (True, False)]
    assert np.array_equal(same[0].frames, same[1].frames)


WOVEN = np.full((96, 128, 3), 60, np.uint8)
"""Two fields: the upper one is bright."""
WOVEN[::2] = 200


def is_woven(frames: NDArray[np.uint8]) -> list[bool]:
    return [bool(np.abs(np.diff(one[40:56, 64, 0].astype(int))).max() > 80) for one in frames]


@pytest.mark.parametrize(
    ("transfer", "hdr_first"),
    # After HLG, FFmpeg's HEVC decoder takes the rest for HLG, too.
    [(charts.PQ, False), (charts.PQ, True), (charts.HLG, False)],
)
def test_hdr_in_a_part_of_a_video_is_found_in_that_part(
    transfer: int, hdr_first: bool, tmp_path: Path, lab: Lab
) -> None:
    hdr = {"colorspace": 9, "color_range": 1, "color_trc": transfer, "color_primaries": 9}
    parts = []
    for name, tags, matrix in (("sdr.ts", BT709, 1), ("hdr.ts", hdr, 9)):
        planes = samples(np.full((64, 96, 3), 0.5), "yuv420p10le", matrix, False)
        settings: dict[str, Any] = {"codec": "libx265", "num_frames": 6, "tags": tags}
        parts.append(write_planes(tmp_path / name, planes, "yuv420p10le", **settings).read_bytes())
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts[::-1] if hdr_first else parts))
    for choice, mark in (("tonemap", "tonemapped"), ("mark", "hdr")):
        decoder = lab.decoder(backend="pyav", hdr=choice)
        whole = decoder.decode(path)
        assert (whole.marks, len(whole.frames)) == ([mark], 12)
        halves = [decoder.decode(path, end_s=0.23), decoder.decode(path, start_s=0.25)]
        assert [half.marks for half in halves] == ([[mark], []] if hdr_first else [[], [mark]])
    for on_damage in ("reject", "mark"):  # HDR is no damage
        decoder = lab.decoder(backend="pyav", hdr="reject", on_damage=on_damage)
        spans: list[dict[str, Any]] = [{"end_s": 0.23}, {"start_s": 0.25}]
        sdr, bad = spans[::-1] if hdr_first else spans
        assert decoder.decode(path, **sdr).marks == []
        for span in ({}, bad):
            with pytest.raises(SourceError, match=r"frames\.hdr") as caught:
                decoder.decode(path, **span)
            assert caught.value.reason == "hdr"


def test_interlacing_in_a_part_of_a_video_is_found_in_that_part(tmp_path: Path, lab: Lab) -> None:
    path, parts = tmp_path / "joined.ts", []
    for flags in ("", "tff=1:interlaced=1"):
        part = tmp_path / "part.ts"
        options = {"x264-params": flags, "crf": "5"}
        parts.append(encode(part, [WOVEN] * 6, (96, 128), options=options).read_bytes())
    path.write_bytes(b"".join(parts))
    decoder = lab.decoder(backend="pyav", size=(96, 128), deinterlace=True)
    whole = decoder.decode(path)
    assert whole.marks == ["interlaced"]
    assert is_woven(whole.frames) == [True] * 6 + [False] * 6
    assert decoder.decode(path, end_s=0.2).marks == []
    assert decoder.decode(path, start_s=0.26).marks == ["interlaced"]


@pytest.mark.parametrize(
    ("ending", "codec", "pix_fmt", "order"),
    [
        ("mkv", "ffv1", "yuv420p", "tt"),
        ("mkv", "libx264", "yuv420p", "bb"),
        ("mov", "prores_ks", "yuv422p10le", "tb"),
        ("mov", "png", "rgb24", "bt"),
        ("mov", "v210", "yuv422p10le", "tt"),
    ],
)
def test_interlacing_that_the_container_describes_counts(
    ending: str, codec: str, pix_fmt: str, order: str, lab: Lab
) -> None:
    path = lab.folder / f"fields.{ending}"
    for field_order, is_interlaced in ((order, True), ("progressive", False)):
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "Video: a, b(top first), top first"
            stream: Any = container.add_stream(codec, 25, options={"field_order": field_order})
            stream.height, stream.width, stream.pix_fmt = 96, 128, pix_fmt
            for index in range(3):
                frame = av.VideoFrame.from_ndarray(WOVEN, "rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for deinterlace in (False, True):
            decoder = lab.decoder(backend="pyav", size=(96, 128), deinterlace=deinterlace)
            video = decoder.decode(path)
            assert video.marks == ["interlaced"] * is_interlaced
            assert is_woven(video.frames) == [not (is_interlaced and deinterlace)] * 3


def write_dolby(path: Path, name: bytes, profile: int, compatibility: int) -> Path:
    planes = samples(np.full((64, 96, 3), 0.5), "yuv420p10le", 9, False)
    write_planes(path, planes, "yuv420p10le", codec="libx265")
    record = bytes([1, 0, profile << 1, 6 << 3 | 5, compatibility << 4]) + bytes(19)
    describe_mp4(path, b"hev1", name, record)
    return path


@pytest.mark.parametrize(
    ("name", "profile", "compatibility"), [(b"dvcC", 5, 0), (b"dvvC", 10, 0), (b"dvvC", 20, 0)]
)
def test_dolby_vision_without_a_base_layer_is_rejected(
    name: bytes, profile: int, compatibility: int, lab: Lab
) -> None:
    path = write_dolby(lab.folder / "dolby.mp4", name, profile, compatibility)
    for decoder in (lab.decoder(backend="pyav"), lab.decoder(on_damage="mark", hdr="mark")):
        with pytest.raises(SourceError, match=f"Dolby Vision profile {profile}") as caught:
            decoder.decode(path)
        assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(("profile", "compatibility"), [(7, 6), (8, 1), (8, 4)])
def test_dolby_vision_with_a_base_layer_shows_it(
    profile: int, compatibility: int, lab: Lab
) -> None:
    path = write_dolby(lab.folder / "dolby.mp4", b"dvcC", profile, compatibility)
    plain = path.with_name("plain.mp4")
    plain.write_bytes(path.read_bytes().replace(b"dvcC", b"free"))
    decoder = lab.decoder(backend="pyav")
    assert np.array_equal(decoder.decode(path).frames, decoder.decode(plain).frames)


@pytest.mark.parametrize("colour", ["#12345", "chartreuse?", "mauve", "123456"])
def test_a_background_is_a_colour(colour: str) -> None:
    with pytest.raises(ValueError, match="background"):
        FramesConfig(size=(8, 8), background=colour)
