"""Clip ids and fingerprints: identity as a pure function of content, never of position."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """Return 128 bits of SHA-256 over the canonical JSON of ``value``, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def row_id(dataset: str, source_uri: str, start_s: float | None, end_s: float | None) -> str:
    """Id of one plan row: dataset name, source uri (with any member) and span in seconds."""
    return digest([dataset, source_uri, start_s, end_s])


def clip_id(
    row_id: str, segment: int, num_segments: int, max_clip_frames: int, fps: float | None
) -> str:
    """Id of one clip of a row.

    A row that fits into one clip keeps its own id, so that its id does not depend on the cut.
    A segment's id holds its span, which is counted in frames at ``fps``.
    """
    if num_segments == 1:
        return row_id
    first = segment * max_clip_frames
    return digest([row_id, first, first + max_clip_frames, fps])
