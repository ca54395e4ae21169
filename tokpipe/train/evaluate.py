"""``python -m tokpipe.train.evaluate CHECKPOINT [VIDEO]``: how good a tokenizer is.

Prints JSON: PSNR and SSIM of the reconstruction, how the codebook is used, and how many codes
survive computing in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from tokpipe.config.checkpoint import read_local, resolve_checkpoint
from tokpipe.config.tokenizer import AnyTokenizer
from tokpipe.errors import ConfigError, TokpipeError
from tokpipe.media.quality import Comparison, Quality
from tokpipe.media.writing import write_png
from tokpipe.models.quantizers import CodeUsage
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.train.film import read_film
from tokpipe.train.scenes import make_palette, render_scene

Frames = NDArray[np.uint8]

SCENES_SEED = 1_000_003
"""Of the scenes that are evaluated on; training files have others."""


def open_checkpoint(uri: str) -> VideoTokenizer:
    """Build the tokenizer of a checkpoint folder of this machine, or of one that ships.

    Raises:
        ConfigError: there is no such checkpoint, or its config or weights are wrong.
    """
    section, source = resolve_checkpoint(
        {"checkpoint": uri}, read_local, root=Path.cwd(), environ=os.environ
    )
    try:
        # By way of JSON, because strictness there still lets a list be a tuple.
        config = TypeAdapter(AnyTokenizer).validate_json(json.dumps(section))
    except ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    weights = None if config.weights is None else read_local(config.weights)
    return build_tokenizer(config, weights, with_decoder=True)


@dataclass(frozen=True)
class Report:
    """What was measured."""

    quality: Quality
    usage: CodeUsage
    bfloat16_agreement: float
    """Part of the codes that are the same when the encoder computes in bfloat16, 0 to 1."""

    def as_json(self) -> dict[str, Any]:
        usage = self.usage.summary()
        return {
            "psnr_db": round(self.quality.psnr_db, 3),
            "ssim": round(self.quality.ssim, 4),
            "num_frames": self.quality.num_frames,
            "codes": int(usage["num_codes"]),
            "codes_used": int(usage["num_used"]),
            "codebook_size": self.usage.codebook_size,
            "code_entropy_bits": round(usage["entropy_bits"], 3),
            "code_perplexity": round(usage["perplexity"], 1),
            "bfloat16_code_agreement": round(self.bfloat16_agreement, 5),
        }


def evaluate(
    tokenizer: VideoTokenizer, clips: Iterator[Frames]
) -> tuple[Report, tuple[Frames, Frames] | None]:
    """Encode and decode clips (T, H, W, 3) one by one.

    Returns the report, and the first clip with its reconstruction.
    """
    comparison = Comparison()
    usage = CodeUsage(tokenizer.traits.codebook_size)
    narrow = copy.deepcopy(tokenizer)  # weights that were rounded once stay rounded
    narrow.compute_in(torch.bfloat16)
    same = 0
    shown: tuple[Frames, Frames] | None = None
    for clip in clips:
        pixels = torch.from_numpy(clip)[None]
        codes = tokenizer.encode(pixels)
        restored = tokenizer.decode(codes)[0].numpy()
        comparison.add(clip, restored)
        usage.update(codes)
        same += int((narrow.encode(pixels) == codes).sum())
        shown = shown or (clip, restored)
    report = Report(comparison.quality(), usage, same / max(1, usage.num_codes))
    return report, shown


def chunks_of(film: Frames, frames: int) -> Iterator[Frames]:
    """Cut a film into clips of ``frames``; what is left at the end is not used.

    Raises:
        ConfigError: the film is shorter than one clip.
    """
    if len(film) < frames:
        raise ConfigError(f"{len(film)} frames do not fill a clip of {frames}: give fewer --frames")
    for first in range(0, len(film) - frames + 1, frames):
        yield film[first : first + frames]


def scenes(count: int, frames: int, size: int) -> Iterator[Frames]:
    """Draw scenes that no training file with another seed has seen, textures and all."""
    palette = make_palette(SCENES_SEED, num_textures=60, num_masks=40)
    for scene in range(count):
        rng = np.random.default_rng((SCENES_SEED, 0, scene))
        yield render_scene(palette, rng, frames=frames, height=size, width=size)


def side_by_side(source: Frames, restored: Frames, columns: int = 4) -> Frames:
    """(H, W, 3): evenly spaced frames, the source above its reconstruction."""
    chosen = np.linspace(0, len(source) - 1, columns).round().astype(int)
    rows = [np.concatenate(list(frames[chosen]), axis=1) for frames in (source, restored)]
    return np.concatenate(rows, axis=0)


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 where the checkpoint or the video cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m tokpipe.train.evaluate",
        description="Measure a tokenizer on a video, or on drawn scenes where none is given.",
    )
    parser.add_argument("checkpoint", help="folder with config.yaml, or builtin://NAME")
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=128, help="rows and columns (128)")
    parser.add_argument("--frames", type=int, default=17, help="of a clip (17)")
    parser.add_argument("--start", type=int, default=0, help="first frame of the video (0)")
    parser.add_argument("--end", type=int, help="first frame that is not used (all are)")
    parser.add_argument("--scenes", type=int, default=24, help="how many to draw (24)")
    parser.add_argument("--picture", type=Path, help="PNG to write, source above reconstruction")
    given = parser.parse_args(arguments)
    try:
        tokenizer = open_checkpoint(given.checkpoint)
        if given.video is None:
            clips = scenes(given.scenes, given.frames, given.size)
        else:
            film = read_film(given.video, given.size, given.size, given.start, given.end)
            clips = chunks_of(film, given.frames)
        report, shown = evaluate(tokenizer, clips)
    except (TokpipeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if given.picture is not None and shown is not None:
        write_png(given.picture, side_by_side(*shown))
    sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
