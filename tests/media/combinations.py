"""Random combinations of format, size, crop, rotation, pixel aspect and fit, against geometry.

``python -m tests.media.combinations 1000`` prints how far the worst are off.
"""

import random
import sys
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.media import boxes
from tests.media.charts import Colours, samples, write_planes
from tokpipe.media.backends import Task, pyav
from tokpipe.media.framing import Framing
from tokpipe.media.geometry import FitMode
from tokpipe.media.timeline import read_timeline

FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "gbrp10le", "yuva420p")
CROPS = ("none", "matroska", "clap", "codec")
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
FLIPS = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]
ASPECTS = [Fraction(1), Fraction(4, 3), Fraction(1, 2), Fraction(16, 11)]


@dataclass(frozen=True)
class Combination:
    pix_fmt: str
    coded: tuple[int, int]
    crop: str
    edges: boxes.Edges
    turn: tuple[int, int, int, int]
    aspect: Fraction
    fit: FitMode
    size: tuple[int, int]
    full: bool


def draw(rng: random.Random) -> Combination:
    crop = rng.choice(CROPS)
    is_mp4 = crop in ("clap", "codec") or rng.random() < 0.3
    pix_fmt = rng.choice(FORMATS[:4] if is_mp4 else FORMATS)
    step = 2 if is_mp4 else 1  # x264 has no odd sizes of 4:2:0
    edges = [rng.randrange(0, 12) * (2 if crop == "codec" else 1) for _ in range(4)]
    return Combination(
        pix_fmt,
        (rng.randrange(48, 97, step), rng.randrange(48, 97, step)),
        crop if is_mp4 or crop == "matroska" else "none matroska",
        (0, 0, 0, 0) if crop == "none" else (edges[0], edges[1], edges[2], edges[3]),
        rng.choice(TURNS + FLIPS if is_mp4 else TURNS),
        rng.choice(ASPECTS),
        rng.choice(["crop", "pad", "stretch"]),
        (rng.randrange(24, 120), rng.randrange(24, 120)),
        rng.random() < 0.5,
    )


def gradient(rows: Colours, columns: Colours, coded: tuple[int, int]) -> Colours:
    """Red from left to right, green from top to bottom."""
    red, green = columns / coded[1], rows / coded[0]
    return np.stack([0.1 + 0.8 * red, 0.9 - 0.8 * green, np.full_like(red, 0.4)], axis=-1)


def write(one: Combination, folder: Path) -> Path:
    rows, columns = np.mgrid[: one.coded[0], : one.coded[1]] + 0.5
    colours = gradient(rows, columns, one.coded)
    planes = samples(colours, one.pix_fmt, 0 if "gbr" in one.pix_fmt else 1, one.full)
    if one.pix_fmt == "yuva420p":
        planes.append(np.full(one.coded, 255, np.uint8))
    tags = {"colorspace": 0 if "gbr" in one.pix_fmt else 1, "color_range": 1 + one.full}
    left, right, top, bottom = one.edges
    kept = one.coded[0] - top - bottom, one.coded[1] - left - right
    a, b, c, d = one.turn
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    if "matroska" in one.crop:
        path = folder / "clip.mkv"
        write_planes(path, planes, one.pix_fmt, tags=tags, matrix=matrix)
        shown = kept[0] * one.aspect.denominator, kept[1] * one.aspect.numerator
        boxes.crop_matroska(path, one.edges, shown)
        return path
    path = folder / "clip.mp4"
    options = {"qp": "0", "preset": "ultrafast"}
    if one.crop == "codec":
        options["x264-params"] = f"crop-rect={left},{top},{right},{bottom}"
    write_planes(
        *(path, planes, one.pix_fmt),
        codec="libx264",
        options=options,
        tags=tags,
        matrix=matrix,
        pixel_aspect=one.aspect,
    )
    if one.crop == "clap":
        boxes.crop_mp4(path, one.edges, one.coded)
    return path


def expected(one: Combination) -> Colours:
    """What the gradient is at the middle of each output pixel; NaN in margins."""
    left, right, top, bottom = one.edges
    stored = one.coded[0] - top - bottom, one.coded[1] - left - right
    a, b, c, d = one.turn
    height, width = stored if a else stored[::-1]
    aspect = one.aspect if a else 1 / one.aspect
    out_height, out_width = one.size
    resized = one.size
    if one.fit != "stretch":
        scales = Fraction(out_height, height), out_width / (width * aspect)
        scale = max(scales) if one.fit == "crop" else min(scales)
        bound = max if one.fit == "crop" else min
        resized = (
            bound(out_height, round(height * scale)),
            bound(out_width, round(width * aspect * scale)),
        )
    rows, columns = np.mgrid[:out_height, :out_width] + 0.5
    v = (rows + (resized[0] - out_height) // 2) / resized[0] * height
    u = (columns + (resized[1] - out_width) // 2) / resized[1] * width
    hidden = (v < 0) | (v > height) | (u < 0) | (u > width)
    x = a * u + b * v + (stored[1] if a + b < 0 else 0) + left
    y = c * u + d * v + (stored[0] if c + d < 0 else 0) + top
    colours = gradient(y, x, one.coded)
    colours[hidden] = np.nan
    return colours


def shown(path: Path, size: tuple[int, int], fit: FitMode) -> NDArray[np.uint8]:
    """The first frame of a file."""
    timeline = read_timeline(path)
    aspect, orientation, crop = timeline.pixel_aspect, timeline.orientation, timeline.crop
    framing = Framing(size, fit, aspect, orientation, crop)
    out = np.zeros((*size, 3), np.uint8)
    pyav.decode(Task(path, timeline, np.array([0]), framing), out[None])
    return out


def errors(one: Combination, folder: Path) -> tuple[float, float]:
    """The largest difference to the gradient, and the largest of a channel's mean, in levels.

    A frame's border is left out: filters have nothing to average with there. Margins count.
    """
    out = shown(write(one, folder), one.size, one.fit)
    wanted = expected(one)
    margin = np.isnan(wanted[..., 0])
    difference = out - 255 * np.where(margin[..., None], 0, wanted)
    inside = ~margin
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        for _ in range(3):
            inside &= np.roll(inside, step, axis)
    inside[:3] = inside[-3:] = inside[:, :3] = inside[:, -3:] = False
    counted = difference[inside | margin]
    means = np.abs(difference[inside].mean(0)) if inside.any() else np.zeros(3)
    return float(np.abs(counted).max()), float(means.max())


def main(num: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        drawn = [draw(random.Random(seed)) for seed in range(num)]
        found = [(errors(one, Path(folder)), one) for one in drawn]
        for index, name in ((0, "largest"), (1, "mean")):
            values = sorted(result[0][index] for result in found)
            print(name, "median", f"{values[num // 2]:.2f}", "worst", f"{values[-1]:.2f}")
        for result in sorted(found, key=lambda result: result[0])[-5:]:
            print(*result)


if __name__ == "__main__":
    main(int(sys.argv[1]))
