"""What the samples of a frame mean: matrix, range, transfer and alpha."""

import functools
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError

# ITU-T H.273 numbers that FFmpeg's scaler converts; 10 (constant luminance) is read as 9.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m"}
_MATRICES |= {9: "bt2020", 10: "bt2020"}
_UNKNOWN = (8, *range(11, 18))  # YCgCo, ICtCp and others
HD_ROWS = 720
# FFmpeg's scaler rejects reserved tags even of what it does not convert.
_AS_IT_IS = "in_primaries=bt709:in_transfer=bt709"

LIMITED, _FULL = 1, 2
_PQ, _HLG = 16, 18

_REFERENCE_WHITE = 203.0  # cd/m2, ITU-R BT.2408
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2  # the display of ITU-R BT.2100: 75 % is the reference white
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)

_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear BT.2020 to BT.709, by ITU-R BT.2407."""


class Tags(NamedTuple):
    """What a frame says about its samples."""

    format: str
    is_interlaced: bool
    matrix: int
    range: int
    transfer: int
    primaries: int

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (_PQ, _HLG)

    @property
    def is_grey(self) -> bool:
        return self.format.startswith(("gray", "ya"))

    @property
    def is_rgb(self) -> bool:
        kind = av.VideoFormat(self.format)
        return bool(kind.is_rgb or kind.has_palette or kind.is_bayer)

    @property
    def has_alpha(self) -> bool:
        kind = av.VideoFormat(self.format)
        return bool(kind.has_palette or kind.components[-1].is_alpha)


def tags_of(frame: Any) -> Tags:
    """Read the tags of an ``av.VideoFrame``."""
    numbers = frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
    return Tags(frame.format.name, bool(frame.interlaced_frame), *map(int, numbers))


def conversion(tags: Tags, rows: int, chosen: str = "auto") -> str:
    """Return what FFmpeg's scaler needs to make RGB of frames with these tags. The coded rows
    decide for frames without a usable matrix, unless one is chosen for all frames."""
    if tags.is_rgb:
        return _AS_IT_IS
    by_size = "bt2020" if tags.is_hdr else "bt709" if rows >= HD_ROWS else "bt601"
    matrix = _MATRICES.get(tags.matrix, by_size) if chosen == "auto" else chosen
    if chosen == "auto" and tags.matrix in _UNKNOWN and not tags.is_grey:
        found = f"colour matrix {tags.matrix} of ITU-T H.273 (8: YCgCo, 14: ICtCp)"
        do = "cannot be converted to RGB. If the tag is wrong, set frames.matrix"
        raise SourceError("unsupported", f"{found} {do}")
    extent = "full" if tags.range == _FULL or tags.format.startswith("yuvj") else "limited"
    return f"in_color_matrix={matrix}:in_range={extent}:out_range=full:{_AS_IT_IS}"


def compose(picture: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Put (H, W, 4) RGB with straight alpha on a background: (H, W, 3)."""
    alpha = picture[..., 3:].astype(np.uint32)
    below = np.array(background, np.uint32) * (255 - alpha)
    return ((picture[..., :3] * alpha + below + 127) // 255).astype(np.uint8)


def tonemapped(picture: NDArray[np.uint16], tags: Tags) -> NDArray[np.uint8]:
    """Turn HDR into BT.709 as a display shows it: (H, W, 3 or 4) of 16 bits -> of 8 bits.

    The light of the reference display (ITU-R BT.2100, in which PQ is absolute) is divided by the
    reference white, converted to BT.709 primaries and encoded by the inverse of ITU-R BT.1886. So
    what SDR can show looks as it did; what is brighter or more saturated is clipped, per channel.
    """
    light = _light(tags.transfer)[picture[..., :3]]
    if tags.transfer == _HLG:
        light *= ((light @ _BT2020_LUMINANCE) ** (_HLG_GAMMA - 1))[..., None]
        light *= _HLG_PEAK / _REFERENCE_WHITE
    if tags.primaries != 1:
        light = light @ _TO_BT709.T
    # By the square root, since steps of the light would be coarse where it is dark.
    index = (np.sqrt(np.clip(light, 0, 1)) * 65535 + 0.5).astype(np.uint16)
    colours = _codes()[index]
    return np.concatenate([colours, (picture[..., 3:] >> 8).astype(np.uint8)], axis=2)


@functools.cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Light by 16-bit signal: of PQ in units of the reference white, of HLG from the scene."""
    signal = np.minimum(np.arange(65536) / 65280, 1)  # where FFmpeg's scaler ends
    if transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        power = signal ** (32 / 2523)
        ratio = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
        light = 10_000 * ratio ** (16384 / 2610) / _REFERENCE_WHITE
    return light.astype(np.float32)


@functools.cache
def _codes() -> NDArray[np.uint8]:
    """8-bit code by the square root of the light, in 16 bits."""
    return np.rint(255 * (np.arange(65536) / 65535) ** (2 / 2.4)).astype(np.uint8)
