"""Colour charts whose samples are computed here, and how far from them decoded pictures are.

``python -m tests.media.charts`` prints the table of docs/data.md in full.
"""

import sys
import tempfile
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.media.container import open_video
from tokpipe.media.framing import Framing, Painter
from tokpipe.media.geometry import Crop, Orientation
from tokpipe.media.timeline import decode_frames

Colours = NDArray[np.float64]
"""(H, W, 3) R'G'B' from 0 to 1."""

UNTAGGED = 2
MATRICES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114)}
MATRICES |= {7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Kr and Kb of ITU-R BT.601, 709 and 2020, SMPTE 240M and FCC, by their number in H.273."""
SIZES = {"native": (128, 128), "down": (48, 64), "up": (208, 192), "one side": (128, 80)}
PQ, HLG = 16, 18


def chart() -> Colours:
    """16 patches of 32x32: the corners of the cube, greys, and colours between."""
    corners = list(product((0.0, 1.0), repeat=3))
    between = [(0.8, 0.2, 0.1), (0.1, 0.6, 0.35), (0.25, 0.3, 0.8), (0.9, 0.7, 0.55)]
    greys = [(grey,) * 3 for grey in (0.02, 0.1, 0.5, 0.9)]
    patches = np.array([*corners, *between, *greys]).reshape(4, 4, 3)
    return np.kron(patches, np.ones((32, 32, 1)))


def samples(colours: Colours, pix_fmt: str, matrix: int, full: bool) -> list[NDArray[Any]]:
    """The planes of a picture, by the arithmetic of H.273."""
    kind = av.VideoFormat(pix_fmt, colours.shape[1], colours.shape[0])
    bits = kind.components[0].bits
    unit, most = 2 ** (bits - 8), 2**bits - 1
    red, green, blue = np.moveaxis(colours, 2, 0)
    if kind.is_rgb:
        low, high = (0, most) if full else (16 * unit, 235 * unit)
        planes = [low + (high - low) * plane for plane in (green, blue, red)]
    else:
        kr, kb = MATRICES[matrix]
        luma = kr * red + (1 - kr - kb) * green + kb * blue
        low, high, swing = (0, most, most) if full else (16 * unit, 235 * unit, 224 * unit)
        planes = [low + (high - low) * luma]
        for primary, k in ((blue, kb), (red, kr)):
            chroma = (primary - luma) / (2 - 2 * k) * swing + 128 * unit
            planes.append(chroma)
    kept = [one for one in kind.components if not one.is_alpha]
    for index, one in enumerate(kept):
        # A chroma sample is the mean of the pixels that it covers; edges are repeated.
        plane = planes[index]
        rows, columns = -(-plane.shape[0] // one.height), -(-plane.shape[1] // one.width)
        spare = one.height * rows - plane.shape[0], one.width * columns - plane.shape[1]
        plane = np.pad(plane, ((0, spare[0]), (0, spare[1])), "edge")
        means = plane.reshape(one.height, rows, one.width, columns).mean((1, 3))
        planes[index] = np.clip(np.rint(means), 0, most)
    return [plane.astype("u1" if bits == 8 else "<u2") for plane in planes[: len(kept)]]


def frame_of(planes: list[NDArray[Any]], pix_fmt: str) -> Any:
    """An ``av.VideoFrame`` of planes; a plane of alpha comes last."""
    height, width = planes[0].shape
    frame: Any = av.VideoFrame(width, height, pix_fmt)
    for plane, target in zip(planes, frame.planes, strict=True):
        lines = np.zeros((plane.shape[0], target.line_size // plane.itemsize), plane.dtype)
        lines[:, : plane.shape[1]] = plane
        target.update(lines.tobytes())
    return frame


def write_planes(
    path: Path,
    planes: list[NDArray[Any]],
    pix_fmt: str,
    *,
    codec: str = "ffv1",
    num_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    matrix: list[int] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Encode a picture; the options make lossless what does not lose anything anyway.

    ``tags`` are attributes of PyAV's codec context, ``matrix`` a display matrix.
    """
    # In one thread and without B-frames, since otherwise x265 may write other times under load.
    x265 = "lossless=1:log-level=none:pools=1:frame-threads=1:bframes=0"
    lossless = {
        "libx264": {"qp": "0", "preset": "ultrafast"},
        "libx265": {"x265-params": x265, "preset": "ultrafast"},
        "libvpx-vp9": {"lossless": "1", "cpu-used": "8"},
    }.get(codec, {})
    frame = frame_of(planes, pix_fmt)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options={**lossless, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
            setattr(frame, name, value)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for index in range(num_frames):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def painter(size: tuple[int, int], **look: Any) -> Painter:
    framing = Framing(size, "stretch", Fraction(1), Orientation(), Crop(), **look)
    return Painter(framing)


def painted(path: Path, size: tuple[int, int], **look: Any) -> NDArray[np.uint8]:
    """The first frame of a file, stretched to a size."""
    out = np.zeros((*size, 3), np.uint8)
    with open_video(path) as (container, stream):
        painter(size, **look).paint(next(decode_frames(container, stream)), out)
    return out


def largest_error(found: NDArray[np.uint8], colours: Colours) -> float:
    """The largest difference within patches, in levels of 255, away from their edges."""
    rows, columns = (found.shape[axis] / colours.shape[axis] for axis in (0, 1))
    worst = 0.0
    for row, column in product(range(0, colours.shape[0], 32), range(0, colours.shape[1], 32)):
        inner = found[
            int((row + 8) * rows) + 1 : int((row + 24) * rows),
            int((column + 8) * columns) + 1 : int((column + 24) * columns),
        ]
        worst = max(worst, float(np.abs(inner - 255 * colours[row, column]).max()))
    return worst


def in_sdr(signal: Colours, transfer: int, primaries: int) -> Colours:
    """HDR R'G'B' on a BT.709 display whose white is 203 cd/m2, by ITU-R BT.2100, 2408 and 1886."""
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        light = 10_000 * light ** (1 / 0.1593017578125)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        light = 1000 * light * (light @ [0.2627, 0.6780, 0.0593])[..., None] ** 0.2
    if primaries == 9:
        to_709 = [
            [1.6605, -0.5876, -0.0728],
            [-0.1246, 1.1329, -0.0083],
            [-0.0182, -0.1006, 1.1187],
        ]
        light = light @ np.array(to_709).T
    return np.clip(light / 203, 0, 1) ** (1 / 2.4)


def cases(*, short: bool) -> list[tuple[Any, ...]]:
    """(codec, file, pix_fmt, full, matrix, transfer), every one decodable without loss."""
    deep = ("yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p12le")
    plain = ("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p")
    grey = ("gray", "gray10le", "gray12le", "gray16le")
    ffv1 = [*plain, *deep, "yuv422p12le", "yuv444p16le", *grey, "gbrp10le", "gbrp12le"]
    codecs = {
        "ffv1": ("mkv", ffv1),
        "libx264": (
            "mp4",
            ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le", "gray10le"],
        ),
        "libx265": ("mkv", ["yuv420p", *deep, "gray", "gray10le", "gray12le", "gbrp"]),
        "libvpx-vp9": ("webm", ["yuv420p", "yuv422p", "yuv444p", "gbrp"]),
    }
    found = []
    for codec, (ending, formats) in codecs.items():
        for pix_fmt, full in product(formats, (False, True)):
            is_rgb = pix_fmt.startswith("gbr")
            if is_rgb and codec != "ffv1" and not full:
                continue
            matrices = [0] if is_rgb else [1] if "gray" in pix_fmt else [*MATRICES]
            for matrix in matrices if codec == "ffv1" and not short else matrices[:1]:
                found.append((codec, ending, pix_fmt, full, matrix, 1))
            if not short or pix_fmt == "yuv420p10le":
                deep_enough = any(bits in pix_fmt for bits in ("10le", "12le", "16le"))
                hdr = [0] if is_rgb else [9]
                found += [
                    (codec, ending, pix_fmt, full, matrix, transfer)
                    for matrix, transfer in product(hdr, (PQ, HLG))
                    if deep_enough
                ]
    return found


def measure(folder: Path, case: tuple[Any, ...]) -> dict[str, float]:
    """The largest error of a case, by size."""
    codec, ending, pix_fmt, full, matrix, transfer = case
    primaries = 1 if transfer == 1 else 9
    colours = chart()
    if pix_fmt.startswith("gray"):
        colours = np.repeat(colours.mean(2, keepdims=True), 3, axis=2)
    if transfer != 1:
        colours = colours * (0.58 if transfer == PQ else 0.75)
    planes = samples(colours, pix_fmt, matrix, full)
    tags = {"colorspace": matrix, "color_range": 1 + full}
    tags |= {"color_trc": transfer, "color_primaries": primaries}
    name = "-".join(map(str, case))
    path = write_planes(folder / f"{name}.{ending}", planes, pix_fmt, codec=codec, tags=tags)
    wanted = colours if transfer == 1 else in_sdr(colours, transfer, primaries)
    return {name: largest_error(painted(path, size), wanted) for name, size in SIZES.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print("codec", "pix_fmt", "range", "matrix", "transfer", *SIZES, sep="\t")
        for case in cases(short="--short" in sys.argv):
            codec, _, pix_fmt, full, matrix, transfer = case
            extent = "full" if full else "limited"
            errors = (f"{error:.1f}" for error in measure(Path(folder), case).values())
            print(codec, pix_fmt, extent, matrix, transfer, *errors, sep="\t")


if __name__ == "__main__":
    main()
