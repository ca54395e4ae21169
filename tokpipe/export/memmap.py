"""Flat files to memory-map: the latent frames of all clips in one array.

The layout is that of 1X's world model challenge (github.com/1x-technologies/1xgpt, ``data.py``):
``video.bin`` holds latent frames (num_images, h, w), ``segment_ids.bin`` one int32 for each, which
counts clips, and ``metadata.json`` their shape and type. ``clips.jsonl`` identifies the clip of
each segment.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.reader import Output


def write(output: Output, folder: Path) -> None:
    """Write all clips, in the order of the manifest. Holds two shards in memory."""
    spec = output.tokenizer
    grid: tuple[int, ...] | None = None
    num_images = 0
    with (
        (folder / "video.bin").open("wb") as video,
        (folder / "segment_ids.bin").open("wb") as segment_ids,
        (folder / "clips.jsonl").open("w") as clips,
    ):
        for number, clip in enumerate(output.clips()):
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
            clips.write(json.dumps(line) + "\n")
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


def count(folder: Path) -> tuple[int, int]:
    """Return (clips, codes) of the arrays that a loader would map."""
    metadata = json.loads((folder / "metadata.json").read_text())
    itemsize = np.dtype(metadata["token_dtype"]).itemsize
    num_codes = metadata["num_images"] * metadata["h"] * metadata["w"]
    id_path, num_images = folder / "segment_ids.bin", metadata["num_images"]
    id_bytes, num_bytes = id_path.stat().st_size, (folder / "video.bin").stat().st_size
    if num_bytes != num_codes * itemsize or id_bytes != 4 * num_images:
        raise CorruptOutput(
            f"export: {folder} is damaged: metadata.json lists {num_images} images, "
            f"but video.bin has {num_bytes} bytes and segment_ids.bin {id_bytes}. A loader "
            "would read wrong codes. Check the disk, and export again"
        )
    last = np.fromfile(id_path, "<i4", offset=max(0, id_bytes - 4))
    return int(last[0]) + 1 if num_images else 0, num_codes
