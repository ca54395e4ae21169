"""Pictures as clips of one frame: their colours, which way is up, and what is rejected."""

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.media.conftest import Lab
from tests.pictures import (
    DISPLAY_P3,
    EXTENSIONS,
    as_srgb,
    drawn,
    ink_profile,
    profile,
    with_chunk,
    with_size,
    write_animation,
    write_picture,
)
from tests.videos import write_video
from tokpipe.errors import SourceError, UnfitNode
from tokpipe.media.decoder import Video, VideoDecoder
from tokpipe.types import Media

IMAGE, BOTH = Media("image"), Media("both")
IMAGE_OR_FIRST, BOTH_OR_FIRST = Media("image", True), Media("both", True)
LOSSLESS = ("png", "webp")


def decode(lab: Lab, path: Path, media: Media = IMAGE, **settings: Any) -> Video:
    return lab.decoder(**settings).decode(path, media=media)


def shown(lab: Lab, path: Path, media: Media = IMAGE, **settings: Any) -> NDArray[np.int64]:
    """(H, W, 3) of the one frame of a picture."""
    frames = decode(lab, path, media, **settings).frames
    assert len(frames) == 1
    picture: NDArray[np.int64] = frames[0].astype(np.int64)
    return picture


def reason(lab: Lab, path: Path, media: Media = IMAGE, **settings: Any) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        decode(lab, path, media, **settings)
    return caught.value.reason, str(caught.value)


# What the clip is.


@pytest.mark.parametrize("fps", [8.0, None])
def test_a_picture_is_one_frame_whatever_is_sampled(fps: float | None, lab: Lab) -> None:
    path = write_picture(lab.folder / "a.png", drawn())
    decoder = lab.decoder(fps=fps, min_clip_frames=5, max_clip_frames=9)
    video = decoder.decode(path, start_s=3.0, end_s=8.0, media=IMAGE)
    assert video.frames.shape == (1, 48, 64, 3)
    assert video.pts_s.tolist() == [0.0]
    assert (video.fps, video.num_segments, video.backend) == (fps or 1.0, 1, "pillow")
    assert (video.damage, list(video.marks)) == (None, ["picture"])
    probe = decoder.probe(path, media=IMAGE)
    assert (probe.num_frames, probe.num_segments, probe.is_picture) == (1, 1, True)
    assert probe.shown[:2] == (48, 64)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_each_format_shows_the_picture(extension: str, lab: Lab) -> None:
    picture = drawn()
    found = shown(lab, write_picture(lab.folder / f"a.{extension}", picture))
    allowed = {"jpg": 4, "avif": 16, "gif": 40}.get(extension, 0)
    assert np.abs(found - picture).max() <= allowed


def test_the_content_decides_and_not_the_name(lab: Lab) -> None:
    picture = drawn()
    png = write_picture(lab.folder / "a.png", picture).rename(lab.folder / "picture.mp4")
    assert np.array_equal(shown(lab, png, BOTH), picture)
    video = write_video(lab.folder / "video.mp4", 5).rename(lab.folder / "video.jpg")
    assert len(decode(lab, video, BOTH).frames) == 5
    why, message = reason(lab, video, IMAGE)
    assert why == "not_a_picture"
    assert "set media: both" in message
    why, message = reason(lab, png, Media())
    assert why == "still_picture"
    assert "set media: both or image" in message


def test_text_is_neither(lab: Lab) -> None:
    path = lab.folder / "a.jpg"
    path.write_text("<html>404</html>")
    assert reason(lab, path, IMAGE)[0] == "not_a_picture"
    assert reason(lab, path, BOTH)[0] == "not_a_video"


# Which way is up.


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "avif"])
def test_orientation_is_applied(number: int, extension: str, lab: Lab) -> None:
    image = Image.fromarray(drawn())
    exif = Image.Exif()
    exif[0x0112] = number
    path = write_picture(lab.folder / f"a.{extension}", image, exif=exif)
    with Image.open(path) as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    assert wanted.shape[:2] == ((64, 48) if number > 4 else (48, 64))
    found = shown(lab, path, size=wanted.shape[:2])
    assert np.abs(found - wanted).max() <= (4 if extension == "jpg" else 0)
    # The bucket is that of the picture as it is shown.
    probe = lab.decoder(buckets=((48, 64), (64, 48)), size=None).probe(path, media=IMAGE)
    assert probe.size == wanted.shape[:2]


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_unknown_orientation_is_upright(number: int, lab: Lab) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    path = write_picture(lab.folder / "a.png", drawn(), exif=exif)
    assert np.array_equal(shown(lab, path), drawn())


