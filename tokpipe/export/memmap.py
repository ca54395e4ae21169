"""Flat files to memory-map: the latent frames of all clips in one array.

The layout is that of 1X's world model challenge (github.com/1x-technologies/1xgpt, ``data.py``):
``video.bin`` holds latent frames (num_images, h, w), ``segment_ids.bin`` one int32 for each, which
counts clips, and ``metadata.json`` their shape and type. ``clips.jsonl`` identifies the clip of
each segment.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.reader import Clip, Output


def write(clips: Iterable[Clip], output: Output, folder: Path) -> None:
    """Write clips in order. Holds two shards in memory."""
    spec = output.tokenizer
    grid: tuple[int, ...] | None = None
    num_images = 0
    with (
        (folder / "video.bin").open("wb") as video,
        (folder / "segment_ids.bin").open("wb") as segment_ids,
        (folder / "clips.jsonl").open("w") as lines,
    ):
        for number, clip in enumerate(clips):
            codes = clip.codes
            grid = grid or codes.shape[1:]
            if codes.shape[1:] != grid:
                raise ConfigError(
                    f"export: clip {clip.clip_id} has a grid of {codes.shape[1:]}, earlier clips "
                    f"have {grid}, and video.bin is one array. Export this output to another "
                    "format, or tokenize with one frames.size"
                )
            video.write(codes.tobytes())
            segment_ids.write(np.full(len(codes), number, "<i4").tobytes())
            line = {
                "segment_id": number,
                "clip_id": clip.clip_id,
                "source_uri": clip.source_uri,
                "first_image": num_images,
                "num_images": len(codes),
            }
            lines.write(json.dumps(line) + "\n")
            num_images += len(codes)
    height, width = grid or (0, 0)
    metadata: dict[str, Any] = {
        "num_images": num_images,
        **({"s": height} if height == width else {}),
        "h": height,
        "w": width,
        "token_dtype": spec.code_dtype,
        "vocab_size": spec.codebook_size,
        "temporal_stride": spec.temporal_stride,
        "spatial_stride": spec.spatial_stride,
        "tokenizer": spec.name,
        "weights_hash": spec.weights_hash,
        "fingerprint": output.fingerprint,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
