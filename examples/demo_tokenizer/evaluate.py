"""``python -m examples.demo_tokenizer.evaluate CHECKPOINT VIDEO...``: measures a tokenizer.

Prints JSON: PSNR and SSIM of the reconstruction, how the codebook is used, and what fraction of
codes stays the same in bfloat16.
"""

import argparse
import contextlib
import copy
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from tokpipe.config.checkpoint import read_local, resolve_checkpoint
from tokpipe.config.explain import validate_settings
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.config.tokenizer import AnyTokenizer
from tokpipe.errors import ConfigError, TokpipeError
from tokpipe.media.decoder import VideoDecoder
from tokpipe.media.quality import Frames, Quality
from tokpipe.media.writing import write_png
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.telemetry.usage import CodeUsage


def open_checkpoint(uri: str) -> VideoTokenizer:
    """Build the tokenizer of a local checkpoint folder, or of a built-in one."""
    section, source = resolve_checkpoint({"checkpoint": uri}, read_local, {"root": Path.cwd()})
    config = validate_settings(AnyTokenizer, section, name=source)
    weights = None if config.weights is None else read_local(config.weights)
    tokenizer: VideoTokenizer = build_tokenizer(config, weights, with_decoder=True)
    return tokenizer


def evaluate(
    tokenizer: VideoTokenizer, clips: Iterable[Frames]
) -> tuple[dict[str, float], tuple[Frames, Frames] | None]:
    """Return measures over (T, H, W, 3) clips, and the first clip with its reconstruction."""
    quality, usage, same = Quality(), CodeUsage(tokenizer.traits.codebook_size), 0
    narrow = copy.deepcopy(tokenizer)  # rounding its weights to bfloat16 loses digits
    narrow.compute_in(torch.bfloat16)
    shown: tuple[Frames, Frames] | None = None
    for clip in clips:
        pixels = torch.from_numpy(clip)[None]
        codes = tokenizer.encode(pixels)
        restored = tokenizer.decode(codes)[0].numpy()
        quality.add(clip, restored)
        usage.update(codes)
        same += int((narrow.encode(pixels) == codes).sum())
        shown = shown or (clip, restored)
    measures = {
        "psnr_db": round(quality.psnr_db, 3),
        "ssim": round(quality.ssim, 4),
        "num_frames": quality.num_frames,
        "codes": usage.num_codes,
        "codes_used": usage.num_used,
        "codebook_size": usage.codebook_size,
        "code_entropy_bits": round(usage.entropy_bits, 3),
        "code_perplexity": round(usage.perplexity, 1),
        "bfloat16_code_agreement": round(same / max(1, usage.num_codes), 5),
    }
    return measures, shown


def read_clips(
    path: Path, size: int, frames: int, first: int = 0, last: int | None = None
) -> Iterator[Frames]:
    """Cut frames ``first`` to ``last`` (exclusive) of a video into clips of ``frames``.

    Each clip is (frames, size, size, 3) RGB: scaled to cover the square, and the centre cropped. A
    shorter rest at the end is not used. All frames of the video are held in memory.
    """
    decoder = VideoDecoder(
        DecodeConfig(deadline_s=3600.0),
        SamplingConfig(fps=None, max_clip_frames=sys.maxsize),
        FramesConfig(size=(size, size)),
    )
    with contextlib.closing(decoder):
        video = decoder.decode(path).frames
    last = len(video) if last is None else last
    if not 0 <= first < last <= len(video):
        raise ConfigError(
            f"{path} has {len(video)} frames, so frames {first} to {last} do not exist: change "
            "--start and --end"
        )
    if last - first < frames:
        raise ConfigError(
            f"{path}: {last - first} frames do not fill a clip of {frames}: use fewer --frames"
        )
    for start in range(first, last - frames + 1, frames):
        yield video[start : start + frames]


def side_by_side(source: Frames, restored: Frames, columns: int = 4) -> Frames:
    """(H, W, 3): evenly spaced frames, the source above its reconstruction."""
    chosen = np.linspace(0, len(source) - 1, columns).round().astype(int)
    rows = [np.concatenate(list(frames[chosen]), axis=1) for frames in (source, restored)]
    return np.concatenate(rows, axis=0)


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 if the checkpoint or a video cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_tokenizer.evaluate",
        description="Measure a tokenizer on videos.",
    )
    parser.add_argument("checkpoint", help="folder with config.yaml, or builtin://NAME")
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--size", type=int, default=128, help="rows and columns (128)")
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip (17)")
    parser.add_argument("--start", type=int, default=0, help="first frame of each video (0)")
    parser.add_argument("--end", type=int, help="frame after the last (default: all)")
    parser.add_argument("--picture", type=Path, help="write a PNG, source above reconstruction")
    given = parser.parse_args(arguments)
    if given.picture is not None and not given.picture.parent.is_dir():
        parser.error(f"--picture {given.picture}: the folder {given.picture.parent} does not exist")
    clips = (
        clip
        for path in given.videos
        for clip in read_clips(path, given.size, given.frames, given.start, given.end)
    )
    try:
        measures, shown = evaluate(open_checkpoint(given.checkpoint), clips)
    except (TokpipeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if given.picture is not None and shown is not None:
        write_png(given.picture, side_by_side(*shown))
    sys.stdout.write(json.dumps(measures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
