"""Videos in which each pixel says where and when it is, and a tokenizer that repeats it."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.media import boxes
from tests.videos import Picture, encode

Floats = NDArray[np.float64]


class Means(nn.Module):
    """(B, 3, T, H, W) in [0, 1] -> (B, t, h, w, 3): the mean of each colour, from 0 to 255."""

    def __init__(self, stride: int, first: int, side: int) -> None:
        super().__init__()
        self.stride, self.first, self.side = stride, first, side
        self.scale = nn.Parameter(torch.tensor([255.0]))

    def encode(self, x: Tensor) -> Tensor:
        rest = x[:, :, self.first :].unflatten(2, (-1, self.stride)).mean(3)
        return self._means(torch.cat([x[:, :, : self.first].mean(2, keepdim=True), rest], 2))

    def encode_piece(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            return self.encode(x), (x[:, :, :1],)
        return self._means(x.unflatten(2, (-1, self.stride)).mean(3)), state

    def _means(self, x: Tensor) -> Tensor:
        side = self.side
        means = x.unflatten(4, (-1, side)).unflatten(3, (-1, side)).mean((4, 6))
        codes: Tensor = (means * self.scale).round().long().permute(0, 2, 3, 4, 1)
        return codes


def tokenizer(stride: int = 4, first: int = 1, side: int = 8, **traits: Any) -> dict[str, Any]:
    declared = {
        "temporal_stride": stride,
        "first_frames": first,
        "spatial_stride": side,
        "codebook_size": 256,
        "codes_per_position": 3,
        "value_range": [0.0, 1.0],
        "why_not_streamable": None if first == 1 else "it groups frames",
        **traits,
    }
    return {
        "kind": "custom",
        "implementation": "tests.reconstruct.places:Means",
        "arguments": {"stride": stride, "first": first, "side": side},
        "declares": declared,
    }


@dataclass(frozen=True)
class Film:
    """A video of which is known what it shows."""

    size: tuple[int, int]  # (height, width) as stored
    num_frames: int = 40
    fps: Fraction | int = 25
    pts: tuple[int, ...] | None = None  # In milliseconds
    rotation: int = 0
    aspect: Fraction = Fraction(1)
    edges: boxes.Edges = (0, 0, 0, 0)  # What the container hides
    ending: str = "mp4"

    @classmethod
    def drawn(cls, random: Random) -> "Film":
        pts = sorted(random.sample(range(0, 2000, 7), 40)) if random.random() < 0.3 else None
        edges = [2 * random.randrange(0, 8) for _ in range(4)] if random.random() < 0.4 else [0] * 4
        ending = "mkv" if pts is None and random.random() < 0.3 else "mp4"
        tall = random.random() < 0.1
        rates: list[Fraction | int] = [8, 25, 30, Fraction(30_000, 1001)]
        return cls(
            (240, 32) if tall else (2 * random.randrange(32, 64), 2 * random.randrange(32, 64)),
            fps=random.choice(rates),
            pts=None if pts is None else tuple(pts),
            rotation=random.choice([0, 90, 180, 270]) if ending == "mp4" else 0,
            aspect=random.choice([Fraction(1), Fraction(4, 3), Fraction(1, 2)]),
            edges=(edges[0], edges[1], edges[2], edges[3]),
            ending=ending,
        )

    def write(self, path: Path) -> Path:
        """Write the video, without loss, in RGB."""
        path = path.with_suffix(f".{self.ending}")
        times: dict[str, Any] = {} if self.pts is None else {"pts": self.pts}
        if self.pts is not None:
            times["time_base"] = Fraction(1, 1000)
        encode(
            *(path, self._pictures(), self.size),
            codec="libx264rgb",
            pix_fmt="rgb24",
            fps=self.fps,
            rotation=self.rotation,
            pixel_aspect=self.aspect,
            options={"qp": "0", "preset": "ultrafast", "bf": "2"},
            **times,
        )
        if any(self.edges) and self.ending == "mp4":
            boxes.crop_mp4(path, self.edges, self.size)
        elif any(self.edges):
            left, right, top, bottom = self.edges
            kept = self.size[0] - top - bottom, self.size[1] - left - right
            shown = kept[0] * self.aspect.denominator, kept[1] * self.aspect.numerator
            boxes.crop_matroska(path, self.edges, shown)
        return path

    def _pictures(self) -> Iterator[Picture]:
        height, width = self.size
        rows, columns = np.mgrid[:height, :width]
        for number in range(self.num_frames):
            blue = np.full(self.size, 100 + 3 * number)
            colours = [20 + columns * 220 / width, 20 + rows * 220 / height, blue]
            yield np.stack(colours, -1).round().astype(np.uint8)

    def frames(self, path: Path) -> tuple[Floats, NDArray[np.uint8]]:
        """Decode it with nothing of tokpipe: (T,) times and (T, H, W, 3) upright pictures."""
        left, right, top, bottom = self.edges
        with av.open(str(path)) as container:
            decoded = [
                (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24"))
                for frame in container.decode(video=0)
            ]
        times, pictures = zip(*sorted(decoded, key=lambda one: one[0]), strict=True)
        height, width = self.size
        kept = np.stack(pictures)[:, top : height - bottom, left : width - right]
        return np.array(times) - times[0], np.rot90(kept, self.rotation // 90, (1, 2))


def sampled(picture: NDArray[np.uint8], y: float, x: float) -> Floats:
    """What a picture shows at a point; pixel i covers i to i + 1."""
    values: Floats = picture.astype(np.float64)
    for at in (y, x):
        middle = min(max(at - 0.5, 0), len(values) - 1)
        low = min(int(middle), len(values) - 2)
        values = values[low] + (values[low + 1] - values[low]) * (middle - low)
    return values
