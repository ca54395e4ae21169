"""Clip ids and fingerprints: identity as a pure function of content, never of position."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from typing import Any


def digest(value: Any) -> str:
    """Return 128 bits of SHA-256 over the canonical JSON of ``value``, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


SPAN_BYTES = 18
"""Per end of the span: one byte, 1 if it is set, and the seconds as a little-endian float64."""


def span_bytes(start_s: float | None, end_s: float | None) -> bytes:
    """Return a span as ``row_digests`` takes it; zeros stand for an end that is not set."""
    ends = ((end_s is not None, end_s or 0.0) for end_s in (start_s, end_s))
    return b"".join(struct.pack("<?d", is_set, seconds) for is_set, seconds in ends)


def row_digests(dataset: str, source_uris: Iterable[bytes], spans: bytes) -> bytes:
    """Return 16 bytes per plan row: its id, in binary.

    Per row, the first 128 bits of SHA-256 over the dataset's name behind its length (4 bytes,
    little-endian), the source uri (UTF-8) and the span. No two rows share these bytes: the
    name's end is known, and so is the start of the span, which has a fixed size.

    Args:
        dataset: name of the dataset.
        source_uris: one UTF-8 text per row.
        spans: ``SPAN_BYTES`` per row, as ``span_bytes`` gives them.
    """
    name = dataset.encode("utf-8", "surrogatepass")
    head = struct.pack("<I", len(name)) + name
    sha256 = hashlib.sha256
    return b"".join(
        [
            sha256(b"%b%b%b" % (head, uri, spans[at : at + SPAN_BYTES])).digest()[:16]
            for at, uri in zip(range(0, len(spans), SPAN_BYTES), source_uris, strict=True)
        ]
    )


def row_id(dataset: str, source_uri: str, start_s: float | None, end_s: float | None) -> str:
    """Id of one plan row: dataset name, source uri (with any member) and span in seconds."""
    uri = source_uri.encode("utf-8", "surrogatepass")
    return row_digests(dataset, [uri], span_bytes(start_s, end_s)).hex()


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