def test_broken_exif_is_ignored(lab: Lab) -> None:
    path = write_picture(lab.folder / "a.jpg", drawn(), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff")
    assert np.abs(shown(lab, path) - drawn()).max() <= 4
    path = write_picture(lab.folder / "b.jpg", drawn(), exif=b"Exif\0\0nothing of the kind")
    assert np.abs(shown(lab, path) - drawn()).max() <= 4


# Modes and alpha.


def test_grey_and_palettes_become_rgb(lab: Lab) -> None:
    grey = drawn()[..., 0]
    wanted = np.repeat(grey[..., None], 3, axis=2)
    for extension in ("png", "jpg"):
        found = shown(lab, write_picture(lab.folder / f"grey.{extension}", grey))
        assert np.abs(found - wanted).max() <= (2 if extension == "jpg" else 0)
    image = Image.fromarray(drawn()).quantize(64)
    found = shown(lab, write_picture(lab.folder / "palette.png", image))
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    bits = Image.fromarray(grey > 100)
    assert bits.mode == "1"
    found = shown(lab, write_picture(lab.folder / "bits.png", bits))
    assert np.array_equal(found, np.where(wanted > 100, 255, 0))


def test_sixteen_bits_keep_their_brightness(lab: Lab) -> None:
    grey = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    found = shown(lab, write_picture(lab.folder / "grey.png", grey))
    assert np.array_equal(found[..., 1], np.rint(grey / 257))
    colours = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2)
    frame = av.VideoFrame.from_ndarray(colours, format="rgb48le").reformat(format="rgb48be")
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = 64, 48, "rgb48be"
    codec.time_base, frame.pts = Fraction(1), 0
    path = lab.folder / "colours.png"
    path.write_bytes(b"".join(bytes(one) for one in [*codec.encode(frame), *codec.encode(None)]))
    assert np.abs(shown(lab, path) - colours / 257).max() <= 1


def test_cmyk_becomes_rgb(lab: Lab) -> None:
    inks = np.zeros((48, 64, 4), np.uint8)
    inks[:24, :32] = 0, 255, 255, 0  # red
    inks[:24, 32:] = 255, 0, 255, 0  # green
    inks[24:, :32] = 0, 0, 0, 255  # black
    path = write_picture(lab.folder / "a.jpg", Image.fromarray(inks, mode="CMYK"), subsampling=0)
    found = shown(lab, path)
    corners = found[[4, 4, -4, -4], [4, -4, 4, -4]]
    assert np.abs(corners - [[255, 0, 0], [0, 255, 0], [0, 0, 0], [255, 255, 255]]).max() <= 4


@pytest.mark.parametrize("extension", LOSSLESS)
def test_alpha_is_composed_on_the_background(extension: str, lab: Lab) -> None:
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., :3] = 200, 100, 50
    picture[:, 32:, 3] = 255
    picture[:, 16:32, 3] = 128
    path = write_picture(lab.folder / f"a.{extension}", picture, exact=True)
    for background, below in (("black", 0), ("white", 255)):
        found = shown(lab, path, background=background)
        assert (found[:, :16] == below).all()
        assert (found[:, 32:] == [200, 100, 50]).all()
        half = np.rint((np.array([200, 100, 50]) * 128 + below * 127) / 255)
        assert np.abs(found[:, 16:32] - half).max() <= 1


def test_every_kind_of_transparency_shows_the_background(lab: Lab) -> None:
    grey = np.full((48, 64), 90, np.uint8)
    grey[:24] = 10
    with_alpha = Image.merge(
        "LA", [Image.fromarray(grey), Image.fromarray((grey > 50) * np.uint8(255))]
    )
    palette = Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).quantize(4)
    at_top = palette.getpixel((0, 0))
    sixteen = (grey.astype(np.uint16)) * 257
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "LA.png": (with_alpha, {}),
        "P.png": (palette, {"transparency": at_top}),
        "P.gif": (palette, {"transparency": at_top}),
        "L.png": (Image.fromarray(grey), {"transparency": 10}),
        "RGB.png": (palette.convert("RGB"), {"transparency": (10, 10, 10)}),
        "I16.png": (Image.fromarray(sixteen), {"transparency": 2570}),
    }
    for name, (image, options) in pictures.items():
        found = shown(lab, write_picture(lab.folder / name, image, **options), background="white")
        assert (found[:24] == 255).all(), name
        assert (found[24:] == 90).all(), name


