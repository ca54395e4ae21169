"""Pictures of every kind that tests need, written by Pillow, and colour profiles made by hand."""

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
"""(X, Y, Z) of red, green and blue under the white D50 of profiles."""

EXTENSIONS = ("jpg", "png", "webp", "avif", "gif")
EXACT: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpg": {"quality": 98}}
"""What Pillow needs to lose little, by extension."""


def drawn(seed: int = 0, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """(H, W, 3) of smooth colours that no rotation and no mirror leaves as they are."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 255 * rows / (height - 1)
    green = 255 * columns / (width - 1)
    blue = np.full_like(red, (seed * 37) % 256)
    return np.stack([red, green, blue], axis=2).round().astype(np.uint8)


def write_picture(path: Path, picture: NDArray[Any] | Image.Image, **options: Any) -> Path:
    """Write a picture in the format that the extension names."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **{**EXACT.get(path.suffix[1:], {}), **options})
    return path


def write_animation(path: Path, num_frames: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    frames = [Image.fromarray(drawn(3 * number, *size)) for number in range(num_frames)]
    options = {**EXACT.get(path.suffix[1:], {}), "duration": 125, "loop": 0}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with a chunk inserted behind its header."""
    chunk = struct.pack(">I", len(data)) + name + data
    chunk += struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def with_size(picture: bytes, height: int, width: int) -> bytes:
    """A JPEG, PNG, GIF or WebP (VP8X) whose header claims another size."""
    if picture.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + picture[24:29]
        return picture[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture[33:]
    if picture.startswith(b"GIF8"):
        return picture[:6] + struct.pack("<HH", width, height) + picture[10:]
    if picture.startswith(b"\xff\xd8"):
        at = picture.index(b"\xff\xc0") + 5
        return picture[:at] + struct.pack(">HH", height, width) + picture[at + 4 :]
    at = picture.index(b"VP8X") + 12
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return picture[:at] + sizes + picture[at + 6 :]


def profile(space: str, gamma: float, primaries: Any = SRGB) -> bytes:
    """An ICC profile (version 2) of a display or of grey, with one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    if space != "RGB ":
        return _profile(b"mntr", space, "XYZ ", {b"kTRC": curve})
    tags = {name: _xyz(*one) for name, one in zip(_COLORANTS, primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", space, "XYZ ", tags)


def ink_profile(black: float) -> bytes:
    """An ICC profile of CMYK whose inks have no colour and are as dark as L* = ``black``."""
    same = bytes(range(256))
    corners = itertools.product((0, 1), repeat=4)
    colours = (bytes([round(2.55 * (black if any(inks) else 100)), 128, 128]) for inks in corners)
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    lut = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * same + b"".join(colours) + 3 * same
    )
    return _profile(b"prtr", "CMYK", "Lab ", {b"A2B0": lut})


def _profile(kind: bytes, space: str, connection: str, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = tags | {b"desc": text, b"wtpt": _xyz(0.9642, 1.0, 0.8249)}
    tags |= {b"cprt": b"text" + bytes(4) + b"none"}
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(data), len(value))
        data += value
    head = bytes(8) + struct.pack(">I", 0x02400000) + kind + space.encode() + connection.encode()
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += _xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def as_srgb(picture: NDArray[np.uint8], gamma: float, primaries: Any = SRGB) -> NDArray[np.uint8]:
    """What a picture with a ``profile`` is in sRGB, by IEC 61966-2-1; colours outside are cut."""
    light = (picture / 255) ** (round(gamma * 256) / 256)
    light = light @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    light = light.clip(0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    rounded: NDArray[np.uint8] = (255 * coded).round().astype(np.uint8)
    return rounded


_COLORANTS = (b"rXYZ", b"gXYZ", b"bXYZ")


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * one) for one in values))
