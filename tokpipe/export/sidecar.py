"""What exports write about a clip besides its codes."""

import json
from typing import Any

from tokpipe.reader import Clip, Output


def sidecar(clip: Clip, output: Output) -> str:
    """Describe a clip as JSON, for formats that have a place for it."""
    values: dict[str, Any] = {
        "clip_id": clip.clip_id,
        "source_uri": clip.source_uri,
        "shape": clip.codes.shape,
        "fps": clip.fps,
        "chunk_latents": [len(chunk.codes) for chunk in clip.chunks],
        "first_is_image": [chunk.first_is_image for chunk in clip.chunks],
        "start_pts_s": clip.chunks[0].start_pts_s,
        "end_pts_s": clip.chunks[-1].end_pts_s,
        "marks": clip.marks,
        "metadata": clip.metadata,
        "fingerprint": output.fingerprint,
    }
    return json.dumps(values, default=str)