# Colour profiles.


@pytest.mark.parametrize("extension", [*LOSSLESS, "jpg", "avif"])
def test_a_display_p3_picture_becomes_srgb(extension: str, lab: Lab) -> None:
    picture = drawn(3)
    wanted = as_srgb(picture, 2.2, DISPLAY_P3)
    assert np.abs(wanted.astype(int) - picture).max() > 30
    icc = profile("RGB ", 2.2, DISPLAY_P3)
    path = write_picture(lab.folder / f"a.{extension}", picture, icc_profile=icc)
    video = decode(lab, path)
    error = np.abs(video.frames[0].astype(int) - wanted)
    assert error.max() <= {"jpg": 25, "avif": 30}.get(extension, 1)
    assert error.mean() <= {"jpg": 1.5, "avif": 2.5}.get(extension, 0.1)
    assert list(video.marks) == ["picture"]


def test_alpha_and_grey_have_profiles_too(lab: Lab) -> None:
    picture = np.dstack([drawn(3), np.full((48, 64), 255, np.uint8)])
    icc = profile("RGB ", 2.2, DISPLAY_P3)
    found = shown(lab, write_picture(lab.folder / "a.png", picture, icc_profile=icc))
    assert np.abs(found - as_srgb(drawn(3), 2.2, DISPLAY_P3)).max() <= 2
    grey = drawn()[..., 1]
    wanted = as_srgb(grey[..., None].repeat(3, axis=2), 1.8)
    assert np.abs(wanted[..., 0].astype(int) - grey).max() > 15
    for space in ("GRAY", "RGB "):  # cameras also write grey pictures with a profile for RGB
        icc = profile(space, 1.8)
        path = write_picture(lab.folder / f"{space.strip()}.png", grey, icc_profile=icc)
        assert np.abs(shown(lab, path) - wanted).max() <= 2, space
        two = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (64, 48), 255)])
        path = write_picture(lab.folder / f"{space.strip()}-a.png", two, icc_profile=icc)
        assert np.abs(shown(lab, path) - wanted).max() <= 2, space


def test_inks_have_profiles_too(lab: Lab) -> None:
    inks = np.zeros((48, 64, 4), np.uint8)
    inks[24:] = 0, 0, 0, 128
    image, icc = Image.fromarray(inks, mode="CMYK"), ink_profile(black=20)
    video = decode(lab, write_picture(lab.folder / "a.jpg", image, icc_profile=icc))
    assert list(video.marks) == ["picture"]
    assert (video.frames[0, :20] >= 253).all()
    # L* = 60 is 28.1 % of the light, of which L* = 20 (3.0 %) becomes black: 25.9 %.
    assert np.abs(video.frames[0, 28:].astype(int) - 139).max() <= 3
    video = decode(lab, write_picture(lab.folder / "b.jpg", image, icc_profile=profile("RGB ", 2)))
    assert list(video.marks) == ["picture", "bad_profile"]
    assert np.abs(video.frames[0, 28:].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    "icc", [b"not a profile", profile("GRAY", 1.0), profile("RGB ", 1.0)[:200]]
)
def test_a_profile_that_cannot_be_used_is_marked(icc: bytes, lab: Lab) -> None:
    path = write_picture(lab.folder / "a.png", drawn(), icc_profile=icc)
    video = decode(lab, path)
    assert np.array_equal(video.frames[0], drawn())
    assert list(video.marks) == ["picture", "bad_profile"]


def test_hdr_is_rejected(lab: Lab) -> None:
    png = write_picture(lab.folder / "a.png", drawn()).read_bytes()
    path = lab.folder / "hdr.png"
    path.write_bytes(with_chunk(png, b"cICP", bytes([9, 16, 0, 1])))
    assert reason(lab, path)[0] == "unsupported"
    path.write_bytes(with_chunk(png, b"cICP", bytes([1, 13, 0, 1])))
    assert np.array_equal(shown(lab, path), drawn())


