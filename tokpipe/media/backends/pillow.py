"""Pictures as clips of one frame: Pillow reads and converts them, and FFmpeg's scaler scales."""

import contextlib
import functools
import io
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms, UnidentifiedImageError, features

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.colour import Tags
from tokpipe.media.container import MAX_PIXELS
from tokpipe.media.framing import Painter
from tokpipe.media.geometry import Crop, Orientation
from tokpipe.media.timeline import Timeline
from tokpipe.types import Media

# Pillow's other formats include some that start programs or read other files.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
_HEAD = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|.{4}ftyp(?:.{4}){,16}?avi[fs]", re.S
)
_CICP = re.compile(rb"colrnclx..\0[\x10\x12]|cICP.[\x10\x12]", re.S)
"""Where AVIF and PNG name the transfer PQ (16) or HLG (18)."""
_ORIENTATIONS = {n: Orientation(n > 4, n in (3, 4, 7, 8), n in (2, 3, 6, 7)) for n in range(1, 9)}
"""By EXIF's number. Pictures with another number are upright."""
_GREY = ("1", "L", "LA")
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # By the colour space of a profile

_PARTS = ("webp", "avif", "littlecms2", "jpg", "zlib")
if _missing := [name for name in _PARTS if not features.check(name)]:
    raise ImportError(f"this Pillow was built without {', '.join(_missing)}")
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # It only warns up to twice as many
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def versions() -> dict[str, str]:
    parts = {name: features.version(name) for name in ("libjpeg_turbo", *_PARTS[:3])}
    found = {f"pillow {name}": version for name, version in parts.items() if version}
    return {"pillow": PIL.__version__, **found}


def find_picture(path: Path, media: Media) -> Timeline | None:
    """Return the timeline of a picture's one frame, or None for what is to be read as a video. The
    content decides, whatever the file is called. Reads little more than the header."""
    with path.open("rb") as file:
        head = file.read(2**16)
    if not _HEAD.match(head):
        if media.media == "both":
            return None
        found = f"the file is not a JPEG, PNG, WebP, AVIF or GIF; it begins with {head[:48]!r}"
        raise SourceError("not_a_picture", f"{found}. If it is a video, set media: both")
    with _opened(path) as image:
        # A JPEG with several pictures (MPO) is not an animation: others are previews or maps.
        is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
        if is_animated and not media.animation_as_picture:
            if media.media == "both":
                return None
            do = "set animation_as_picture for its first frame, or media: both to read it as video"
            raise SourceError("animation", f"media: image takes no animations: {do}")
        if _CICP.search(head):
            found = "the picture is HDR (PQ or HLG), which cannot be converted to sRGB here"
            raise SourceError("unsupported", f"{found}: use a copy in SDR")
        number = 1
        # Viewers ignore broken EXIF as well.
        with contextlib.suppress(SyntaxError, ValueError, TypeError, struct.error):
            number = image.getexif().get(ExifTags.Base.Orientation, 1)
        upright = _ORIENTATIONS.get(number, Orientation())
        shown = Fraction(1), upright, Crop(), Tags("rgb24", False, 0, 0, 0, 0), False
        timing = np.zeros(1), 1.0, 0.0, None, np.empty((0, 2), np.int64), False
        kind = str(image.format), str(image.format), 0
        return Timeline(*timing, image.height, image.width, *shown, *kind, is_picture=True)


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    """Decode a picture, or the first frame of an animation, into ``out`` (1, H, W, 3) as sRGB."""
    with _opened(task.path) as image:
        image.load()
        picture, alpha, is_as_tagged = _in_srgb(image)
        if alpha is not None:
            picture.putalpha(alpha)
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), "rgba" if alpha else "rgb24")
        Painter(task.framing).paint(frame, out[0])
    task.marks += ["picture"] if is_as_tagged else ["picture", "bad_profile"]
    task.num_written = 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield a picture whose header was read; whatever Pillow raises becomes a ``SourceError``."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except (SourceError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = f"the picture claims to have more than {MAX_PIXELS:,} pixels ({error})"
        raise SourceError("too_many_pixels", f"{found}, so it could take all memory") from error
    except Exception as error:  # of many kinds, as broken files lead Pillow's parsers astray
        is_header = isinstance(error, UnidentifiedImageError)
        found = "its header cannot be read" if is_header else str(error) or type(error).__name__
        message = f"the picture cannot be decoded ({found}): it is damaged or was cut short"
        raise SourceError("corrupt", message) from error


def _in_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None, bool]:
    """Return 8-bit RGB, alpha, and False if there is a colour profile that cannot be used."""
    alpha = None
    grey_or_rgb = "L" if image.mode in _GREY else "RGB"
    if image.mode.startswith("I;16"):  # Pillow would clip it
        samples = np.asarray(image).astype(np.uint32)
        if (transparent := image.info.get("transparency")) is not None:
            alpha = Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))
        colours = Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha, colours = whole.getchannel("A"), whole.convert(grey_or_rgb)
    else:
        colours = image if image.mode == "CMYK" else image.convert(grey_or_rgb)
    if (profile := image.info.get("icc_profile")) is None:
        return colours.convert("RGB"), alpha, True
    try:
        mode, transform = _transform(profile, colours.mode)
        converted = ImageCms.applyTransform(colours.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return colours.convert("RGB"), alpha, False
    assert converted is not None
    return converted, alpha, True


@functools.lru_cache(16)  # most pictures of a dataset share a few profiles
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform]:
    """Return the mode that a picture needs for the transform to sRGB, and that."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    wanted = _MODES.get(space, "")
    if wanted != mode and (mode, wanted) != ("L", "RGB"):
        raise ValueError(f"the profile is for {space}, but the picture is {mode}")
    srgb = ImageCms.createProfile("sRGB")
    return wanted, ImageCms.buildTransform(source, srgb, wanted, "RGB")
