"""Colours against arithmetic on pictures whose samples are computed by the tests."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media import charts
from tests.media.charts import chart, frame_of, painted, samples, write_planes
from tests.media.conftest import Lab
from tests.videos import numbers_of
from tokpipe.config.job import FramesConfig
from tokpipe.errors import SourceError
from tokpipe.media.colour import Look, Tags, conversion

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
                conversion(tags, 64, Look())
            assert "bt709" in conversion(tags, 64, Look(matrix="bt709"))
            continue
        conversion(tags, 64, Look())
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
        for background, level in (("black", 0), ("white", 255), ("#404040", 64)):
            decoder = lab.decoder(backend="pyav", size=(64, 96), background=background)
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


@pytest.mark.parametrize("colour", ["#12345", "chartreuse?", "mauve", "123456"])
def test_a_background_is_a_colour(colour: str) -> None:
    with pytest.raises(ValueError, match="background"):
        FramesConfig(size=(8, 8), background=colour)