# Animations.


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "avif"])
def test_an_animation_is_a_picture_only_by_choice(extension: str, lab: Lab) -> None:
    path = write_animation(lab.folder / f"a.{extension}")
    why, message = reason(lab, path, IMAGE)
    assert why == "animation"
    assert "animation_as_picture" in message
    for media in (IMAGE_OR_FIRST, BOTH_OR_FIRST):
        found = shown(lab, path, media)
        assert np.abs(found - drawn()).max() <= {"gif": 40, "avif": 16}.get(extension, 0)
    if extension == "webp":  # which FFmpeg does not read
        assert reason(lab, path, BOTH)[0] == "animation"
    else:
        video = decode(lab, path, BOTH)
        assert len(video.frames) == 4
        assert "picture" not in video.marks


def test_a_gif_that_does_not_move_is_a_picture(lab: Lab) -> None:
    path = write_picture(lab.folder / "a.gif", drawn())
    for media in (IMAGE, BOTH, BOTH_OR_FIRST):
        assert len(decode(lab, path, media).frames) == 1


def test_a_jpeg_with_a_preview_is_a_picture(lab: Lab) -> None:
    path = lab.folder / "a.jpg"
    preview = Image.fromarray(drawn(1, 24, 32))
    image = Image.fromarray(drawn())
    image.save(path, format="MPO", save_all=True, append_images=[preview], quality=98)
    for media in (IMAGE, BOTH):
        assert np.abs(shown(lab, path, media) - drawn()).max() <= 4


# Damage.


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_picture_that_was_cut_short_is_rejected(extension: str, share: float, lab: Lab) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    whole = write_picture(lab.folder / f"a.{extension}", noise).read_bytes()
    path = lab.folder / f"cut.{extension}"
    path.write_bytes(whole[: int(share * len(whole))])
    for media in (IMAGE, BOTH):
        why, message = reason(lab, path, media, on_damage="mark")
        assert why == "corrupt"
        assert "damaged or was cut short" in message


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp"])
def test_a_bomb_is_rejected_by_its_header(extension: str, lab: Lab) -> None:
    image = Image.fromarray(np.dstack([drawn(), drawn()[..., 0]]))  # so that WebP has a VP8X
    image = image if extension == "webp" else image.convert("RGB")
    options = {"icc_profile": profile("RGB ", 2.2)} if extension == "webp" else {}
    small = write_picture(lab.folder / f"a.{extension}", image, **options).read_bytes()
    side = 16_383 if extension == "webp" else 65_500
    path = lab.folder / f"bomb.{extension}"
    path.write_bytes(with_size(small, side, side))
    started = time.process_time()
    for media in (IMAGE, BOTH):
        why, message = reason(lab, path, media, memory_bytes=2**32)
        assert why in {"too_many_pixels", "corrupt"}  # libwebp compares its two headers
        assert why == "too_many_pixels" or extension == "webp"
    assert "100,663,296 pixels" in message or extension == "webp"
    assert time.process_time() - started < 5


def test_a_picture_that_needs_too_much_memory_is_rejected(lab: Lab) -> None:
    path = write_picture(lab.folder / "a.png", Image.new("RGB", (10_000, 10_000)))
    why, message = reason(lab, path, memory_bytes=2**28)
    assert why == "too_large"
    assert "decode.memory_bytes" in message
    assert (shown(lab, path) == 0).all()


def test_other_formats_of_pillow_are_not_read(lab: Lab) -> None:
    for name in ("a.bmp", "a.tiff", "a.ico", "a.ppm", "a.eps", "a.jp2"):
        path = write_picture(lab.folder / name, drawn())
        assert reason(lab, path)[0] == "not_a_picture"


# Without Pillow.


def test_without_pillow_a_decoder_says_what_to_install(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_picture(lab.folder / "a.png", drawn())
    (lab.folder / "PIL").mkdir()
    (lab.folder / "PIL/__init__.py").write_text("raise ImportError('no Pillow here')")
    monkeypatch.syspath_prepend(str(lab.folder))
    decoder: VideoDecoder = lab.decoder(deadline_s=301.0)
    with pytest.raises(UnfitNode, match=r"pip install 'tokpipe\[images\]' on every node"):
        decoder.decode(path, media=IMAGE)
    video = write_video(lab.folder / "v.mp4", 3)
    assert len(lab.decoder(deadline_s=302.0).decode(video).frames) == 3
